"""A cloud that fails when it is told to, before it the real commands, and guests good and bad.

nova, the port API and Keystone are threads of the test. What nova does depends on the target alone
(NOVA), so that one guest's fault is nobody else's; the other two have a `fault` for all who ask. Time
limits are short, so that each is met within a test.
"""
import contextlib
import errno
import json
import os
import re
import socket
import struct
import sys
import threading
import time
import uuid
from collections import Counter, namedtuple

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), 'unit')]

from equipment import DEADLINE, METADATA, SECRET, USER, Cloud, Router, ip, socket_in, wait_until  # noqa: E402
from loopback import Answering, get, read_request, receive  # noqa: E402

try:
    from urllib.parse import parse_qs
except ImportError:         # 2.7
    from urlparse import parse_qs

SHORT = 1.0             # seconds: every limit of time that a test waits for
PATIENCE = 3.5 * SHORT  # of those who wait for somebody who waits
PROMPT = 2.5            # seconds that nothing takes which waits for no limit
IDLE = 0.2              # seconds after which nova, port API and agent end unused connections
LARGE = 8 << 20         # bytes of nova's large answer
NOBODY = '10.0.0.250'   # no port has it
_RESET = struct.pack('ii', 1, 0)
_HALF = b'x' * 100000   # what nova sends of an answer that breaks off

Answer = namedtuple('Answer', 'status head body')


def http(status, body, *fields):
    """An answer as bytes."""
    lines = (b'HTTP/1.1 %d X' % status, b'Content-Length: %d' % len(body)) + fields
    return b'\r\n'.join(lines + (b'', body))


def silence(sock, _head):
    """Say nothing until the other side goes."""
    sock.recv(1)


def breaking_off(head, last=b'', reset=False):
    """A fault: half an answer, and the end of the connection."""
    def fault(sock, _head):
        sock.sendall(b'HTTP/1.1 200 OK\r\n%s\r\n\r\n%s%s' % (head, _HALF, last))
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    return fault


# What nova does at a target; at any other it answers with the id of the instance.
NOVA = {
    b'/silence': silence,
    b'/large': lambda _sock, _head: http(200, b'x' * LARGE),
    b'/cut-length': breaking_off(b'Content-Length: 200000'),
    b'/cut-chunk': breaking_off(b'Transfer-Encoding: chunked\r\n\r\n30d40'),
    b'/cut-chunks': breaking_off(b'Transfer-Encoding: chunked\r\n\r\n186a0', b'\r\n'),
    b'/cut-reset': breaking_off(b'X: until the connection ends', reset=True),
}


def instance(router, address):
    """Id of the instance with this address behind a router."""
    return str(uuid.uuid5(uuid.UUID(router.id), address))


class Service(object):
    """A server whose `fault`, when it has one, answers instead of it.

    Both are called with (sock, head); what they return is sent, and without anything the connection
    ends. requests: (head, body) of all that came.
    """

    def __init__(self, answer):
        self._answer, self.fault = answer, None
        self.requests, self.port = [], 0
        self._listening, self._socks = None, set()

    def up(self):
        """Listen, always on the same port."""
        self._listening = Answering(self._script, port=self.port).__enter__()
        self.port = self._listening.port

    def down(self):
        """Refuse connections, and end those there are."""
        self._listening.__exit__()
        for sock in list(self._socks):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except socket.error:
                pass            # the other side was first

    @contextlib.contextmanager
    def failing(self, fault):
        """With this fault; None: refuse connections."""
        if fault is None:
            self.down()
        self.fault = fault
        try:
            yield
        finally:
            self.fault = None
            if fault is None:
                self.up()

    def connections(self):
        """How many there are."""
        return len(self._socks)

    def _script(self, _server, sock, _number):
        self._socks.add(sock)
        try:
            while True:
                sock.settimeout(IDLE)
                head, body = read_request(sock)
                if not head:
                    return
                sock.settimeout(DEADLINE)
                self.requests.append((head, body))
                answer = (self.fault or self._answer)(sock, head)
                if not answer:
                    return
                sock.sendall(answer)
        finally:
            self._socks.discard(sock)


class Site(Cloud):
    """Two routers with guests and proxies, one agent, and the services behind it.

    The port API knows an instance at every address of a subnet but NOBODY. tokens: those that are
    valid, with their end. lifetime: of the next ones, seconds.
    """

    def __init__(self, folder):
        super(Site, self).__init__(folder, [Router('r'), Router('b')])
        self.red, self.blue = self.routers
        self._known = list(self.routers)        # to the port API
        self.nova, self.api, self.keystone = map(Service, (self._metadata, self._ports, self._token))
        self.tokens, self.lifetime = {}, 3600
        self._gate = threading.Event()
        self.status_folder = os.path.join(folder, 'run', 'status')
        self.proxies = {}
        self._addresses = iter('10.0.0.%d' % number for number in range(10, 240))

    def start(self):
        for service in (self.nova, self.api, self.keystone):
            service.up()
        self.agent_config = self._write('agent.ini', '\n'.join([
            '[DEFAULT]', 'auth_url = http://127.0.0.1:%d/v2.0' % self.keystone.port,
            'admin_tenant_name = service', 'admin_user = quantum', 'admin_password = the password',
            'nova_metadata_port = %d' % self.nova.port, 'metadata_proxy_shared_secret = ' + SECRET,
            'metadata_proxy_socket = ' + self.socket, '[mdproxy]', 'user = ' + USER,
            'status_folder = ' + self.status_folder, 'port_api_url = http://127.0.0.1:%d' % self.api.port,
            'api_timeout = %g' % SHORT, 'cache_ttl = 0.2', 'negative_cache_ttl = 0.2',
            'connect_timeout = %g' % SHORT, 'nova_timeout = %g' % SHORT, 'idle_timeout = %g' % IDLE,
            'write_timeout = %g' % PATIENCE, '']))
        self.start_agent()
        for router in self.routers:
            router.make()
            self.proxies[router] = self.serve(router, *self.settings())

    def start_agent(self):
        """Start the agent, for the first time or again."""
        self.agent = self.run('agent', '--config-file', self.agent_config)
        self.agent.until('serving')

    def settings(self):
        """Of a proxy."""
        return ['%s_timeout=%g' % (name, seconds) for name, seconds in (
            ('agent', PATIENCE), ('head', SHORT), ('body', SHORT), ('write', SHORT), ('connect', SHORT)
            )] + ['status_folder=' + self.status_folder]

    def stop(self):
        super(Site, self).stop()
        for router in self.routers:
            router.remove()

    @contextlib.contextmanager
    def router(self):
        """One more router, without a proxy."""
        router = Router('g')
        self._known.append(router)
        try:
            router.make()
            yield router
        finally:
            router.remove()
            self._known.remove(router)

    @contextlib.contextmanager
    def holding(self):
        """Meanwhile nova does not answer what is asked for at /held; yields a function that ends it."""
        self._gate.clear()
        try:
            yield self._gate.set
        finally:
            self._gate.set()

    def asking(self, count, target, *address, **kwargs):
        """Guests of red whose requests nova has got; arguments as those of Guest."""
        before = len(self.nova.requests)
        guests = [Guest(self.red, *address, **kwargs).send(target) for _ in range(count)]
        wait_until(lambda: count <= sum(head.startswith(b'GET %s ' % target) for head, _
                                        in self.nova.requests[before:]), 'requests for nova')
        return guests

    def new_address(self, router):
        """An address that a router's guest has from now on, of which nobody knows whose it is."""
        address = next(self._addresses)
        ip('-n', router.guest, 'address', 'add', address + '/24', 'dev', 'eth0')
        return address

    def serving(self):
        """The processes that have to go on whatever happens, by name."""
        return dict([('router-' + router.id, proxy) for router, proxy in self.proxies.items()],
                    agent=self.agent)

    def status(self, name):
        """What one of them tells of itself, a dict."""
        path = os.path.join(self.status_folder, name + '.sock')
        return json.loads(get(path, b'/status')[2].decode('utf-8'))

    def _metadata(self, sock, head):
        target = head.split(b' ')[1]
        if target in NOVA:
            return NOVA[target](sock, head)
        if target == b'/held':
            self._gate.wait(DEADLINE)
        return http(200, re.search(br'\nX-Instance-ID: (\S+)', head).group(1))

    def _token(self, _sock, _head):
        token = uuid.uuid4().hex
        now = time.time()
        self.tokens[token] = now + self.lifetime
        issued, expires = (time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(when))
                           for when in (now, now + self.lifetime))
        return http(200, json.dumps({'access': {'token': {
            'id': token, 'issued_at': issued, 'expires': expires}}}).encode(), b'Connection: close')

    def _ports(self, _sock, head):
        token = re.search(br'\nX-Auth-Token: (\S+)', head)
        if self.tokens.get(token.group(1).decode(), 0) < time.time():
            return http(401, b'')
        query = parse_qs(head.split(b' ')[1].partition(b'?')[2].decode())
        found = [port for router in self._known for port in self._ports_of(router, query)]
        return http(200, json.dumps({'ports': found}).encode())

    @staticmethod
    def _ports_of(router, query):
        if 'device_id' in query:
            if query['device_id'] == [router.id]:
                yield {'id': 'interface', 'network_id': router.network, 'device_id': router.id,
                       'device_owner': 'network:router_interface', 'tenant_id': router.tenant}
            return
        address = str(query['fixed_ips'][0].partition('=')[2])
        if address != NOBODY:
            yield {'id': 'port', 'network_id': router.network, 'device_id': instance(router, address),
                   'device_owner': 'compute:nova', 'tenant_id': router.tenant,
                   'fixed_ips': [{'ip_address': address}]}


class Guest(object):
    """A connection of a router's guest, from one of its addresses."""

    def __init__(self, router, address=None, receive_buffer=None):
        self.address = address or router.fixed_ip
        self.sock = socket_in(router.guest)
        self.sock.settimeout(DEADLINE)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.bind((self.address, 0))
        self.sock.connect((METADATA, 80))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, target=b'/who', method=b'GET', fields=b'', body=b''):
        """Ask, and do not wait."""
        self.sock.sendall(b'%s %s HTTP/1.1\r\nHost: x\r\n%s\r\n%s' % (method, target, fields, body))
        return self

    def answer(self):
        """The next Answer; socket.error when the connection ends instead."""
        head, _, body = receive(self.sock, b'\r\n\r\n').partition(b'\r\n\r\n')
        if not head:
            raise socket.error(errno.ECONNRESET, 'no answer')
        length = int(re.search(br'\nContent-Length: (\d+)', head).group(1))
        while len(body) < length:
            piece = self.sock.recv(65536)
            if not piece:
                raise socket.error(errno.ECONNRESET, 'the answer is short')
            body += piece
        return Answer(int(head.split(b' ')[1]), head, body)

    def close(self, reset=False):
        """End the connection."""
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()


def ask(router, target=b'/who', address=None, **kwargs):
    """The Answer to one request."""
    with Guest(router, address) as guest:
        return guest.send(target, **kwargs).answer()


def timed(function, *args, **kwargs):
    """(what it returns, seconds)."""
    begin = time.time()
    return function(*args, **kwargs), time.time() - begin


class Load(object):
    """Guests that ask again and again, each in a thread and on a kept connection.

    guests: (router, address) of each. answers: how many of each status, or of what came instead.
    slowest: seconds.
    """

    def __init__(self, guests, pause=0.0):
        self.answers, self.slowest, self._pause = Counter(), 0.0, pause
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=guest) for guest in guests]

    def __enter__(self):
        for thread in self._threads:
            thread.daemon = True
            thread.start()
        wait_until(lambda: sum(list(self.answers.values())) >= len(self._threads), 'the first answers')
        return self

    def __exit__(self, *_):
        self._ended.set()
        for thread in self._threads:
            thread.join(DEADLINE)

    def until(self, count):
        """Wait until so many more answers have come."""
        count += sum(list(self.answers.values()))
        wait_until(lambda: sum(list(self.answers.values())) >= count, '%d answers' % count)

    def well(self, within=PROMPT):
        """Whether all were answered in time, and rightly."""
        assert list(self.answers) == [200], self.answers
        assert self.slowest < within, self.slowest
        return True

    def _ask(self, router, address):
        right = instance(router, address or router.fixed_ip).encode()
        guest = None
        while not self._ended.wait(self._pause):
            begin = time.time()
            try:
                guest = guest or Guest(router, address)
                answer = guest.send().answer()
                result = answer.status if answer.status != 200 or answer.body == right else 'wrong'
            except socket.error as error:
                guest, result = None, str(error)
            self.slowest = max(self.slowest, time.time() - begin)
            self.answers[result] += 1
        if guest:
            guest.close()
