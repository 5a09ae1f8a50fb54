"""Unix sockets under a name: who gets it, and when."""
import contextlib
import os
import socket
import stat
import threading

import pytest
from loopback import connected

from mdproxy import unixsocket


@pytest.fixture
def path(tmpdir):
    return str(tmpdir.join('a.sock'))


def closing(listener):
    return contextlib.closing(listener)


@pytest.mark.parametrize('mode', [0o600, 0o660, 0o666])
def test_it_listens_under_its_name_with_its_mode(path, mode):
    umask = os.umask(0o077)
    try:
        with closing(unixsocket.listen(path, mode)):
            found = os.stat(path)
            assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == mode
            connected(path).close()
            assert os.umask(0o077) == 0o077
    finally:
        os.umask(umask)
    assert os.listdir(os.path.dirname(path)) == ['a.sock']


def test_what_a_dead_process_left_is_replaced(path):
    unixsocket.listen(path, 0o600).close()
    before = os.stat(path)
    with closing(unixsocket.listen(path, 0o600)):
        assert not os.path.samestat(before, os.stat(path))
        connected(path).close()


def test_a_living_ones_is_never_taken(path):
    with closing(unixsocket.listen(path, 0o600)) as first:
        own = os.stat(path)
        with pytest.raises(unixsocket.SocketError) as caught:
            unixsocket.listen(path, 0o600)
        assert str(caught.value) == path + ': another process listens there'
        assert os.path.samestat(own, os.stat(path))
        first.accept()[0].close()       # the one that looked
        connected(path).close()
    assert os.listdir(os.path.dirname(path)) == ['a.sock']


def test_one_that_is_too_busy_to_accept_is_alive(path):
    busy = socket.socket(socket.AF_UNIX)
    busy.bind(path)
    busy.listen(0)
    waiting = []
    with closing(busy):
        try:
            while True:
                waiting.append(socket.socket(socket.AF_UNIX))
                waiting[-1].setblocking(False)
                waiting[-1].connect(path)
        except (IOError, OSError):
            pass
        with pytest.raises(unixsocket.SocketError) as caught:
            unixsocket.listen(path, 0o600)
        assert 'another process listens there' in str(caught.value)
    for one in waiting:
        one.close()


def test_what_is_no_socket_stays(path):
    with open(path, 'w') as there:
        there.write('precious')
    with pytest.raises(unixsocket.SocketError) as caught:
        unixsocket.listen(path, 0o600)
    assert str(caught.value) == path + ': is there, and is no socket'
    with open(path) as there:
        assert there.read() == 'precious'


def test_the_name_always_leads_to_somebody_who_listens(path):
    """While dead ones are replaced again and again nobody is told that there is no such file."""
    unixsocket.listen(path, 0o600).close()
    missing, over = [], threading.Event()

    def watch():
        while not over.is_set():
            if not os.path.exists(path):
                missing.append(True)
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        for _ in range(200):
            unixsocket.listen(path, 0o600).close()
    finally:
        over.set()
        thread.join()
    assert missing == []


@pytest.mark.parametrize('name, reason', [
    ('no/such/folder', 'No such file or directory'),
    ('x' * 120, 'too long')])
def test_what_cannot_be_had_is_told_with_its_path(tmpdir, name, reason):
    path = str(tmpdir.join(name))
    with pytest.raises(unixsocket.SocketError) as caught:
        unixsocket.listen(path, 0o600)
    assert str(caught.value).startswith(path + ': ') and reason in str(caught.value)


def test_when_the_name_cannot_be_had_nothing_is_left_beside_it(tmpdir):
    tmpdir.mkdir('a.sock')
    with pytest.raises(unixsocket.SocketError):
        unixsocket.listen(str(tmpdir.join('a.sock')), 0o600)
    assert os.listdir(str(tmpdir)) == ['a.sock']


def test_only_ones_own_is_removed(path):
    unixsocket.listen(path, 0o600).close()
    own = os.stat(path)
    with closing(unixsocket.listen(path, 0o600)):
        unixsocket.remove(path, own)
        assert os.path.exists(path)
        unixsocket.remove(path, os.stat(path))
        assert not os.path.exists(path)
    unixsocket.remove(path)         # it is not there: nothing to do


def test_a_listeners_path_is_where_it_was_put(path):
    with closing(unixsocket.listen(path, 0o600)) as listener:
        assert unixsocket.path_of(listener) == path
    with closing(socket.socket(socket.AF_UNIX)) as other:
        os.unlink(path)
        other.bind(path)
        assert unixsocket.path_of(other) == path
    with closing(socket.socket()) as tcp:
        assert unixsocket.path_of(tcp) is None
