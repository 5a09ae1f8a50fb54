"""The processes that serve for a master, in generations: the next serves before the last one drains.

Rules kept:

- What listens is open in the master all the time and inherited, so no connection is refused while
  workers change or when one dies.
- A generation drains when a later one serves, whole. An idle connection ends with its next answer (a
  patient drain), unless so many workers drain that memory counts more.
- A worker is told what to do over a socket of its own, where no word is lost as a signal may be in
  its first moments, and tells there what it has counted when it ends. The end of that socket is the
  master's end.
- A worker without a master goes on serving until the next master serves, or for ORPHANED seconds.
"""
import gc
import json
import logging
import os
import signal
import socket

from . import eventloop, proxy

ORPHANED = 30.0         # seconds
_LOOK = 0.1             # seconds between two looks for the next master
_SERVING, _DRAIN, _HURRY = b'serving\n', b'd', b'q'
_APART = 0.25           # seconds between the beginnings of two generations
_SETTLE = 0.02          # seconds in which more changes count as one
_STARTING = 2.0         # seconds after which another generation begins although one has not come up
_AT_ONCE = 2            # generations that may be coming up
_DRAINING = 8           # workers that may drain at their leisure
_PAUSES = (0.0, 0.1, 0.5, 2.0)      # seconds before the first that failed is replaced, the second, ...
_SPELL = 10.0           # seconds without a failure after which the next one is the first
_STEADY = 1.0           # seconds that a worker has to serve, not to count as one that failed
_GRACE = 5.0            # seconds beyond its time after which a draining worker is killed
_LAST_WORDS = 2.0       # seconds that a worker tries to tell what it has counted

_log = logging.getLogger('mdproxy.workers')


class Workers(object):
    """The workers of this process. count: how many serve at once.

    work(slot, control): in a new process, serve as worker number `slot` and return the exit status.
    served(): is called when every worker of a generation serves. counted(text) gets what a worker tells
    of its counts when it ends. kill(pid, signal): as os.kill. drain_times: seconds that a drain may take, in
    a hurry and else.
    """

    def __init__(self, loop, children, count, work, served, counted, kill=os.kill):
        self._loop, self._children, self._count, self._kill = loop, children, count, kill
        self._work, self._served, self._counted = work, served, counted
        self._all = []              # oldest first
        self._generation = 0        # the newest
        self._sizes = {}            # of each generation
        self._asked = False         # for another one
        self._began = -_APART       # the last one, by the loop's clock
        self._failures, self._failed_at = 0, 0.0        # in a row; the last one
        self._emptied = None        # to call when the last worker has ended
        self.drain_times = 0.0, 0.0

    def pids(self):
        """Of those who serve and take new guests, by slot."""
        return dict((one.slot, one.pid) for one in self._all if one.serving and not one.draining)

    @property
    def draining(self):
        """How many do."""
        return sum(1 for one in self._all if one.draining)

    @property
    def changing(self):
        """Whether another generation is about to serve."""
        return self._asked or bool(self._generations_coming())

    @property
    def failing(self):
        """Whether workers end again and again before they have served for long."""
        return self._failures >= len(_PAUSES) and self._loop.now < self._failed_at + _SPELL

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
        coming = self._generations_coming()
        patience = _STARTING if self._failures == 0 else 0.0
        if len(coming) >= _AT_ONCE or coming and self._loop.now < self._began + patience:
            self._asked = True
            self._loop.call_later(max(_SETTLE, _APART if self._failures else 0), self._begin)
            return
        self._began = self._loop.now
        self._generation += 1
        self._sizes[self._generation] = self._count
        for slot in range(self._count):
            self._start(slot, self._generation)

    def _generations_coming(self):
        """Those of which not every worker has come to serve."""
        return [generation for generation in self._sizes if generation > self._last_whole()
                and generation <= self._generation]

    def _last_whole(self):
        """The newest generation of which every worker serves; 0 without one."""
        serving = {}
        for one in self._all:
            if one.serving and not one.draining:
                serving[one.generation] = serving.get(one.generation, 0) + 1
        return max([generation for generation in serving
                    if serving[generation] >= self._sizes[generation]] or [0])

    def _start(self, slot, generation):
        if self._emptied or generation not in self._sizes:
            return                                  # replaced meanwhile
        try:
            self._all.append(_Worker(self, slot, generation))
        except (IOError, OSError) as error:
            _log.error('worker %d cannot be started: %s', slot, error.strerror)
            self._again(slot, generation)

    def _again(self, slot, generation):
        if self._loop.now > self._failed_at + _SPELL:
            self._failures = 0
        pause = _PAUSES[min(self._failures, len(_PAUSES) - 1)]
        self._failures, self._failed_at = self._failures + 1, self._loop.now
        self._loop.call_later(pause, self._start, slot, generation)

    def _is_serving(self):
        """A worker is; when all of its generation are, the earlier ones drain."""
        whole = self._last_whole()
        if not whole or self._emptied:
            return
        for generation in [one for one in self._sizes if one < whole]:
            del self._sizes[generation]
        for one in self._all:
            if one.generation < whole:
                one.drain(_DRAIN)
        for one in [one for one in self._all if one.draining][:-_DRAINING]:
            one.drain(_HURRY)
        if whole == self._generation:
            self._served()

    def _ended(self, worker, status):
        self._all.remove(worker)
        if not worker.draining and not self._emptied:
            how = 'killed by signal %d' % -status if status < 0 else 'ended with status %d' % status
            _log.error('worker %d (process %d) was %s; another takes its place', worker.slot, worker.pid, how)
            if worker.serving and self._loop.now > worker.began + _STEADY:
                self._start(worker.slot, worker.generation)
            else:
                self._again(worker.slot, worker.generation)
        self._check_emptied()

    def _check_emptied(self):
        if self._emptied and not self._all:
            self._emptied()


class _Worker(object):
    """One of them, as the master sees it. began: by the loop's clock."""

    def __init__(self, workers, slot, generation):
        self._workers, self.slot, self.generation = workers, slot, generation
        self.serving, self.draining, self._hurried, self._timer = False, False, False, None
        self.began, self._text = workers._loop.now, b''
        self._control, theirs = socket.socketpair()
        try:
            self._control.setblocking(False)
            workers._loop.register(self._control.fileno(), eventloop.EPOLLIN, self._on_event)
            self.pid = workers._children.fork(lambda: workers._work(slot, theirs), self._reaped)
        except (IOError, OSError):
            self._close()
            raise
        finally:
            theirs.close()

    def drain(self, how):
        """Have it end; _HURRY also after it was told otherwise."""
        if self.draining and (self._hurried or how != _HURRY):
            return
        self.draining, self._hurried = True, how == _HURRY
        self._send(how)
        if self._timer:
            self._timer.cancel()
        seconds = self._workers.drain_times[0 if self._hurried else 1]
        self._timer = self._workers._loop.call_later(seconds + _GRACE, self._workers._kill, self.pid,
                                                       signal.SIGKILL)

    def _send(self, word):
        try:
            self._control.send(word)
        except socket.error:
            pass                        # it is ending, and will be reaped

    def _on_event(self, _events):
        """Lines: that it serves; later what it has counted. True when there may be more."""
        try:
            data = self._control.recv(65536)
        except socket.error:
            data = b''
        lines = (self._text + data).split(b'\n')
        self._text = lines.pop()
        for line in lines:
            if line + b'\n' == _SERVING:
                self.serving = True
                self._workers._is_serving()
            else:
                self._workers._counted(line.decode('ascii'))
        if not data:
            self._workers._loop.unregister(self._control.fileno())
        return bool(data)

    def _reaped(self, status):
        if self._timer:
            self._timer.cancel()
        while self._on_event(0):
            pass
        self._close()
        self._workers._ended(self, status)

    def _close(self):
        self._workers._loop.unregister(self._control.fileno())
        self._control.close()


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
        serving.tell([told], alone=False)           # the next worker answers there too
    if not hasattr(gc, 'freeze'):       # children.py; what a collection will copy one day is copied now
        gc.collect()
    _tell(control, _SERVING)
    _Master(loop, control, serving, options.lock_file)
    try:
        return eventloop.run_until_terminated(loop, serving.drain)
    finally:
        serving.close()
        control.settimeout(_LAST_WORDS)
        _tell(control, json.dumps(serving.counts()).encode('ascii') + b'\n')


def _tell(control, text):
    try:
        control.sendall(text)
    except (IOError, OSError):          # the master has ended; _Master will see that, or nobody has to
        pass


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
