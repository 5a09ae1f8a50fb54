"""A run has a machine of its own: network, mount and process namespaces that end with it.

Rules kept:

- The machine's addresses, packet filter, forwarding and /run are neither used nor changed.
- Nothing is left to clean up. The run is the first process of its process namespace: when it ends,
  however it ends, the kernel ends every process in there, and with the last one go the namespaces of
  guests and routers, and /run.
"""
import contextlib
import ctypes
import os
import signal
import sys

FOLDER = '/run/bench'       # of the run alone, in memory

_NEWNS, _NEWPID, _NEWNET = 0x20000, 0x20000000, 0x40000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def run(function):
    """Exit status of function(), called where all is its own. OSError where that cannot be had."""
    _checked(_libc.unshare(_NEWNS | _NEWPID | _NEWNET), 'new namespaces')
    child = os.fork()
    if child == 0:
        _be_the_run(function)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: os.kill(child, signal.SIGTERM))
    status = os.waitpid(child, 0)[1]
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


@contextlib.contextmanager
def inside(netns):
    """This thread is in a named network namespace meanwhile. Processes started then are there too."""
    home, there = (os.open(path, os.O_RDONLY) for path in ('/proc/thread-self/ns/net',
                                                           '/run/netns/' + netns))
    try:
        _checked(_libc.setns(there, _NEWNET), netns)
        try:
            yield
        finally:
            _checked(_libc.setns(home, _NEWNET), 'way back from ' + netns)
    finally:
        os.close(home)
        os.close(there)


def _be_the_run(function):
    status = 1
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupted)
        _mount('none', '/', None, _MS_REC | _MS_PRIVATE)
        _mount('proc', '/proc', 'proc')
        _mount('tmpfs', '/run', 'tmpfs')
        os.chmod('/run', 0o755)
        os.mkdir(FOLDER)
        status = function()
    except KeyboardInterrupt:
        status = 130
    except Exception:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _interrupted(number, frame):
    signal.signal(number, signal.SIG_IGN)       # a terminal and the parent may both say so
    raise KeyboardInterrupt


def _mount(source, target, kind, flags=0):
    _checked(_libc.mount(source.encode(), target.encode(), kind and kind.encode(), flags, None),
             'mount of ' + target)


def _checked(result, what):
    if result:
        number = ctypes.get_errno()
        raise OSError(number, '%s: %s' % (what, os.strerror(number)))
