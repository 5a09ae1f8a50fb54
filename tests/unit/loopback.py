"""What the tests over real sockets share: options, a loop in a thread, small servers to ask."""
import contextlib
import logging
import os
import shutil
import socket
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from mdproxy import config, eventloop  # noqa: E402

DEADLINE = 10.0     # seconds after which a test that waits has failed

OPTIONS = dict(
    metadata_proxy_socket='', metadata_proxy_socket_mode=0o660, nova_metadata_ip='127.0.0.1',
    nova_metadata_port=0, metadata_proxy_shared_secret='the secret', header_family='quantum',
    auth_url='', auth_region='', auth_strategy='noauth', admin_tenant_name='service',
    admin_user='quantum', admin_password='the password', admin_domain='Default',
    endpoint_type='publicURL', port_api_url='', auth_ca_cert='', api_timeout=5.0, api_threads=4,
    cache_ttl=10.0, negative_cache_ttl=2.0, connect_timeout=2.0, agent_timeout=5.0,
    nova_timeout=5.0, idle_timeout=5.0, head_timeout=5.0, body_timeout=5.0, write_timeout=5.0,
    max_connections=1000, max_connections_per_guest=0, max_body=65536, drain_timeout=5.0,
    rate_limit=0, rate_burst=50, stale_ttl=300.0, agents=(), nova_endpoints=(), agent_listen='',
    link_secret='', link_window=60.0, builtin_agent=False, status_folder='', status_listen='',
    log_level='info', user='nobody')


class Options(object):
    """Options as attributes, with values that suit a test."""

    def __init__(self, **values):
        self.__dict__.update(OPTIONS)
        self.__dict__.update(values)


def ini(values):
    """A configuration file's text with these values of options."""
    lines = []
    for option in config.OPTIONS:
        if option.name in values:
            lines.append('[%s]\n%s = %s' % (option.section, option.name,
                                            _written(option.kind, values[option.name])))
    return '\n'.join(lines) + '\n'


def _written(kind, value):
    if kind == 'mode':
        return '%04o' % value
    if kind == 'endpoints':
        return ', '.join(_written('address', one) for one in value)
    return '%s:%d' % value if isinstance(value, tuple) else value


def wait_until(condition, seconds=DEADLINE):
    """The first true value of condition(); AssertionError when there is none in time."""
    end = time.time() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.time() < end, 'it did not happen within %g s' % seconds
        time.sleep(0.005)


@contextlib.contextmanager
def open_folder(mode):
    """A folder that the serving user may enter, which pytest's are not. Short: a socket's path has 107
    bytes."""
    made = tempfile.mkdtemp(prefix='md')
    os.chmod(made, mode)
    try:
        yield made
    finally:
        shutil.rmtree(made)


class Running(object):
    """A loop in a thread. Fails the test that leaves an error in the log of `mdproxy`."""

    def __init__(self):
        self.loop = eventloop.Loop()
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.daemon = True
        self.errors = []

    def __enter__(self):
        self._handler = logging.Handler(logging.ERROR)
        self._handler.emit = lambda record: self.errors.append(
            record.getMessage() + str(record.exc_info or ''))
        logging.getLogger('mdproxy').addHandler(self._handler)
        self._thread.start()
        return self

    def __exit__(self, kind, value, traceback):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(DEADLINE)
        logging.getLogger('mdproxy').removeHandler(self._handler)
        assert not self._thread.is_alive()
        self.loop.close()
        if kind is None:
            assert self.errors == []

    def call(self, function, *args):
        """Call on the loop; returns what it returns."""
        result, done = [], threading.Event()

        def call():
            try:
                result.append(function(*args))
            finally:
                done.set()
        self.loop.call_soon_threadsafe(call)
        assert done.wait(DEADLINE)
        return result[0]


def listening(backlog=128):
    """A listening TCP socket on a free loopback port."""
    sock = socket.socket()
    sock.bind(('127.0.0.1', 0))
    sock.listen(backlog)
    return sock


def connected(address):
    """A connection to a port number or a unix socket's path."""
    unix = not isinstance(address, int)
    sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
    sock.settimeout(DEADLINE)
    sock.connect(address if unix else ('127.0.0.1', address))
    return sock


def receive(sock, until=None):
    """Bytes up to a mark, or (until None) up to the end."""
    data = bytearray()
    while until is None or until not in data:
        piece = sock.recv(65536)
        if not piece:
            break
        data += piece
    return bytes(data)


def ask(address, data):
    """Send, and receive until the other side closes."""
    with contextlib.closing(connected(address)) as sock:
        sock.sendall(data)
        return receive(sock)


def get(address, target=b'/', fields=b'', method=b'GET', body=b''):
    """One request, one (status, head, body) of the answer; the connection is closed after it."""
    answer = ask(address, b'%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n%s'
                 % (method, target, fields, body))
    head, _, body = answer.partition(b'\r\n\r\n')
    return int(head.split(b' ')[1]), head, body


def read_request(sock):
    """A request with Content-Length, or none: (head, body); (b'', b'') at the end."""
    head, _, body = receive(sock, b'\r\n\r\n').partition(b'\r\n\r\n')
    length = 0
    for line in head.lower().split(b'\r\n'):
        if line.startswith(b'content-length:'):
            length = int(line.partition(b':')[2])
    while len(body) < length:
        body += sock.recv(65536)
    return head, body


class Answering(object):
    """A server of threads: script(sock, number) is called for each connection, counted from 1."""

    def __init__(self, script, path=None, port=0):
        self._script = script
        if path:
            self._sock = socket.socket(socket.AF_UNIX)
            self._sock.bind(path)
        else:
            self._sock = socket.socket()
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._sock.bind(('127.0.0.1', port))
        self._sock.listen(128)
        self.port = None if path else self._sock.getsockname()[1]
        self.connections = 0
        self.requests = []

    def __enter__(self):
        thread = threading.Thread(target=self._accept)
        thread.daemon = True
        thread.start()
        return self

    def __exit__(self, *_):
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except socket.error:
            pass
        self._sock.close()

    def _accept(self):
        while True:
            try:
                sock, _ = self._sock.accept()
            except socket.error:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(sock, self.connections))
            thread.daemon = True
            thread.start()

    def _serve(self, sock, number):
        sock.settimeout(DEADLINE)
        with contextlib.closing(sock):
            try:
                self._script(self, sock, number)
            except socket.error:
                pass        # the other side had reason to go

    def read(self, sock):
        """The next request; kept in `requests`. (b'', b'') when there is none."""
        head, body = read_request(sock)
        if head:
            self.requests.append((head, body))
        return head, body


def keep_answering(answer):
    """A script: the same answer to every request of a connection."""
    def script(server, sock, _number):
        while server.read(sock)[0]:
            sock.sendall(answer)
    return script


OK = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'
