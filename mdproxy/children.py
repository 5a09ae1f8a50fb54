"""Processes forked from the one that runs a loop.

Rules kept:

- A child keeps of its parent what it is given and nothing else: not the loop, nor what is registered
  there, nor what is private. Each of these would go on in the child when the parent is gone, or be
  changed for both.
- A child never comes back to its parent's code: it ends where it was forked.
- A child leads a process group, in which what it starts is as well: who signals the parent's group
  (upstart does) leaves it to the parent what becomes of its children.
- Only known children are waited for. The parent has to be single-threaded.
"""
import errno
import gc
import logging
import os
import signal

from . import config, privileges

_log = logging.getLogger('mdproxy.children')


class Children(object):
    """The children of this process. private: descriptors besides those of the loop that stay here."""

    def __init__(self, loop):
        self._loop = loop
        self.private = set()
        self._ended = {}                # pid -> function(status)
        loop.on_signal(signal.SIGCHLD, self._reap)

    def fork(self, run, ended):
        """Have run() give the exit status of a new process; returns its pid, or raises OSError. What run()
        raises is logged; of ValueError, ConfigError and PrivilegeError, the message.

        ended(status) is called on the loop when it has ended: its exit status, or minus a signal's number.
        """
        pid = os.fork()
        if not pid:
            self._be_child(run)
        self._ended[pid] = ended
        return pid

    def _be_child(self, run):
        status = 1
        try:
            os.setpgid(0, 0)
            self._loop.abandon()
            for descriptor in self.private:
                os.close(descriptor)
            if hasattr(gc, 'freeze'):   # 3.7: what is the parent's is not looked at, and so not copied
                gc.freeze()
            status = run()
        except SystemExit as ending:
            status = ending.code or 0
        except (ValueError, config.ConfigError, privileges.PrivilegeError) as error:
            _log.critical('%s', error)
        except BaseException:
            _log.critical('process %d ends', os.getpid(), exc_info=True)
        finally:
            os._exit(status)

    def _reap(self):
        for pid in list(self._ended):
            status = self._status(pid)
            if status is not None:
                self._ended.pop(pid)(status)

    @staticmethod
    def _status(pid):
        """As `ended` gets it, or None while the process runs."""
        try:
            found, status = os.waitpid(pid, os.WNOHANG)
        except OSError as error:
            return None if error.errno == errno.EINTR else 1
        if not found:
            return None
        return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
