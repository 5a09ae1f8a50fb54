"""Sockets that listen for guests in a network namespace, and the processes that hold them."""
from __future__ import absolute_import, division, print_function

import ctypes
import os

_CLONE_NEWNET = 0x40000000
_LISTENS = ('00000000:25E1', 'FEA9FEA9:0050')       # as /proc/net/tcp writes them on a little-endian machine
_LIBC = ctypes.CDLL(None)


def listening_sockets(netns):
    """Inodes of those on port 9697, or on 80 of the metadata address; none where there is no namespace."""
    home = os.open('/proc/self/ns/net', os.O_RDONLY)
    rows = []
    try:
        there = os.open('/var/run/netns/' + netns, os.O_RDONLY)
        if _LIBC.setns(there, _CLONE_NEWNET) == 0:      # else it is a name that nothing is mounted on
            with open('/proc/self/net/tcp') as table:
                rows = [line.split() for line in table]
        os.close(there)
    except OSError:
        pass            # it is gone
    finally:
        _LIBC.setns(home, _CLONE_NEWNET)
        os.close(home)
    return sorted(row[9] for row in rows if row[1] in _LISTENS and row[3] == '0A')


def holders():
    """{inode of a socket: pids of the processes that have it open}, of the whole node."""
    found = {}
    for pid in filter(str.isdigit, os.listdir('/proc')):
        for target in _open_files('/proc/%s/fd' % pid):
            if target.startswith('socket:['):
                found.setdefault(target[8:-1], set()).add(int(pid))
    return found


def _open_files(folder):
    targets = []
    try:
        for name in os.listdir(folder):
            targets.append(os.readlink(os.path.join(folder, name)))
    except OSError:
        pass            # the process is gone, or closes the file just now
    return targets
