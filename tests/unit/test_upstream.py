"""Connections to an endpoint: what is kept, what is repeated, and how failures are told apart."""
import errno
import socket
import struct
import time

import pytest
from loopback import OK, Answering, Running, keep_answering, listening, wait_until

from mdproxy import upstream
from mdproxy.http1 import BODY, END, HEAD, Request, format_request


class Exchange(object):
    """What the pool sees of a guest."""

    def __init__(self, method, body):
        self.request = Request(method, b'/x', 1, [], body, True)
        self.source, self.gone, self.started, self.aborted = None, False, False, False
        self.head, self.body, self.ended, self.failure = None, b'', False, None

    def relay(self, events):
        for kind, value in events:
            if kind is HEAD:
                self.head, self.started = value, True
            elif kind is BODY:
                self.body += value
            elif kind is END:
                self.ended = True

    def abort(self):
        self.aborted = self.gone = True

    def failed(self, exchange, failure):
        assert exchange is self
        self.failure = failure


class Asking(object):
    """One or several endpoints on a running loop."""

    def __init__(self, running, endpoints, connect_timeout=2.0, answer_timeout=5.0, **options):
        self.running = running
        endpoints = endpoints if isinstance(endpoints, list) else [endpoints]
        self.upstream = upstream.Upstream(running.loop, endpoints, connect_timeout, answer_timeout,
                                          **options)
        self.pool = self.upstream.pools[0]

    def begin(self, method=b'GET', body=b''):
        exchange = Exchange(method, body)
        payload = format_request(method, b'/x', [(b'Host', b'h')], body)
        self.running.call(self.upstream.forward, exchange, payload, exchange.failed)
        return exchange

    def ask(self, method=b'GET', body=b''):
        exchange = self.begin(method, body)
        wait_until(lambda: exchange.ended or exchange.failure)
        return exchange


def tcp(server):
    return ('127.0.0.1', server.port)


@pytest.fixture
def running():
    with Running() as running:
        yield running


def test_one_connection_serves_requests_one_after_the_other(running):
    with Answering(keep_answering(OK)) as server:
        asking = Asking(running, tcp(server))
        assert [asking.ask().body for _ in range(5)] == [b'ok'] * 5
        assert server.connections == 1
        assert len(server.requests) == 5


def test_requests_at_once_have_a_connection_each(running):
    def script(server, sock, number):
        while server.read(sock)[0]:
            wait_until(lambda: server.connections == 3)
            sock.sendall(OK)
    with Answering(script) as server:
        asking = Asking(running, tcp(server))
        exchanges = [asking.begin() for _ in range(3)]
        wait_until(lambda: all(exchange.ended for exchange in exchanges))


def test_unix_sockets_are_endpoints_too(running, tmpdir):
    path = str(tmpdir.join('socket'))
    with Answering(keep_answering(OK), path):
        assert Asking(running, path).ask().body == b'ok'


def test_a_full_backlog_of_a_unix_socket_is_waited_for(running, tmpdir):
    path = str(tmpdir.join('socket'))
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(0)
    server.settimeout(10)
    asking = Asking(running, path, connect_timeout=5.0)
    exchanges = [asking.begin() for _ in range(6)]
    time.sleep(0.05)
    assert not any(exchange.failure for exchange in exchanges)
    for _ in exchanges:
        accepted = server.accept()[0]
        accepted.recv(1000)
        accepted.sendall(OK)
    wait_until(lambda: all(exchange.ended for exchange in exchanges))
    server.close()


@pytest.mark.parametrize('left', [False, True])
def test_a_unix_socket_whose_process_restarts_is_waited_for(running, tmpdir, left):
    path = str(tmpdir.join('socket'))
    asking = Asking(running, path)
    with Answering(keep_answering(OK), path):
        asking.ask()
    if not left:        # else it is as after a kill: there, and nobody listens
        tmpdir.join('socket').remove()
    waiting = [asking.begin(method) for method in (b'GET', b'POST')]
    time.sleep(0.2)
    assert not any(exchange.failure for exchange in waiting)
    if left:
        tmpdir.join('socket').remove()
    with Answering(keep_answering(OK), path):
        wait_until(lambda: all(exchange.ended for exchange in waiting))
    assert not asking.pool.failures


def test_a_unix_socket_is_waited_for_once(running, tmpdir):
    asking = Asking(running, str(tmpdir.join('socket')), connect_timeout=0.3)
    exchange = asking.ask()
    assert exchange.failure.kind == upstream.UNREACHABLE
    assert exchange.failure.detail.endswith('No such file or directory, no connection within 0.3 s')
    asking.upstream.pools[0].connect_timeout = 1000.0       # who comes later does not wait
    assert asking.ask().failure.detail.endswith('No such file or directory')


def test_every_form_of_answer_arrives_whole(running):
    body = bytes(bytearray(range(256))) * 1000
    answers = [
        b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s' % (len(body), body),
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n'
        % (len(body), body),
        b'HTTP/1.0 200 OK\r\n\r\n' + body]

    def script(server, sock, number):
        server.read(sock)
        sock.sendall(answers[number - 1])
    with Answering(script) as server:
        asking = Asking(running, tcp(server))
        assert [asking.ask(b'POST', b'x').body for _ in answers] == [body] * 3


def test_a_connection_that_the_other_side_closes_while_idle_is_forgotten(running):
    def script(server, sock, number):
        server.read(sock)
        sock.sendall(OK)
    with Answering(script) as server:
        asking = Asking(running, tcp(server))
        asking.ask()
        wait_until(lambda: not asking.pool._idle)
        assert asking.ask().body == b'ok'
        assert len(server.requests) == 2


def close_the_second(server, sock, number):
    """Take a second request on the first connection and close without a byte of an answer."""
    server.read(sock)
    sock.sendall(OK)
    if number == 1:
        server.read(sock)
    else:
        while server.read(sock)[0]:
            sock.sendall(OK)


@pytest.mark.parametrize('method', [b'GET', b'HEAD'])
def test_a_request_lost_on_a_stale_connection_is_repeated_on_a_new_one(running, method):
    with Answering(close_the_second) as server:
        asking = Asking(running, tcp(server))
        asking.ask()
        assert asking.ask(method).failure is None
        assert (server.connections, len(server.requests)) == (2, 3)


def answer_once_ever(server, sock, number):
    """Answers the first request of all, and closes in place of any other answer."""
    server.read(sock)
    if number == 1:
        sock.sendall(OK)
        server.read(sock)


def test_it_is_repeated_once_only(running):
    with Answering(answer_once_ever) as server:
        asking = Asking(running, tcp(server))
        asking.ask()
        assert asking.ask().failure.kind == upstream.BROKEN
        assert len(server.requests) == 3


@pytest.mark.parametrize('method, body', [(b'POST', b'a password'), (b'POST', b''), (b'PUT', b'x')])
def test_what_may_not_be_repeated_is_sent_once_and_on_a_fresh_connection(running, method, body):
    with Answering(answer_once_ever) as server:
        asking = Asking(running, tcp(server))
        asking.ask()
        assert asking.ask(method, body).failure.kind == upstream.BROKEN
        assert [request[0].split(b' ')[0] for request in server.requests] == [b'GET', method]
        assert server.connections == 2


def test_a_new_connection_that_ends_without_an_answer_is_broken_not_repeated(running):
    with Answering(lambda server, sock, number: server.read(sock)) as server:
        failure = Asking(running, tcp(server)).ask().failure
        assert (failure.kind, failure.started) == (upstream.BROKEN, False)
        assert server.connections == 1


@pytest.mark.parametrize('answer, started', [
    (b'HTTP/1.1 200 OK\r\nContent-Le', False),
    (b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf', True),
    (b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf', True),
    (b'SSH-2.0-OpenSSH\r\n\r\n', False),
    (b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok', False)])
def test_a_broken_answer_is_told_and_ends_a_begun_exchange(running, answer, started):
    def script(server, sock, number):
        server.read(sock)
        sock.sendall(answer)
    with Answering(script) as server:
        exchange = Asking(running, tcp(server)).ask()
        assert (exchange.failure.kind, exchange.failure.started) == (upstream.BROKEN, started)
        assert exchange.aborted == started


def test_nobody_there_is_unreachable(running, tmpdir):
    port = listening().getsockname()[1]
    for endpoint in (('127.0.0.1', port), str(tmpdir.join('nothing')), '/' + 'x' * 200):
        exchange = Asking(running, endpoint).ask()
        assert exchange.failure.kind == upstream.UNREACHABLE
        assert exchange.source is None


def test_a_connection_that_does_not_come_about_is_unreachable_after_its_time(running):
    # A backlog that is full drops the rest, so connecting hangs as with a host that is down.
    full = listening(0)
    fillers = []
    for _ in range(4):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(full.getsockname())
        fillers.append(sock)
    begin = time.time()
    failure = Asking(running, full.getsockname(), connect_timeout=0.3).ask().failure
    assert failure.kind == upstream.UNREACHABLE
    assert 0.25 < time.time() - begin < 3


def test_silence_is_a_timeout(running):
    with Answering(lambda server, sock, number: server.read(sock) and server.read(sock)) as server:
        begin = time.time()
        failure = Asking(running, tcp(server), answer_timeout=0.3).ask().failure
        assert (failure.kind, failure.started) == (upstream.TIMEOUT, False)
        assert 0.25 < time.time() - begin < 3


def test_silence_within_an_answer_ends_the_exchange(running):
    def script(server, sock, number):
        server.read(sock)
        sock.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf')
        server.read(sock)
    with Answering(script) as server:
        exchange = Asking(running, tcp(server), answer_timeout=0.3).ask()
        assert (exchange.failure.kind, exchange.failure.started) == (upstream.TIMEOUT, True)
        assert exchange.aborted


def test_the_next_address_of_a_name_is_tried(running):
    with Answering(keep_answering(OK)) as server:
        asking = Asking(running, tcp(server))
        dead = (socket.AF_INET, listening().getsockname())
        asking.pool.addresses.insert(0, dead)
        assert asking.ask().body == b'ok'
        assert asking.pool.addresses[1] is dead


def test_an_unknown_host_is_an_error_at_once(running):
    with pytest.raises(ValueError):
        upstream.Upstream(running.loop, [('no host has spaces', 80)], 1, 1)


def test_an_answer_before_the_request_is_all_sent_counts(running):
    early = b'HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno'

    def script(server, sock, number):
        sock.recv(10)
        sock.sendall(early)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        time.sleep(0.2)
    with Answering(script) as server:
        exchange = Asking(running, tcp(server)).ask(b'POST', b'x' * 30000000)
        assert exchange.head.status == 413 and exchange.body == b'no'


def test_a_paused_answer_is_not_read_and_has_no_clock(running):
    size = 30 << 20

    def script(server, sock, number):
        server.read(sock)
        sock.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n' % size)
        sock.sendall(b'x' * size)
    with Answering(script) as server:
        asking = Asking(running, tcp(server), answer_timeout=0.4)

        def begin():
            exchange = Exchange(b'GET', b'')
            asking.upstream.forward(exchange, b'GET /x HTTP/1.1\r\nHost: x\r\n\r\n', exchange.failed)
            return exchange
        exchange = running.call(begin)
        wait_until(lambda: exchange.started)
        running.call(lambda: exchange.source and exchange.source.pause())
        length = len(exchange.body)
        time.sleep(0.8)
        assert len(exchange.body) == length < size and exchange.failure is None
        running.call(exchange.source.resume)
        wait_until(lambda: exchange.ended)
        assert len(exchange.body) == size


def test_a_cancelled_call_takes_its_connection_along_and_tells_nobody(running):
    closed = []

    def script(server, sock, number):
        server.read(sock)
        closed.append(sock.recv(1))
    with Answering(script) as server:
        exchange = Asking(running, tcp(server)).begin()
        wait_until(lambda: server.requests)
        running.call(exchange.source.cancel)
        wait_until(lambda: closed == [b''])
        assert exchange.failure is None


def test_an_error_while_relaying_ends_the_exchange(running):
    with Answering(keep_answering(OK)) as server:
        asking = Asking(running, tcp(server))
        exchange = Exchange(b'GET', b'')
        exchange.relay = None
        running.call(asking.upstream.forward, exchange, b'GET /x HTTP/1.1\r\nHost: x\r\n\r\n',
                     exchange.failed)
        wait_until(lambda: exchange.aborted)
        assert asking.ask().body == b'ok'
    assert len(running.errors) == 1
    running.errors[:] = []


def test_idle_connections_are_closed_after_a_while(running):
    with Answering(keep_answering(OK)) as server:
        asking = Asking(running, tcp(server), idle_timeout=0.2)
        asking.ask()
        assert len(asking.pool._idle) == 1
        wait_until(lambda: not asking.pool._idle)


def test_a_reset_while_idle_is_no_matter(running):
    def script(server, sock, number):
        server.read(sock)
        sock.sendall(OK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    with Answering(script) as server:
        asking = Asking(running, tcp(server))
        for _ in range(3):
            assert asking.ask().body == b'ok'
            wait_until(lambda: not asking.pool._idle)


# Several endpoints

def nobody_there():
    """An endpoint that refuses connections."""
    sock = listening()
    port = sock.getsockname()[1]
    sock.close()
    return ('127.0.0.1', port)


def named(name):
    return keep_answering(b'HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n' + name)


def test_endpoints_that_are_well_take_turns(running):
    with Answering(named(b'a')) as one, Answering(named(b'b')) as other:
        asking = Asking(running, [tcp(one), tcp(other)])
        bodies = [asking.ask().body for _ in range(6)]
        assert sorted(bodies[:2]) == [b'a', b'b'] and bodies == bodies[:2] * 3
        assert [one.connections, other.connections] == [1, 1]


@pytest.mark.parametrize('method, body', [(b'GET', b''), (b'POST', b'password')])
def test_without_a_connection_the_next_is_asked(running, method, body):
    with Answering(named(b'a')) as server:
        asking = Asking(running, [nobody_there(), tcp(server), nobody_there()])
        assert [asking.ask(method, body).body for _ in range(9)] == [b'a'] * 9
        assert len(server.requests) == 9
        assert sorted(one['up'] for one in asking.upstream.health()) == [False, False, True]


def break_off(server, sock, _number):
    server.read(sock)


def test_a_get_that_was_broken_off_is_asked_of_the_next(running):
    with Answering(break_off) as ill, Answering(named(b'a')) as well:
        asking = Asking(running, [tcp(ill), tcp(well)])
        assert [asking.ask().body for _ in range(4)] == [b'a'] * 4
        assert len(ill.requests) == 1       # and then it was left alone


@pytest.mark.parametrize('method', [b'POST', b'PUT'])
def test_a_post_that_was_broken_off_is_never_sent_again(running, method):
    with Answering(break_off) as one, Answering(break_off) as other:
        asking = Asking(running, [tcp(one), tcp(other)])
        assert asking.ask(method, b'password').failure.kind == upstream.BROKEN
        assert len(one.requests) + len(other.requests) == 1


def test_a_begun_answer_is_not_begun_again_elsewhere(running):
    def begin(server, sock, _number):
        server.read(sock)
        sock.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf')
    with Answering(begin) as one, Answering(begin) as other:
        asking = Asking(running, [tcp(one), tcp(other)])
        exchange = asking.ask()
        assert exchange.failure.started and exchange.aborted
        assert len(one.requests) + len(other.requests) == 1


def test_a_silent_endpoint_costs_one_guest_its_time_and_is_then_left_alone(running):
    with Answering(lambda server, sock, number: (server.read(sock), server.read(sock))) as silent, \
            Answering(named(b'a')) as well:
        asking = Asking(running, [tcp(silent), tcp(well)], answer_timeout=0.2)
        exchanges = [asking.ask() for _ in range(6)]
        assert [exchange.failure.kind for exchange in exchanges if exchange.failure] == [upstream.TIMEOUT]


def test_an_endpoint_that_is_well_again_is_used_again(running, monkeypatch):
    monkeypatch.setattr(upstream, '_PAUSES', (0.05, 0.1))
    port = nobody_there()
    with Answering(named(b'a')) as server:
        asking = Asking(running, [port, tcp(server)])
        assert [asking.ask().body for _ in range(4)] == [b'a'] * 4
        with Answering(named(b'b'), port=port[1]):
            wait_until(lambda: asking.ask().body == b'b')
            assert all(one['up'] for one in asking.upstream.health())
            assert [one['failures'] > 0 for one in asking.upstream.health()].count(True) == 1


def test_when_all_are_down_all_are_asked_and_the_last_reason_is_told(running):
    asking = Asking(running, [nobody_there(), nobody_there()])
    for _ in range(3):
        failure = asking.ask().failure
        assert failure.kind == upstream.UNREACHABLE and 'refused' in failure.detail
    assert [one['failures'] for one in asking.upstream.health()] == [3, 3]


def test_an_ill_endpoint_is_asked_by_one_request_at_a_time(running, monkeypatch):
    """A host that is gone keeps whoever asks it waiting: that must not be everybody."""
    monkeypatch.setattr(upstream, '_PAUSES', (0.3, 5.0))
    with Answering(lambda server, sock, number: server.read(sock) and time.sleep(1)) as silent, \
            Answering(named(b'a')) as well:
        asking = Asking(running, [tcp(silent), tcp(well)], answer_timeout=0.3)
        wait_until(lambda: asking.ask().failure)
        time.sleep(0.35)                    # until it may be asked again
        asked = len(silent.requests)
        exchanges = [asking.begin() for _ in range(10)]
        wait_until(lambda: all(exchange.ended or exchange.failure for exchange in exchanges))
        assert len(silent.requests) == asked + 1
        assert sum(exchange.ended for exchange in exchanges) == 9


def test_the_others_share_alike_what_one_cannot_take(running):
    with Answering(named(b'a')) as one, Answering(named(b'b')) as other:
        asking = Asking(running, [nobody_there(), tcp(one), tcp(other)])
        bodies = [asking.ask().body for _ in range(20)]
        assert abs(bodies.count(b'a') - bodies.count(b'b')) <= 2


@pytest.mark.parametrize('answer', [
    b'HTTP/1.1 2', b'HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n',
    b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf'])
def test_a_bad_answer_is_asked_for_once_and_is_no_sign_of_an_endpoint_that_is_down(running, answer):
    """A guest may be able to ask for it, and must not be able to divert the others."""
    def script(server, sock, _number):
        server.read(sock)
        sock.sendall(answer)
    with Answering(script) as one, Answering(script) as other:
        asking = Asking(running, [tcp(one), tcp(other)])
        assert asking.ask().failure.kind == upstream.BROKEN
        assert len(one.requests) + len(other.requests) == 1
        assert all(one['up'] and not one['failures'] for one in asking.upstream.health())


def test_many_connections_are_kept_for_a_moment_only(running, monkeypatch):
    monkeypatch.setattr(upstream, '_KEPT', 2)
    monkeypatch.setattr(upstream, '_MOMENT', 0.2)

    def script(server, sock, number):
        while server.read(sock)[0]:
            wait_until(lambda: len(server.requests) >= 6)
            sock.sendall(OK)
    with Answering(script) as server:
        asking = Asking(running, tcp(server))
        exchanges = [asking.begin() for _ in range(6)]
        wait_until(lambda: all(exchange.ended for exchange in exchanges))
        assert len(asking.pool._idle) == 6
        wait_until(lambda: len(asking.pool._idle) == 2)
        assert asking.ask().body == b'ok' and server.connections == 6


def test_our_own_lack_of_descriptors_is_not_the_endpoints_fault(running, monkeypatch):
    with Answering(named(b'a')) as server:
        asking = Asking(running, [tcp(server), tcp(server)])
        with monkeypatch.context() as patched:
            def none_left(*_):
                raise socket.error(errno.EMFILE, 'Too many open files')
            patched.setattr(upstream.socket, 'socket', none_left)
            failure = asking.ask().failure
        assert failure.kind == upstream.UNREACHABLE and 'Too many open files' in failure.detail
        assert all(one['up'] for one in asking.upstream.health())
        assert asking.ask().body == b'a'


def test_an_endpoint_that_comes_and_goes_does_not_fill_the_log(running, caplog):
    asking = Asking(running, nobody_there())
    for _ in range(20):
        running.call(asking.pool.failed, 'gone')
        running.call(asking.pool.answers)
    assert len(caplog.records) <= 2
