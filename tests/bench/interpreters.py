"""A Python that is measured, and the release that it runs, laid out as the role mdproxy has it:
package and dependencies side by side, byte-compiled, started by path with -Es."""
import json
import os
import pwd
import shutil
import subprocess

import isolation
import processes

USER = 'nobody'         # serves; is on every machine
# Of what it has loaded once requests is imported: where each top-level module is. And itself.
_ASK = '''
import json, os, platform, sys
stdlib = os.path.dirname(os.path.realpath(os.__file__))
import requests
found = set()
for name, module in list(sys.modules.items()):
    path = getattr(module, '__file__', None)
    if '.' not in name and path and name != '__main__':
        path = os.path.realpath(path)
        if 'site-packages' in path or not path.startswith(stdlib + os.sep):
            own = os.path.basename(path).startswith('__init__.')
            found.add(os.path.dirname(path) if own else path)
print(json.dumps({'version': platform.python_version(), 'modules': sorted(found), 'stdlib': stdlib,
                  'prefix': getattr(sys, 'base_prefix', getattr(sys, 'real_prefix', sys.prefix))}))
'''


class Interpreter(object):
    """A Python named as PATH or PATH:FOLDER, where FOLDER has requests. Missing if it has none.

    version, series: '2.7.18', '2.7'. environment: to run `command` in.
    """

    def __init__(self, spec, number, source):
        path, _, site = spec.partition(':')
        found = _ask(path, site)
        self.version = found['version']
        self.series = '.'.join(self.version.split('.')[:2])
        self._prefix, self._stdlib = os.path.realpath(found['prefix']), found['stdlib']
        self.path = os.path.join(self._prefix, 'bin', 'python' + self.series)
        self.environment = self._environment()
        folder = os.path.join(isolation.FOLDER, 'python-%d' % number)
        os.mkdir(folder)
        if not self._runs_as_user():
            self._move_to(os.path.join(folder, 'prefix'))
        self._lib = os.path.join(folder, 'lib')
        self._install(source, found['modules'])

    def command(self, *words):
        """Command line of `mdproxy`, as the launcher of a release has it."""
        return [self.path, '-Es', os.path.join(self._lib, 'mdproxy')] + list(words)

    def owns(self, path):
        """Whether a mapped file is of this interpreter, and so of no process without it."""
        path = os.path.realpath(path) if path[:1] == '/' else ''
        return (path == os.path.realpath(self.path) or path.startswith(self._stdlib + '/')
                or os.path.basename(path).startswith('libpython'))

    def _environment(self):
        """With the libraries that come with it: libpython, or what another release of Debian has."""
        if self._prefix == '/usr':
            return dict(os.environ)
        library = os.path.join(self._prefix, 'lib')
        return dict(os.environ, LD_LIBRARY_PATH='%s/x86_64-linux-gnu:%s' % (library, library))

    def _runs_as_user(self):
        entry = pwd.getpwnam(USER)

        def become():
            os.setgroups([])
            os.setgid(entry.pw_gid)
            os.setuid(entry.pw_uid)
        try:
            return subprocess.call([self.path, '-c', ''], preexec_fn=become, cwd='/',
                                   env=self.environment, stderr=subprocess.DEVNULL) == 0
        except OSError:
            return False

    def _move_to(self, folder):
        """Have it where the serving user may go too."""
        os.mkdir(folder)
        processes.run(['mount', '--bind', self._prefix, folder])
        self._stdlib = self._stdlib.replace(self._prefix, folder, 1)
        self.path = self.path.replace(self._prefix, folder, 1)
        self._prefix = folder
        self.environment = self._environment()
        if not self._runs_as_user():
            raise processes.Missing('user %s may not run %s' % (USER, self.path))

    def _install(self, source, modules):
        leave_out = shutil.ignore_patterns('*.pyc', '__pycache__')
        for path in [os.path.join(source, 'mdproxy')] + modules:
            target = os.path.join(self._lib, os.path.basename(path))
            if os.path.isdir(path):
                shutil.copytree(path, target, ignore=leave_out)
            else:
                shutil.copy(path, target)
        # What is written for the other Python does not compile, and is not imported either.
        subprocess.call([self.path, '-m', 'compileall', '-q', self._lib], env=self.environment,
                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _ask(path, site):
    environment = dict(os.environ, PYTHONPATH=site) if site else None
    try:
        done = subprocess.run([path, '-c', _ASK], env=environment, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, universal_newlines=True)
    except OSError as error:
        raise processes.Missing('%s: %s' % (path, error.strerror))
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ['?'])[-1]
        raise processes.Missing('%s cannot import requests; name its folder, --python %s:FOLDER (%s)'
                                % (path, path, said))
    return json.loads(done.stdout)
