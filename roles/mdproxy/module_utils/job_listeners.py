"""Whether somebody listens, on a unix socket or on a port of a network namespace, and for whom.

Namespaces are entered by this process itself, by setns(2): a program for each would take seconds where
there are hundreds. A namespace is entered by its name each time, so that a listener in an older one of
the same name does not count.
"""
from __future__ import absolute_import, division, print_function

import ctypes
import errno
import os
import socket
import time

_FOLDER = '/var/run/netns'
_CLONE_NEWNET = 0x40000000
_REST = 3           # times as long as a look takes is waited before the next: it costs processor time


def silent(readies, seconds, patience):
    """Of {key: ready} the keys that do not answer within so many seconds.

    ready: `socket` (a path), or `netns` and `port`. From the moment that one has answered, the others
    are given up when nobody new has for `patience` seconds.
    """
    end = deadline = time.time() + seconds
    waiting = dict(readies)
    while True:
        began = time.time()
        answered = _answering(waiting)
        for key in answered:
            del waiting[key]
        now = time.time()
        if answered:
            deadline = min(end, now + patience)
        if not waiting or now >= deadline:
            break
        time.sleep(max(0.1, _REST * (now - began)))
    return sorted(waiting)


def _answering(readies):
    ports = dict((key, (ready['netns'], ready['port'])) for key, ready in readies.items()
                 if not ready.get('socket'))
    found = listening(set(ports.values()))
    return [key for key, ready in readies.items()
            if (ports[key] in found if key in ports else _accepts(ready['socket']))]


def _accepts(path):
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(path)
        return True
    except (socket.error, OSError):
        return False
    finally:
        probe.close()


def listening(wanted):
    """The set of those (netns, port) on which somebody listens.

    A namespace that does not exist, or cannot be entered, has no listeners.
    """
    return _found_inside(wanted, _listens)


def with_interface(wanted):
    """The set of those (netns, prefix) that have an interface whose name begins so."""
    return _found_inside(wanted, _has_interface)


def _found_inside(wanted, look):
    """The set of those (netns, what) for which look(what), inside the namespace, is true."""
    if not wanted:
        return set()
    found, home = set(), os.open('/proc/self/ns/net', os.O_RDONLY)
    try:
        for netns, what in wanted:
            if _enter(netns) and look(what):
                found.add((netns, what))
    finally:
        if _setns(home):
            raise OSError(ctypes.get_errno(), 'the own network namespace: ' + os.strerror(ctypes.get_errno()))
        os.close(home)
    return found


def _enter(netns):
    try:
        there = os.open(os.path.join(_FOLDER, netns), os.O_RDONLY)
    except OSError:
        return False
    try:
        return _setns(there) == 0
    finally:
        os.close(there)


def _has_interface(prefix):
    with open('/proc/self/net/dev') as table:
        return any(line.strip().startswith(prefix) for line in table)


def _setns(descriptor):
    return ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET)


def _listens(port):
    """True when somebody listens on the port in the namespace that this process is in.

    Nobody else may have the port then, not even with SO_REUSEADDR, which a server's own socket needs so
    that this question is not in its way. /proc/net/tcp says the same and takes 2 ms, because the kernel
    looks through the connections of all namespaces.
    """
    probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(('0.0.0.0', port))
        return False
    except (socket.error, OSError) as error:
        if error.errno == errno.EADDRINUSE:
            return True
        raise
    finally:
        probe.close()
