#!/usr/bin/python2.7
"""Asks for metadata as a guest does: ask GUEST PATH [ADDRESS [NAME:VALUE...]], with headers of its own.

ADDRESS is one more of the guest's, to ask from. JSON out: `status`, 0 where no answer comes within 5 seconds,
and `body` in base64.
"""
import base64
import ctypes
import json
import os
import socket
import sys

import httplib

CLONE_NEWNET = 0x40000000


def enter(netns):
    there = os.open('/var/run/netns/' + netns, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(there, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), 'setns')


def main(guest, path, address='', *headers):
    enter('guest-' + guest)
    connection = httplib.HTTPConnection('169.254.169.254', 80, timeout=5,
                                        source_address=(address, 0) if address else None)
    try:
        connection.request('GET', path, headers=dict(header.split(':', 1) for header in headers))
        answer = connection.getresponse()
        status, body = answer.status, answer.read()
    except (socket.error, httplib.HTTPException):
        status, body = 0, ''
    json.dump({'status': status, 'body': base64.b64encode(body)}, sys.stdout)


if __name__ == '__main__':
    main(*sys.argv[1:])
