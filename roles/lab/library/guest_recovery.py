#!/usr/bin/python
"""Ansible module: how long guests wait for their metadata after something was broken."""
from __future__ import absolute_import, division, print_function

DOCUMENTATION = r"""
module: guest_recovery
short_description: Break something, then ask as each guest until it is answered its own instance id
options:
  guests:
    description: Each has C(router_id) and C(guest), of which C(name) and C(ec2_id) count.
    type: list
    elements: dict
    required: true
  actions:
    description: Commands that break it, run one after the other; each a list of words.
    type: list
    elements: list
    default: []
  since:
    description: >-
      Seconds of the kernel's clock (CLOCK_MONOTONIC) that waiting is counted from; without it from when the
      actions are done and the router's and the guest's namespace are there.
    type: float
  timeout:
    description: Seconds after which a guest is given up.
    type: float
    default: 30
author: mdproxy maintainers
"""

RETURN = r"""
seconds:
  description: For each guest by name, how long it waited; -1 when it was given up.
  returned: always
  type: dict
"""

import ctypes
import os
import socket

from ansible.module_utils import guest_children
from ansible.module_utils.basic import AnsibleModule

_CLONE_NEWNET = 0x40000000
_CLOCK_MONOTONIC = 1
_PATIENCE = 0.5         # seconds for one connection, and for each read
_PAUSE_MS = 20
_REQUEST = b'GET /latest/meta-data/instance-id HTTP/1.0\r\nHost: 169.254.169.254\r\n\r\n'
_LIBC = ctypes.CDLL(None, use_errno=True)


class _Time(ctypes.Structure):
    _fields_ = [('seconds', ctypes.c_long), ('nanoseconds', ctypes.c_long)]


def now():
    """The kernel's clock, which 2.7 has no name for."""
    found = _Time()
    _LIBC.clock_gettime(_CLOCK_MONOTONIC, ctypes.byref(found))
    return found.seconds + found.nanoseconds / 1e9


def is_there(netns):
    """Whether there is a namespace of this name, and not a name alone."""
    try:
        return os.stat('/var/run/netns/' + netns).st_dev == os.stat('/proc/self/ns/net').st_dev
    except OSError:
        return False


def answer(netns):
    """The body that a guest gets, or None."""
    home = os.open('/proc/self/ns/net', os.O_RDONLY)
    try:
        there = os.open('/var/run/netns/' + netns, os.O_RDONLY)
        _LIBC.setns(there, _CLONE_NEWNET)
        os.close(there)
        sock = socket.socket()
    except (OSError, socket.error):
        return None
    finally:
        _LIBC.setns(home, _CLONE_NEWNET)
        os.close(home)
    sock.settimeout(_PATIENCE)
    try:
        sock.connect(('169.254.169.254', 80))
        sock.sendall(_REQUEST)
        data, piece = b'', sock.recv(65536)
        while piece:
            data, piece = data + piece, sock.recv(65536)
    except (OSError, socket.error):
        return None
    finally:
        sock.close()
    head, _, body = data.partition(b'\r\n\r\n')
    return body.decode('latin-1') if b' 200 ' in head.split(b'\r\n')[0] else None


def wait_for(entry, since, timeout):
    """Seconds that one guest waits, or -1."""
    guest, ends = entry['guest'], now() + timeout
    netns = 'guest-' + guest['name']
    while not (is_there(netns) and is_there('qrouter-' + entry['router_id'])):
        if now() > ends:
            return -1
        _LIBC.poll(None, 0, _PAUSE_MS)
    since = now() if since is None else since
    while answer(netns) != guest['ec2_id']:
        if now() > ends:
            return -1
        _LIBC.poll(None, 0, _PAUSE_MS)
    return round(now() - since, 2)


def main():
    module = AnsibleModule(argument_spec=dict(
        guests=dict(type='list', elements='dict', required=True),
        actions=dict(type='list', elements='list', default=[]),
        since=dict(type='float'), timeout=dict(type='float', default=30)))
    for action in module.params['actions']:
        module.run_command([str(word) for word in action], check_rc=True)
    waited = guest_children.each(
        lambda entry: wait_for(entry, module.params['since'], module.params['timeout']),
        module.params['guests'])
    module.exit_json(changed=bool(module.params['actions']), seconds=dict(
        (entry['guest']['name'], -1 if seconds is None else seconds)
        for entry, seconds in zip(module.params['guests'], waited)))


if __name__ == '__main__':
    main()
