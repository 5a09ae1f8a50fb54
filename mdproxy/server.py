"""The side that is asked: an HTTP server on the loop, one small object per guest connection.

Rules kept:

- Requests of a connection are answered one after the other, in order. What a guest sends ahead of
  its answers is kept up to AHEAD bytes; then it is not read until there is room.
- Every state of a connection but 'the handler is working' has its deadline: idle, head, body (each
  counted from its beginning, so that single bytes buy no time), and output that the guest does not
  take.
- A refused request is answered with its status, and the connection closed without losing that
  answer: closing with unread input makes TCP reset, so the rest is read and dropped for a moment
  (RFC 9112 9.6).
- When an answer cannot be completed the connection is reset, so that no guest takes a part for the
  whole.
- A guest that has said all (half-closed) still gets its answer.

handler(exchange) is called for every complete request, and has to see to it that the exchange ends:
with `respond`, or by relaying an answer from elsewhere with `relay` as it comes. In the latter case
`exchange.source` is whoever sends it, with pause(), resume() and cancel().
"""
import functools
import heapq
import logging
import socket
import struct

from . import eventloop, limits
from .http1 import (
    BODY,
    CONTINUE,
    HEAD,
    ProtocolError,
    RequestReader,
    ResponseWriter,
    format_response,
    format_usual,
)

AHEAD = 65536           # bytes taken of requests that have to wait for earlier answers
HIGH = 131072           # bytes of output waiting from which on a source is paused
_LINGER = 2.0           # seconds that what comes after a refused request is read and dropped
_FIRST_REQUEST = 1.0    # seconds a new connection has for its request while we drain
_OVERFLOW = 128         # connections above the limit that are told so, not just closed
_ROOM, _ROOM_AFTER = 64, 1.0    # idle connections that give way to new ones at once; seconds idle
_GUESTS_HEAD, _RELAYED_HEAD = 16384, 20480      # bytes; a proxy adds fields of its own
_RESET = struct.pack('ii', 1, 0)
_ALLOW = ((b'Allow', b'GET, HEAD, POST, PUT'),)
_OTHER_FILES = 64       # open besides connections and those to the next hop
RETRY_AFTER = ((b'Retry-After', b'2'),)
_SOON = ((b'Retry-After', b'1'),)
_clock = eventloop.stopwatch

_log = logging.getLogger('mdproxy.server')


def longest_drain(options):
    """Seconds that a patient drain may take."""
    return max(options.drain_timeout, options.agent_timeout)


def descriptors_for(connections, others=_OTHER_FILES):
    """How many open files so many connections need: every second one is idle and has no other to the
    next hop."""
    return connections * 3 // 2 + others


class RequestLog(object):
    """One line for each request that failed, but at most `per_second` of a kind, and then how many
    more there were. A kind is a status and a text."""

    def __init__(self, loop, logger, per_second=10):
        self._loop, self._logger, self._per_second = loop, logger, per_second
        self._counts = {}

    def failed(self, who, status, text, detail=''):
        """Log, or count, that who (router and guest) got this status, 0 for none, and text.

        The detail is for the operator alone.
        """
        kind = (status or 'no answer', text)
        count = self._counts.get(kind, 0)
        if not count:
            self._loop.call_later(1.0, self._account, kind)
        self._counts[kind] = count + 1
        if count < self._per_second:
            self._logger.warning('%s: %s %s%s', who, kind[0], text, detail and ': ' + detail)

    def _account(self, kind):
        more = self._counts.pop(kind) - self._per_second
        if more > 0:
            self._logger.warning('%d more within a second: %s %s', more, *kind)


class Exchange(object):
    """A request and the way to answer it.

    request: http1.Request. peer: the guest's address, native str, '' on a unix socket. origin: what
    the listener that it came by stands for, None or a trust.Identity. mac: of the guest, as of Server.
    context: the handler's own. source: who is relayed, told to pause, resume and cancel.
    gone: nobody waits for the answer any more. started: the guest has seen the beginning of it.
    status: of the answer, 0 before it begins. began: when the request was complete, by _clock.
    """

    __slots__ = ('request', 'peer', 'origin', 'mac', 'context', 'source', 'status', 'started', 'began',
                 '_connection', '_writer')

    def __init__(self, connection, request):
        self.request, self.peer = request, connection.peer
        self.origin, self.mac = connection.origin, connection.mac
        self.context = self.source = None
        self.status, self.started, self.began = 0, False, _clock()
        self._connection, self._writer = connection, None

    @property
    def gone(self):
        return self._connection is None

    def respond(self, status, text, headers=()):
        """Answer with a status and a line of text (native str).

        headers: more of them, (name, value) in bytes.
        """
        connection = self._connection
        if connection is not None:
            self.status = status
            close = connection.last or not self.request.keep_alive
            connection.write(format_response(status, text, self.request, close, headers))
            connection.answered(close)

    def relay(self, events):
        """Pass on events of http1.ResponseReader; with END the exchange is over."""
        connection = self._connection
        if connection is None:
            return
        if len(events) == 3 and not self.started and not connection.last:       # all of it, as a rule
            head = events[0][1]
            data = format_usual(self.request, head, events[1][1])
            if data is not None:
                self.status, self.started = head.status, True
                connection.write(data)
                if self._connection is not None:
                    connection.answered(False)
                return
        pieces, ended = [], False
        for kind, value in events:
            if kind is BODY:
                pieces.append(self._writer.body(value))
            elif kind is HEAD:
                self.status, self.started = value.status, True
                self._writer = ResponseWriter(self.request, connection.last)
                pieces.append(self._writer.head(value))
            else:
                pieces.append(self._writer.end())
                ended = True
        connection.write(pieces[0] if len(pieces) == 1 else b''.join(pieces))
        if self._connection is None:
            return
        if ended:
            connection.answered(self._writer.close)
        elif connection.buffered > HIGH:
            self.source.pause()

    def abort(self):
        """The answer cannot be completed: reset the connection."""
        if self._connection is not None:
            self.source = None
            self._connection.reset()

    def _abandoned(self):
        self._connection = None
        source, self.source = self.source, None
        if source is not None:
            source.cancel()


class GuestConnection(eventloop.Stream):
    """A connection of a guest. peer, origin and mac: as of Exchange. scope: of a link-local address,
    index of the interface that it holds for, else 0. last: no request will be taken after the present one.
    """

    __slots__ = ('peer', 'scope', 'origin', 'mac', 'last', '_server', '_reader', '_exchange',
                 '_pumping', '_stage', '_ahead', '_closing', '_served', '_ended')

    def __init__(self, server, sock, peer, scope, origin):
        self.peer, self.scope, self.origin = peer, scope, origin
        self.mac = None
        self.last = server.draining
        self._server = server
        self._reader = RequestReader(server.max_head, max_body=server.options.max_body)
        self._exchange = None
        self._pumping = False   # requests are being taken further up the stack
        self._stage = 'idle'    # of the reader, when a deadline was last set for it
        self._ahead = 0         # bytes that came while an answer was under way
        self._closing = False   # everything was said; close when it is sent
        self._served = False    # has had a request
        self._ended = False     # the guest has said all it wants to
        super(GuestConnection, self).__init__(server.loop, sock)
        self.set_deadline(self.loop.now + server.options.idle_timeout)

    @property
    def guest(self):
        """Who it is, among all guests of all routers."""
        return self.origin, self.peer, self.scope

    def data_received(self, data):
        if self._closing:
            return
        self._reader.feed(data)
        if self._exchange is None and not self.buffered:
            self._pump()
        else:
            self._ahead += len(data)
            if self._ahead > AHEAD:
                self.pause_reading()

    def eof_received(self):
        self._ended = True
        if self._exchange is None and not self.buffered:
            self.close()

    def answered(self, close):
        """The present answer is complete; close: it was the last."""
        if self.sock is None:
            return
        exchange, self._exchange = self._exchange, None
        exchange._connection = exchange.source = None
        self._server.observe(self.origin, exchange.status, _clock() - exchange.began)
        if close:
            self._finish()
        elif not self._pumping and not self.buffered:
            if self._reader.idle and self._reading and not (self.last or self._ended):  # as a rule
                self._ahead = 0
                self.set_deadline(self.loop.now + self._server.options.idle_timeout)
            else:
                self._pump()

    def idle_since(self):
        """Since when there is nothing to do, by the loop's clock; NEVER when there is, or it is closed."""
        if self.sock is None or self._exchange or self.buffered or self._closing or not self._reader.idle:
            return eventloop.NEVER
        return self.deadline - self._server.options.idle_timeout

    def refuse(self, status, reason, headers=()):
        """Answer what could not be read as a request, and close."""
        self._server.observe(self.origin, status, None)
        self.write(format_response(status, reason, None, True, headers))
        if self.sock is not None:
            self._closing = True
            self.resume_reading()       # what still comes is dropped, so that TCP does not reset
            if not self.buffered:
                self._linger()

    def reset(self):
        """Close so that the guest notices."""
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        except socket.error:
            pass                        # it is gone already
        self.close()

    def drain(self, patient=False):
        """Take one more request at most; without one under way close, or when patient wait for it."""
        self.last = True
        self.poll()
        if patient or self.idle_since() == eventloop.NEVER:
            return
        if self._served:
            self.close()
        else:
            self.set_deadline(self.loop.now + _FIRST_REQUEST)

    def write_blocked(self):
        self.set_deadline(self.loop.now + self._server.options.write_timeout)

    def write_drained(self):
        self.deadline = eventloop.NEVER
        if self._closing:
            self._linger()
        elif self._exchange is None:
            self._pump()
        elif self._exchange.source is not None:
            self._exchange.source.resume()

    def timed_out(self):
        if self.buffered:
            self._server.refused(self.origin, self.peer, 0, 'the answer was not read in time')
            self.reset()
        elif self._closing or self._stage == 'idle':
            self.close()
        else:
            self._refused(408, 'the %s did not arrive in time' % self._stage)

    def connection_lost(self):
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self._server.observe(self.origin, 0, _clock() - exchange.began)
            exchange._abandoned()
        self._server.closed(self)

    def _pump(self):
        """Take requests as long as they are answered at once."""
        self._pumping = True
        try:
            while not (self._exchange or self.buffered or self._closing or self.sock is None):
                try:
                    request = self._reader.next_request()
                except ProtocolError as error:
                    self._refused(error.status, error.reason)
                    return
                if request is None:
                    self._wait()
                    return
                self._begin(request)
        finally:
            self._pumping = False

    def _begin(self, request):
        self.deadline = eventloop.NEVER
        self._stage = 'idle'
        server = self._server
        if self.scope and not self._served:
            self.mac = server.mac_of(self.origin, self.peer, self.scope)
        self._served = True
        exchange = self._exchange = Exchange(self, request)
        try:
            if server.rate_limit and not server.rate_limit.allows(self.guest, self.loop.now):
                server.refused(self.origin, self.peer, 429, 'more requests than rate_limit allows')
                exchange.respond(429, 'too many requests', _SOON)
            else:
                server.handler(exchange)
        except Exception:
            _log.exception('error while a request was handled')
            if exchange.started:
                exchange.abort()
            else:
                exchange.respond(500, 'internal error')

    def _wait(self):
        """No request is complete: wait for more, for a time that depends on what is missing."""
        self._ahead = 0
        stage, options = self._reader.stage, self._server.options
        if stage == 'idle':
            if self.last or self._ended:
                self._finish()
                return
            self.set_deadline(self.loop.now + options.idle_timeout)
        elif stage != self._stage:
            timeout = options.head_timeout if stage == 'head' else options.body_timeout
            self.set_deadline(self.loop.now + timeout)
        self._stage = stage
        if stage == 'body' and self._reader.expects_continue():
            self.write(CONTINUE)
            if self.buffered:           # then its deadline is that of writing; the body's comes after
                self._stage = 'idle'
        if not self._reading:
            self.resume_reading()

    def _refused(self, status, reason):
        self._server.refused(self.origin, self.peer, status, reason)
        self.refuse(status, reason, _ALLOW if status == 405 else ())

    def _finish(self):
        """Close once everything is sent."""
        self._closing = True
        if not self.buffered:
            if self._reader.idle:
                self.close()
            else:
                self._linger()

    def _linger(self):
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except socket.error:
            self.close()
        else:
            self.set_deadline(self.loop.now + _LINGER)


class Server(object):
    """Listens, and keeps what all its connections share.

    listeners: (listening socket, origin) each. refused(origin, peer, status, text) is told of what the
    server answered itself, to log it (status 0: it could not answer). observe(origin, status, seconds)
    is told of every answer: status 0 when it was not complete, seconds None when what was refused was
    not a request. limited: those who ask are guests, and what options say of one address holds for
    each, and for each router's anew; else they are proxies of ours. mac_of(origin, peer, scope) is asked
    once for a connection from a link-local address.
    """

    def __init__(self, loop, listeners, handler, refused, options, observe=None, limited=False,
                 mac_of=None):
        self.loop, self.handler, self.refused = loop, handler, refused
        self.mac_of = mac_of or _unknown
        self.observe = observe or _unobserved
        self._limited = limited
        self.max_head = _GUESTS_HEAD if limited else _RELAYED_HEAD
        self._full_until = 0        # no use to look for room before
        self.connections = set()
        self.draining = False
        self._drained = None
        self._of_guest = {}         # GuestConnection.guest -> how many connections
        self._other_files = _OTHER_FILES + 2 * len(listeners)      # and what knows their neighbours
        self.configure(options)
        self._listeners = [
            eventloop.Listener(loop, sock, functools.partial(self._accepted, origin))
            for sock, origin in listeners]

    def configure(self, options):
        """Use other options, from the next wait, connection or request on."""
        self.options = options
        self._limit = options.max_connections
        eventloop.raise_file_limit(2 * self._limit + self._other_files)     # each with a next hop
        if eventloop.file_limit() < descriptors_for(self._limit, self._other_files):
            self._limit = max((eventloop.file_limit() - self._other_files) * 2 // 3, 1)
        self.rate_limit = None
        if self._limited and options.rate_limit:
            self.rate_limit = limits.RateLimit(options.rate_limit, options.rate_burst)

    def drain(self, drained, patient=False):
        """Accept no more, answer what is under way, close the rest; then call drained().

        What waits in the backlog counts as under way. After options.drain_timeout all is closed.
        patient: an idle connection is closed with its next answer, so that no request crosses its end on
        the way; without only when the time is over. And what is under way has as long as an answer may
        take. A second call that is not patient ends patience.
        """
        if self.draining:
            if not patient:
                self._drain_connections(False)
                self.loop.call_later(self.options.drain_timeout, self._cut_off)
            return
        self.draining = True
        self._drained = drained
        for listener in self._listeners:
            listener.close()
        self._drain_connections(patient)
        self._check_drained()
        if self._drained is None:
            return
        if patient:
            self.loop.call_later(self.options.drain_timeout, self._close_idle)
        self.loop.call_later(longest_drain(self.options) if patient else self.options.drain_timeout,
                             self._cut_off)

    def _drain_connections(self, patient):
        for connection in list(self.connections):
            connection.drain(patient)

    def closed(self, connection):
        """A connection is closed."""
        self.connections.discard(connection)
        left = self._of_guest.pop(connection.guest, 1) - 1
        if left:
            self._of_guest[connection.guest] = left
        self._check_drained()

    def _accepted(self, origin, sock, address):
        peer, scope, limit = _host(address), _scope(address), self._limit
        guest_limit = self._limited and self.options.max_connections_per_guest or limit
        if len(self.connections) >= limit:
            self._make_room()
        of_guest = self._of_guest.get((origin, peer, scope), 0)
        if len(self.connections) >= limit + _OVERFLOW or of_guest >= guest_limit + _OVERFLOW:
            sock.close()
            return
        connection = GuestConnection(self, sock, peer, scope, origin)
        self.connections.add(connection)
        self._of_guest[connection.guest] = of_guest + 1
        if len(self.connections) > limit:
            reason = 'there are %d connections already' % limit
        elif of_guest >= guest_limit:
            reason = 'it has %d connections already' % guest_limit
        else:
            return
        self.refused(origin, peer, 503, reason)
        connection.refuse(503, 'too many connections', RETRY_AFTER)

    def _make_room(self):
        """Close those that have been idle the longest: they lose nothing, who comes would."""
        now, idle = self.loop.now, []
        if now >= self._full_until:
            latest = now - _ROOM_AFTER
            idle = [one for one in self.connections if one.idle_since() <= latest]
            for one in heapq.nsmallest(_ROOM, idle, key=GuestConnection.idle_since):
                one.close()
            if not idle:
                self._full_until = now + _ROOM_AFTER

    def _check_drained(self):
        if self.draining and not self.connections and self._drained is not None:
            drained, self._drained = self._drained, None
            drained()

    def _cut_off(self):
        self._close_idle()
        for connection in list(self.connections):
            connection.reset()

    def _close_idle(self):
        for connection in list(self.connections):
            if connection.idle_since() != eventloop.NEVER:
                connection.close()


def _unobserved(_origin, _status, _seconds):
    """Nobody counts."""


def _unknown(_origin, _peer, _scope):
    """Nobody knows a MAC address."""


def _scope(address):
    """Index of the interface that a link-local address holds for, else 0."""
    return address[3] if len(address) == 4 else 0


def _host(address):
    """The peer's address as text: no scope id, and IPv4 as itself where IPv6 listens for both."""
    host = address[0] if isinstance(address, tuple) else ''
    if ':' in host:
        host = host.partition('%')[0]
        if host.startswith('::ffff:') and '.' in host:
            host = host[7:]
    return host
