"""Forked processes: what they keep of their parent, and how it learns of their end."""
import os
import signal
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from forking import Home  # noqa: E402


@pytest.fixture
def home():
    home = Home()
    yield home
    home.close()


def fail():
    raise RuntimeError('as ordered')


def leave():
    sys.exit(7)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def is_open(descriptor):
    try:
        os.fstat(descriptor)
        return True
    except OSError:
        return False


@pytest.mark.parametrize('run, expected', [(lambda: 0, 0), (lambda: 3, 3), (leave, 7), (fail, 1),
                                           (kill, -signal.SIGKILL)])
def test_the_parent_learns_how_each_child_ended(home, run, expected):
    statuses = []
    home.children.fork(run, statuses.append)
    home.until(lambda: statuses, 'end of the child')
    assert statuses == [expected]


def test_many_that_end_together_are_each_told_of_once(home):
    ended = []
    for number in range(20):
        home.children.fork(lambda: 0, lambda status, number=number: ended.append(number))
    home.until(lambda: len(ended) == 20, 'end of all')
    assert sorted(ended) == list(range(20))


def test_a_child_has_neither_the_loop_nor_what_is_private(home):
    reading, writing = os.pipe()
    told, tell = os.pipe()
    registered, other = os.pipe()
    home.loop.register(registered, 1, lambda events: None)
    home.children.private.add(reading)

    def run():
        os.write(tell, ' '.join(str(number) for number in range(256) if is_open(number)).encode())
        return 0
    statuses = []
    home.children.fork(run, statuses.append)
    home.until(lambda: statuses, 'end of the child')
    kept = os.read(told, 4096).decode().split()
    assert str(writing) in kept and str(other) in kept
    for descriptor in (reading, registered, home.loop._epoll.fileno(), home.loop._wake_read,
                       home.loop._wake_write):
        assert str(descriptor) not in kept
    # The parent has them all, and its loop still works.
    os.write(other, b'x')
    home.loop.unregister(registered)
    for descriptor in (reading, writing, told, tell, registered, other):
        os.close(descriptor)


def test_a_child_leads_a_group_of_its_own(home):
    statuses = []
    home.children.fork(lambda: int(os.getpgrp() != os.getpid()), statuses.append)
    home.until(lambda: statuses, 'end of the child')
    assert statuses == [0]


def test_a_signal_to_a_child_is_the_childs(home):
    reading, writing = os.pipe()
    statuses = []

    def run():
        os.write(writing, b'x')
        signal.pause()
        return 0
    pid = home.children.fork(run, statuses.append)
    os.read(reading, 1)
    os.kill(pid, signal.SIGTERM)
    home.until(lambda: statuses, 'end of the child')
    assert statuses == [-signal.SIGTERM]
    for descriptor in (reading, writing):
        os.close(descriptor)
