"""The side that is asked for us: kept-alive connections to one or several endpoints (agents, or
nova's), on the loop.

Rules kept:

- A request is sent once. Only a GET or HEAD without body may be sent again, and only when not a byte
  of its answer came: once more to the same endpoint when it was on a pooled connection, which the
  other side may have closed while the request was on its way (RFC 9112 9.3.1), and once to every
  other endpoint. What is not repeated is never sent on a pooled connection, so that it need not be.
- Endpoints that are well take turns. One that gave no connection, closed one without a word or kept
  silent is asked again by a single request after a pause, longer each time, or when all are ill. An
  answer that breaks off or makes no sense is no such sign: a guest may be able to ask for it. A
  request that got no connection goes to the next; one that got no answer in time does not, it is
  late already.
- Between requests a few connections are kept, more for a moment: the agent serves many routers.
- A unix socket that was well until now and has nobody behind it is that of a process which is being
  restarted: it is tried again for connect_timeout before it counts as down, so guests lose nothing.
- Every wait is limited: connecting by connect_timeout, and each silence of the other side by
  answer_timeout. While the guest does not read, the other side is not read either, and no clock
  runs.
- Failures are told apart: UNREACHABLE (no connection), TIMEOUT (no answer in time), BROKEN (no
  answer that is one, or cut off).
- Host names are resolved once, when the pool is made. The next address is tried when one does not
  answer.

An idle connection stays registered; that it was closed is noticed when it happens, not when it is
needed.
"""
import collections
import errno
import logging
import os
import socket

from . import eventloop
from .http1 import END, HEAD, ProtocolError, ResponseReader, format_request

UNREACHABLE, TIMEOUT, BROKEN = 'unreachable', 'timeout', 'broken'
_IDLE_LIMIT = 256      # connections kept for later, most of them
_KEPT, _MOMENT = 16, 1.0    # only for a moment (seconds) when there are so many already
_PENDING = frozenset((errno.EINPROGRESS, errno.EALREADY, errno.EINTR, errno.EAGAIN))
_REPEATABLE = frozenset((b'GET', b'HEAD'))
_TAILS = 4096           # heads remembered
# Of a unix socket, what is worth another try, and the seconds until then. unix(7): the backlog is full;
# nobody listens, or there is no such socket, while its process restarts, and hundreds may wait for it.
_AGAIN = {errno.EAGAIN: 0.01, errno.ECONNREFUSED: 0.05, errno.ENOENT: 0.05}
_PAUSES = (1.0, 16.0)   # seconds an endpoint that failed is left alone: first, longest
_QUIET = 1.0            # seconds between two log lines of an endpoint that comes and goes
# Of our own: the endpoint is not to blame.
_OURS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

_log = logging.getLogger('mdproxy.upstream')

# kind: one of the three. detail: for the log. started: the guest has seen a part of the answer.
Failure = collections.namedtuple('Failure', 'kind detail started')


_known = {}         # endpoint -> [(family, address)] that `remember` found


class HeadCache(object):
    """Requests to an endpoint, whose head without a body depends on who asks alone.

    headers(who, request) makes the list of (name, value) for the head.
    """

    __slots__ = ('_headers', '_tails')

    def __init__(self, headers):
        self._headers = headers
        self._tails = {}        # who -> what follows the target of a GET or HEAD

    def format(self, who, request, more=()):
        """The bytes to send for a request; who is a hashable. more: fields for this one alone."""
        if more or request.body or request.method not in _REPEATABLE:
            return format_request(request.method, request.target,
                                  self._headers(who, request) + list(more), request.body)
        tail = self._tails.get(who)
        if tail is None:
            if len(self._tails) >= _TAILS:
                self._tails.clear()
            head = format_request(b'GET', b'/', self._headers(who, request), b'')
            tail = self._tails[who] = head[len(b'GET /'):]
        return b'%s %s%s' % (request.method, request.target, tail)


class Upstream(object):
    """Endpoints that can stand in for each other: each a unix socket's path, or (host, port).

    idle_timeout: seconds a connection is kept without a request; best less than the other side's.
    Raises ValueError when a host name cannot be resolved.
    """

    def __init__(self, loop, endpoints, connect_timeout, answer_timeout, idle_timeout=30.0):
        self.pools = [Pool(loop, endpoint, connect_timeout, answer_timeout, idle_timeout)
                      for endpoint in endpoints]
        self._loop = loop
        self._turn = 0

    def forward(self, exchange, payload, failed, refused=None):
        """Send a request's bytes and relay the answer to the exchange.

        failed(exchange, Failure) is called when that cannot be done; if the guest has seen a part
        of the answer, the exchange was aborted before. refused(exchange, ResponseHead) is called
        with a head whose status is 400 or more.
        """
        pools = self.pools if len(self.pools) == 1 else self._in_turn()
        call = exchange.source = Call(exchange, payload, pools, failed, refused)
        pools[0].carry(call)

    def health(self):
        """[{name, up, failures, last_error, down_for}] of every endpoint; down_for: seconds."""
        now = self._loop.now
        return [{'name': pool.name, 'up': not pool.down_since, 'failures': pool.failures,
                 'last_error': pool.last_error,
                 'down_for': round(now - pool.down_since, 1) if pool.down_since else 0.0}
                for pool in sorted(self.pools, key=lambda pool: pool.name)]

    def close(self):
        """Close idle connections, now and whenever one becomes idle."""
        for pool in self.pools:
            pool.close()

    def _in_turn(self):
        """All pools: those that are well by turns, then the others, that which failed last at the end."""
        now = self._loop.now
        well = [pool for pool in self.pools if pool.asked_again_at <= now]
        if well:
            self._turn = (self._turn + 1) % len(well)
            well = well[self._turn:] + well[:self._turn]
            well[0].is_asked(now)
        return well + sorted((pool for pool in self.pools if pool not in well),
                             key=lambda pool: pool.asked_again_at)


class Pool(object):
    """Connections to one endpoint, and how it has been.

    failures: how often it failed. last_error: text. down_since: by the loop's clock, 0 when it is
    well. asked_again_at: not before this, unless all are down.
    """

    def __init__(self, loop, endpoint, connect_timeout, answer_timeout, idle_timeout):
        self.loop = loop
        self.name = endpoint if not isinstance(endpoint, tuple) else '%s port %d' % endpoint
        self.connect_timeout, self.answer_timeout = connect_timeout, answer_timeout
        self.idle_timeout = idle_timeout
        self.addresses = _addresses(endpoint)   # those that answered last come first
        self.failures, self.last_error = 0, ''
        self.down_since = self.asked_again_at = self._pause = self._quiet_until = 0
        self._idle = []
        self._closed = False

    def carry(self, call):
        """Send a call's payload on a pooled connection, or a new one."""
        if call.repeatable and self._idle:
            self._idle.pop().send(call)
        else:
            Connecting(self, call)

    def is_asked(self, now):
        """A request is on its way; while we are down, no other soon."""
        if self.down_since:
            self._pause = min(self._pause * 2, _PAUSES[1])
            self.asked_again_at = now + self._pause

    def failed(self, detail):
        """Note that it gave no answer."""
        now = self.loop.now
        self.failures += 1
        self.last_error = detail
        if not self.down_since:
            self.down_since = now
            self._pause = _PAUSES[0]
            self._say('is down: %s', detail)
        self.asked_again_at = now + self._pause

    def answers(self):
        """Note that it is well again."""
        self._say('answers again after %.0f s', self.loop.now - self.down_since)
        self.down_since = self.asked_again_at = 0

    def _say(self, text, value):
        if self.loop.now >= self._quiet_until:
            _log.warning('%s ' + text, self.name, value)
            self._quiet_until = self.loop.now + _QUIET

    def keep(self, connection):
        """Take a connection back; seconds for which it may wait here, 0 when it is not wanted."""
        idle = len(self._idle)
        if self._closed or idle >= _IDLE_LIMIT:
            return 0
        self._idle.append(connection)
        return self.idle_timeout if idle < _KEPT else min(_MOMENT, self.idle_timeout)

    def forget(self, connection):
        """A connection has ended; it may have been idle."""
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self):
        """Close idle connections, now and whenever one becomes idle."""
        self._closed = True
        for connection in list(self._idle):
            connection.close()


class Call(object):
    """One request under way. The exchange's source: pause(), resume(), cancel()."""

    __slots__ = ('exchange', 'payload', 'repeatable', 'carrier', '_pools', '_turn', '_failed',
                 '_refused')

    def __init__(self, exchange, payload, pools, failed, refused):
        request = exchange.request
        self.exchange, self.payload = exchange, payload
        self.repeatable = not request.body and request.method in _REPEATABLE
        self.carrier = None         # what works for us now: Connecting, or a Connection
        self._pools, self._turn = pools, 0
        self._failed, self._refused = failed, refused

    def pause(self):
        self.carrier.pause()

    def resume(self):
        if self.carrier is not None:
            self.carrier.resume()

    def cancel(self):
        """The exchange is gone."""
        carrier, self.carrier = self.carrier, None
        if carrier is not None:
            carrier.cancel()

    def events(self, events):
        """What has come of the answer."""
        try:
            kind, head = events[0]
            if kind is HEAD and head.status >= 400 and self._refused is not None:
                self._refused(self.exchange, head)
            self.exchange.relay(events)
        except Exception:
            _log.exception('error while an answer was relayed')
            self.exchange.abort()       # else the guest would wait for ever
            self.cancel()

    def fail(self, kind, detail, heard=False, ours=False):
        """The present endpoint did not do it: ask the next one, or tell the one who asked.

        heard: bytes of an answer came. ours: it was not asked, and no other can be.
        """
        exchange, started = self.exchange, self.exchange.started
        self.carrier = None
        pool = self._pools[self._turn]
        if not (heard or ours):
            pool.failed(detail)
        again = kind is UNREACHABLE or kind is BROKEN and self.repeatable
        if again and not (heard or ours or exchange.gone) and self._turn + 1 < len(self._pools):
            self._turn += 1
            self._pools[self._turn].carry(self)
            return
        exchange.source = None
        if started:
            exchange.abort()
        if started or not exchange.gone:
            self._failed(exchange, Failure(kind, '%s: %s' % (pool.name, detail), started))


class Connecting(object):
    """Tries the pool's addresses one after the other, for connect_timeout each."""

    __slots__ = ('_pool', '_call', '_sock', '_address', '_left', '_registered', '_timer', '_why')

    def __init__(self, pool, call):
        self._pool, self._call = pool, call
        self._sock = self._timer = None
        self._why = ''          # what the last attempt came to
        self._registered = False
        self._left = list(pool.addresses)
        call.carrier = self
        self._try_next('no address')

    def pause(self):
        """Nothing is read yet."""

    resume = pause

    def cancel(self):
        self._drop()

    def _try_next(self, detail):
        if not self._left:
            self._call.fail(UNREACHABLE, detail)
            return
        self._address = self._left.pop(0)
        try:
            self._sock = eventloop.bare(socket.socket(self._address[0], socket.SOCK_STREAM))
            self._sock.setblocking(False)
            if self._address[0] != socket.AF_UNIX:
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except socket.error as error:
            if error.errno in _OURS:
                self._drop()
                self._call.fail(UNREACHABLE, error.strerror, ours=True)
            else:
                self._next_after(error)
        else:
            self._attempt(self._sock)

    def _attempt(self, sock):
        """connect(2), which is also how to ask whether the connection is there yet."""
        if sock is not self._sock:
            return
        loop = self._pool.loop
        try:
            code = sock.connect_ex(self._address[1])
        except socket.error as error:       # a path too long for a unix socket
            self._next_after(error)
            return
        if code in (0, errno.EISCONN):
            self._connected()
            return
        again = self._again_after(code)
        if code not in _PENDING and not again:
            self._next_after(socket.error(code, os.strerror(code)))
            return
        if self._timer is None:
            self._timer = loop.call_later(self._pool.connect_timeout, self._give_up)
        if again:       # nothing will tell when it may be tried
            self._why = '' if code in _PENDING else os.strerror(code) + ', '
            loop.call_later(again, self._attempt, sock)
        elif not self._registered:
            self._registered = True
            loop.register(sock.fileno(), eventloop.EPOLLOUT, self._on_event)

    def _on_event(self, _events):
        self._attempt(self._sock)

    def _connected(self):
        sock, self._sock = self._sock, None
        self._settle(sock)
        addresses = self._pool.addresses
        if addresses[0] is not self._address:
            addresses.remove(self._address)
            addresses.insert(0, self._address)
        Connection(self._pool, sock).send(self._call)

    def _again_after(self, code):
        """Seconds after which connect(2) may do what it has just failed to do; None when it will not."""
        waits = self._address[0] == socket.AF_UNIX and not self._pool.down_since
        return _AGAIN.get(code) if waits or code in _PENDING else None

    def _give_up(self):
        self._next_after(socket.error(errno.ETIMEDOUT, '%sno connection within %g s'
                                      % (self._why, self._pool.connect_timeout)))

    def _next_after(self, error):
        self._drop()
        self._try_next(error.strerror or str(error))

    def _drop(self):
        sock, self._sock = self._sock, None
        if sock is not None:
            self._settle(sock)
            sock.close()

    def _settle(self, sock):
        """No more events for this socket."""
        if self._registered:
            self._registered = False
            self._pool.loop.unregister(sock.fileno())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Connection(eventloop.Stream):
    """A connection to the endpoint; carries one call at a time, or is idle in the pool."""

    unread_counts = True    # an answer may be complete although its sender has gone

    __slots__ = ('_pool', '_call', '_reader', '_used')

    def __init__(self, pool, sock):
        self._pool, self._call = pool, None
        self._reader = ResponseReader()
        self._used = False      # has carried a call before the present one
        super(Connection, self).__init__(pool.loop, sock)

    def send(self, call):
        self._call = call
        call.carrier = self
        self._reader.expect(call.exchange.request.method)
        self.set_deadline(self.loop.now + self._pool.answer_timeout)
        self.write(call.payload)

    def pause(self):
        self.deadline = eventloop.NEVER
        self.pause_reading()

    def resume(self):
        if not self._reading:
            self.set_deadline(self.loop.now + self._pool.answer_timeout)
            self.resume_reading()

    def cancel(self):
        self._call = None
        self.close()

    def data_received(self, data):
        call = self._call
        if call is None:            # nobody has asked: not a connection to be used again
            self.close()
            return
        try:
            events = self._reader.feed(data)
        except ProtocolError as error:
            self._fail(BROKEN, 'no valid answer: %s' % error.reason)
            return
        if events:
            self._deliver(call, events)
        elif self._reading:
            self.set_deadline(self.loop.now + self._pool.answer_timeout)

    def eof_received(self):
        if self._call is None:
            self.close()
            return
        try:
            events = self._reader.eof()
        except ProtocolError as error:
            self._cut_off(error.reason)
            return
        if events:
            self._deliver(self._call, events)
        self.close()

    def write_failed(self):
        """The rest of the request goes nowhere; an answer may come all the same (RFC 9112 9.5)."""

    def timed_out(self):
        if self._call is None:
            self.close()
        else:
            self._fail(TIMEOUT, 'no answer within %g s' % self._pool.answer_timeout)

    def connection_lost(self):
        if self._call is not None:
            self._cut_off('connection reset')
        elif self._used:            # idle, or it was until now
            self._pool.forget(self)

    def _deliver(self, call, events):
        """Pass on what came. At its end the connection is free first: the next may need it."""
        if self._pool.down_since:
            self._pool.answers()
        if events[-1][0] is END:
            self._call = call.carrier = None
            patience = 0
            if self._reader.keep_alive and not self.buffered:
                patience = self._pool.keep(self)
            if patience:
                self._used = True
                self.set_deadline(self.loop.now + patience)
            else:
                self.close()
        else:
            self.set_deadline(self.loop.now + self._pool.answer_timeout)
        call.events(events)

    def _cut_off(self, reason):
        call = self._call
        if self._used and not self._reader.started and call.repeatable:
            self._call = None
            self.close()
            Connecting(self._pool, call)
        else:
            self._fail(BROKEN, reason)

    def _fail(self, kind, detail):
        call, self._call = self._call, None
        self.close()
        call.fail(kind, detail, self._reader.started)


def remember(endpoints):
    """Resolve names now, for processes that are forked later and have no time to wait for that.

    Raises ValueError, and then remembers what it did before.
    """
    found = dict((endpoint, _resolve(endpoint)) for endpoint in endpoints)
    _known.clear()
    _known.update(found)


def _addresses(endpoint):
    return list(_known.get(endpoint) or _resolve(endpoint))


def _resolve(endpoint):
    """[(family, address)] of an endpoint; raises ValueError."""
    if not isinstance(endpoint, tuple):
        return [(socket.AF_UNIX, endpoint)]
    try:
        found = socket.getaddrinfo(endpoint[0], endpoint[1], 0, socket.SOCK_STREAM)
    except (socket.error, UnicodeError) as error:
        raise ValueError('host %s cannot be resolved: %s'
                         % (endpoint[0], getattr(error, 'strerror', None) or error))
    return [(family, address) for family, _, _, _, address in found]
