"""Work in many namespaces at once, by processes that live as long as that takes: rules, above all.

iptables takes its milliseconds, and hundreds of namespaces may come together; whoever has them all to
look after must not wait. So a few short-lived children of root's do it, each for some namespaces, and
tell line by line what came of it. In one namespace there is never more than one at work. One that hangs
or dies costs its namespaces a second try.
"""
import collections
import errno
import fcntl
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

    told(name, token, outcome, reason) is called for what was asked with that token: APPLIED when there was
    something to change, UNCHANGED, or FAILED and why.
    """

    def __init__(self, loop, children, at_once, told):
        self._loop, self._children, self._at_once, self._told = loop, children, at_once, told
        self._queue = collections.OrderedDict()     # name -> (token, action)
        self._busy = set()                          # names that a child works on
        self._running = 0
        self._soon = False

    @property
    def idle(self):
        """Whether nothing waits and no child works."""
        return not self._queue and not self._running

    def forget(self, name):
        """A namespace is gone: what still waits for it need not be done."""
        self._queue.pop(name, None)

    def forget_all(self):
        """What still waits need not be done."""
        self._queue.clear()

    def do(self, name, token, action):
        """Have a child call action(name), which is true when there was something to change and may
        raise RulesError. What was asked for that namespace before and still waits is not done."""
        self._queue.pop(name, None)
        self._queue[name] = token, action
        if not self._soon:
            self._soon = True
            self._loop.call_later(0, self._start)   # when all that come together are there

    def _start(self):
        self._soon = False
        free = [name for name in self._queue if name not in self._busy]
        size = min(_BATCH, -(-len(free) // self._at_once))
        while free and self._running < self._at_once:
            batch = [(name,) + self._queue.pop(name) for name in free[:size]]
            del free[:size]
            try:
                _Batch(self, batch)
            except (IOError, OSError) as error:     # no process or descriptor to be had
                for name, token, _ in batch:
                    self._told(name, token, FAILED, 'fork: %s' % error.strerror)

    def _begun(self, names):
        self._running += 1
        self._busy.update(names)

    def _ended(self, names):
        self._running -= 1
        self._busy.difference_update(names)
        self._start()


class _Batch(object):
    """A child and the namespaces that it works on, one after the other. batch: (name, token, action)s."""

    def __init__(self, keeper, batch):
        self._keeper, self._loop = keeper, keeper._loop
        self._left = collections.OrderedDict((name, token) for name, token, _ in batch)
        self._names = list(self._left)
        self._text = b''
        self._failure = 'the process that applies rules ended before it came to them'
        self._reading, writing = os.pipe()
        try:
            fcntl.fcntl(self._reading, fcntl.F_SETFL, os.O_NONBLOCK)
            self._loop.register(self._reading, eventloop.EPOLLIN, self._on_event)
            self._pid = keeper._children.fork(lambda: _work(batch, writing), self._reaped)
        except (IOError, OSError):
            self._close()
            raise
        finally:
            os.close(writing)
        keeper._begun(self._names)
        self._timer = self._loop.call_later(_PATIENCE, self._give_up)

    def _on_event(self, _events):
        try:
            data = os.read(self._reading, 65536)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINTR):
                return False
            raise
        if not data:
            self._loop.unregister(self._reading)
        lines = (self._text + data).split(b'\n')
        self._text = lines.pop()
        for line in lines:
            name, outcome, reason = json.loads(line.decode('utf-8'))
            self._keeper._told(str(name), self._left.pop(str(name)), str(outcome), reason)
        return bool(data)

    def _give_up(self):
        self._failure = 'iptables did not come to an end within %g s' % _PATIENCE
        for kill in (os.killpg, os.kill):       # it and iptables; it alone, in its very first moment
            try:
                kill(self._pid, signal.SIGKILL)
            except OSError:
                pass

    def _reaped(self, _status):
        """What the child left undone has failed. It is over also when iptables lives on with its pipe."""
        self._timer.cancel()
        while self._on_event(0):
            pass
        self._close()
        for name, token in self._left.items():
            self._keeper._told(name, token, FAILED, self._failure)
        self._keeper._ended(self._names)

    def _close(self):
        self._loop.unregister(self._reading)
        os.close(self._reading)


def _work(batch, writing):
    """In the child. Returns the exit status."""
    for name, _, action in batch:
        try:
            outcome, reason = APPLIED if action(name) else UNCHANGED, ''
        except rules.RulesError as error:
            outcome, reason = FAILED, u'%s' % error        # 2.7's str() is for ASCII
        try:
            os.write(writing, json.dumps([name, outcome, reason]).encode('utf-8') + b'\n')
        except OSError:         # nobody wants to know any more
            return 1
    return 0
