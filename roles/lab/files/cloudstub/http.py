"""A small HTTP/1.1 server: one thread per connection, every request recorded before it is answered.

The head is read here and not by http.server, because the records must show it as it was sent: case,
order and repetition of the fields. Services, though, see header fields as a WSGI service does
(`Request.header`): case and `-`/`_` make no difference and repeated fields are joined by commas.
That is how nova sees them (eventlet 0.9.17), and it is why a field `X_Tenant_ID` that slips through
a proxy is an attack; so the stand-in must be open to it too.
"""
import email.utils
import json
import socket
import socketserver
import sys
import threading
import time
import traceback
import urllib.parse
from http import HTTPStatus
from http.server import ThreadingHTTPServer

MAX_HEAD = 65536        # bytes; four times what the proxies let through
MAX_FIELDS = 256
MAX_BODY = 1048576      # bytes; far above anything that guests or agents have reason to send
IDLE_SECONDS = 300      # a silent connection holds its thread no longer than this


class BadMessage(Exception):
    """Bytes that are no request; `status` is the answer, and the connection ends with it."""

    def __init__(self, reason, status=400):
        super().__init__(reason)
        self.status = status


class Request:
    """One request as it came.

    Text is latin-1, byte for byte, but for `path`, which is percent-decoded UTF-8. `headers` is the
    list of (name, value) in the order and case sent. `malformed` says why it could not be read,
    else None.
    """

    def __init__(self, peer):
        self.peer = peer
        self.time = time.time()
        self.method = self.target = self.version = ''
        self.headers = []
        self.body = b''
        self.malformed = None

    def header(self, name):
        """The field's value as a WSGI service sees it, or None."""
        wanted = name.lower().replace('-', '_')
        values = [v for n, v in self.headers if n.lower().replace('-', '_') == wanted]
        return ','.join(values) if values else None

    @property
    def path(self):
        """The target's path, percent-decoded."""
        return urllib.parse.unquote(self._split().path, errors='surrogateescape')

    @property
    def query(self):
        """The query as a list of (name, value), in the order sent, empty values kept."""
        return urllib.parse.parse_qsl(self._split().query, keep_blank_values=True)

    def _split(self):
        if self.target.startswith('/'):     # urlsplit() would take //host/path for a host
            path, _, query = self.target.partition('?')
            return urllib.parse.SplitResult('', '', path, query, '')
        return urllib.parse.urlsplit(self.target)


class Response:
    """Status, body (bytes or str) and further headers; `reason` where a service has its own
    wording."""

    def __init__(self, status, body=b'', content_type='text/plain; charset=UTF-8', headers=(),
                 reason=None):
        self.status = status
        self.body = body.encode('utf-8') if isinstance(body, str) else body
        self.content_type = content_type
        self.headers = list(headers)
        self.reason = reason or HTTPStatus(status).phrase

    def encode(self, request, close):
        """The bytes to send; `close` announces the end of the connection."""
        lines = ['HTTP/1.1 %d %s' % (self.status, self.reason),
                 'Content-Type: ' + self.content_type,
                 'Content-Length: %d' % len(self.body),
                 'Date: ' + email.utils.formatdate(usegmt=True)]
        lines += ['%s: %s' % field for field in self.headers]
        if close:
            lines.append('Connection: close')
        elif request.version == 'HTTP/1.0':
            lines.append('Connection: keep-alive')
        head = '\r\n'.join(lines + ['', '']).encode('latin-1', 'replace')
        return head if request.method == 'HEAD' else head + self.body


def json_response(status, data, headers=(), reason=None):
    """`data` as a JSON answer."""
    return Response(status, json.dumps(data), 'application/json', headers, reason)


def error_response(request, status, text, headers=()):
    """An error in the two layouts of WebOb 1.0.8, which nova and quantum answer with: HTML to
    whoever accepts it or anything, else plain text."""
    title = '%d %s' % (status, HTTPStatus(status).phrase)
    accept = request.header('Accept') or ''
    if 'html' in accept or '*/*' in accept:
        page = ('<html>\n <head>\n  <title>%s</title>\n </head>\n <body>\n  <h1>%s</h1>\n'
                '  %s<br /><br />\n\n\n\n </body>\n</html>' % (title, title, text))
        return Response(status, page, 'text/html; charset=UTF-8', headers)
    return Response(status, '%s\n\n%s\n\n\n   ' % (title, text), headers=headers)


class Connection(socketserver.StreamRequestHandler):
    """One client's connection: read a request, have it answered, record it, send, repeat."""

    timeout = IDLE_SECONDS

    def handle(self):
        """Serve until either side wants to end; a client that vanishes is nothing to report."""
        try:
            while self._exchange():
                pass
        except OSError:
            pass

    def _exchange(self):
        request = Request(self.client_address)
        try:
            if not self._read(request):
                return False
        except BadMessage as error:
            request.malformed = str(error)
            response = Response(error.status, request.malformed + '\n')
        else:
            response = self._answer(request)
        response = self._record(request, response)
        close = request.malformed is not None or not keeps_alive(request)
        self.wfile.write(response.encode(request, close))
        return not close

    def _answer(self, request):
        try:
            return self.server.app(request)
        except Exception:
            traceback.print_exc()
            return Response(500, 'the stand-in failed; see its journal\n')

    def _record(self, request, response):
        """Record first, so that whoever has the answer finds the record; no record, no answer."""
        try:
            self.server.recorder.append(request, response.status)
        except OSError as error:
            print('cannot record a request: %s' % error, file=sys.stderr, flush=True)
            return Response(500, 'the stand-in cannot record\n')
        return response

    def _read(self, request):
        """Fill `request`; False when the client ended instead of sending one."""
        line = self._line(MAX_HEAD)
        if line in ('\r\n', '\n'):          # one empty line may come first, RFC 9112 2.2
            line = self._line(MAX_HEAD)
        if not line:
            return False
        request.time = time.time()
        self._read_start(request, line)
        self._read_fields(request, MAX_HEAD - len(line))
        expected = (request.header('Expect') or '').lower()
        if request.version == 'HTTP/1.1' and expected == '100-continue':
            self.wfile.write(b'HTTP/1.1 100 Continue\r\n\r\n')
        self._read_body(request)
        return True

    def _line(self, limit):
        line = self.rfile.readline(limit + 1)
        if len(line) > limit:
            raise BadMessage('request head too large', 431)
        return line.decode('latin-1')

    @staticmethod
    def _read_start(request, line):
        words = line.rstrip('\r\n').split(' ')
        request.method, request.target, request.version = (words + ['', ''])[:3]
        if len(words) != 3 or not request.method or not request.target:
            raise BadMessage('malformed request line')
        if request.version not in ('HTTP/1.0', 'HTTP/1.1'):
            raise BadMessage('unsupported version', 505)
        try:
            request._split()
        except ValueError:
            raise BadMessage('malformed target') from None

    def _read_fields(self, request, left):
        while True:
            line = self._line(left)
            left -= len(line)
            if not line.endswith('\n'):
                raise BadMessage('request head cut short')
            if line in ('\r\n', '\n'):
                return
            name, colon, value = line.partition(':')
            request.headers.append((name, value.strip(' \t\r\n')) if colon else (line.strip(), ''))
            if not colon or not name or name != name.strip():
                raise BadMessage('malformed header field')
            if len(request.headers) > MAX_FIELDS:
                raise BadMessage('too many header fields', 431)

    def _read_body(self, request):
        coding, length = request.header('Transfer-Encoding'), request.header('Content-Length')
        if coding is not None:
            if coding.lower() != 'chunked' or length is not None:
                raise BadMessage('unclear framing of the body')
            self._read_chunks(request)
        elif length is not None:
            if not (length.isascii() and length.isdigit()):
                raise BadMessage('malformed Content-Length')
            self._read_exactly(request, int(length[:20]))

    def _read_chunks(self, request):
        while True:
            try:
                size = int(self._line(4096).partition(';')[0].strip(), 16)
            except ValueError:
                raise BadMessage('malformed chunk') from None
            if size <= 0:
                break
            self._read_exactly(request, size)
            if self._line(2).strip():
                raise BadMessage('malformed chunk')
        while self._line(4096).strip():     # trailers mean nothing to the services
            pass

    def _read_exactly(self, request, size):
        if len(request.body) + size > MAX_BODY:
            raise BadMessage('body too large', 413)
        data = self.rfile.read(size)
        request.body += data
        if len(data) < size:
            raise BadMessage('body cut short')


def keeps_alive(request):
    """Whether the client lets the connection go on, by RFC 9112 section 9.3."""
    options = [o.strip().lower() for o in (request.header('Connection') or '').split(',')]
    if request.version == 'HTTP/1.0':
        return 'keep-alive' in options
    return 'close' not in options


class Server(ThreadingHTTPServer):
    """Serves `app`, a function from Request to Response, on (host, port); OSError when it cannot
    listen."""

    daemon_threads = True
    request_queue_size = 1024       # a boot storm's worth of connections waits here
    allow_reuse_port = False        # two stand-ins on one port is a mistake, not load balancing

    def __init__(self, address, app, recorder):
        self.app, self.recorder = app, recorder
        self.address_family = socket.AF_INET6 if ':' in address[0] else socket.AF_INET
        super().__init__(address, Connection)

    def server_bind(self):
        """Bind without HTTPServer's reverse lookup of the host name: the lab has no DNS."""
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)   # connections inherit it
        socketserver.TCPServer.server_bind(self)

    @property
    def port(self):
        """The port in use, of interest where 0 was asked for."""
        return self.server_address[1]

    def start(self):
        """Serve in a thread of its own until stop()."""
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self):
        """End what start() began; open connections are left to themselves."""
        self.shutdown()
        self.server_close()
