"""From root to a listening socket inside a router's namespace, and to a server that is nobody.

A process that only serves needs neither root nor pyroute2 (18-32 MB). So the opener enters the
namespace, makes the socket, comes back, gives up root (`privileges`) and execs the server, which
inherits the descriptor and nothing else. A namespace that does not exist is never created: pyroute2's
`setns` would create it by default, hence `flags=0`.
"""
from __future__ import unicode_literals

import errno
import fcntl
import os
import socket

_BACKLOG = 65535        # the kernel cuts it to net.core.somaxconn


class NamespaceError(Exception):
    """A namespace or an address in it cannot be had; the message says which and why."""


def parse_listen(text):
    """('0.0.0.0', 9697) of 'ADDR:PORT', IPv6 as '[::]:9697'; raises ValueError."""
    host, _, port = text.rpartition(':')
    bracketed = host[:1] == '[' and host[-1:] == ']'
    host = host[1:-1] if bracketed else host
    try:
        # Not a name: nobody is asked what it means, least of all from inside a tenant's network.
        socket.inet_pton(socket.AF_INET6 if bracketed else socket.AF_INET, host)
        if port.isdigit() and 0 < int(port) < 65536:
            return host, int(port)
    except (ValueError, socket.error):
        pass
    raise ValueError('expected ADDR:PORT, got "%s"' % text)


def open_listener(host, port, netns=None):
    """A listening TCP socket at host:port, inside the named namespace or else in this one.

    Raises NamespaceError when there is no such namespace or the address cannot be taken there.
    """
    if netns is None:
        return _listen(host, port, 'this namespace')
    if not os.path.exists('/var/run/netns/' + netns):
        raise NamespaceError('namespace %s does not exist; is the router on this host?' % netns)
    from pyroute2 import netns as pyroute2_netns
    home = os.open('/proc/self/ns/net', os.O_RDONLY)
    try:
        try:
            pyroute2_netns.setns(str(netns), flags=0)
        except (OSError, IOError) as error:
            raise NamespaceError('namespace %s cannot be entered: %s' % (netns, _why(error)))
        try:
            return _listen(host, port, 'namespace ' + netns)
        finally:
            pyroute2_netns.setns(home)
    finally:
        os.close(home)


def _listen(host, port, where):
    listener = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit it, which saves a call for every connection.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((str(host), port))
        listener.listen(_BACKLOG)
    except (OSError, IOError) as error:
        listener.close()
        hint = '; another proxy serves there' if error.errno == errno.EADDRINUSE else ''
        raise NamespaceError('%s: cannot listen on %s port %d: %s%s'
                             % (where, host, port, _why(error), hint))
    return listener


def exec_server(listener, argv):
    """Replace this process by argv, which inherits the listener; argv gets `--listen-fd N`.

    Raises NamespaceError when argv cannot be run by the user that this process is now.
    """
    # The listener itself and no copy: 2.7 would hand down both, and a socket listens until its last
    # descriptor is closed.
    descriptor = listener.fileno()
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFD)
    fcntl.fcntl(descriptor, fcntl.F_SETFD, flags & ~fcntl.FD_CLOEXEC)
    try:
        os.execv(argv[0], argv + ['--listen-fd', str(descriptor)])
    except OSError as error:
        raise NamespaceError('%s cannot be run as user %d: %s'
                             % (argv[0], os.geteuid(), _why(error)))


def inherited_listener(descriptor):
    """The listening socket behind a descriptor number; raises NamespaceError when it is none."""
    try:
        probe = socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM)
        listening = probe.getsockopt(socket.SOL_SOCKET, getattr(socket, 'SO_ACCEPTCONN', 30))
        family = socket.AF_INET6 if len(probe.getsockname()) == 4 else socket.AF_INET
        probe.close()
        if not listening:
            raise NamespaceError('descriptor %d is not a listening socket' % descriptor)
        listener = socket.fromfd(descriptor, family, socket.SOCK_STREAM)
        os.close(descriptor)
        return listener
    except (OSError, IOError) as error:
        raise NamespaceError('descriptor %d is not a socket: %s' % (descriptor, _why(error)))


def _why(error):
    # Not strerror alone: pyroute2 puts words of its own there, which do not tell the reason.
    return os.strerror(error.errno) if error.errno else str(error)
