#!/usr/bin/python
"""Ansible module, for the controller: build what a node gets, one archive for each Python."""
from __future__ import absolute_import, division, print_function

DOCUMENTATION = r"""
module: mdproxy_bundle
short_description: Build the bundle of mdproxy and its dependencies for Python 2 or 3
description:
  - Runs on the controller, with its pip. The node needs neither pip nor a way to the internet.
  - A bundle's name holds a digest of everything that went into it (package, lock, this builder).
    A bundle that is there is not built again.
options:
  source:
    description: Folder of the mdproxy package.
    type: path
    required: true
  lock:
    description: Requirements with exact versions, complete, for that Python.
    type: path
    required: true
  python_major:
    description: The node's Python.
    type: int
    choices: [2, 3]
    required: true
  dest:
    description: Folder for the bundles.
    type: path
    required: true
author: mdproxy maintainers
"""

RETURN = r"""
bundle:
  description: Path of the archive on the controller.
  returned: always
  type: str
release:
  description: Name of the release that it unpacks to.
  returned: always
  type: str
built:
  description: Whether the archive is there; false in check mode when it would have to be built.
  returned: always
  type: bool
"""

import fcntl
import glob
import gzip
import hashlib
import os
import re
import shutil
import sys
import tarfile
import tempfile

from ansible.module_utils.basic import AnsibleModule

# A full lock is given, so pip must not resolve: it would evaluate markers as the controller's Python.
_FETCH = {
    3: ['--only-binary=:all:', '--python-version', '39', '--implementation', 'py',
        '--abi', 'none', '--platform', 'any'],
    2: ['--only-binary=:all:', '--python-version', '27', '--implementation', 'cp',
        '--abi', 'cp27mu', '--platform', 'manylinux2010_x86_64'],
}
_SDIST_ONLY = {2: ('pyroute2',), 3: ()}
# pyroute2 0.5 installs its tests and scripts at top level, and a database that nothing of it needs.
_STRAY = {2: ('bin', 'tests', 'examples', 'pyroute2/ndb'), 3: ('bin',)}
# What pip notes of where it found a wheel: this controller's folders, other ones each time.
_NOTES = ('direct_url.json', 'RECORD')


def _sources(package):
    for folder, folders, names in os.walk(package):
        folders[:] = sorted(set(folders) - set(['__pycache__']))
        for name in sorted(names):
            if name.endswith('.py'):
                path = os.path.join(folder, name)
                yield os.path.relpath(path, os.path.dirname(package)), path


def _digest(module):
    digest = hashlib.sha256(str(module.params['python_major']).encode())
    inputs = list(_sources(module.params['source']))
    inputs += [('lock', module.params['lock']), ('fetch', None)]
    for name, path in inputs:
        content = repr((_FETCH, _SDIST_ONLY, _STRAY, _NOTES)).encode()
        if path:
            with open(path, 'rb') as source:
                content = source.read()
        digest.update(('%s\0%d\0' % (name, len(content))).encode() + content)
    return digest.hexdigest()[:12]


def _version(package):
    with open(os.path.join(package, '__init__.py')) as source:
        return re.search(r"^__version__ = '([^']+)'", source.read(), re.MULTILINE).group(1)


def _pip(module, *words):
    code, out, err = module.run_command([sys.executable, '-m', 'pip', '--quiet',
                                         '--disable-pip-version-check'] + list(words))
    if code:
        module.fail_json(msg='pip %s: %s' % (words[0], (err or out).strip()))


def _gather(module, work):
    """Fill work/lib with the dependencies of the lock and with the package."""
    major, wheels, lib = module.params['python_major'], work + '/wheels', work + '/lib'
    with open(module.params['lock']) as lock:
        pins = [line.strip() for line in lock if line.strip() and not line.startswith('#')]
    sdists = [pin for pin in pins if pin.split('==')[0] in _SDIST_ONLY[major]]
    wheels_only = [pin for pin in pins if pin not in sdists]
    _pip(module, 'download', '--no-deps', '--dest', wheels, *(_FETCH[major] + wheels_only))
    if sdists:
        # With the controller's own setuptools, which is pinned; else pip would fetch one to build with.
        _pip(module, 'wheel', '--no-deps', '--no-build-isolation', '--use-pep517',
             '--wheel-dir', wheels, *sdists)
    _pip(module, 'install', '--no-index', '--no-deps', '--no-compile', '--target', lib,
         *sorted(os.path.join(wheels, name) for name in os.listdir(wheels)))
    for stray in _STRAY[major]:
        shutil.rmtree(os.path.join(lib, stray), ignore_errors=True)
    for folder in os.listdir(lib):
        for note in _NOTES:
            if os.path.exists(os.path.join(lib, folder, note)):
                os.unlink(os.path.join(lib, folder, note))
    for name, path in _sources(module.params['source']):
        target = os.path.join(lib, name)
        if not os.path.isdir(os.path.dirname(target)):
            os.makedirs(os.path.dirname(target))
        shutil.copyfile(path, target)


def _plain(member):
    """The same bytes from the same inputs: no owner, no time, one of two modes."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = 'root'
    member.mode = 0o755 if member.isdir() else 0o644
    return member


def _pack(work, bundle):
    partial = bundle + '.partial'
    with open(partial, 'wb') as raw:
        packed = gzip.GzipFile(filename='', mode='wb', fileobj=raw, mtime=0)
        archive = tarfile.open(fileobj=packed, mode='w')
        archive.add(work + '/lib', arcname='lib', filter=_plain)
        archive.close()
        packed.close()
    os.rename(partial, bundle)


def _build(module, bundle):
    """Build the bundle unless another host's task has done so meanwhile; True when it was built."""
    dest = module.params['dest']
    os.makedirs(dest, exist_ok=True)        # other hosts' tasks may make it at the same moment
    lock = os.open(dest, os.O_RDONLY)       # let go of when this process ends
    fcntl.flock(lock, fcntl.LOCK_EX)
    if os.path.exists(bundle):
        return False
    for left in glob.glob(os.path.join(dest, '.build-*')):      # of a build that was cut short
        shutil.rmtree(left)
    work = tempfile.mkdtemp(prefix='.build-', dir=dest)
    try:
        _gather(module, work)
        _pack(work, bundle)
    finally:
        shutil.rmtree(work)
    return True


def main():
    module = AnsibleModule(supports_check_mode=True, argument_spec=dict(
        source=dict(type='path', required=True), lock=dict(type='path', required=True),
        python_major=dict(type='int', choices=[2, 3], required=True),
        dest=dict(type='path', required=True)))
    release = '%s-%s' % (_version(module.params['source']), _digest(module))
    bundle = os.path.join(module.params['dest'],
                          'mdproxy-%s-py%d.tgz' % (release, module.params['python_major']))
    missing = not os.path.exists(bundle)
    if missing and not module.check_mode:
        missing = _build(module, bundle)
    module.exit_json(changed=missing, bundle=bundle, release=release,
                     built=os.path.exists(bundle))


if __name__ == '__main__':
    main()
