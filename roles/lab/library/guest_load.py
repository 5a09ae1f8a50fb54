#!/usr/bin/python
"""Ansible module: guests that ask again and again for a while, and every answer that was not theirs."""
from __future__ import absolute_import, division, print_function

DOCUMENTATION = r"""
module: guest_load
short_description: Ask as each guest for some seconds, over kept connections and over new ones
options:
  guests:
    description: Each has C(guest), of which C(name) and C(ec2_id) count.
    type: list
    elements: dict
    required: true
  seconds:
    description: How long, at most.
    type: float
    default: 10
  stop:
    description: A file that ends it when it comes to be there.
    type: path
  retries:
    description: How often a guest asks again, after a second, what was not answered.
    type: int
    default: 0
  per_second:
    description: Requests of each guest in each second, half of them over new connections.
    type: int
    default: 20
author: mdproxy maintainers
"""

RETURN = r"""
answers:
  description: How many requests were answered with the guest's own instance id.
  returned: always
  type: int
failures:
  description: What was said of the others, at most 20.
  returned: always
  type: list
lost:
  description: How many others there were.
  returned: always
  type: int
retried:
  description: How often a guest asked again.
  returned: always
  type: int
silence:
  description: The longest time in seconds that a guest was without an answer.
  returned: always
  type: float
"""

import ctypes
import os
import select
import socket
import time

from ansible.module_utils import guest_children
from ansible.module_utils.basic import AnsibleModule

_CLONE_NEWNET = 0x40000000
_PATIENCE = 5.0         # seconds for one answer, as long as cloud-init waits
_PAUSE = 1.0            # seconds until it asks again
_HEAD = b'GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: 169.254.169.254\r\n'


class Guest(object):
    """One that asks; this process is in its namespace."""

    def __init__(self, expected):
        self.expected, self.kept = expected.encode(), None
        self.answers, self.retried, self.failures = 0, 0, []
        self.silence, self.answered_at = 0.0, time.time()

    def ask_until_answered(self, keep, retries):
        """One request, again when it was not answered."""
        said = self.ask(keep)
        while said and retries:
            retries -= 1
            self.retried += 1
            time.sleep(_PAUSE)
            said = self.ask(keep)
        if said:
            self.failures.append(said)
            return
        now = time.time()
        self.answers += 1
        self.silence, self.answered_at = max(self.silence, now - self.answered_at), now

    def ask(self, keep):
        """One request, over the kept connection or over a new one; what was wrong with the answer."""
        try:
            sock = self.kept if keep and self.kept and not _is_dropped(self.kept) else self.connect()
            self.kept = None if keep else self.kept
            sock.sendall(_HEAD + (b'' if keep else b'Connection: close\r\n') + b'\r\n')
            head, body = self.answer(sock)
        except (socket.error, OSError, ValueError) as error:
            return '%s: %s' % ('kept' if keep else 'new', error or repr(error))
        if keep and b'\r\nconnection: close' not in head.lower():
            self.kept = sock
        else:
            sock.close()
        status = head.split(b'\r\n')[0]
        return '' if b' 200 ' in status and body == self.expected else '%r %r' % (status, body[:100])

    @staticmethod
    def connect():
        return socket.create_connection(('169.254.169.254', 80), _PATIENCE)

    @staticmethod
    def answer(sock):
        data = b''
        while b'\r\n\r\n' not in data:
            data += _received(sock)
        head, _, body = data.partition(b'\r\n\r\n')
        length = int(head.lower().partition(b'\r\ncontent-length:')[2].split(b'\r\n')[0])
        while len(body) < length:
            body += _received(sock)
        return head, body


def _is_dropped(sock):
    """Whether the other side has closed an idle connection; urllib3 asks so before it uses one."""
    return bool(select.select([sock], [], [], 0)[0])


def _received(sock):
    piece = sock.recv(65536)
    if not piece:
        raise ValueError('closed without an answer')
    return piece


def load(entry, params):
    """In a child: what became of one guest's requests."""
    with open('/var/run/netns/guest-' + entry['guest']['name']) as netns:
        ctypes.CDLL(None).setns(netns.fileno(), _CLONE_NEWNET)
    guest, end, number = Guest(entry['guest']['ec2_id']), time.time() + params['seconds'], 0
    while time.time() < end and not (params['stop'] and os.path.exists(params['stop'])):
        guest.ask_until_answered(number % 2 == 0, params['retries'])
        number += 1
        time.sleep(1.0 / params['per_second'])
    return dict(answers=guest.answers, failures=guest.failures[:20], lost=len(guest.failures),
                retried=guest.retried, silence=guest.silence)


def main():
    module = AnsibleModule(argument_spec=dict(
        guests=dict(type='list', elements='dict', required=True),
        seconds=dict(type='float', default=10), per_second=dict(type='int', default=20),
        stop=dict(type='path'), retries=dict(type='int', default=0)))
    loads = guest_children.each(lambda entry: load(entry, module.params), module.params['guests'])
    total = dict(answers=0, failures=[], lost=0, retried=0, silence=0.0)
    for told in loads:
        for name, value in (told or dict(failures=['a guest died'], lost=1)).items():
            total[name] = max(total[name], value) if name == 'silence' else total[name] + value
    module.exit_json(changed=False, **total)


if __name__ == '__main__':
    main()
