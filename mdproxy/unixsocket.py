"""Listening unix sockets under names that others know.

Rules kept:

- A socket appears under its name when it already listens, with its mode, in one step.
- What a dead process left is replaced; what somebody listens on never, and nothing that is not a
  socket.

Theory of operation: the socket is bound beside its name, listens, and is renamed. The kernel goes
on calling it by the name that it was bound to, so `path_of` is needed to find the file of one
that was inherited.
"""
import errno
import os
import socket
import stat

_BACKLOG = 65535        # the kernel cuts it to net.core.somaxconn


class SocketError(Exception):
    """A unix socket cannot be had; the message names its path and says why."""


def listen(path, mode):
    """A listening socket at `path` with a file mode (int), owned by whom this process acts as.

    Raises SocketError, also when somebody listens there already.
    """
    try:
        _refuse_taken(path)
        return _listen(path, mode)
    except (IOError, OSError) as error:
        raise SocketError('%s: %s' % (path, error.strerror or error))


def path_of(listener):
    """Where a socket that `listen` made was put; None for a socket of another family."""
    bound = listener.getsockname()      # not `family`: an inherited descriptor's may be a guess
    if isinstance(bound, tuple):
        return None
    path, _, suffix = bound.rpartition('.')
    return path if path and suffix.isdigit() else bound


def remove(path, only=None):
    """Remove a socket file if it is there; with `only` (a stat) if it is still that one, and not
    that of somebody who has taken our place. Raises OSError."""
    try:
        found = os.lstat(path)
        if only is None or os.path.samestat(found, only):
            os.unlink(path)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def _listen(path, mode):
    new = '%s.%d' % (path, os.getpid())
    remove(new)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        umask = os.umask(0o777 & ~mode)     # bind makes the file with 0777 less this, at once
        try:
            listener.bind(new)
        finally:
            os.umask(umask)
        listener.listen(_BACKLOG)
        os.rename(new, path)
    except (IOError, OSError):
        listener.close()
        remove(new)
        raise
    return listener


def _refuse_taken(path):
    """Raise SocketError when somebody listens at this path or something else is there, and OSError
    (on 2.7 socket.error) when that cannot be told."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.setblocking(False)
    try:
        probe.connect(path)
    except (IOError, OSError) as error:
        if error.errno == errno.ENOENT:
            return
        if error.errno == errno.ECONNREFUSED:
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise SocketError('%s: is there, and is no socket' % path)
            return
        if error.errno != errno.EAGAIN:     # it listens, and its backlog is full
            raise
    finally:
        probe.close()
    raise SocketError('%s: another process listens there' % path)
