#!/usr/bin/python
"""Ansible module: unpack a bundle as a release and make it the current one."""
from __future__ import absolute_import, division, print_function

DOCUMENTATION = r"""
module: mdproxy_release
short_description: Unpack a bundle under its own name and switch the current release to it
description:
  - The release is unpacked and byte-compiled beside its final place and renamed there when it is
    whole, so a release folder that exists is complete. The link C(current) is replaced in one step.
  - The folder C(bin) has the command and launchers under upstream's names, which an l3 agent or an
    init script can be pointed at. They are for that alone and belong on nobody's path.
  - Releases stay, so that going back is a switch of the link, which C(mdproxy_rollback) does. The link
    C(previous) leads to the one before. The oldest beyond I(keep) are removed, those two never.
options:
  bundle:
    description: The bundle on the node, a gzipped tar with one folder C(lib) in it.
    type: path
    required: true
  release:
    description: Name of the release, a folder name.
    type: str
    required: true
  root:
    description: Folder that holds C(releases/) and C(current).
    type: path
    default: /opt/mdproxy
  python:
    description: The interpreter that runs the release.
    type: path
    required: true
  keep:
    description: How many releases stay, the current one included.
    type: int
    default: 5
  keep_configuration:
    description: Where configuration is kept before another release runs; as C(keep) of C(mdproxy_jobs).
    type: dict
author: mdproxy maintainers
"""

RETURN = r"""
path:
  description: Folder of the release.
  returned: always
  type: str
"""

import os
import shutil
import tarfile

from ansible.module_utils import kept_configuration
from ansible.module_utils.basic import AnsibleModule

# -E and -s: neither the caller's environment nor a home directory may choose what is imported.
_LAUNCHER = '''#!/bin/sh
here=$(readlink -f "$0")
exec %(python)s -Es "${here%%/bin/*}/lib/mdproxy" "$@"
'''
_DROP_INS = ('quantum-ns-metadata-proxy', 'quantum-metadata-agent',
             'neutron-ns-metadata-proxy', 'neutron-metadata-agent')


def _launchers(module):
    """Yield (name, text) of what belongs into the folder bin."""
    launcher = _LAUNCHER % module.params
    yield 'mdproxy', launcher
    for name in _DROP_INS:
        yield name, launcher.replace('"$@"', 'drop-in %s "$@"' % name)


def _unpack(module, folder):
    """Unpack the bundle to a folder beside the release's place, compile, rename."""
    partial = os.path.join(os.path.dirname(folder), '.partial-' + os.path.basename(folder))
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial, 0o755)
    archive = tarfile.open(module.params['bundle'])
    try:
        archive.extractall(partial, members=[m for m in archive.getmembers() if _is_plain(m)])
    finally:
        archive.close()
    os.mkdir(os.path.join(partial, 'bin'))
    for name, text in _launchers(module):
        launcher = os.path.join(partial, 'bin', name)
        with open(launcher, 'w') as out:
            out.write(text)
        os.chmod(launcher, 0o755)
    compiled = module.run_command([module.params['python'], '-m', 'compileall', '-q',
                                   os.path.join(partial, 'lib')])
    version = module.run_command([os.path.join(partial, 'bin', 'mdproxy'), '--version'])
    if version[0]:
        shutil.rmtree(partial)
        module.fail_json(msg='release %s does not run with %s: %s' % (
            module.params['release'], module.params['python'],
            (version[2] or compiled[1]).strip()))
    if os.path.isdir(folder):       # of another interpreter, which the node may not have any more
        shutil.rmtree(folder)
    os.rename(partial, folder)


def _is_whole(module, folder):
    """Whether the release is there for this interpreter."""
    try:
        for name, text in _launchers(module):
            with open(os.path.join(folder, 'bin', name)) as launcher:
                if launcher.read() != text:
                    return False
        return True
    except IOError:
        return False


def _is_plain(member):
    return ((member.isfile() or member.isdir()) and not member.name.startswith('/')
            and '..' not in member.name.split('/'))


def _switch(link, target):
    temporary = link + '.new'
    if os.path.lexists(temporary):
        os.unlink(temporary)
    os.symlink(target, temporary)
    os.rename(temporary, link)


def _target(link):
    return os.readlink(link) if os.path.islink(link) else ''


def _prune(root, current, keep):
    """Remove what was cut short, the oldest releases, and bundles of releases that are not there."""
    releases, bundles = os.path.join(root, 'releases'), os.path.join(root, 'bundles')
    in_use = [current] + [name for name in [os.path.basename(_target(os.path.join(root, 'previous')))]
                          if name not in ('', current)]
    others = [name for name in os.listdir(releases) if name not in in_use]
    # Those cut short come last, as if they were the oldest.
    others.sort(key=lambda name: (not name.startswith('.'),
                                  os.path.getmtime(os.path.join(releases, name))), reverse=True)
    stay = [name for name in others[:max(keep - len(in_use), 0)] if not name.startswith('.')] + in_use
    for name in others:
        if name not in stay:
            shutil.rmtree(os.path.join(releases, name))
    for name in os.listdir(bundles) if os.path.isdir(bundles) else ():
        if name.endswith('.tgz') and name[:-len('.tgz')] not in stay:
            os.unlink(os.path.join(bundles, name))


def main():
    module = AnsibleModule(supports_check_mode=True, argument_spec=dict(
        bundle=dict(type='path', required=True),
        release=dict(type='str', required=True),
        root=dict(type='path', default='/opt/mdproxy'),
        python=dict(type='path', required=True),
        keep=dict(type='int', default=5),
        keep_configuration=dict(type='dict', options=kept_configuration.ARGUMENTS)))
    os.umask(0o022)     # whatever root's is: the user that serves has to read all of it
    release, root = module.params['release'], module.params['root']
    folder = os.path.join(root, 'releases', release)
    link = os.path.join(root, 'current')
    target = os.path.join('releases', release)
    before = _target(link)
    unpack, switch = not _is_whole(module, folder), before != target
    if not module.check_mode:
        if unpack:
            _unpack(module, folder)
        if switch:
            if module.params['keep_configuration']:
                kept_configuration.keep(module, module.params['keep_configuration'])
            if before:
                _switch(os.path.join(root, 'previous'), before)
            _switch(link, target)
        if unpack or switch:
            _prune(root, release, module.params['keep'])
    shown = dict(before='', after='')
    if switch:
        shown = dict(before='%s -> %s\n' % (link, before or '(absent)'),
                     after='%s -> %s\n' % (link, target))
    module.exit_json(changed=unpack or switch, path=folder, diff=shown)


if __name__ == '__main__':
    main()
