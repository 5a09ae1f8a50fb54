"""When a server learns that its namespace is gone. In real namespaces: tests/integration/test_opener.py."""
import os
import select
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from mdproxy import watch  # noqa: E402

OURS, OTHER = (4, 4026532100), (4, 4026532200)


class Loop(object):
    """Timers are due when the test says so, and so do mounts change."""

    def __init__(self):
        self.due, self.handlers = [], {}

    def call_later(self, delay, callback):
        assert delay <= 0.5         # seconds within which it has to be noticed
        self.due.append(callback)

    def register(self, descriptor, mask, handler):
        assert os.readlink('/proc/self/fd/%d' % descriptor).endswith('/mountinfo')
        self.handlers[descriptor] = handler

    def unregister(self, descriptor):
        del self.handlers[descriptor]

    def pass_time(self):
        self.due.pop()()
        assert not self.due

    def change_mounts(self):
        (changed,) = self.handlers.values()
        changed(select.EPOLLPRI | select.EPOLLERR)


@pytest.fixture
def watched(monkeypatch):
    """(loop, found: inodes by name, ended: what was called)."""
    loop, found, ended = Loop(), {'qrouter-1': OURS}, []
    monkeypatch.setattr(watch.namespaces, 'inode', found.get)
    watch.until_gone(loop, 'qrouter-1', OURS, lambda: ended.append(True))
    return loop, found, ended


def test_a_namespace_that_stays_is_looked_at_when_mounts_change_and_nothing_said(watched, caplog):
    loop, _, ended = watched
    loop.pass_time()
    for _ in range(3):
        assert not loop.due         # nothing is done as long as nothing changes
        loop.change_mounts()
        assert not loop.handlers    # the next changes are one with this
        loop.pass_time()
    assert len(loop.handlers) == 1 and not ended and not caplog.records


@pytest.mark.parametrize('now, said', [(None, 'is gone'), (OTHER, 'was made anew')])
def test_its_end_is_told_once_and_then_nothing_is_looked_at(watched, caplog, now, said):
    loop, found, ended = watched
    loop.pass_time()
    found['qrouter-1'] = now
    loop.change_mounts()
    loop.pass_time()
    assert ended == [True] and not loop.due and not loop.handlers
    assert [record.getMessage() for record in caplog.records] == [
        'namespace qrouter-1 %s: the proxy ends' % said]


def test_an_end_before_anybody_was_told_is_noticed(watched):
    loop, found, ended = watched
    found['qrouter-1'] = None
    loop.pass_time()
    assert ended == [True]
