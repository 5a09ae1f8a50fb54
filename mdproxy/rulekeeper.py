"""Work in many namespaces at once, by processes that live as long as that takes: rules, above all.

iptables takes its milliseconds, and hundreds of namespaces may come together; whoever has them all to
look after must not wait. So a few short-lived children of root's do it, each for some namespaces, and
tell line by line what came of it. One that hangs or dies costs its namespaces a second try.
"""
import collections
import errno
import json
import logging
import os
import signal

from . import eventloop, rules

APPLIED, UNCHANGED, FAILED = 'applied', 'unchanged', 'failed'
_BATCH = 25             # namespaces for one child
_PATIENCE = 30.0        # seconds that a child may take

_log = logging.getLogger('mdproxy.rulekeeper')


class RuleKeeper(object):
    """Applies and removes rules, or what else there is to do. at_once: how many children work side by side.

    told(name, outcome, reason) is called for every namespace: APPLIED when its rules had to be changed,
    UNCHANGED, or FAILED and why.
    """

    def __init__(self, loop, children, at_once, told):
        self._loop, self._children, self._at_once, self._told = loop, children, at_once, told
        self._queue = collections.OrderedDict()     # name -> function(name) that the child calls
        self._running = 0
        self._soon = False

    @property
    def idle(self):
        """Whether nothing waits and no child works."""
        return not self._queue and not self._running

    def forget(self, name):
        """A namespace is gone: what still waits for it need not be done."""
        self._queue.pop(name, None)

    def do(self, name, action):
        """Have a child call action(name), which is true when there was something to change and may
        raise RulesError. What was asked for that namespace before and still waits is not done."""
        self._queue.pop(name, None)
        self._queue[name] = action
        if not self._soon:
            self._soon = True
            self._loop.call_later(0, self._start)   # when all that come together are there

    def _start(self):
        self._soon = False
        while self._queue and self._running < self._at_once:
            batch = [self._queue.popitem(last=False)
                     for _ in range(min(_BATCH, -(-len(self._queue) // self._at_once)))]
            try:
                _Batch(self, batch)
            except OSError as error:                # no process to be had
                for name, _ in batch:
                    self._told(name, FAILED, 'fork: %s' % error.strerror)

    def _ended(self):
        self._running -= 1
        self._start()


class _Batch(object):
    """A child and the namespaces that it works on, one after the other."""

    def __init__(self, keeper, batch):
        self._keeper, self._left = keeper, [name for name, _ in batch]
        self._text = b''
        self._reading, writing = os.pipe()
        self._pid = None
        try:
            self._pid = keeper._children.fork(lambda: _work(batch, self._reading, writing), self._reaped)
        except OSError:
            os.close(self._reading)
            raise
        finally:
            os.close(writing)
        keeper._running += 1
        keeper._loop.register(self._reading, eventloop.EPOLLIN, self._on_event)
        self._failure = 'the process that applies rules ended before it came to them'
        self._timer = keeper._loop.call_later(_PATIENCE, self._give_up)

    def _on_event(self, _events):
        try:
            data = os.read(self._reading, 65536)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINTR):
                return
            raise
        if not data:
            self._keeper._loop.unregister(self._reading)
            os.close(self._reading)
            self._reading = None
            self._check_over()
        lines = (self._text + data).split(b'\n')
        self._text = lines.pop()
        for line in lines:
            name, outcome, reason = json.loads(line.decode('utf-8'))
            self._left.remove(str(name))
            self._keeper._told(str(name), str(outcome), reason)

    def _give_up(self):
        self._failure = 'iptables did not come to an end within %g s' % _PATIENCE
        os.kill(self._pid, signal.SIGKILL)

    def _reaped(self, _status):
        self._pid = None
        self._timer.cancel()
        self._check_over()

    def _check_over(self):
        """What its child left undone has failed, once all that it had to say was read."""
        if self._pid is None and self._reading is None:
            for name in self._left:
                self._keeper._told(name, FAILED, self._failure)
            self._keeper._ended()


def _work(batch, reading, writing):
    """In the child. Returns the exit status."""
    os.close(reading)
    for name, action in batch:
        try:
            outcome, reason = APPLIED if action(name) else UNCHANGED, ''
        except rules.RulesError as error:
            outcome, reason = FAILED, u'%s' % error        # 2.7's str() is for ASCII
        os.write(writing, json.dumps([name, outcome, reason]).encode('utf-8') + b'\n')
    return 0
