"""The HTTP server: what a guest gets, whatever it does to us."""
import contextlib
import errno
import socket
import struct
import time

import pytest
from loopback import Options, Running, ask, connected, get, listening, receive, wait_until

from mdproxy import server
from mdproxy.http1 import BODY, END, HEAD, ResponseHead

GET = b'GET /%s HTTP/1.1\r\nHost: x\r\n\r\n'


class Source(object):
    """Relays a large body, as fast as it is let."""

    def __init__(self, exchange, pieces):
        self.exchange, self.left = exchange, pieces
        self.paused = self.cancelled = 0
        self.running = False
        exchange.source = self

    def start(self):
        self.exchange.relay([(HEAD, ResponseHead(200, b'OK', [], 1))])
        self.resume()

    def pause(self):
        self.paused += 1
        self.running = False

    def resume(self):
        self.running = True
        while self.running and self.left and not self.cancelled:
            self.left -= 1
            self.exchange.relay([(BODY, b'%07d,' % self.left * 8192)])
        if self.running and not self.left:
            self.exchange.relay([(END, None)])

    def cancel(self):
        self.cancelled += 1
        self.running = False


class Site(object):
    """A server whose handler does what the target says."""

    def __init__(self, running, **options):
        self.running, self.exchanges, self.refusals = running, [], []
        red, blue = listening(), listening()
        self.port, self.blue_port = red.getsockname()[1], blue.getsockname()[1]
        self.observed = []
        self.server = running.call(server.Server, running.loop, [(red, 'red'), (blue, 'blue')],
                                   self.handle,
                                   lambda origin, *refusal: self.refusals.append(refusal),
                                   Options(**options),
                                   lambda *answer: self.observed.append(answer), True)

    def handle(self, exchange):
        request = exchange.request
        self.exchanges.append(exchange)
        if request.target == b'/bug':
            raise RuntimeError('as ordered')
        elif request.target.startswith(b'/large/'):
            exchange.context = Source(exchange, int(request.target[7:]))
            exchange.context.start()
        elif request.target.startswith(b'/slow'):
            self.running.loop.call_later(0.1, self.answer, exchange)
        elif request.target != b'/never':
            self.answer(exchange)

    def answer(self, exchange):
        request = exchange.request
        exchange.respond(200, '%s %s %d' % (request.method.decode(), request.target.decode(),
                                            len(request.body)))


@pytest.fixture
def running():
    with Running() as running:
        yield running


@pytest.fixture
def site(running):
    return Site(running)


def test_a_connection_carries_several_requests(site):
    with contextlib.closing(connected(site.port)) as sock:
        for number in range(3):
            sock.sendall(GET % b'%d' % number)
            assert receive(sock, b'GET /%d 0' % number).startswith(b'HTTP/1.1 200 OK\r\n')


def test_the_handler_knows_the_guests_address(site):
    get(site.port)
    assert site.exchanges[0].peer == '127.0.0.1'


def test_pipelined_requests_are_answered_in_order(site):
    with contextlib.closing(connected(site.port)) as sock:
        sock.sendall(b''.join(GET % (b'slow' if number % 5 == 0 else b'%d' % number)
                              for number in range(20)))
        answer = receive(sock, b'GET /19 0')
    targets = [line.split(b' ')[1] for line in answer.split(b'\r\n') if line.startswith(b'GET ')]
    assert targets == [b'/slow' if number % 5 == 0 else b'/%d' % number for number in range(20)]
    assert answer.endswith(b'GET /19 0')


def test_thousands_of_pipelined_requests_are_no_recursion(site):
    with contextlib.closing(connected(site.port)) as sock:
        sock.sendall(GET % b'x' * 3000 + GET % b'last')
        assert receive(sock, b'/last 0').count(b'HTTP/1.1 200') == 3001


def test_a_guest_that_is_always_one_request_ahead_is_answered_for_ever(site):
    request = GET % (b'a' * 300)
    with contextlib.closing(connected(site.port)) as sock:
        sock.sendall(request)
        for _ in range(600):                # 200 KiB, and never all of it answered
            sock.sendall(request)
            assert b' 200 ' in receive(sock, b'\r\n\r\n')


def test_what_is_sent_ahead_without_end_is_not_read(running):
    site = Site(running)
    with contextlib.closing(connected(site.port)) as sock:
        sock.setblocking(False)
        sock.sendall(GET % b'never')
        sent = 0
        end = time.time() + 0.5
        while time.time() < end:
            try:
                sent += sock.send(b'x' * 65536)
            except socket.error as error:
                assert error.errno == errno.EAGAIN
                time.sleep(0.01)
        connection = list(site.server.connections)[0]
        assert connection._ahead < server.AHEAD + (1 << 17)
        assert sent < 64 << 20


@pytest.mark.parametrize('body', [
    b'Content-Length: 5\r\n\r\nhello',
    b'Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n'])
def test_bodies_are_complete_when_the_handler_sees_them(site, body):
    assert ask(site.port, b'POST /p HTTP/1.1\r\nHost: x\r\nConnection: close\r\n' + body).endswith(
        b'POST /p 5')
    assert site.exchanges[0].request.body == b'hello'


def test_a_guest_that_waits_is_told_to_continue(site):
    with contextlib.closing(connected(site.port)) as sock:
        sock.sendall(b'POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n'
                     b'Expect: 100-continue\r\n\r\n')
        assert receive(sock, b'\r\n\r\n') == b'HTTP/1.1 100 Continue\r\n\r\n'
        sock.sendall(b'hello')
        assert receive(sock, b'POST /p 5').startswith(b'HTTP/1.1 200 OK\r\n')


@pytest.mark.parametrize('data, status', [
    (b'GET / HTTP/1.1\r\n\r\n', b'400'),
    (b'DELETE / HTTP/1.1\r\nHost: x\r\n\r\n', b'405'),
    (b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n', b'413'),
    (b'GET / HTTP/1.1\r\nHost: x\r\nA: ' + b'a' * 20000, b'431'),
    (b'GET / HTTP/2.0\r\nHost: x\r\n\r\n', b'505'),
])
def test_a_refused_request_gets_its_status_and_the_connection_ends(site, data, status):
    answer = ask(site.port, data)
    assert answer.split(b' ')[1] == status
    assert b'\r\nConnection: close\r\n' in answer
    assert [str(refusal[1]).encode() for refusal in site.refusals] == [status]
    assert (b'Allow: GET, HEAD, POST, PUT\r\n' in answer) == (status == b'405')


def test_a_refusal_is_not_lost_when_the_guest_goes_on_sending(site):
    with contextlib.closing(connected(site.port)) as sock:
        sock.sendall(b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n')
        wait_until(lambda: site.refusals)
        sock.sendall(b'x' * 900000)
        assert receive(sock).split(b' ')[1] == b'413'


def test_requests_before_the_bad_one_are_answered(site):
    answer = ask(site.port, GET % b'slow' + b'GET nowhere HTTP/1.1\r\nHost: x\r\n\r\n')
    assert answer.index(b' 200 ') < answer.index(b'/slow 0') < answer.index(b' 400 ')


def test_an_error_of_the_handler_is_500(running, site):
    assert get(site.port, b'/bug')[0] == 500
    assert len(running.errors) == 1
    running.errors[:] = []


@pytest.mark.parametrize('begin, option', [
    (b'GET / HT', 'head_timeout'),
    (GET % b'x' + b'GET', 'head_timeout'),
    (b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nab', 'body_timeout')])
def test_a_request_that_does_not_arrive_in_time_is_408(running, begin, option):
    site = Site(running, **{option: 0.3})
    started = time.time()
    with contextlib.closing(connected(site.port)) as sock:
        sock.sendall(begin)
        assert b'HTTP/1.1 408 ' in receive(sock)
    assert 0.25 < time.time() - started < 3
    assert [refusal[1] for refusal in site.refusals] == [408]


def test_single_bytes_buy_no_time(running):
    site = Site(running, head_timeout=0.4)
    started = time.time()
    with contextlib.closing(connected(site.port)) as sock:
        sock.settimeout(0.02)
        answer = b''
        sock.sendall(b'GET /')
        while not answer and time.time() - started < 5:
            sock.sendall(b'x')
            try:
                answer = sock.recv(100)
            except socket.timeout:
                pass
    assert answer.startswith(b'HTTP/1.1 408 ')
    assert time.time() - started < 2


def test_an_idle_connection_is_closed_without_a_word(running):
    site = Site(running, idle_timeout=0.2)
    with contextlib.closing(connected(site.port)) as sock:
        sock.sendall(GET % b'x')
        assert receive(sock).endswith(b'/x 0')
    assert site.refusals == []
    wait_until(lambda: not site.server.connections)


def test_a_slow_reader_slows_its_source_and_gets_everything(site):
    with contextlib.closing(connected(site.port)) as sock:
        sock.sendall(GET % b'large/200' + GET % b'after')
        source = wait_until(lambda: site.exchanges and site.exchanges[0].context)
        wait_until(lambda: source.paused)
        assert list(site.server.connections)[0].buffered < server.HIGH + (1 << 17)
        assert source.left > 0
        answer = receive(sock, b'/after 0')
    assert answer.count(b'0000000,') == 8192
    assert source.paused > 0 and source.left == 0 and not source.cancelled


def test_who_does_not_read_at_all_is_dropped(running):
    site = Site(running, write_timeout=0.3)
    with contextlib.closing(connected(site.port)) as sock:
        sock.sendall(GET % b'large/4000')
        source = wait_until(lambda: site.exchanges and site.exchanges[0].context)
        wait_until(lambda: source.cancelled)
        wait_until(lambda: not site.server.connections)
    assert [refusal[1] for refusal in site.refusals] == [0]


def test_a_source_is_told_when_the_guest_has_gone(site):
    sock = connected(site.port)
    sock.sendall(GET % b'large/4000')
    source = wait_until(lambda: site.exchanges and site.exchanges[0].context)
    sock.close()
    wait_until(lambda: source.cancelled)
    assert site.exchanges[0].gone
    wait_until(lambda: not site.server.connections)


def test_an_answer_to_nobody_is_no_error(running, site):
    sock = connected(site.port)
    sock.sendall(GET % b'never')
    exchange = wait_until(lambda: site.exchanges and site.exchanges[0])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, server._RESET)
    sock.close()
    wait_until(lambda: exchange.gone)
    running.call(exchange.respond, 200, 'too late')


def test_a_guest_that_has_said_all_still_hears_all(site):
    with contextlib.closing(connected(site.port)) as sock:
        sock.sendall(GET % b'slow' + GET % b'slow2' + GET % b'third')
        sock.shutdown(socket.SHUT_WR)
        answer = receive(sock)
    assert answer.count(b'HTTP/1.1 200') == 3
    assert answer.endswith(b'/third 0')


def test_an_answer_cut_off_is_a_reset_not_an_end(running, site):
    with contextlib.closing(connected(site.port)) as sock:
        sock.sendall(b'GET /never HTTP/1.0\r\n\r\n')
        exchange = wait_until(lambda: site.exchanges and site.exchanges[0])
        exchange.source = Source(exchange, 0)
        running.call(exchange.relay, [(HEAD, ResponseHead(200, b'OK', [], 1)), (BODY, b'half')])
        assert receive(sock, b'half').endswith(b'half')
        running.call(exchange.abort)
        with pytest.raises(socket.error) as caught:
            receive(sock)
    assert caught.value.errno == errno.ECONNRESET


def test_above_the_limit_of_connections_guests_are_told_when_to_come_again(running):
    site = Site(running, max_connections=2)
    first, second = connected(site.port), connected(site.port)
    wait_until(lambda: len(site.server.connections) == 2)
    status, head, _ = get(site.port)
    assert status == 503
    assert b'\r\nRetry-After: ' in head
    first.close()
    wait_until(lambda: len(site.server.connections) < 2)
    assert get(site.port)[0] == 200
    second.close()


def test_who_has_been_idle_longest_gives_way(running, monkeypatch):
    monkeypatch.setattr(server, '_ROOM_AFTER', 0.05)
    monkeypatch.setattr(server, '_ROOM', 1)
    site = Site(running, max_connections=3)
    busy = connected(site.port)
    busy.sendall(GET % b'never')
    wait_until(lambda: site.exchanges)
    idle = [connected(site.port)]
    wait_until(lambda: len(site.server.connections) == 2)
    time.sleep(0.1)
    idle.append(connected(site.port))
    wait_until(lambda: len(site.server.connections) == 3)
    time.sleep(0.1)
    assert get(site.port)[0] == 200
    assert receive(idle[0]) == b''          # the older one was closed
    idle[1].sendall(GET % b'')
    assert b' 200 ' in receive(idle[1], b'\r\n\r\n')
    for sock in idle + [busy]:
        sock.close()


def test_who_only_just_came_gives_way_to_nobody(running):
    site = Site(running, max_connections=2)
    held = [connected(site.port) for _ in range(2)]
    wait_until(lambda: len(site.server.connections) == 2)
    assert get(site.port)[0] == 503
    for sock in held:
        sock.sendall(GET % b'')
        assert b' 200 ' in receive(sock, b'\r\n\r\n')
        sock.close()


def another_guest_is_served(site):
    other = socket.create_connection(('127.0.0.1', site.port), 5, ('127.0.0.2', 0))
    with contextlib.closing(other):
        other.sendall(GET % b'')
        return receive(other, b'\r\n\r\n').startswith(b'HTTP/1.1 200')


def test_one_guest_cannot_have_all_connections(running):
    site = Site(running, max_connections_per_guest=2)
    held = [connected(site.port) for _ in range(2)]
    wait_until(lambda: len(site.server.connections) == 2)
    status, head, _ = get(site.port)
    assert status == 503 and b'Retry-After: ' in head
    assert another_guest_is_served(site)
    held.pop().close()
    wait_until(lambda: get(site.port)[0] == 200)
    held.pop().close()
    wait_until(lambda: not site.server.connections)
    assert site.server._of_guest == {}


def test_one_guest_that_asks_too_often_is_told_so(running):
    site = Site(running, rate_limit=1, rate_burst=3)
    with contextlib.closing(connected(site.port)) as sock:
        statuses = []
        for _ in range(5):
            sock.sendall(GET % b'')
            statuses.append(receive(sock, b'\r\n\r\n').split(b' ')[1])
    assert statuses == [b'200'] * 3 + [b'429'] * 2      # on a connection that stays
    status, head, _ = get(site.port)
    assert status == 429 and b'Retry-After: 1' in head
    assert another_guest_is_served(site)


def test_other_options_hold_from_the_next_request_on(running):
    site = Site(running)
    with contextlib.closing(connected(site.port)) as sock:
        sock.sendall(GET % b'')
        receive(sock, b'\r\n\r\n')
        running.call(site.server.configure, Options(rate_limit=1, rate_burst=1))
        sock.sendall(GET % b'')
        assert b' 200 ' in receive(sock, b'\r\n\r\n')
        sock.sendall(GET % b'')
        assert b' 429 ' in receive(sock, b'\r\n\r\n')


def test_every_answer_is_observed_once_with_its_status(running):
    site = Site(running, rate_limit=1, rate_burst=3)
    get(site.port)
    get(site.port, b'/slow')
    ask(site.port, b'GET / HTTP/1.1\r\nHost: x\r\nA_B: c\r\n\r\n')
    with contextlib.closing(connected(site.port)) as sock:
        sock.sendall(GET % b'never')
        wait_until(lambda: len(site.exchanges) == 3)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))   # a reset
    wait_until(lambda: len(site.observed) == 4)
    get(site.port)
    wait_until(lambda: len(site.observed) == 5)
    assert [status for _, status, _ in site.observed] == [200, 200, 400, 0, 429]
    assert set(origin for origin, _, _ in site.observed) == set(['red'])
    assert site.observed[2][2] is None
    assert 0.09 < site.observed[1][2] < 5 and site.observed[0][2] < site.observed[1][2]


def test_guests_of_two_routers_with_the_same_address_are_two(running):
    site = Site(running, rate_limit=1, rate_burst=1, max_connections_per_guest=1)
    with contextlib.closing(connected(site.port)) as red:
        red.sendall(GET % b'red')
        receive(red, b'/red 0')
        with contextlib.closing(connected(site.blue_port)) as blue:
            blue.sendall(GET % b'blue')
            receive(blue, b'/blue 0')
            assert [exchange.origin for exchange in site.exchanges] == ['red', 'blue']
            blue.sendall(GET % b'again')
            assert receive(blue, b'\r\n\r\n').startswith(b'HTTP/1.1 429 ')
    wait_until(lambda: len(site.observed) == 3)
    assert [answer[:2] for answer in site.observed] == [('red', 200), ('blue', 200), ('blue', 429)]


def test_draining_answers_what_is_under_way_and_closes_the_rest(running, site):
    drained, idle, busy, half = [], connected(site.port), connected(site.port), connected(site.port)
    idle.sendall(GET % b'x')
    receive(idle, b'/x 0')
    busy.sendall(GET % b'slow')
    half.sendall(b'GET /late HTTP/1.1\r\nHost: x\r\n')
    wait_until(lambda: len(site.exchanges) == 2 and len(site.server.connections) == 3)
    running.call(site.server.drain, lambda: drained.append(True))
    assert receive(idle) == b''
    with pytest.raises(socket.error):
        connected(site.port)
    assert drained == []
    half.sendall(b'\r\n')
    for sock, target in ((half, b'/late'), (busy, b'/slow')):
        answer = receive(sock)
        assert answer.endswith(target + b' 0') and b'\r\nConnection: close\r\n' in answer
    wait_until(lambda: drained == [True])
    for sock in (idle, busy, half):
        sock.close()


def test_patient_draining_closes_with_the_next_answer(running, site):
    drained, idle, fresh = [], connected(site.port), connected(site.port)
    idle.sendall(GET % b'x')
    receive(idle, b'/x 0')
    wait_until(lambda: len(site.server.connections) == 2)
    running.call(site.server.drain, lambda: drained.append(True), True)
    for sock in (idle, fresh):
        assert not drained
        sock.sendall(GET % b'last')
        head, _, body = receive(sock).partition(b'\r\n\r\n')
        assert b'\r\nConnection: close' in head and body == b'GET /last 0'
        sock.close()
    wait_until(lambda: drained == [True])


def test_patience_ends_with_the_time_for_draining(running):
    site, drained = Site(running, drain_timeout=0.2), []
    idle = connected(site.port)
    idle.sendall(GET % b'x')
    receive(idle, b'/x 0')
    running.call(site.server.drain, lambda: drained.append(True), True)
    assert receive(idle) == b''         # an end, not a reset
    wait_until(lambda: drained == [True])
    idle.close()


def test_draining_serves_connections_that_were_not_accepted_yet(running, site):
    drained = []

    def drain():
        sock = connected(site.port)
        sock.sendall(GET % b'x')
        site.server.drain(lambda: drained.append(True))
        return sock
    with contextlib.closing(running.call(drain)) as sock:
        assert receive(sock).endswith(b'/x 0')
    wait_until(lambda: drained == [True])


def test_draining_does_not_wait_for_ever(running):
    site, drained = Site(running, drain_timeout=0.2), []
    with contextlib.closing(connected(site.port)) as sock:
        sock.sendall(GET % b'never')
        wait_until(lambda: site.exchanges)
        running.call(site.server.drain, lambda: drained.append(True))
        wait_until(lambda: drained == [True])
        assert site.exchanges[0].gone


def test_lines_of_a_kind_are_limited_and_the_rest_is_counted(running):
    lines = []

    class Logger(object):
        def warning(self, line, *args):
            lines.append(line % args)
    log = server.RequestLog(running.loop, Logger(), 3)
    for number in range(10):
        running.call(log.failed, 'guest %d' % number, 502, 'down', 'because')
    running.call(log.failed, 'guest 1', 0, 'cut off')
    assert lines == ['guest 0: 502 down: because', 'guest 1: 502 down: because',
                     'guest 2: 502 down: because', 'guest 1: no answer cut off']
    wait_until(lambda: len(lines) == 5)
    assert lines[4] == '7 more within a second: 502 down'
