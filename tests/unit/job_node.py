"""A node for the modules that keep jobs.

Its service manager is a stand-in for systemctl that keeps what systemd keeps: the unit files as they
were when it read them last, what is enabled, and real processes.
"""
import grp
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile

import ansible_module
from loopback import wait_until

USER, GROUP = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name

# show, list-units, daemon-reload, enable, disable, reset-failed, restart, kill, stop. As systemd it runs
# a unit as it was when last read: a unit file that changed counts after daemon-reload, one not read yet
# when it is first asked for.
SYSTEMCTL = r'''#!%(python)s
import fnmatch, json, os, shlex, subprocess, sys, time
folder = %(folder)r
command, words = sys.argv[1], [w for w in sys.argv[2:] if not w.startswith('-')]
with open(folder + '/calls', 'a') as calls:
    calls.write(' '.join(sys.argv[1:]) + '\n')
state = json.load(open(folder + '/state.json'))
def unit_file(name):
    try:
        with open(folder + '/units/' + name) as unit:
            return unit.read()
    except IOError:
        return None
def alive(name):
    pid = state['pids'].get(name, 0)
    try:
        with open('/proc/%%d/stat' %% pid) as found:
            return pid if found.read().rsplit(')', 1)[1].split()[0] != 'Z' else 0
    except IOError:
        return 0
if command == 'show':
    blocks = []
    for name in words[1:]:
        enabled = 'enabled' if name in state['enabled'] else 'disabled' if unit_file(name) else ''
        blocks.append('MainPID=%%d\nUnitFileState=%%s\nId=%%s\n' %% (alive(name), enabled, name))
    sys.stdout.write('\n'.join(reversed(blocks)))
elif command == 'list-units':
    for name in sorted(set(n for n in state['loaded'] if unit_file(n) or alive(n))):
        if any(fnmatch.fnmatch(name, pattern) for pattern in words):
            print(name + ' loaded ' + ('active running' if alive(name) else 'inactive dead') + ' text')
elif command == 'daemon-reload':
    state['loaded'] = dict((n, unit_file(n)) for n in state['loaded'] if unit_file(n))
elif command == 'stop':
    for name in words:
        if alive(name) and name not in state['stubborn']:
            os.kill(alive(name), 15)
            while alive(name):
                time.sleep(0.01)
elif command == 'disable':
    state['enabled'] = sorted(set(state['enabled']) - set(words))
elif command == 'enable':
    for name in words:
        if unit_file(name) is None:
            sys.exit('Failed to enable unit: Unit file %%s does not exist.' %% name)
    state['enabled'] = sorted(set(state['enabled'] + words))
elif command in ('restart', 'kill'):        # whatever is killed is started again, as with Restart=always
    for name in words:
        if alive(name):
            os.kill(alive(name), 15)
        unit = state['loaded'].setdefault(name, unit_file(name))
        if unit is None:
            sys.exit('Failed to restart %%s: Unit %%s not found.' %% (name, name))
        line = [l for l in unit.splitlines() if l.startswith('ExecStart=')][0]
        with open(os.devnull) as null, open(folder + '/journal', 'a') as journal:
            state['pids'][name] = subprocess.Popen(shlex.split(line[10:]), stdin=null, stdout=journal,
                                                   stderr=journal, start_new_session=True).pid
elif command != 'reset-failed':
    sys.exit('Unknown command verb %%s.' %% command)
with open(folder + '/state.json', 'w') as out:
    json.dump(state, out)
'''
JOURNALCTL = '#!/bin/sh\nexec tail -n 15 %(folder)s/journal\n'

# What a job runs; a minute is longer than any test.
SERVER = '''
import os, signal, socket, sys
signal.alarm(60)
if 'fail' in sys.argv:
    sys.exit('no agent today')
path = sys.argv[1]
listener = socket.socket(socket.AF_UNIX)
listener.bind(path + '.new')
listener.listen(5)
os.rename(path + '.new', path)
while True:
    listener.accept()[0].close()
'''


class Node(object):
    """A node with its service manager, two releases and one job for each name."""

    def __init__(self, tmpdir):
        self.tmpdir = tmpdir
        self.units, self.etc = tmpdir.mkdir('units'), tmpdir.join('etc')
        self.state_path = tmpdir.join('state.json')
        self.state_path.write(json.dumps(dict(pids={}, enabled=[], loaded={}, stubborn=[])))
        self.bin = tmpdir.mkdir('bin')
        values = dict(python=sys.executable, folder=str(tmpdir))
        for name, text in (('systemctl', SYSTEMCTL), ('journalctl', JOURNALCTL)):
            self.bin.join(name).write(text % values)
            os.chmod(str(self.bin.join(name)), 0o755)
        for release in ('1', '2'):
            tmpdir.join('releases', release, 'lib', 'server.py').write(SERVER, ensure=True)
        self.release = '1'
        self.checks, self.words, self.secret = {}, {}, 'hunter2'
        self.spawned, self.sockets = [], tempfile.mkdtemp()      # a socket's path has 107 bytes at most

    def path_of(self, name):
        return os.path.join(self.sockets, name)

    def job(self, name):
        unit = '[Service]\nExecStart=%s %s %s %s\n' % (
            sys.executable, self.tmpdir.join('releases', self.release, 'lib', 'server.py'),
            self.path_of(name), self.words.get(name, ''))
        return dict(name=name, ready=dict(socket=self.path_of(name)), check=self.checks.get(name, []), files=[
            dict(path=str(self.etc.join(name + '.ini')), mode='0640', owner=USER, group=GROUP),
            dict(path=str(self.units.join(name + '.service')), content=unit, owner=USER, group=GROUP)])

    def run(self, *names, **kwargs):
        names = names or ('agent', 'proxy')
        arguments = dict(service_manager='systemd', jobs=[self.job(name) for name in names],
                         release=str(self.tmpdir.join('releases', self.release)),
                         run_dir=str(self.tmpdir.join('marks')), wait=kwargs.pop('wait', 10), secrets=dict(
                             (str(self.etc.join(name + '.ini')), '[DEFAULT]\nsecret = %s\n' % self.secret)
                             for name in names))
        return ansible_module.run('mdproxy_jobs', arguments, path=self.bin, **kwargs)

    def routers(self, *ids, **entry):
        """An entry with items, one for each id; what differs is given."""
        job = self.job('proxy-{item}')
        return dict(job, items=list(ids), **entry)

    def run_with(self, jobs=(), **arguments):
        """Run the module with these jobs; `check` and the module's own arguments are given."""
        check = arguments.pop('check', False)
        arguments = dict(dict(service_manager='systemd', jobs=list(jobs), wait=10,
                              release=str(self.tmpdir.join('releases', self.release)),
                              run_dir=str(self.tmpdir.join('marks')),
                              secrets={str(self.etc.join('proxy-{item}.ini')): 'for = {item} {other}\n'}),
                         **arguments)
        return ansible_module.run('mdproxy_jobs', arguments, path=self.bin, check=check)

    def prune(self, **entry):
        """What should not be there: a router's job and its files."""
        return dict(name='proxy-{item}', files=[str(self.etc.join('proxy-{item}.ini')),
                                                str(self.units.join('proxy-{item}.service'))], **entry)

    def spawn(self, *words):
        """The pid of a process that runs as mdproxy does, with these words; ended with the node."""
        program = self.tmpdir.join('elsewhere', 'lib', 'mdproxy')
        program.write('import signal, sys\nsignal.alarm(60)\nprint(1)\nsys.stdout.flush()\nsignal.pause()\n',
                      ensure=True)
        process = subprocess.Popen([sys.executable, '-Es', str(program)] + list(words),
                                   stdout=subprocess.PIPE)
        process.stdout.readline()       # then it has its words
        self.spawned.append(process)
        return process

    def pids(self):
        return json.loads(self.state_path.read())['pids']

    def calls(self):
        """The commands since the last look."""
        calls = self.tmpdir.join('calls')
        lines = calls.read().splitlines() if calls.check() else []
        calls.write('')
        return lines

    def marks(self):
        folder = str(self.tmpdir.join('marks'))
        return os.listdir(folder) if os.path.isdir(folder) else []

    def files(self):
        """{path: (content, mode)} of everything that is not the stand-in's own."""
        found = {}
        for folder in (str(self.units), str(self.etc)):
            for name in os.listdir(folder) if os.path.isdir(folder) else ():
                path = os.path.join(folder, name)
                with open(path) as content:
                    found[path] = content.read(), stat.S_IMODE(os.stat(path).st_mode)
        return found

    def kill(self, name):
        pid = self.pids()[name + '.service']
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not runs(pid))

    def close(self):
        shutil.rmtree(self.sockets)
        for process in self.spawned:
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdout.close()
        for pid in self.pids().values():
            if runs(pid):
                os.kill(pid, signal.SIGKILL)


def runs(pid):
    """Whether a process is there and alive."""
    try:
        with open('/proc/%d/stat' % pid) as found:
            return found.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except IOError:
        return False
