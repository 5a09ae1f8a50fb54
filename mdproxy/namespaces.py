"""From root to a listening socket inside a router's namespace, and back out of it.

A socket belongs to the namespace that it was made in, whoever uses it later. So the opener enters
the router's namespace, makes the socket and comes back; what the server connects to is reached
through the host's network. A namespace that does not exist is never created, and nothing is
resolved while inside.

A namespace is its inode and not its name: the l3 agent deletes namespaces and makes others of the
same names (`inode`). A socket in the old one goes on listening, where nobody is any more.

setns(2) is called through the C library. To import pyroute2 for it takes 83 ms on 2.7 and 150 ms on
3.11 (27 and 49 ms without the rest of pyroute2), where opener and server together take 50 and 70 ms
to the first answer.
"""
from __future__ import unicode_literals

import errno
import os
import socket
import struct
from contextlib import contextmanager

# Native str, as names of files are: on 2.7 one that is no text could not be compared with text.
FOLDER = str('/var/run/netns')
PREFIXES = {str('router'): str('qrouter-'), str('network'): str('qdhcp-')}  # l3 and dhcp agent's names

_INTERNAL = 'qr-'
_BACKLOG = 65535        # the kernel cuts it to net.core.somaxconn
# Bytes that the kernel keeps of an answer for a guest, of its own choice up to 4 MB. It tells of room
# when a third is free, and a slow guest must free that within write_timeout.
_SEND_BUFFER = 131072
_CLONE_NEWNET = 0x40000000
# 2.7 does not know these by name; the numbers are those of <asm-generic/socket.h>.
_SO_DOMAIN = getattr(socket, 'SO_DOMAIN', 39)
_SO_REUSEPORT = getattr(socket, 'SO_REUSEPORT', 15)
_SO_ATTACH_REUSEPORT_CBPF = 51      # <asm-generic/socket.h>; Python has no name for it
_BPF_RETURN = 0x06                  # BPF_RET | BPF_K of <linux/bpf_common.h>
_SO_ACCEPTCONN = getattr(socket, 'SO_ACCEPTCONN', 30)
_OWN = '/proc/self/ns/net'


class NamespaceError(Exception):
    """A namespace or an address in it cannot be had; the message says which and why."""


class NoAddressError(NamespaceError):
    """The address to listen on is none of the namespace's, so far."""


def inode(netns):
    """(device, number) of the named namespace, or None when there is none.

    `ip netns add` makes the name first and the namespace a moment later; a name alone is none.
    """
    try:
        found = os.stat(os.path.join(FOLDER, netns))
        return (found.st_dev, found.st_ino) if found.st_dev == os.stat(_OWN).st_dev else None
    except OSError:
        return None


def own_inode():
    """(device, number) of the namespace that this process is in, as `inode` gives it."""
    found = os.stat(_OWN)
    return found.st_dev, found.st_ino


@contextmanager
def inside(netns):
    """Be in the named namespace, or with None where this process is; then back again.

    What is started meanwhile stays there. Raises NamespaceError.
    """
    if netns is None:
        yield
        return
    try:
        there = os.open(os.path.join(FOLDER, netns), os.O_RDONLY)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise NamespaceError('namespace %s does not exist; is the router on this host?' % netns)
        raise NamespaceError('namespace %s cannot be entered: %s' % (netns, _why(error)))
    try:
        try:
            home = os.open(_OWN, os.O_RDONLY)
        except OSError as error:
            raise NamespaceError('namespace %s is not entered: no way back: %s' % (netns, _why(error)))
        try:
            _enter(there, 'namespace ' + netns)
            try:
                yield
            finally:
                _return_to(home)
        finally:
            os.close(home)
    finally:
        os.close(there)


def internal_interfaces():
    """Names of the interfaces to guests, as the l3 agent gives them, in the namespace that this is in."""
    with open('/proc/self/net/dev') as table:
        names = [line.split(':')[0].strip() for line in table if ':' in line]
    return [name for name in names if name.startswith(_INTERNAL)]


def run_ip(*words):
    """Run `ip` in the namespace that this is in. Raises NamespaceError with what it said."""
    import subprocess  # here, as ctypes in _enter
    try:
        process = subprocess.Popen(('ip',) + words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   close_fds=True)
    except OSError as error:
        raise NamespaceError('ip cannot be run: %s' % error.strerror)
    said = process.communicate()[0].decode('utf-8', 'replace').strip()
    if process.returncode:
        raise NamespaceError('ip %s: %s' % (' '.join(words), said))


def _return_to(home):
    """Whoever cannot go home must not go on: it would be in a tenant's network."""
    try:
        _enter(home, 'the namespace that it was started in')
    except NamespaceError as error:
        os.write(2, ('mdproxy: %s\n' % error).encode('utf-8'))
        os._exit(1)


def open_listener(host, port, netns=None):
    """A listening TCP socket at host:port, inside the named namespace or else in this one.

    Raises NamespaceError when there is no such namespace or the address cannot be taken there.
    """
    listener = bind(host, port, netns)
    listen(listener, netns)
    return listener


def bind(host, port, netns=None, shared=False, only_ipv6=False):
    """As `open_listener`, but nobody can connect before `listen`.

    shared: another socket of the same user that is shared too may listen there. only_ipv6: one at all
    addresses is not for IPv4, so that there can be one for that beside it.
    """
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    with inside(netns):
        try:
            bound = socket.socket(family, socket.SOCK_STREAM)
        except (OSError, IOError) as error:
            raise _refused(error, netns, host, port)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            _let_share(bound)
        if only_ipv6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Accepted sockets inherit both, which saves calls for every connection.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        bound.bind((str(host), port))
    except (OSError, IOError) as error:
        bound.close()
        raise _refused(error, netns, host, port)
    return bound


def _let_share(bound):
    try:
        bound.setsockopt(socket.SOL_SOCKET, _SO_REUSEPORT, 1)
    except (OSError, IOError) as error:
        if error.errno != errno.ENOPROTOOPT:        # before Linux 3.9 two have to take turns
            raise


def listen(bound, netns=None):
    """Let a socket of `bind` in that namespace be connected to. On NamespaceError it is closed.

    Of two that share an address, the one that listens later gets the connections from then on.
    """
    try:
        bound.listen(_BACKLOG)
        if _is_shared(bound):
            _prefer_second(bound)
    except (OSError, IOError) as error:
        host, port = bound.getsockname()[:2]
        bound.close()
        raise _refused(error, netns, host, port)


def _is_shared(bound):
    try:
        return bound.getsockopt(socket.SOL_SOCKET, _SO_REUSEPORT)
    except (OSError, IOError):          # before Linux 3.9
        return False


def _prefer_second(listener):
    """Have new connections go to the second of the sockets that share its address, if there is one.

    Otherwise the kernel would deal them out to both, and reset those that the first has not accepted
    when it is closed. The choice is a program of one instruction (classic BPF), `return 1`; what it
    says of a single socket means nothing. Kernels before 4.5 have no such choice, and some forbid it.
    """
    import ctypes
    instruction = ctypes.create_string_buffer(struct.pack('=HBBI', _BPF_RETURN, 0, 0, 1))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF,
                            struct.pack('@HP', 1, ctypes.addressof(instruction)))
    except (OSError, IOError):
        pass


def _refused(error, netns, host, port):
    kind = NoAddressError if error.errno == errno.EADDRNOTAVAIL else NamespaceError
    hint = '; another proxy serves there' if error.errno == errno.EADDRINUSE else ''
    return kind('%s: cannot listen on %s port %d: %s%s'
                % ('this namespace' if netns is None else 'namespace ' + netns, host, port, _why(error),
                   hint))


def enter_new():
    """Go to a new network namespace, which has no name and goes with this process. Raises NamespaceError."""
    import ctypes  # as in _enter
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise NamespaceError('no new namespace: %s' % os.strerror(ctypes.get_errno()))


def leave_for_host():
    """Go to the network namespace of process 1, from whichever this process was started in.

    Where root has fewer rights than process 1, its namespace cannot be seen. Then that of the next
    process counts on the way from there to this one. Raises NamespaceError when that is not
    possible; the process is where it was then.
    """
    hosts, reason = None, ''
    for pid in _ancestors():
        try:
            hosts = os.open('/proc/%d/ns/net' % pid, os.O_RDONLY)
            break
        except OSError as error:
            reason = _why(error)
    if hosts is None:
        raise NamespaceError('the host\'s network namespace cannot be seen: %s' % reason)
    try:
        if os.fstat(hosts).st_ino != os.stat(_OWN).st_ino:
            _enter(hosts, 'the host\'s network namespace')
    finally:
        os.close(hosts)


def _ancestors():
    """Pids from process 1 to the parent of this one."""
    pids, pid = [], os.getppid()
    while pid > 0:
        pids.insert(0, pid)
        try:
            with open('/proc/%d/status' % pid) as status:
                pid = next(int(line.split()[1]) for line in status if line.startswith('PPid:'))
        except (IOError, OSError):
            break
    return pids


def _enter(descriptor, what):
    import ctypes  # here: 3 ms and memory that the server has better use for
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
        raise NamespaceError('%s cannot be entered: %s' % (what, os.strerror(ctypes.get_errno())))


def inherited_listener(descriptor):
    """The listening socket behind a descriptor number; raises NamespaceError when it is none."""
    try:
        probe = socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM)
        listening = probe.getsockopt(socket.SOL_SOCKET, _SO_ACCEPTCONN)
        family = probe.getsockopt(socket.SOL_SOCKET, _SO_DOMAIN)
        probe.close()
        if not listening:
            raise NamespaceError('descriptor %d is not a listening socket' % descriptor)
        # Python's socket makes copies; the server has one.
        listener = socket.fromfd(descriptor, family, socket.SOCK_STREAM)
        os.close(descriptor)
        return listener
    except (OSError, IOError) as error:
        raise NamespaceError('descriptor %d is not a socket: %s' % (descriptor, _why(error)))


def _why(error):
    return os.strerror(error.errno) if error.errno else str(error)
