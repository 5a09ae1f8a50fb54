"""Keystone and the port API, fast, with a delay for each call, and counting.

What is answered is the lab's stand-in's to say (cloudstub), so filters and fields are as there. What
differs is that an asyncio loop serves it, so that delays of many calls pass at the same time, and
that rows are found by address or device instead of one by one.

    python3 portapi.py STATE_FILE       prints `listens on PORT`

`POST /bench` with {"delay": seconds} sets the delay and forgets the counts; `GET /bench` tells them:
tokens, lookups ({address: calls}), interfaces (calls by device), other.
"""
import asyncio
import http.client
import json
import os
import sys
import uuid

import processes
import topology

sys.path.insert(0, os.path.join(topology.ROOT, 'roles', 'lab', 'files'))

from cloudstub.http import Request, Response, json_response, keeps_alive  # noqa: E402
from cloudstub.keystone import Keystone  # noqa: E402
from cloudstub.ports import Ports  # noqa: E402
from cloudstub.state import StateFile  # noqa: E402
from cloudstub.tokens import Tokens  # noqa: E402

USER, PASSWORD, TENANT, REGION = 'quantum', 'the password', 'service', 'bench'


class PortApi(object):
    """A running stand-in that knows one topology.Router and its guests."""

    def __init__(self, router, base):
        with open(base + '.json', 'w') as state:
            json.dump(_state(router), state)
        self.process = processes.Process(
            [sys.executable, os.path.abspath(__file__), base + '.json'], base + '.log')
        self.port = int(self.process.until('listens on ').split()[-1])

    def begin(self, delay):
        """From now on each call takes `delay` seconds, and counts are from 0."""
        self._bench('POST', json.dumps({'delay': delay}))

    def counts(self):
        """What was asked since `begin`."""
        return self._bench('GET')

    def _bench(self, method, body=None):
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=processes.DEADLINE)
        try:
            connection.request(method, '/bench', body)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


def _state(router):
    instances = [_instance(router, topology.GUEST)]
    instances += [_instance(router, topology.guest_address(n)) for n in range(topology.GUESTS)]
    return {'region': REGION, 'endpoint_host': '127.0.0.1', 'instances': instances,
            'admin': {'user': USER, 'password': PASSWORD, 'tenant': TENANT},
            'routers': [{'id': router.id, 'tenant_id': 'tenant', 'networks': [
                {'id': router.network, 'port_id': str(uuid.uuid4()), 'gateway_ip': topology.GATEWAY,
                 'cidr': str(topology.NETWORK)}]}]}


def _instance(router, address):
    last = [int(part) for part in address.split('.')[1:]]
    return {'uuid': str(uuid.uuid4()), 'ec2_id': 'i-00000001', 'name': 'guest-' + address,
            'tenant_id': 'tenant', 'network_id': router.network, 'port_id': str(uuid.uuid4()),
            'fixed_ip': address, 'mac': 'fa:16:3e:%02x:%02x:%02x' % tuple(last)}


class Cloud(object):
    """The services behind one port: answers a cloudstub Request with a Response, and counts."""

    def __init__(self, path):
        tokens = Tokens.beside(path)
        self.cloud = StateFile(path).cloud
        self._keystone, self._ports = Keystone(self, tokens), Ports(self, tokens)
        self._all, self._by_address, self._by_device = self.cloud.ports, {}, {}
        for port in self._all:
            self._by_device.setdefault(port['device_id'], []).append(port)
            for fixed_ip in port['fixed_ips']:
                self._by_address.setdefault(fixed_ip['ip_address'], []).append(port)
        self.delay = 0
        self._forget()

    def __call__(self, request):
        if request.path == '/bench':
            return self._bench(request)
        if request.path in ('/v2.0/tokens', '/v3/auth/tokens'):
            self._counts['tokens'] += 1
            return self._keystone(request)
        self.cloud.ports = self._narrowed(request.query)
        return self._ports(request)

    def _narrowed(self, query):
        """The rows among which the answer is; the stand-in's filters decide."""
        for name, value in query:
            if name == 'fixed_ips' and value.startswith('ip_address='):
                address = value.partition('=')[2]
                lookups = self._counts['lookups']
                lookups[address] = lookups.get(address, 0) + 1
                return self._by_address.get(address, [])
        for name, value in query:
            if name == 'device_id' and value:
                self._counts['interfaces'] += 1
                return self._by_device.get(value, [])
        self._counts['other'] += 1
        return self._all

    def _bench(self, request):
        if request.method == 'POST':
            self.delay = json.loads(request.body)['delay']
            self._forget()
        return json_response(200, self._counts)

    def _forget(self):
        self._counts = {'tokens': 0, 'lookups': {}, 'interfaces': 0, 'other': 0}


class Connection(asyncio.Protocol):
    """One client; it asks the next when it has its answer, as every client here does."""

    def __init__(self, cloud):
        self._cloud, self._data, self._transport = cloud, b'', None

    def connection_made(self, transport):
        self._transport = transport

    def data_received(self, data):
        self._data += data
        head, end, body = self._data.partition(b'\r\n\r\n')
        if not end:
            return
        request = _request(head)
        if len(body) < int(request.header('Content-Length') or 0):
            return
        request.body, self._data = body, b''
        if request.path == '/bench' or not self._cloud.delay:
            self._answer(request)
        else:
            asyncio.get_running_loop().call_later(self._cloud.delay, self._answer, request)

    def _answer(self, request):
        try:
            response = self._cloud(request)
        except Exception as error:
            response = Response(500, repr(error))
        close = not keeps_alive(request)
        self._transport.write(response.encode(request, close))
        if close:
            self._transport.close()


def _request(head):
    """A cloudstub Request out of a head that a well-behaved client wrote."""
    request = Request(None)
    lines = head.decode('latin-1').split('\r\n')
    request.method, request.target, request.version = lines[0].split(' ')
    for line in lines[1:]:
        name, _, value = line.partition(':')
        request.headers.append((name, value.strip()))
    return request


async def _serve(path):
    cloud = Cloud(path)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(cloud), '127.0.0.1', 0, backlog=1024)
    port = server.sockets[0].getsockname()[1]
    cloud.cloud.network_url = cloud.cloud.identity_url = 'http://127.0.0.1:%d' % port
    print('listens on %d' % port, flush=True)
    await server.serve_forever()


if __name__ == '__main__':
    asyncio.run(_serve(sys.argv[1]))
