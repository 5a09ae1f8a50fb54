"""The processes that serve for a master, in generations: the next serves before the last one drains.

Rules kept:

- What listens is open in the master all the time and inherited, so no connection is refused while
  workers change or when one dies.
- An idle connection ends with its next answer (a patient drain), unless so many generations drain
  that memory counts more.
- A worker is told what to do over a socket of its own, where no word is lost as a signal may be in
  its first moments. The end of that socket is the master's end.
- A worker without a master goes on serving until the next master serves, or for ORPHANED seconds.
"""
import logging
import os
import signal
import socket

from . import eventloop, proxy

ORPHANED = 30.0         # seconds
_LOOK = 0.1             # seconds between two looks for the next master
_SERVING, _DRAIN, _HURRY = b'serving', b'd', b'q'
_APART = 0.25           # seconds between the beginnings of two generations
_STARTING = 2.0         # seconds that a generation may take before the next one begins anyway
_SETTLE = 0.02          # seconds in which more changes count as one
_DRAINING = 8           # workers that may drain at their leisure
_PAUSES = (0.0, 0.1, 0.5, 2.0)      # seconds before a worker that never served is replaced: 1st, 2nd, ...
_GRACE = 5.0            # seconds beyond drain_timeout after which a worker is killed

_log = logging.getLogger('mdproxy.workers')


class Workers(object):
    """The workers of this process. count: how many serve at once.

    work(slot, control): in a new process, serve as worker number `slot` and return the exit status.
    served(): is called when every worker of a generation serves.
    """

    def __init__(self, loop, children, count, work, served):
        self._loop, self._children, self._count = loop, children, count
        self._work, self._served = work, served
        self._all = []              # oldest first
        self._generation = 0
        self._asked = False         # for another generation
        self._began = -_APART       # the last one, by the loop's clock
        self._failures = 0          # in a row
        self._emptied = None        # to call when the last one has ended
        self.drain_timeout = 0.0

    def pids(self):
        """Of those who serve, by slot."""
        return dict((one.slot, one.pid) for one in self._all
                    if one.generation == self._generation and one.serving)

    @property
    def draining(self):
        """How many do."""
        return sum(1 for one in self._all if one.draining)

    def renew(self, count=None):
        """What is to be served has changed: have a new generation, soon. count: another number of them."""
        self._count = count or self._count
        if not self._asked and not self._emptied:
            self._asked = True
            self._loop.call_later(max(_SETTLE, self._began + _APART - self._loop.now), self._begin)

    def drain(self, drained):
        """Have all of them end; then call drained()."""
        self._emptied = drained
        for one in self._all:
            one.drain(_HURRY)
        self._check_emptied()

    def _begin(self):
        self._asked = False
        if self._emptied:
            return
        starting = [one for one in self._all if one.generation == self._generation and not one.serving]
        if starting and not self._failures and self._loop.now < self._began + _STARTING:
            self._asked = True                      # one at a time
            self._loop.call_later(_SETTLE, self._begin)
            return
        self._began = self._loop.now
        self._generation += 1
        for slot in range(self._count):
            self._start(slot, self._generation)

    def _start(self, slot, generation):
        if generation != self._generation or self._emptied:
            return                                  # replaced meanwhile
        try:
            self._all.append(_Worker(self, slot, generation))
        except OSError as error:
            _log.error('worker %d cannot be started: %s', slot, error.strerror)
            self._again(slot, generation)

    def _again(self, slot, generation):
        pause = _PAUSES[min(self._failures, len(_PAUSES) - 1)]
        self._failures += 1
        self._loop.call_later(pause, self._start, slot, generation)

    def _is_serving(self):
        """A worker is; when all of the present generation are, the others drain."""
        self._failures = 0
        present = [one for one in self._all if one.generation == self._generation and one.serving]
        if len(present) < self._count or self._emptied:
            return
        for one in self._all:
            if one.generation != self._generation:
                one.drain(_DRAIN)
        for one in [one for one in self._all if one.draining][:-_DRAINING]:
            one.drain(_HURRY)
        self._served()

    def _ended(self, worker, status):
        self._all.remove(worker)
        if worker.generation == self._generation and not worker.draining:
            how = 'killed by signal %d' % -status if status < 0 else 'ended with status %d' % status
            _log.error('worker %d (process %d) was %s; another takes its place', worker.slot, worker.pid, how)
            if worker.serving:
                self._start(worker.slot, worker.generation)
            else:
                self._again(worker.slot, worker.generation)
        self._check_emptied()

    def _check_emptied(self):
        if self._emptied and not self._all:
            self._emptied()


class _Worker(object):
    """One of them, as the master sees it."""

    def __init__(self, workers, slot, generation):
        self._workers, self.slot, self.generation = workers, slot, generation
        self.serving, self.draining, self._hurried, self._timer = False, False, False, None
        self._control, theirs = socket.socketpair()
        try:
            self.pid = workers._children.fork(lambda: self._be(theirs), self._reaped)
        except OSError:
            self._control.close()
            raise
        finally:
            theirs.close()
        self._control.setblocking(False)
        workers._loop.register(self._control.fileno(), eventloop.EPOLLIN, self._on_event)

    def _be(self, control):
        """In the new process."""
        os.close(self._control.fileno())
        return self._workers._work(self.slot, control)

    def drain(self, how):
        """Have it end; _HURRY also after it was told otherwise."""
        if how == _HURRY and not self._hurried or not self.draining:
            self._hurried = how == _HURRY
            self._send(how)
        if not self.draining:
            self.draining = True
            self._timer = self._workers._loop.call_later(
                self._workers.drain_timeout + _GRACE, os.kill, self.pid, signal.SIGKILL)

    def _send(self, word):
        try:
            self._control.send(word)
        except socket.error:
            pass                        # it is ending, and will be reaped

    def _on_event(self, _events):
        try:
            word = self._control.recv(64)
        except socket.error:
            word = b''
        if word:
            self.serving = True
            self._workers._is_serving()
        else:
            self._workers._loop.unregister(self._control.fileno())

    def _reaped(self, status):
        if self._timer:
            self._timer.cancel()
        self._workers._loop.unregister(self._control.fileno())
        self._control.close()
        self._workers._ended(self, status)


def serve(slot, control, listeners, neighbours, options, told):
    """Serve as a worker, in a process of its own; returns the exit status.

    listeners, neighbours: as of proxy.Proxy.serve. told: listening socket for the status, or None.
    """
    for signum in (signal.SIGHUP, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)       # the master's
    loop = eventloop.Loop()
    serving = proxy.Proxy(loop, {'worker': str(slot)}, options, several=True)
    serving.serve(listeners, neighbours)
    if told:
        serving.tell([told], removing=False)        # the next worker answers there too
    _Master(loop, control, serving, options.lock_file)
    control.send(_SERVING)
    try:
        return eventloop.run_until_terminated(loop, serving.drain)
    finally:
        serving.close()


class _Master(object):
    """The master, as a worker sees it."""

    def __init__(self, loop, control, serving, lock_file):
        self._loop, self._control, self._serving = loop, control, serving
        self._lock_file, self._name = lock_file, '%d\n' % os.getppid()
        control.setblocking(False)
        loop.register(control.fileno(), eventloop.EPOLLIN, self._on_event)

    def _on_event(self, _events):
        try:
            words = self._control.recv(64)
        except socket.error:
            words = b''
        if not words:
            self._loop.unregister(self._control.fileno())
            _log.warning('the master has ended; serving until the next one does')
            self._wait_for_next(self._loop.now + ORPHANED)
        else:
            self._serving.drain(self._loop.stop, _HURRY not in words)

    def _wait_for_next(self, until):
        if self._loop.now >= until or master_serving(self._lock_file) not in (None, self._name):
            self._serving.drain(self._loop.stop, True)
        else:
            self._loop.call_later(_LOOK, self._wait_for_next, until)


def master_serving(lock_file):
    """What names the master whose workers serve, or None."""
    try:
        with open(lock_file) as found:
            return found.read(32) or None
    except (IOError, OSError):
        return None
