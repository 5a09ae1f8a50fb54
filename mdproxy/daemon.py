"""A process that lives on without its caller, and the file that says which one it is.

Rules kept:

- The caller is let go when the daemon serves or has failed, with the exit status and the message
  that a process in the foreground would have given it.
- A pid alone says nothing, pids are given out again: the process has to have the router's id in
  its command line. The l3 agent looks at it the same way (bug 1177416).
- A pid file is written whole or not at all. Only whoever wrote it removes it.
"""
import errno
import os
import signal
import sys

SERVING = 0     # what `tell` says of a daemon that has not failed


class DaemonError(Exception):
    """A process that runs already, or a pid file that cannot be had; the message says which."""


def await_signals():
    """Until the loop handles them: SIGTERM and SIGINT end the process well, SIGHUP does nothing."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: sys.exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def holder(path, word):
    """Pid of the living process that a pid file names and whose command line holds `word`.

    None when there is none: no file, no pid in it, a process that is gone, another one, or this.
    """
    pid = _read(path)
    if pid in (None, os.getpid()):
        return None
    try:
        with open('/proc/%d/cmdline' % pid, 'rb') as found:
            return pid if word.encode('ascii') in found.read() else None
    except (OSError, IOError):
        return None


def refuse_second(path, word):
    """Raise DaemonError when the pid file's process is one of ours for this id and lives."""
    pid = holder(path, word)
    if pid is not None:
        raise DaemonError('already running: process %d of %s serves %s' % (pid, path, word))


def write_pid(path, owner=None):
    """Write this process's pid to the file, in one step; raises DaemonError.

    owner: (uid, gid) whose file it is to be, so that they can empty it; without it whoever writes it.

    As root and in a folder of somebody else: no link is followed, neither here nor there. A file that
    holds something else than a pid is not ours to replace.
    """
    if os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path):
        if _read(path) is None:
            raise DaemonError('pid file %s: is there already, and holds no pid' % path)
    partial = '%s.%d' % (path, os.getpid())
    try:
        if os.path.lexists(partial):        # of an earlier process with our pid
            os.unlink(partial)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.write(descriptor, b'%d\n' % os.getpid())
            if owner:
                os.fchown(descriptor, *owner)
        finally:
            os.close(descriptor)
        os.rename(partial, path)
    except OSError as error:
        raise DaemonError('pid file %s cannot be written: %s' % (path, error.strerror))


def remove_pid(path):
    """Remove the file if it names this process; where the folder is somebody else's, empty it."""
    if _read(path) != os.getpid():
        return
    try:
        os.unlink(path)
    except OSError:
        try:
            open(path, 'wb').close()
        except (OSError, IOError):
            pass


def detach(pid_file=None):
    """Become a daemon. Returns a descriptor for `tell`, in the daemon alone.

    The calling process waits for what is told, and exits with it; with 1 when the daemon ends and
    has told nothing. Then it removes the daemon's pid file, which the daemon may no longer do.
    """
    reading, writing = os.pipe()
    before = pid_file and _read(pid_file)
    child = os.fork()
    if child:
        os.close(writing)
        _retried(os.waitpid, child, 0)
        status = _told(reading)
        if status != SERVING and pid_file and _read(pid_file) != before:
            _unlink(pid_file)
        os._exit(status)
    os.close(reading)
    os.setsid()
    if os.fork():               # who leads no session never gets a terminal
        os._exit(0)
    os.chdir('/')
    os.umask(0o022)
    return writing


def tell(descriptor, status):
    """Let the caller go with this exit status; it is SERVING, or what the process ends with."""
    try:
        os.write(descriptor, b'%d' % status)
    except OSError:             # the caller did not wait
        pass
    os.close(descriptor)


def _told(reading):
    told = _retried(os.read, reading, 8)
    if told != b'%d' % SERVING:
        _retried(os.read, reading, 8)       # until its last end is closed: the process is gone
    return int(told or b'1')


def _retried(call, *arguments):
    """PEP 475 is of 3.5: before, a signal ends a call that waits."""
    while True:
        try:
            return call(*arguments)
        except OSError as error:
            if error.errno != errno.EINTR:
                raise


def _read(path):
    try:
        with open(path, 'rb') as found:
            return int(found.read(32))
    except (OSError, IOError, ValueError):
        return None


def _unlink(path):
    try:
        os.unlink(path)
    except OSError:
        pass
