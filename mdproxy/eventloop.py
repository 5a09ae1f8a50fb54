"""One epoll loop: timers, calls from threads and signals, listeners, byte streams. Knows no
protocol.

Rules kept:

- A descriptor stays registered for EPOLLIN from its first to its last day. epoll_ctl is called only
  when a send was short or reading has to pause; that is where the speed of such a loop comes from.
- An event only causes an attempt. What happened is what recv, send or accept say, so an event that
  comes late, or for a number that was closed and reused, does no harm.
- Output that the kernel does not take is buffered, and whoever produces it is told
  (`write_blocked`, `write_drained`); whoever may produce without end has to look at `buffered`.
- A deadline is an attribute, not a timer: it is moved with every request and almost never comes.
  When the earliest that was ever set has come, one pass looks at all streams. Passes are at least
  TICK apart.
- Python 2.7 does not repeat system calls after a signal (PEP 475 is 3.5's), so EINTR is handled
  here.

An exception out of a handler is logged, costs that stream, and nothing else.
"""
import collections
import errno
import fcntl
import heapq
import logging
import os
import resource
import select
import signal
import socket
import time

EPOLLIN, EPOLLOUT = select.EPOLLIN, select.EPOLLOUT
NEVER = float('inf')
TICK = 0.1              # seconds; deadlines are kept no more exactly than this
_RECEIVE = 65536        # bytes asked of the kernel at once
_EVENTS = 256           # events handled between two looks at the clock
_ACCEPTS = 128          # connections accepted before others have their turn again
_LAST_ACCEPTS = 64      # times so many, of what waits when a listener is closed
_PAUSES = (0.1, 1.0)    # seconds without accept when there are no descriptors: first, longest

_AGAIN = frozenset((errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR))
# accept(2): errors of the new connection, not of the listener; the next may be in order.
_LOST_BEFORE_ACCEPT = frozenset((
    errno.EINTR, errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENOPROTOOPT, errno.ENETDOWN,
    errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH))

_log = logging.getLogger('mdproxy.eventloop')


def _clock_ticks():
    return os.times()[4]


# Seconds of a clock that nobody sets. 2.7 has none by name, but times(2) counts the kernel's ticks.
monotonic = getattr(time, 'monotonic', _clock_ticks)
# For durations: the other has whole ticks on 2.7. There somebody may set this one meanwhile.
stopwatch = getattr(time, 'perf_counter', time.time)


def raise_file_limit(wanted):
    """Raise the soft limit of open files towards `wanted` as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def file_limit():
    """How many files may be open; inf for any number."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return NEVER if soft == resource.RLIM_INFINITY else soft


def run_until_terminated(loop, drain):
    """Run the loop; at SIGTERM or SIGINT call drain(loop.stop), so that it ends when all is done.

    Closes the loop and returns 0, the exit status. Only in the main thread.
    """
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.on_signal(signum, drain, loop.stop)
    try:
        loop.run()
    finally:
        loop.close()
    return 0


class Timer(object):
    """A call that is to come; `cancel()` makes it not come."""

    __slots__ = ('_callback', '_args')

    def __init__(self, callback, args):
        self._callback, self._args = callback, args

    def cancel(self):
        """Forget the call; harmless when it was already made."""
        self._callback = None

    def _run(self):
        callback, self._callback = self._callback, None
        if callback is not None:
            callback(*self._args)


class Loop(object):
    """The loop. Only `call_soon_threadsafe` may be used from other threads.

    now: seconds of `monotonic` when the present events were fetched.
    """

    def __init__(self):
        self.now = monotonic()
        self._epoll = select.epoll()
        self._handlers = {}                 # descriptor -> callable(events)
        self._streams = set()
        self._earliest = NEVER              # no stream's deadline is before this
        self._timers = []                   # heap of (due, number, Timer)
        self._timer_number = 0
        self._calls = collections.deque()   # from other threads and signal handlers
        self._woken = False
        self._signals = []
        self._stopped = False
        self._wake_read, self._wake_write = os.pipe()
        for descriptor in (self._wake_read, self._wake_write):
            _no_wait_no_inherit(descriptor)
        self.register(self._wake_read, EPOLLIN, self._on_wake)

    def run(self):
        """Serve events until `stop` is called."""
        poll, handlers = self._epoll.poll, self._handlers
        while not self._stopped:
            try:
                ready = poll(self._patience(), _EVENTS)
            except (IOError, OSError) as error:
                if error.errno != errno.EINTR:
                    raise
                ready = ()
            now = self.now = monotonic()
            for descriptor, events in ready:
                handler = handlers.get(descriptor)
                if handler is not None:
                    try:
                        handler(events)
                    except Exception:
                        _log.exception('error while an event was handled')
                        _drop_owner(handler)
            if self._timers and self._timers[0][0] <= now:
                self._run_timers()
            if self._earliest <= now:
                self._run_deadlines()
        self._stopped = False

    def stop(self):
        """Let `run` return when the present events are done."""
        self._stopped = True

    def close(self):
        """Close every stream and the loop's own descriptors, give signals back."""
        for stream in list(self._streams):
            stream.close()
        for signum in self._signals:
            signal.signal(signum, signal.SIG_DFL)
        if self._signals:
            signal.set_wakeup_fd(-1)
        self._epoll.close()
        os.close(self._wake_read)
        # A thread may still be about to wake us; it finds the pipe's number gone, never reused.
        descriptor, self._wake_write = self._wake_write, -1
        os.close(descriptor)

    def abandon(self):
        """In a child made by fork: let go of all that is registered, of the signals and of the loop.

        Nothing is unregistered: parent and child have one epoll between them.
        """
        for signum in self._signals:
            signal.signal(signum, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        self._epoll.close()
        for descriptor in list(self._handlers) + [self._wake_write]:
            os.close(descriptor)

    def call_later(self, delay, callback, *args):
        """Call after `delay` seconds; returns a Timer."""
        timer = Timer(callback, args)
        self._timer_number += 1
        heapq.heappush(self._timers, (monotonic() + delay, self._timer_number, timer))
        return timer

    def call_soon_threadsafe(self, callback, *args):
        """Have the loop make a call; from any thread, and from signal handlers."""
        self._calls.append((callback, args))
        if not self._woken:
            self._woken = True
            try:
                os.write(self._wake_write, b'\0')
            except (IOError, OSError) as error:
                if error.errno not in _AGAIN and error.errno != errno.EBADF:
                    raise

    def on_signal(self, signum, callback, *args):
        """Make the call on the loop when the signal comes. Only in the main thread."""
        def handler(_signum, _frame):
            self.call_soon_threadsafe(callback, *args)
        signal.set_wakeup_fd(self._wake_write)      # wakes us whichever thread got the signal
        signal.signal(signum, handler)
        signal.siginterrupt(signum, False)
        self._signals.append(signum)

    def register(self, descriptor, mask, handler):
        """Have handler(events) called for a descriptor."""
        self._epoll.register(descriptor, mask)
        self._handlers[descriptor] = handler

    def modify(self, descriptor, mask):
        """Change what a registered descriptor waits for."""
        self._epoll.modify(descriptor, mask)

    def unregister(self, descriptor):
        """No more events for a descriptor. Needed before close: a socket that another process holds
        too would go on reporting them."""
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def _patience(self):
        due = self._earliest
        if self._timers and self._timers[0][0] < due:
            due = self._timers[0][0]
        if due == NEVER:
            return -1
        # 2.7 cuts to whole milliseconds, and would wake early again and again.
        return max(due - self.now, 0) + 0.001

    def _on_wake(self, _events):
        try:
            os.read(self._wake_read, 4096)
        except (IOError, OSError) as error:
            if error.errno not in _AGAIN:
                raise
        self._woken = False     # before the calls are looked at: who comes later writes again
        for _ in range(len(self._calls)):
            callback, args = self._calls.popleft()
            self._guarded(callback, args)

    def _run_timers(self):
        timers = self._timers
        while timers and timers[0][0] <= self.now:
            self._guarded(heapq.heappop(timers)[2]._run, ())

    def _run_deadlines(self):
        now, earliest = self.now, NEVER
        self._earliest = NEVER
        for stream in list(self._streams):
            deadline = stream.deadline
            if deadline <= now:
                stream.deadline = NEVER
                self._guarded(stream.timed_out, ())
            elif deadline < earliest:
                earliest = deadline
        # The calls may have set deadlines of their own.
        self._earliest = max(min(earliest, self._earliest), now + TICK)

    @staticmethod
    def _guarded(callback, args):
        try:
            callback(*args)
        except Exception:
            _log.exception('error in a call of the loop')
            _drop_owner(callback)


def _drop_owner(handler):
    """After an error in its code nobody knows what state a stream is in."""
    stream = getattr(handler, '__self__', None)
    if isinstance(stream, Stream):
        stream.close()


def _no_wait_no_inherit(descriptor):
    fcntl.fcntl(descriptor, fcntl.F_SETFL,
                fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_NONBLOCK)
    fcntl.fcntl(descriptor, fcntl.F_SETFD,
                fcntl.fcntl(descriptor, fcntl.F_GETFD) | fcntl.FD_CLOEXEC)


def bare(sock):
    """The socket itself. 2.7 wraps it in an object that holds a bound method for every way to read and
    write, half a kilobyte for each connection."""
    return getattr(sock, '_sock', sock)


class Listener(object):
    """Accepts connections on a listening socket and calls accepted(sock, address) for each; sock
    does not block.

    Without free descriptors (EMFILE, ENFILE) or memory it pauses and goes on by itself; what comes
    in the meantime waits in the kernel's backlog.
    """

    def __init__(self, loop, sock, accepted):
        self._loop, self._sock, self._accepted = loop, bare(sock), accepted
        self._pause = _PAUSES[0]
        self._timer = None
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._resume()

    def close(self):
        """Take what already waits in the backlog, then stop listening."""
        if self._sock is not None:
            for _ in range(_LAST_ACCEPTS):
                if not self._on_event(EPOLLIN):
                    break
            if self._timer is not None:
                self._timer.cancel()
            self._loop.unregister(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def _resume(self):
        self._timer = None
        self._loop.register(self._sock.fileno(), EPOLLIN, self._on_event)

    def _on_event(self, _events):
        """Accept a share of what waits; True when there may be more."""
        for _ in range(_ACCEPTS):
            try:
                sock, address = self._sock.accept()
            except socket.error as error:
                if error.errno in _LOST_BEFORE_ACCEPT:
                    continue
                if error.errno not in _AGAIN:
                    self._rest(error)
                return False
            self._pause = _PAUSES[0]
            sock.setblocking(False)
            self._accepted(sock, address)
        return True

    def _rest(self, error):
        if self._timer is None:
            _log.error('no connection can be accepted for %.1f s: %s', self._pause, error.strerror)
            self._loop.unregister(self._sock.fileno())
            self._timer = self._loop.call_later(self._pause, self._resume)
            self._pause = min(self._pause * 2, _PAUSES[1])


class Stream(object):
    """A connected, non-blocking stream socket. Subclasses fill in the calls named `..._...ed`.

    deadline: when `timed_out` is called (`set_deadline`). buffered: bytes that wait for the kernel.
    sock: None once closed.
    """

    # Whether what the peer sent before it hung up still counts while reading is paused. Then a
    # hang-up, which epoll reports unasked and again and again, has to wait too.
    unread_counts = False

    __slots__ = ('loop', 'sock', 'deadline', 'buffered', '_out', '_descriptor', '_mask', '_reading')

    def __init__(self, loop, sock):
        self.loop, self.sock = loop, sock
        self.deadline = NEVER
        self.buffered = 0
        self._out = None            # deque of what waits, made when first needed
        self._descriptor = sock.fileno()
        self._mask = EPOLLIN
        self._reading = True
        loop.register(self._descriptor, EPOLLIN, self._on_event)
        loop._streams.add(self)

    def data_received(self, data):
        """Bytes have come."""

    def eof_received(self):
        """The peer will send nothing more; it may still read. Reading has stopped."""

    def connection_lost(self):
        """The connection is closed, by whatever side. Called once, and last."""

    def write_blocked(self):
        """Output waits in the buffer: called when it begins to, and when some of it has gone."""

    def write_drained(self):
        """The buffer is empty again."""

    def write_failed(self):
        """The peer reads no more (EPIPE, ECONNRESET): what is written from now on goes nowhere."""
        self.close()

    def timed_out(self):
        """The deadline has come."""

    def set_deadline(self, when):
        """Have `timed_out` called at this time of the loop's clock, instead of any earlier wish."""
        self.deadline = when
        loop = self.loop
        if when < loop._earliest:
            loop._earliest = when

    def write(self, data):
        """Send; what the kernel does not take now is buffered. Without effect once closed."""
        if self.sock is None or not data:
            return
        if not self.buffered:
            try:
                sent = self.sock.send(data)
            except socket.error as error:
                sent = self._not_sent(error, data)
            if sent == len(data) or self.sock is None:
                return
            data = memoryview(data)[sent:]
        if self._out is None:
            self._out = collections.deque()
        self._out.append(data)
        begins = not self.buffered
        self.buffered += len(data)
        if begins:
            self._listen_for()
            self.write_blocked()

    def pause_reading(self):
        """Take nothing more from the kernel, which will in turn slow down the peer."""
        self._reading = False
        self._listen_for()

    def resume_reading(self):
        """Undo `pause_reading`."""
        if self.sock is not None and not self._reading:
            self._reading = True
            self._listen_for()

    def poll(self):
        """Take what the kernel has for us now, instead of when the loop comes to it."""
        if self.sock is not None and self._reading:
            self._on_event(EPOLLIN)

    def close(self):
        """Close now; what waits in the buffer is lost."""
        sock, self.sock = self.sock, None
        if sock is not None:
            self.loop.unregister(self._descriptor)
            self.loop._streams.discard(self)
            sock.close()
            self._out = None
            self.buffered = 0
            self.deadline = NEVER
            self.connection_lost()

    def _on_event(self, events):
        if events & EPOLLOUT:
            self._flush()
            if events == EPOLLOUT:
                return
        if self.sock is None:
            return
        if not self._reading:               # EPOLLHUP or EPOLLERR
            if not self.unread_counts:
                self.close()
            return
        try:
            data = self.sock.recv(_RECEIVE)
        except socket.error as error:
            if error.errno not in _AGAIN:
                self.close()
            return
        if data:
            self.data_received(data)
        else:
            self.pause_reading()
            self.eof_received()

    def _not_sent(self, error, data):
        """Bytes taken by the kernel. When the peer no longer reads, all are taken, to nowhere."""
        if error.errno in _AGAIN:
            return 0
        self.write_failed()
        return len(data)

    def _flush(self):
        out, before = self._out, self.buffered
        while out and self.sock is not None:
            try:
                sent = self.sock.send(out[0])
            except socket.error as error:
                sent = self._not_sent(error, out[0])
            if self.sock is None:
                return
            self.buffered -= sent
            if sent < len(out[0]):
                out[0] = out[0][sent:]
                break
            out.popleft()
        if self.buffered:
            if self.buffered < before:
                self.write_blocked()
        elif before:
            self._listen_for()
            self.write_drained()

    def _listen_for(self):
        mask = (EPOLLIN if self._reading else 0) | (EPOLLOUT if self.buffered else 0)
        if self.sock is None or mask == self._mask:
            return
        if mask == 0 and self.unread_counts:
            self.loop.unregister(self._descriptor)
        elif self._mask == 0 and self.unread_counts:
            self.loop.register(self._descriptor, mask, self._on_event)
        else:
            self.loop.modify(self._descriptor, mask)
        self._mask = mask
