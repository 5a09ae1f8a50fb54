#!/usr/bin/python
"""Ansible module: bytes sent from inside a namespace, and what came back."""
from __future__ import absolute_import, division, print_function

DOCUMENTATION = r"""
module: guest_request
short_description: Connect from a namespace, send bytes, read the answer to its end
options:
  netns:
    description: The namespace to connect from; the host's own where none is named.
    type: str
    default: ""
  host:
    description: Address to connect to.
    type: str
    default: 169.254.169.254
  port:
    description: Port to connect to.
    type: int
    default: 80
  lines:
    description: Lines of the request's head, sent with CRLF between them and an empty line after.
    type: list
    elements: str
    default: []
  body:
    description: Body in base64, sent after the head.
    type: str
    default: ""
  timeout:
    description: Seconds for the connection and for each read.
    type: float
    default: 10
author: mdproxy maintainers
"""

RETURN = r"""
connected:
  description: Whether a connection came about.
  returned: always
  type: bool
error:
  description: Why not, or why the answer ended early.
  returned: always
  type: str
status:
  description: Status of the answer, 0 without one.
  returned: always
  type: int
head:
  description: Head of the answer.
  returned: always
  type: str
body:
  description: Body of the answer in base64.
  returned: always
  type: str
"""

import base64
import ctypes
import os
import socket

from ansible.module_utils.basic import AnsibleModule

_CLONE_NEWNET = 0x40000000


def enter(netns):
    descriptor = os.open('/var/run/netns/' + netns, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.close(descriptor)


def exchange(params):
    """The module's result; the request should ask for `Connection: close`."""
    result = dict(connected=False, error='', status=0, head='', body='')
    received = b''
    try:
        connection = socket.create_connection((params['host'], params['port']), params['timeout'])
        result['connected'] = True
        if params['lines']:
            connection.sendall(('\r\n'.join(params['lines']) + '\r\n\r\n').encode('latin-1')
                               + base64.b64decode(params['body']))
            data = connection.recv(65536)
            while data:
                received += data
                data = connection.recv(65536)
        connection.close()
    except (socket.error, OSError) as error:
        result['error'] = str(error)
    head, _, body = received.partition(b'\r\n\r\n')
    if head.startswith(b'HTTP/'):
        result.update(status=int(head.split()[1]), head=head.decode('latin-1'))
    result['body'] = base64.b64encode(body).decode()
    return result


def main():
    module = AnsibleModule(supports_check_mode=True, argument_spec=dict(
        netns=dict(type='str', default=''), host=dict(type='str', default='169.254.169.254'),
        port=dict(type='int', default=80), lines=dict(type='list', elements='str', default=[]),
        body=dict(type='str', default=''), timeout=dict(type='float', default=10)))
    try:
        if module.params['netns']:
            enter(module.params['netns'])
    except (IOError, OSError) as error:
        module.fail_json(msg='namespace %s: %s' % (module.params['netns'], error.strerror))
    module.exit_json(changed=False, **exchange(module.params))


if __name__ == '__main__':
    main()
