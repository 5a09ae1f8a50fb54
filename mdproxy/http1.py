"""HTTP/1.0 and HTTP/1.1 as bytes in, messages out; no sockets, no clock, no metadata.

Rules kept:

- What a guest sends is refused unless it can be read in one way only (RFC 9112 sections 2.2, 3, 5,
  6, 7 and 11). A refusal is a ProtocolError with the status to answer; after it the stream is dead.
- What comes out depends on the bytes alone, never on how they were cut into packets.
- Work is linear in the bytes, also when they come one by one, and whatever is kept has a limit.
- Methods, targets, header names, header values and bodies are bytes.

Theory of operation: a reader keeps what it is fed in one buffer and remembers up to where it has
parsed and searched. A head is taken out when its empty line is there, and judged by two regular
expressions: one for the first line, one that finds all fields. Each match of the latter begins at a
CR LF and reaches to the next, so a head is well formed if there are as many fields as line ends;
only when that fails a slow path looks for the reason. Data is not copied into the buffer while the
buffer is empty. Chunked bodies of requests and responses are decoded by the same code.

Shortcuts give what the long way would, only sooner. A request, or its fields, that was judged before is
looked up, byte for byte. A response's head that comes in one packet and is as nearly all are is
judged by one expression, or looked up too, and its own bytes are what the writer passes on; the list of
its headers is made when somebody asks.
"""
import re

HEAD, BODY, END = 'head', 'body', 'end'  # the kinds of a ResponseReader's events
CONTINUE = b'HTTP/1.1 100 Continue\r\n\r\n'

METHODS = (b'GET', b'HEAD', b'POST', b'PUT')
REASONS = {
    200: b'OK',
    400: b'Bad Request',
    403: b'Forbidden',
    404: b'Not Found',
    405: b'Method Not Allowed',
    408: b'Request Timeout',
    413: b'Content Too Large',
    429: b'Too Many Requests',
    431: b'Request Header Fields Too Large',
    500: b'Internal Server Error',
    501: b'Not Implemented',
    502: b'Bad Gateway',
    503: b'Service Unavailable',
    504: b'Gateway Timeout',
    505: b'HTTP Version Not Supported',
}

# RFC 9110 5.6.2 token. Requests may not use its underscore: CGI-like readers make X_Instance_ID and
# X-Instance-ID one name (CVE-2025-64484). Responses come from our side of the border and may.
_TOKEN = br"!#$%&'*+.^`|~0-9A-Za-z-"
# RFC 9110 5.5: visible characters, space, tab, obs-text. No pattern here may backtrack into another
# repeat: a head of 16 KiB made for that would cost a second.
_VALUE = br'[^\x00-\x08\x0a-\x1f\x7f]*'
_REQUEST_FIELD = re.compile(br'\r\n([' + _TOKEN + br']+): ?(' + _VALUE + br')(?=\r\n)')
_RESPONSE_FIELD = re.compile(br'\r\n([_' + _TOKEN + br']+): ?(' + _VALUE + br')(?=\r\n)')
_REQUEST_LINE = re.compile(br'(GET|HEAD|POST|PUT) (/[\x21-\x7e]*) HTTP/1\.([01])(?=\r\n)')
# RFC 9112 3.2.2: a server must accept the absolute form. Only this address is us.
_ABSOLUTE_LINE = re.compile(br'(GET|HEAD|POST|PUT) [Hh][Tt][Tt][Pp]://169\.254\.169\.254(?::80)?'
                            br'(/[\x21-\x7e]*)? HTTP/1\.([01])(?=\r\n)')
_STATUS_LINE = re.compile(br'HTTP/1\.([01]) ([1-9][0-9][0-9])(?: (' + _VALUE + br'))?(?=\r\n)')
_BARE_LINE_END = re.compile(br'\r(?!\n)|(?<!\r)\n')
_METHOD = re.compile(br'[_' + _TOKEN + br']+\Z')
_VERSION = re.compile(br'HTTP/[0-9]\.[0-9]\Z')
_HOST = re.compile(br"[0-9A-Za-z._~!$&'()*+,;=%:\[\]-]*\Z")  # characters of RFC 3986 host and port
_REQUEST_LENGTH = re.compile(br'[0-9]{1,10}\Z')
_RESPONSE_LENGTH = re.compile(br'[0-9]{1,15}\Z')
_SIZE_DIGITS = 16  # a 64-bit size; h11 stops at 20
_SIZE_LINE = re.compile(br'([0-9A-Fa-f]{1,16})((?:;' + _VALUE + br')?)\r\Z')

# RFC 9110 7.6.1, and Trailer because trailers are not passed on. Proxy-Authenticate is not in the
# list of RFC 9110 and passes.
_HOP_BY_HOP = frozenset((b'connection', b'keep-alive', b'proxy-connection', b'te', b'trailer',
                         b'transfer-encoding', b'upgrade'))
_SPECIAL = _HOP_BY_HOP | {b'content-length'}
_USUAL_OPTIONS = frozenset((b'close', b'keep-alive'))
_FRAMING = frozenset((b'content-length', b'transfer-encoding'))
_BODILESS = (204, 304)
_CHUNKED, _UNTIL_CLOSE = -1, -2  # in place of a body's length
_END_EVENT = (END, None)
_NEVER_SEEN = None, None
_SIZE, _DATA, _DATA_END, _TRAILERS = range(4)  # where in a chunked body a reader is

# What RequestReader remembers of heads that no body follows, for all connections, because everybody
# with the same software writes the same: {head from its version's last digit on: (headers,
# keep_alive)}. Not what is longer than clients write: a head that a link has signed never comes
# again. Full it takes a quarter of a megabyte, and half of one if somebody makes heads for that.
_KNOWN = {}
_KNOWN_HEADS, _KNOWN_SIZE, _KNOWN_FIELDS = 256, 192, 16
# The same of whole requests, {bytes: Request}, and of usual heads of responses, {bytes: (event,
# Content-Length)}: what one guest asks at its start, and is answered, the others do within the second.
_KNOWN_REQUESTS, _KNOWN_RESPONSES, _KNOWN_ANSWER = {}, {}, 384


def _usual_head():
    """The expression of a response's head as most are: HTTP/1.1, one framing of a body, no other
    field that we decide by but Connection: keep-alive, and none that we would write differently.

    Groups: status, reason, Content-Length's value; the lines Transfer-Encoding: chunked and
    Connection: keep-alive. A repeat within a repeat is linear here, because every round begins with
    a CR LF and no round holds another one.
    """
    def in_any_case(names):
        return re.sub(b'[a-z]', lambda letter: b'[%s%s]' % (letter.group().upper(), letter.group()),
                      names)

    decisive = in_any_case(b'|'.join(sorted(_SPECIAL | {b'host'})))
    others = (br'(?:\r\n(?!(?:' + decisive + br'):)[_' + _TOKEN + br']+: '
              br'[^\x00-\x20\x7f]' + _VALUE + br'(?<![ \t]))*')
    return re.compile(
        br'HTTP/1\.1 (?!204|304)([2-9][0-9][0-9]) (' + _VALUE + br')' + others
        + br'(?:\r\n' + in_any_case(b'content-length') + br': ([0-9]{1,15})|(\r\n'
        + in_any_case(b'transfer-encoding: chunked') + br'))' + others
        + br'(?:(\r\n' + in_any_case(b'connection: keep-alive') + br')' + others + br')?\r\n\r\n')


_USUAL_HEAD = _usual_head()


class ProtocolError(Exception):
    """The peer's bytes are not HTTP as we accept it, or exceed a limit.

    status: the HTTP status to answer a guest with (int). reason: short native str, safe to log
    because it never holds bytes of the peer.
    """

    def __init__(self, status, reason):
        Exception.__init__(self, status, reason)
        self.status = status
        self.reason = reason

    def __str__(self):
        return '%d: %s' % (self.status, self.reason)


class Request(object):
    """A request with its complete body.

    method (bytes): one of METHODS. target (bytes): path and query, begins with '/'. minor: 0 or 1,
    of HTTP/1.minor. headers: tuple of (lowercase name, value without white space around it), bytes,
    as ordered by the sender. body (bytes): decoded if it came chunked. keep_alive: whether the
    sender allows another request on the connection. Nobody changes one: it may be given twice.
    """

    __slots__ = ('method', 'target', 'minor', 'headers', 'body', 'keep_alive')

    def __init__(self, method, target, minor, headers, body, keep_alive):
        self.method = method
        self.target = target
        self.minor = minor
        self.headers = headers
        self.body = body
        self.keep_alive = keep_alive

    def header(self, name):
        """Value of the one field with this lowercase name (bytes); None for none or several."""
        values = [value for field, value in self.headers if field == name]
        return values[0] if len(values) == 1 else None

    def __repr__(self):
        return 'Request(%r, %r)' % (self.method, self.target)


class ResponseHead(object):
    """Status line and fields of a response.

    status: int. reason: bytes. headers: list of (name in the sender's spelling, value without white
    space around it), bytes; compare names in lower case. minor: 0 or 1, of HTTP/1.minor.
    """

    __slots__ = ('status', 'reason', 'minor', '_headers', '_passing')

    def __init__(self, status, reason, headers, minor=1, passing=None):
        self.status = status
        self.reason = reason
        self.minor = minor
        self._headers = headers  # or the bytes of a usual head, from the reader
        self._passing = passing

    @property
    def headers(self):
        head = self._headers
        if isinstance(head, bytes):
            self._headers = _RESPONSE_FIELD.findall(head, head.index(b'\r\n'))
        return self._headers

    def passing(self):
        """What of it passes to a guest: status line and end-to-end fields (bytes), and whether
        Content-Length is among them."""
        if self._passing is None:
            self._passing = _end_to_end(self)
        return self._passing

    def __repr__(self):
        return 'ResponseHead(%r, %r)' % (self.status, self.reason)


class _Reader(object):
    """A stream's buffer, and what both directions share: blocks of lines, chunked bodies."""

    __slots__ = ('_max_head', '_buf', '_pos', '_seen', '_ended', '_length', '_phase', '_left',
                 '_room', '_spare')

    field = None  # the expression of a field line

    def __init__(self, max_head):
        self._max_head = max_head
        self._buf = b''     # bytes as they came, or a bytearray once pieces had to be joined
        self._pos = 0       # parsed up to here
        self._seen = 0      # no line end of interest before here
        self._ended = None  # True or a ProtocolError: nothing is read any more
        self._length = 0    # what is missing of a body, or _CHUNKED, or _UNTIL_CLOSE

    def _append(self, data):
        buf, pos = self._buf, self._pos
        if pos == len(buf):
            self._buf = data
            self._pos = self._seen = 0
            return
        if not isinstance(buf, bytearray):
            buf = self._buf = bytearray(buf[pos:])
        elif pos * 2 > len(buf):  # only then: moving the rest must stay constant work per byte
            del buf[:pos]
        else:
            pos = 0
        self._pos -= pos
        self._seen = max(self._seen - pos, 0)
        buf += data

    def _drop(self):
        """Forget the buffer, so that an idle connection keeps nothing."""
        self._buf = b''
        self._pos = self._seen = 0

    def _fail(self, status, reason):
        """Read nothing more; the error that every later call gets too."""
        self._drop()
        self._ended = ProtocolError(status, reason)
        return ProtocolError(status, reason)

    def _take(self, limit):
        """Remove and return up to `limit` bytes."""
        buf, pos = self._buf, self._pos
        piece = bytes(buf[pos:pos + limit])
        self._pos = self._seen = pos + len(piece)
        if self._pos == len(buf):
            self._drop()
        return piece

    def _block(self, limit):
        """Remove and return the lines before an empty line, or None when that is not there yet.

        The block ends where any reader might see its end, at the first LF LF or LF CR LF: 400 if
        that is not CR LF CR LF, 431 if it is not within `limit` bytes. (A line feed alone before
        the CR LF CR LF that is found here first makes every later check of the block fail.)
        """
        buf, pos = self._buf, self._pos
        end = buf.find(b'\r\n\r\n', self._seen, pos + limit)
        if end >= 0:
            self._pos = self._seen = end + 4
            return bytes(buf[pos:end + 2])
        if (buf.find(b'\n\r\n', self._seen, pos + limit) >= 0
                or buf.find(b'\n\n', self._seen, pos + limit) >= 0):
            raise ProtocolError(400, 'line end is not CR LF')
        if len(buf) - pos >= limit:
            raise ProtocolError(431, 'header fields are too large')
        self._seen = max(pos, len(buf) - 3)
        return None

    def _fields(self, block):
        """All (name, value) of the fields in a block that begins with the CR LF before them."""
        fields = self.field.findall(block)
        if len(fields) != block.count(b'\n') - 1:
            raise ProtocolError(400, _field_fault(block))
        if b'  ' in block or b' \r' in block or b'\t' in block:  # else no value has any around it
            fields = [(name, value.strip(b' \t')) for name, value in fields]
        return fields

    def _begin_chunks(self, room):
        """Expect a chunked body (RFC 9112 7.1) with at most `room` bytes of data, None: any."""
        self._length = _CHUNKED
        self._phase = _SIZE
        self._left = 0                # of the chunk's data
        self._room = room
        self._spare = self._max_head  # for extensions and trailers, which are read and forgotten

    def _chunks(self, pieces):
        """Append what is there of a chunked body to the list `pieces`; True when it is complete."""
        while True:
            if self._phase == _DATA:
                piece = self._take(self._left)
                if not piece:
                    return False
                pieces.append(piece)
                self._left -= len(piece)
                if not self._left:
                    self._phase = _DATA_END
            elif self._phase == _DATA_END:
                if len(self._buf) - self._pos < 2:
                    return False
                if self._take(2) != b'\r\n':
                    raise ProtocolError(400, 'chunk does not end where its size says')
                self._phase = _SIZE
            elif self._phase == _SIZE:
                if not self._chunk_size():
                    return False
                self._phase = _DATA if self._left else _TRAILERS
            else:
                block = self._block(self._spare + 4)
                if block is None:
                    return False
                if any(name.lower() in _FRAMING for name, _ in self._fields(block)):
                    raise ProtocolError(400, 'framing in a trailer')  # RFC 9110 6.5.1
                return True

    def _chunk_size(self):
        """Read the line before a chunk's data; False when it is not complete."""
        buf, pos = self._buf, self._pos
        limit = _SIZE_DIGITS + self._spare + 2
        end = buf.find(b'\n', self._seen, pos + limit)
        if end < 0:
            if len(buf) - pos >= limit:
                raise ProtocolError(400, 'chunk extensions are too long')
            self._seen = len(buf)
            return False
        match = _SIZE_LINE.match(bytes(buf[pos:end]))
        if match is None:
            raise ProtocolError(400, 'malformed chunk size')
        size, extension = match.groups()
        self._left = int(size, 16)
        self._spare -= len(extension)
        if self._spare < 0:
            raise ProtocolError(400, 'chunk extensions are too long')
        if self._room is not None:
            self._room -= self._left
            if self._room < 0:
                raise ProtocolError(413, 'body is too large')
        # The last chunk's line keeps its CR LF: a block of trailers begins with one.
        self._pos = self._seen = end + 1 if self._left else end - 1
        return True


class RequestReader(_Reader):
    """Requests out of the bytes of one connection.

    max_head: bytes of a request's head, its empty line included. max_fields: fields in a head.
    max_body: bytes of a body after decoding. Precedents: Apache and Tomcat allow heads of 8 KiB in
    all or in a line, nginx 32 KiB; metadata clients send 200 bytes. Nothing limits the requests
    that are fed ahead: feed no more while answers are owed.
    """

    __slots__ = ('_max_fields', '_max_body', '_request', '_body', '_expect')

    field = _REQUEST_FIELD

    def __init__(self, max_head=16384, max_fields=64, max_body=65536):
        _Reader.__init__(self, max_head)
        self._max_fields = max_fields
        self._max_body = max_body
        self._request = None  # its head is read, its body is not complete
        self._body = None
        self._expect = False

    def feed(self, data):
        """Take bytes from the guest. What follows an error or a last request is dropped."""
        if self._ended is None:
            if self._pos == len(self._buf):
                self._buf = data
                self._pos = self._seen = 0
            else:
                self._append(data)

    def next_request(self):
        """The next Request, or None until more is fed.

        After a request with keep_alive False there is no next one, whatever was sent (RFC 9112
        9.6). Raises ProtocolError, and from then on at every call.
        """
        if self._ended is not None:
            if self._ended is True:
                return None
            raise ProtocolError(self._ended.status, self._ended.reason)
        try:
            request = self._request
            if request is None:
                buf = self._buf
                if self._pos == len(buf):
                    return None
                request = self._known_request(buf)
                if request is not None:
                    return request
                request = self._read_head()
                if request is None:
                    return None
            if self._length and not self._read_body(request):
                self._request = request
                return None
        except ProtocolError as error:
            self._request = self._body = None
            self._fail(error.status, error.reason)
            raise
        self._request = None
        self._expect = False
        if not request.keep_alive:
            self._ended = True
            self._drop()
        elif self._pos == len(self._buf):
            self._drop()
        return request

    def expects_continue(self):
        """Whether the guest waits for CONTINUE before it sends its body; True once a request.

        To be asked after next_request() gave None. Only an HTTP/1.1 guest may wait (RFC 9110
        10.1.1).
        """
        if self._request is None or not self._expect:
            return False
        self._expect = False
        return True

    @property
    def idle(self):
        """No byte of a request is held that next_request() has not given."""
        return self._request is None and self._pos == len(self._buf)

    @property
    def stage(self):
        """What next_request() waits for: 'idle' (a first byte), 'head' or 'body' (the rest)."""
        if self._request is not None:
            return 'body'
        return 'idle' if self._pos == len(self._buf) else 'head'

    def _known_request(self, buf):
        """The Request that the buffer is and nothing else, if it has been read before; taken."""
        if not self._pos and type(buf) is bytes:
            request = _KNOWN_REQUESTS.get(buf)
            if request is not None and len(buf) <= self._max_head \
                    and len(request.headers) <= self._max_fields:
                self._buf = b''
                if not request.keep_alive:
                    self._ended = True
                return request

    def _read_head(self):
        """A Request without its body, whose framing is left in _length; None if incomplete."""
        buf, line, rest = self._buf, None, None
        at_once = not self._pos
        if at_once and len(buf) <= self._max_head and type(buf) is bytes:
            line = _REQUEST_LINE.match(buf)
            rest = line and buf[line.start(3):]
        if rest in _KNOWN:
            self._pos = len(buf)
        else:
            block = self._block(self._max_head)
            if block is None:
                return None
            line = line or _REQUEST_LINE.match(block) or _ABSOLUTE_LINE.match(block)
            if line is None:
                raise _request_line_fault(block)
            rest = block[line.start(3):] + b'\r\n'
        self._length = 0
        headers, keep_alive = _KNOWN.get(rest) or self._judge(rest)
        if len(headers) > self._max_fields:
            raise ProtocolError(431, 'too many header fields')
        method, target, minor = line.groups()
        request = Request(method, target or b'/', 1 if minor == b'1' else 0, headers, b'', keep_alive)
        if at_once and not self._length and self._pos == len(buf) <= _KNOWN_SIZE:
            _remember(_KNOWN_REQUESTS, bytes(buf), request)
        return request

    def _judge(self, rest):
        """The fields of a request and what follows from them: (headers, keep_alive), and _length.

        rest: the head from its version's last digit on. It is remembered if no body follows.
        """
        headers = tuple((name.lower(), value) for name, value in self._fields(rest[1:-2]))
        fields = dict(headers)
        if len(fields) != len(headers):
            _refuse_repeated(headers)
        minor = 1 if rest[:1] == b'1' else 0
        host = fields.get(b'host')
        if host is None:
            if minor:
                raise ProtocolError(400, 'no Host')
        elif not _HOST.match(host):
            raise ProtocolError(400, 'malformed Host')
        keep_alive = _keep_alive(headers, fields, minor)
        if b'content-length' in fields or b'transfer-encoding' in fields:
            self._frame(fields, minor)
        elif len(rest) <= _KNOWN_SIZE and len(headers) <= _KNOWN_FIELDS:
            _remember(_KNOWN, rest, (headers, keep_alive))
        return headers, keep_alive

    def _frame(self, fields, minor):
        """Decide by RFC 9112 6.3 how the body is delimited, refusing whatever leaves a doubt."""
        self._length = _body_length(fields, minor, _REQUEST_LENGTH)
        if self._length > self._max_body:
            raise ProtocolError(413, 'body is too large')
        if self._length == _CHUNKED:
            self._begin_chunks(self._max_body)
            self._body = bytearray()
        self._expect = minor == 1 and fields.get(b'expect', b'').lower() == b'100-continue'

    def _read_body(self, request):
        """Put the body into the request; False when it is not complete."""
        if self._length != _CHUNKED:
            if len(self._buf) - self._pos < self._length:
                return False
            request.body = self._take(self._length)
            return True
        pieces = []
        done = self._chunks(pieces)
        self._body += b''.join(pieces)
        if done:
            request.body = bytes(self._body)
            self._body = None
        return done


class ResponseReader(_Reader):
    """Responses out of the bytes of one connection to the agent or to nova.

    max_head: bytes of a response's head. Raises ProtocolError, always with status 502, for what
    cannot be passed on in good faith; the connection is of no use after that.
    """

    __slots__ = ('_method', '_in_head', '_keep', '_started')

    field = _RESPONSE_FIELD

    def __init__(self, max_head=65536):
        _Reader.__init__(self, max_head)
        self._method = None  # of the request that is being answered
        self._in_head = True
        self._keep = True
        self._started = False

    def expect(self, method):
        """The next response answers a request of this method (bytes); HEAD's has no body.

        Raises ValueError if the connection cannot carry another request now: see keep_alive.
        """
        if self._method is not None or self._ended is not None or not self._keep:
            raise ValueError('the connection cannot carry another request')
        self._method = method
        self._in_head = True
        self._started = False

    def feed(self, data):
        """Take bytes from upstream; returns events, a list of these in order:

        (HEAD, ResponseHead), (BODY, bytes) any number of times and never empty, (END, None).
        Interim responses (1xx) are skipped.
        """
        if self._ended is not None:
            raise ProtocolError(self._ended.status, self._ended.reason)
        if not data:
            return []
        if self._method is None:
            raise self._fail(502, 'bytes that answer no request')
        self._started = True
        usual = None
        if self._in_head and self._pos == len(self._buf) and self._method != b'HEAD':
            end = data.find(b'\r\n\r\n') + 4
            event, length = _KNOWN_RESPONSES.get(data[:end], _NEVER_SEEN)
            if length == len(data) - end and end <= self._max_head:
                self._method = None
                return [event, (BODY, data[end:]), _END_EVENT]
            usual = _USUAL_HEAD.match(data)
        try:
            if usual and usual.end() <= self._max_head:
                return self._usual_events(data, usual)
            self._append(data)
            return self._events()
        except ProtocolError as error:
            reason = error.reason
        raise self._fail(502, reason)

    def eof(self):
        """Upstream has closed: the events that follow from it, END for a body until close.

        Raises ProtocolError(502) when a response was due or incomplete; `started` tells which.
        """
        if self._ended is not None:
            raise ProtocolError(self._ended.status, self._ended.reason)
        self._keep = False
        if self._method is None:
            return []
        if self._in_head or self._length != _UNTIL_CLOSE:
            raise self._fail(502, 'closed within a response' if self._started
                             else 'closed before a response')
        self._method = None
        return [_END_EVENT]

    @property
    def keep_alive(self):
        """No response is under way and the connection may carry another request.

        Never after a response that has no body by rule (HEAD, 204, 304), whatever its sender thinks.
        """
        return self._keep and self._method is None and self._ended is None

    @property
    def started(self):
        """A byte of the current (or, after END, the last) response has been seen."""
        return self._started

    def _usual_events(self, data, match):
        """What _events() gives, for data that begins with this match of _USUAL_HEAD."""
        status, reason, length, chunked, option = match.groups()
        end = match.end()
        head = passing = data[:end - 2]
        if chunked or option:
            for group in (5, 4):  # the last one first
                if match.group(group):
                    passing = passing[:match.start(group)] + passing[match.end(group):]
        events = [(HEAD, ResponseHead(int(status), reason, head, 1, (passing, not chunked)))]
        if length and int(length) == len(data) - end:
            if end < len(data):
                events.append((BODY, data[end:]))
                if end <= _KNOWN_ANSWER:
                    _remember(_KNOWN_RESPONSES, data[:end], (events[0], int(length)))
            events.append(_END_EVENT)
            self._method = None
            return events
        self._in_head = False
        self._buf = data
        self._pos = self._seen = end
        if chunked:
            self._begin_chunks(None)
        else:
            self._length = int(length)
        self._read_body(events)
        return events

    def _events(self):
        events = []
        if self._in_head:
            head = self._read_head()
            if head is None:
                return events
            events.append((HEAD, head))
        self._read_body(events)
        return events

    def _read_head(self):
        """The next ResponseHead that is not interim; None if incomplete."""
        while True:
            block = self._block(self._max_head)
            if block is None:
                return None
            line = _STATUS_LINE.match(block)
            if line is None:
                raise ProtocolError(502, 'line end is not CR LF' if _BARE_LINE_END.search(block)
                                    else 'malformed status line')
            minor, status, reason = line.groups()
            status = int(status)
            headers = self._fields(block[line.end():])
            if status == 101:
                raise ProtocolError(502, 'protocol switched unasked')
            if status >= 200:
                break
        minor = 1 if minor == b'1' else 0
        self._frame(status, minor, headers)
        self._in_head = False
        return ResponseHead(status, reason or b'', headers, minor)

    def _frame(self, status, minor, headers):
        """Decide by RFC 9112 6.3 how the body is delimited. Both framings at once are refused."""
        fields = dict([(name.lower(), value) for name, value in headers])
        if len(fields) != len(headers):
            _refuse_repeated(headers)
        self._keep = _keep_alive(headers, fields, minor)
        if b'content-length' in fields or b'transfer-encoding' in fields:
            self._length = _body_length(fields, minor, _RESPONSE_LENGTH)
        else:
            self._length = _UNTIL_CLOSE
        if self._method == b'HEAD' or status in _BODILESS:
            self._length = 0
            # A sender that errs here sends a body that would be the next one's answer.
            self._keep = False
        elif self._length == _CHUNKED:
            self._begin_chunks(None)
        elif self._length == _UNTIL_CLOSE:
            self._keep = False

    def _read_body(self, events):
        """Add what is there of the body, and END when it is complete."""
        if self._length == _CHUNKED:
            pieces = []
            done = self._chunks(pieces)
            if pieces:
                events.append((BODY, b''.join(pieces)))
        else:
            until_close = self._length == _UNTIL_CLOSE
            piece = self._take(len(self._buf) if until_close else self._length)
            if piece:
                events.append((BODY, piece))
            if until_close:
                return
            self._length -= len(piece)
            done = not self._length
        if done:
            events.append(_END_EVENT)
            self._method = None
            if self._pos != len(self._buf):
                self._keep = False
            self._drop()


class ResponseWriter(object):
    """Turns one upstream response into bytes for the guest that sent `request`.

    End-to-end fields pass as they are, hop-by-hop fields (RFC 9110 7.6.1) do not. The body keeps
    its Content-Length; without one it goes chunked to HTTP/1.1 and until close to HTTP/1.0.
    close: the server wants to close the connection after this response.
    """

    __slots__ = ('_request', '_close', '_chunked', '_bodiless')

    def __init__(self, request, close=False):
        self._request = request
        self._close = close or not request.keep_alive
        self._chunked = False
        self._bodiless = False

    def head(self, response):
        """Bytes of the status line and fields for a ResponseHead."""
        head, measured = response.passing()
        self._bodiless = self._request.method == b'HEAD' or response.status in _BODILESS
        if not (measured or self._bodiless):
            if self._request.minor:
                self._chunked = True
                head += b'Transfer-Encoding: chunked\r\n'
            else:
                self._close = True
        return head + _connection(self._request, self._close)

    def body(self, data):
        """Bytes for a piece of the body; nothing for an empty piece or where no body is due."""
        if self._bodiless or not data:
            return b''
        if self._chunked:
            return b'%x\r\n%s\r\n' % (len(data), data)
        return data

    def end(self):
        """Bytes after the last piece."""
        return b'0\r\n\r\n' if self._chunked else b''

    @property
    def close(self):
        """The connection must be closed after end(); final once head() was called."""
        return self._close


def format_usual(request, head, body):
    """The bytes of a whole response as most are: one with Content-Length, to HTTP/1.1, on a connection
    that is kept. None for all others, which ResponseWriter is for."""
    passing, measured = head.passing()
    if measured and request.minor and request.keep_alive and request.method != b'HEAD' \
            and head.status not in _BODILESS:
        return b'%s\r\n%s' % (passing, body)


def format_request(method, target, headers, body):
    """Bytes of an HTTP/1.1 request: the headers (a list of name and value) exactly as given, and
    Content-Length if there is a body or the method is POST or PUT. All bytes, checked by nobody:
    they must come from a reader or from `trust`."""
    lines = [b'%s %s HTTP/1.1\r\n' % (method, target)]
    lines += [b'%s: %s\r\n' % field for field in headers]
    if body or method in (b'POST', b'PUT'):
        lines.append(b'Content-Length: %d\r\n\r\n%s' % (len(body), body))
    else:
        lines.append(b'\r\n')
    return b''.join(lines)


def format_response(status, text, request=None, close=False, headers=()):
    """Bytes of a small text/plain response of our own.

    status: a key of REASONS. text: the body, bytes or str. request: what is answered; None if it
    could not be read, and then the connection is to be closed. headers: more (name, value) bytes.
    """
    if not isinstance(text, bytes):
        text = text.encode('utf-8')
    lines = [b'HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n'
             % (status, REASONS[status], len(text))]
    lines += [b'%s: %s\r\n' % field for field in headers]
    lines.append(_connection(request, close or request is None or not request.keep_alive))
    if request is None or request.method != b'HEAD':
        lines.append(text)
    return b''.join(lines)


def _remember(known, key, value):
    if len(known) >= _KNOWN_HEADS:
        known.clear()
    known[key] = value


def _connection(request, close):
    """The last field, if one is needed (RFC 9112 9.3), and the empty line."""
    if close:
        return b'Connection: close\r\n\r\n'
    return b'\r\n' if request.minor else b'Connection: keep-alive\r\n\r\n'


def _end_to_end(response):
    """ResponseHead.passing(), field by field."""
    lines = [b'HTTP/1.1 %d %s\r\n' % (response.status, response.reason)]
    measured = False
    for name, value in response.headers:
        lower = name.lower()
        if lower in _SPECIAL:
            if lower == b'connection' and value.lower() not in _USUAL_OPTIONS:
                return _end_to_end(_without_named(response))
            if lower != b'content-length' or response.status == 204:  # RFC 9110 8.6
                continue
            measured = True
        lines.append(b'%s: %s\r\n' % (name, value))
    return b''.join(lines), measured


def _without_named(response):
    """The head without Connection and what it names, but with Content-Length, whatever Connection
    says: it has delimited the body."""
    named = _options(response.headers) - {b'content-length'} | {b'connection'}
    headers = [field for field in response.headers if field[0].lower() not in named]
    return ResponseHead(response.status, response.reason, headers, response.minor)


def _options(headers):
    """The connection options (RFC 9110 7.6.1) in lower case, from all Connection fields."""
    values = [value for name, value in headers if name.lower() == b'connection']
    return set(option.strip(b' \t') for option in b','.join(values).lower().split(b','))


def _keep_alive(headers, fields, minor):
    """RFC 9112 9.3, for a list of headers and the same as a dict with lowercase names."""
    value = fields.get(b'connection')
    if value is None:
        return minor == 1
    if value.lower() == b'keep-alive' and len(fields) == len(headers):
        return True  # the usual one, quickly
    options = _options(headers)
    return b'close' not in options and (minor == 1 or b'keep-alive' in options)


def _body_length(fields, minor, pattern):
    """Length of a body, or _CHUNKED, from a dict with at least one field that tells."""
    coding = fields.get(b'transfer-encoding')
    length = fields.get(b'content-length')
    if coding is None:
        if not pattern.match(length):
            raise ProtocolError(400, 'malformed Content-Length')
        return int(length)
    if length is not None:  # RFC 9112 6.1 and 11.2: request smuggling
        raise ProtocolError(400, 'both Content-Length and Transfer-Encoding')
    if not minor:
        raise ProtocolError(400, 'Transfer-Encoding in HTTP/1.0')
    coding = coding.lower()
    if coding != b'chunked':
        if all(name.strip(b' \t') in (b'', b'chunked') for name in coding.split(b',')):
            raise ProtocolError(400, 'malformed Transfer-Encoding')
        raise ProtocolError(501, 'unknown transfer coding')
    return _CHUNKED


def _refuse_repeated(headers):
    """RFC 9112 3.2, 6.3 and 11.2: which of two would count is anybody's guess."""
    names = [name.lower() for name, _ in headers]
    for name, spelled in ((b'host', 'Host'), (b'content-length', 'Content-Length'),
                          (b'transfer-encoding', 'Transfer-Encoding')):
        if names.count(name) > 1:
            raise ProtocolError(400, 'repeated ' + spelled)


def _request_line_fault(block):
    """The ProtocolError for a request line that neither form matches."""
    if _BARE_LINE_END.search(block):
        return ProtocolError(400, 'line end is not CR LF')
    words = block[:block.index(b'\r\n')].split(b' ')
    if len(words) != 3 or not _METHOD.match(words[0]) or not _VERSION.match(words[2]):
        return ProtocolError(400, 'malformed request line')
    if words[2] not in (b'HTTP/1.0', b'HTTP/1.1'):
        return ProtocolError(505, 'unknown HTTP version')
    if words[0] not in METHODS:
        return ProtocolError(405, 'method is not allowed')
    return ProtocolError(400, 'target is not a path')


def _field_fault(block):
    """Why a block is not made of fields alone."""
    if _BARE_LINE_END.search(block):
        return 'line end is not CR LF'
    for line in block.split(b'\r\n')[1:-1]:
        name, colon, _ = line.partition(b':')
        if line[:1] in (b' ', b'\t'):
            return 'folded header field'  # RFC 9112 5.2
        if not colon:
            return 'header field without a colon'
        if not name:
            return 'empty header name'
        if name[-1:] in (b' ', b'\t'):
            return 'white space before the colon'  # RFC 9112 5.1
        if not _REQUEST_FIELD.match(b'\r\n%s:\r\n' % name):
            return 'underscore or malformed header name'
        if not _REQUEST_FIELD.match(b'\r\n%s\r\n' % line):
            break
    return 'control byte in a header value'
