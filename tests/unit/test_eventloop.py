"""The loop: timers, threads, signals, streams, listeners."""
import errno
import os
import resource
import signal
import socket
import threading
import time

import pytest
from loopback import Running, connected, listening, receive, wait_until

from mdproxy import eventloop


class Recorder(eventloop.Stream):
    """A stream that writes down what happens to it."""

    def __init__(self, loop, sock):
        self.data, self.events = b'', []
        super(Recorder, self).__init__(loop, sock)

    def data_received(self, data):
        self.data += data
        if b'crash' in data:
            raise RuntimeError('as ordered')

    def eof_received(self):
        self.events.append('eof')

    def connection_lost(self):
        self.events.append('lost')

    def write_blocked(self):
        self.events.append('blocked')

    def write_drained(self):
        self.events.append('drained')

    def timed_out(self):
        self.events.append('late')


class Patient(Recorder):
    unread_counts = True


def pair(running, kind=Recorder, family=socket.AF_UNIX):
    """A stream on the loop, and the plain socket at its other end."""
    if family == socket.AF_UNIX:
        ours, theirs = socket.socketpair()
    else:
        listener = listening()
        theirs = connected(listener.getsockname()[1])
        ours = listener.accept()[0]
        listener.close()
    ours.setblocking(False)
    theirs.settimeout(10)
    return running.call(kind, running.loop, ours), theirs


@pytest.fixture
def running():
    with Running() as running:
        yield running


def test_timers_run_when_due_in_order_and_not_when_cancelled():
    loop, calls = eventloop.Loop(), []
    loop.call_later(0.06, calls.append, 'second')
    loop.call_later(0.02, calls.append, 'first')
    loop.call_later(0.04, calls.append, 'cancelled').cancel()
    loop.call_later(0.1, loop.stop)
    begin = time.time()
    loop.run()
    loop.close()
    assert calls == ['first', 'second']
    assert time.time() - begin >= 0.09


def test_a_loop_without_anything_to_do_sleeps(running):
    before = os.times()
    time.sleep(0.3)
    after = os.times()
    assert after[0] + after[1] - before[0] - before[1] < 0.1


def test_calls_of_threads_all_arrive(running):
    calls = []

    def shout():
        for number in range(500):
            running.loop.call_soon_threadsafe(calls.append, number)
    threads = [threading.Thread(target=shout) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: len(calls) == 2000)


def test_signals_are_calls_on_the_loop():
    loop, calls = eventloop.Loop(), []
    loop.on_signal(signal.SIGUSR1, calls.append, 'usr1')
    loop.on_signal(signal.SIGUSR2, loop.stop)
    loop.call_later(0.02, os.kill, os.getpid(), signal.SIGUSR1)
    loop.call_later(0.06, os.kill, os.getpid(), signal.SIGUSR2)
    loop.call_later(5, loop.stop)
    begin = time.time()
    loop.run()
    loop.close()
    assert calls == ['usr1']
    assert time.time() - begin < 4
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_a_rain_of_signals_disturbs_no_transfer():
    loop = eventloop.Loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    stream, size = Recorder(loop, ours), 4 << 20
    received = []
    reader = threading.Thread(target=lambda: received.append(receive(theirs)))
    reader.start()
    loop.on_signal(signal.SIGALRM, lambda: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        stream.write(b'x' * size)
        stream.write_drained = loop.stop
        loop.call_later(10, loop.stop)
        loop.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        loop.close()
    reader.join(10)
    assert len(received[0]) == size


def test_output_is_buffered_announced_and_arrives_whole(running):
    stream, theirs = pair(running)
    size = 5 << 20
    running.call(stream.write, b'a' * size)
    running.call(stream.write, b'z')
    assert stream.events == ['blocked']
    assert 0 < stream.buffered <= size + 1
    data = b''
    while len(data) < size + 1:
        data += theirs.recv(1 << 16)
    wait_until(lambda: stream.events[-1] == 'drained')
    assert data == b'a' * size + b'z'
    assert stream.buffered == 0


def test_a_paused_stream_reads_nothing_until_resumed(running):
    stream, theirs = pair(running)
    running.call(stream.pause_reading)
    theirs.sendall(b'later')
    time.sleep(0.05)
    assert stream.data == b''
    running.call(stream.resume_reading)
    wait_until(lambda: stream.data == b'later')


@pytest.mark.parametrize('family', [socket.AF_UNIX, socket.AF_INET])
def test_what_was_sent_before_a_hang_up_waits_for_a_paused_reader(running, family):
    stream, theirs = pair(running, Patient, family)
    running.call(stream.pause_reading)
    theirs.sendall(b'last words')
    theirs.close()
    time.sleep(0.05)
    assert stream.events == []
    running.call(stream.resume_reading)
    wait_until(lambda: stream.events == ['eof'])
    assert stream.data == b'last words'


def test_end_and_loss_are_told_once(running):
    stream, theirs = pair(running)
    theirs.shutdown(socket.SHUT_WR)
    wait_until(lambda: stream.events == ['eof'])
    running.call(stream.write, b'still heard')
    assert theirs.recv(100) == b'still heard'
    running.call(stream.close)
    running.call(stream.close)
    assert stream.events == ['eof', 'lost']


def test_a_deadline_counts_from_when_it_was_last_set(running):
    stream, _theirs = pair(running)
    begin = time.time()
    running.call(stream.set_deadline, running.loop.now + 60)
    running.call(lambda: stream.set_deadline(eventloop.monotonic() + 0.1))
    running.call(lambda: stream.set_deadline(eventloop.monotonic() + 0.3))
    wait_until(lambda: stream.events == ['late'])
    assert 0.27 <= time.time() - begin < 1.0


def test_an_error_costs_the_stream_it_happened_in_and_no_other(running):
    bad, theirs_bad = pair(running)
    good, theirs_good = pair(running)
    theirs_bad.sendall(b'crash')
    assert theirs_bad.recv(1) == b''
    theirs_good.sendall(b'hello')
    wait_until(lambda: good.data == b'hello')
    assert len(running.errors) == 1
    running.errors[:] = []


def test_a_listener_outlives_a_lack_of_descriptors(running):
    sock, accepted = listening(), []
    waiting = socket.socket()
    running.call(eventloop.Listener, running.loop, sock, lambda sock, _: accepted.append(sock))
    hoard, limits = [], resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[0], 512), limits[1]))
    try:
        with pytest.raises((OSError, IOError)) as caught:
            while True:
                hoard.append(os.open('/dev/null', os.O_RDONLY))
        assert caught.value.errno == errno.EMFILE
        waiting.connect(sock.getsockname())
        wait_until(lambda: running.errors)
        assert accepted == []
    finally:
        for descriptor in hoard:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    wait_until(lambda: accepted)
    assert accepted[0].getpeername() == waiting.getsockname()
    assert len(running.errors) < 5
    running.errors[:] = []


def test_accepted_connections_do_not_wait_for_full_packets(running):
    sock, accepted = listening(), []
    running.call(eventloop.Listener, running.loop, sock, lambda sock, _: accepted.append(sock))
    connected(sock.getsockname()[1])
    wait_until(lambda: accepted)
    assert accepted[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_closed_listener_has_taken_what_was_waiting(running):
    sock, accepted = listening(), []
    listener = running.call(eventloop.Listener, running.loop, sock,
                            lambda sock, _: accepted.append(sock))
    port = sock.getsockname()[1]

    def close():
        clients = [connected(port) for _ in range(5)]
        listener.close()
        return clients
    assert len(running.call(close)) == len(accepted) == 5
    with pytest.raises(socket.error):
        connected(port)
