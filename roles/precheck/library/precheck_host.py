#!/usr/bin/python
"""Ansible module: what a host is like, as far as it could stop a rollout."""
from __future__ import absolute_import, division, print_function

DOCUMENTATION = r"""
module: precheck_host
short_description: Look at what could stop a rollout on this host
description:
  - Tells what is there and judges nothing. Changes nothing, and shows no secret.
options:
  commands:
    description: Commands that are looked for.
    type: list
    elements: str
    default: []
  folders:
    description: Folders that will be written to; those that are not there yet count as their parent.
    type: list
    elements: path
    default: []
  secrets:
    description:
      - Files that may hold a secret already, each with C(path) and C(option), a regular expression for
        its name. The last one counts, as for those who read the file.
    type: list
    elements: dict
    default: []
  routers:
    description: Whether to look into the namespaces of routers.
    type: bool
    default: false
  port:
    description: Port that the proxies take in these.
    type: int
    default: 9697
  asked:
    description: The controller's clock, seconds of Unix time, as it asks.
    type: float
    required: true
author: mdproxy maintainers
"""

RETURN = r"""
missing:
  description: Commands that are not there.
  returned: always
  type: list
ahead:
  description: Seconds that the host's clock is ahead of the controller's, and what the question took.
  returned: always
  type: float
folders:
  description: For each folder C(path), C(free) (bytes for root), C(files) (inodes that are free, -1 where
    the file system has no such number) and C(error), why nothing can be written.
  returned: always
  type: list
secrets:
  description: For each file that holds one C(path) and C(digest), of which nobody finds the secret.
  returned: always
  type: list
namespaces:
  description: Why no network namespace can be made, or empty.
  returned: always
  type: str
routers:
  description: For each router C(router_id), C(error) (why it cannot be entered), C(interfaces) (those that
    lead to guests) and C(taken), who else listens on the port.
  returned: always
  type: list
"""

import errno
import hashlib
import hmac
import os
import re
import time

from ansible.module_utils import namespace_child
from ansible.module_utils.basic import AnsibleModule

_NETNS = '/var/run/netns'
_ROUTER = re.compile(r'qrouter-([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$')
# The words of our own processes. Not those of an l3 agent's: two cannot have the port.
_OURS = re.compile(r'mdproxy')
_SOCKET = re.compile(r'socket:\[(\d+)\]$')


def digest(secret):
    """What tells two secrets apart and neither to anybody; the caller makes it in the same way."""
    return hmac.new(secret.encode('utf-8'), b'mdproxy precheck', hashlib.sha256).hexdigest()[:12]


def look_inside(name, port):
    """From inside a router's namespace: its internal interfaces, and the inodes that listen on the port."""
    namespace_child.enter(name)
    with open('/proc/self/net/dev') as devices:
        names = [line.split(':')[0].strip() for line in devices if ':' in line]
    listening = []
    for path in ('/proc/self/net/tcp', '/proc/self/net/tcp6'):
        if os.path.exists(path):
            with open(path) as table:
                rows = [line.split() for line in table]
            listening += [row[9] for row in rows if len(row) > 9 and row[3] == '0A'
                          and row[1].endswith(':%04X' % port)]
    return dict(interfaces=[name for name in names if name.startswith('qr-')], listening=listening)


def owners():
    """{inode of a socket: command line of a process that has it}."""
    found = {}
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            with open('/proc/%s/cmdline' % pid, 'rb') as words:
                command = words.read().replace(b'\0', b' ').decode('utf-8', 'replace').strip()
            for descriptor in os.listdir('/proc/%s/fd' % pid):
                inode = _SOCKET.match(os.readlink('/proc/%s/fd/%s' % (pid, descriptor)))
                if inode:
                    found[inode.group(1)] = command
        except EnvironmentError:        # it has ended
            continue
    return found


def routers(port):
    """What is in the namespaces of the host's routers."""
    names = sorted(name for name in (os.listdir(_NETNS) if os.path.isdir(_NETNS) else ())
                   if _ROUTER.match(name))
    known, rows = None, []
    for name in names:
        result = namespace_child.run(look_inside, name, port)
        found, others = result.get('value', {}), []
        if found.get('listening'):
            known = owners() if known is None else known
            others = sorted(set(known.get(inode, 'somebody') for inode in found['listening']))
        rows.append(dict(router_id=name[len('qrouter-'):], error=result.get('error', ''),
                         interfaces=found.get('interfaces', []),
                         taken=[command[:100] for command in others if not _OURS.search(command)]))
    return rows


def folder(path):
    """How much can be written to a folder that is there or will be."""
    place = path
    while not os.path.isdir(place) and place != '/':
        place = os.path.dirname(place)
    found, error = os.statvfs(place), ''
    if found.f_flag & getattr(os, 'ST_RDONLY', 1):
        error = os.strerror(errno.EROFS)
    return dict(path=path, free=found.f_frsize * found.f_bfree, error=error,
                files=found.f_ffree if found.f_files else -1)


def secret(path, option):
    """Digest of the value that the option has in a file, or None."""
    try:
        with open(path, 'rb') as lines:
            text = lines.read().decode('utf-8', 'replace')
    except EnvironmentError:
        return None
    pattern = r'(?m)^[ \t]*(?:%s)[ \t]*[=:][ \t]*(?P<value>\S.*?)[ \t]*\r?$' % option
    values = [found.group('value') for found in re.finditer(pattern, text)]
    return digest(values[-1]) if values else None


def main():
    module = AnsibleModule(supports_check_mode=True, argument_spec=dict(
        commands=dict(type='list', elements='str', default=[]),
        folders=dict(type='list', elements='path', default=[]),
        secrets=dict(type='list', elements='dict', default=[], no_log=False),
        routers=dict(type='bool', default=False), port=dict(type='int', default=9697),
        asked=dict(type='float', required=True)))
    wanted = module.params
    digests = [dict(path=one['path'], digest=secret(one['path'], one['option']))
               for one in wanted['secrets']]
    module.exit_json(
        changed=False, ahead=time.time() - wanted['asked'],
        folders=[folder(path) for path in wanted['folders']],
        missing=[name for name in wanted['commands']
                 if not module.get_bin_path(name, opt_dirs=['/sbin', '/usr/sbin'])],
        secrets=[one for one in digests if one['digest']],
        namespaces=(namespace_child.run(namespace_child.enter_new).get('error', '')
                    if wanted['routers'] else ''),
        routers=routers(wanted['port']) if wanted['routers'] else [])


if __name__ == '__main__':
    main()
