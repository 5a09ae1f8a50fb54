"""The stand-in's ground: its HTTP server, records, start and end. Also the others' harness."""
import sys

import pytest

if sys.version_info < (3, 9):
    pytest.skip('the stand-in runs on the lab\'s API host, which has 3.9', allow_module_level=True)

import base64
import collections
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..',
                                'roles', 'lab', 'files'))

from cloudstub import __main__ as command
from cloudstub.http import Response, Server
from cloudstub.records import Recorder

FILES = sys.path[0]
TEMPLATE = '%s-0000-4000-8000-00000000000%d'
ROUTER_A, NET_A, GUEST_A, PORT_A, GATE_A = (TEMPLATE % ('a' * 8, number) for number in range(5))
ROUTER_B, NET_B, GUEST_B, PORT_B, GATE_B = (TEMPLATE % ('b' * 8, number) for number in range(5))
USER_DATA = b'#!/bin/sh\0\xff\xfe\r\n\0end'

Answer = collections.namedtuple('Answer', 'status reason headers body')


def state():
    """A cloud of two tenants, each with a router, a network and a guest, at the same addresses."""
    def router(letter, router_id, network_id, port_id):
        return {'id': router_id, 'tenant_id': 'tenant-' + letter, 'networks': [
            {'id': network_id, 'port_id': port_id, 'gateway_ip': '10.0.0.1',
             'cidr': '10.0.0.0/24'}]}

    def instance(letter, uuid, network_id, port_id, number):
        return {'uuid': uuid, 'ec2_id': 'i-%08x' % number, 'name': 'Guest_' + letter,
                'tenant_id': 'tenant-' + letter, 'network_id': network_id, 'port_id': port_id,
                'fixed_ip': '10.0.0.3', 'mac': 'fa:16:3e:00:00:%02x' % number}

    guests = [instance('a', GUEST_A, NET_A, PORT_A, 10), instance('b', GUEST_B, NET_B, PORT_B, 11)]
    guests[0]['user_data_base64'] = base64.b64encode(USER_DATA).decode('ascii')
    return {'region': 'lab', 'endpoint_host': 'api1',
            'admin': {'user': 'quantum', 'password': 'pass', 'tenant': 'service'},
            'routers': [router('a', ROUTER_A, NET_A, GATE_A),
                        router('b', ROUTER_B, NET_B, GATE_B)],
            'instances': guests}


class Lab(object):
    """The stand-in's services on loopback, in this process; close() ends them."""

    def __init__(self, folder, **changes):
        self.folder, self.servers = str(folder), []
        self.state_path = os.path.join(self.folder, 'state.json')
        self.write(dict(state(), **changes))

    def write(self, data):
        """Replace the state file, atomically, as Ansible does."""
        with open(self.state_path + '.new', 'w') as file:
            file.write(data if isinstance(data, str) else json.dumps(data))
        os.rename(self.state_path + '.new', self.state_path)

    def start(self, service, *more):
        """Start a service; the port it listens on."""
        options = command.make_parser().parse_args(
            (service, '--state', self.state_path, '--listen', '127.0.0.1:0',
             '--records', os.path.join(self.folder, 'records')) + more)
        self.servers.append(command.make_server(options).start())
        return self.servers[-1].port

    def records(self, service):
        """What the service recorded so far."""
        return read_records(os.path.join(self.folder, 'records', service + '.jsonl'))

    def close(self):
        """End all services."""
        for server in self.servers:
            server.stop()


def read_records(path):
    """The records in the file `path`."""
    with open(path) as file:
        return [json.loads(line) for line in file]


def ask(port, target, headers=(), body=None, method='GET'):
    """One request with exactly these header fields, a Host and a Content-Length where due."""
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=10)
    connection.putrequest(method, target, skip_accept_encoding=True)
    for name, value in headers:
        connection.putheader(name, value)
    if body is not None:
        connection.putheader('Content-Length', str(len(body)))
    connection.endheaders(body)
    reply = connection.getresponse()
    answer = Answer(reply.status, reply.reason, reply.headers, reply.read())
    connection.close()
    return answer


def send(port, data):
    """Send raw bytes, all at once; what comes back until the server ends the connection."""
    with socket.create_connection(('127.0.0.1', port), timeout=10) as connection:
        connection.sendall(data)
        return read_all(connection)


def read_all(connection):
    """Everything until the other side ends."""
    parts = []
    while not parts or parts[-1]:
        parts.append(connection.recv(65536))
    return b''.join(parts)


def echo(request):
    """An app that answers what it was asked."""
    if request.path == '/fail':
        raise RuntimeError('a fault in a service')
    start = '%s %s ' % (request.method, request.path)
    return Response(200, start.encode() + request.body)


@pytest.fixture
def server(tmp_path):
    """The echo app behind the real server."""
    running = Server(('127.0.0.1', 0), echo, Recorder(str(tmp_path), 'echo')).start()
    yield running
    running.stop()


def recorded(server):
    """What the echo app's server recorded."""
    return read_records(server.recorder.path)


# --- the server

def test_a_connection_carries_many_requests(server):
    connection = http.client.HTTPConnection('127.0.0.1', server.port, timeout=10)
    connection.request('GET', '/one')
    assert connection.getresponse().read() == b'GET /one '
    before = connection.sock
    connection.request('POST', '/two', b'x\0y')
    assert connection.getresponse().read() == b'POST /two x\0y'
    assert connection.sock is before
    connection.close()


@pytest.mark.parametrize('version, option, ends', [
    (b'1.1', b'keep-alive', False), (b'1.1', b'close', True), (b'1.0', b'Keep-Alive', False),
    (b'1.0', b'x', True)])
def test_the_client_says_whether_the_connection_goes_on(server, version, option, ends):
    first = b'GET /1 HTTP/%s\r\nHost: a\r\nConnection: %s\r\n\r\n' % (version, option)
    second = b'GET /2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n'
    assert (b'GET /2' not in send(server.port, first + second)) == ends


def test_head_is_get_without_the_body(server):
    answer = send(server.port, b'HEAD /x HTTP/1.1\r\nConnection: close\r\n\r\n')
    assert answer.startswith(b'HTTP/1.1 200 OK\r\n') and answer.endswith(b'\r\n\r\n')
    assert b'\r\nContent-Length: %d\r\n' % len('HEAD /x ') in answer


def test_a_chunked_body_is_the_same_as_a_whole_one(server):
    answer = send(server.port, b'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n'
                  b'Connection: close\r\n\r\n3;x=y\r\nabc\r\n2\r\n\0\n\r\n0\r\nA: b\r\n\r\n')
    assert answer.endswith(b'\r\n\r\nPOST / abc\0\n')


def test_continue_is_sent_before_the_body(server):
    with socket.create_connection(('127.0.0.1', server.port), timeout=10) as connection:
        connection.sendall(b'POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n'
                           b'Connection: close\r\nContent-Length: 2\r\n\r\n')
        assert connection.recv(100) == b'HTTP/1.1 100 Continue\r\n\r\n'
        connection.sendall(b'hi')
        assert read_all(connection).endswith(b'POST / hi')


def test_a_request_in_single_bytes_is_the_same_request(server):
    with socket.create_connection(('127.0.0.1', server.port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b'POST /x HTTP/1.1\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc':
            connection.sendall(bytes([byte]))
        assert read_all(connection).endswith(b'POST /x abc')


@pytest.mark.parametrize('data, status', [
    (b'GET\r\n\r\n', 400),
    (b'GET / HTTP/2.0\r\n\r\n', 505),
    (b'GET http://[x/ HTTP/1.1\r\n\r\n', 400),
    (b'GET / HTTP/1.1\r\nno colon\r\n\r\n', 400),
    (b'GET / HTTP/1.1\r\nName : value\r\n\r\n', 400),
    (b'GET / HTTP/1.1\r\nA: b\r\n folded: c\r\n\r\n', 400),
    (b'GET / HTTP/1.1\r\n: empty name\r\n\r\n', 400),
    (b'POST / HTTP/1.1\r\nContent-Length: 1x\r\n\r\n', 400),
    (b'POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na', 400),
    (b'POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n', 400),
    (b'POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n', 400),
    (b'POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n', 400),
    (b'POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999999\r\n\r\n', 413),
    (b'GET / HTTP/1.1\r\n' + b'A: b\r\n' * 257, 431),
    (b'GET /' + b'x' * 65532, 431),
])
def test_what_is_no_request_is_refused_and_recorded(server, data, status):
    answer = send(server.port, data)
    assert answer.startswith(b'HTTP/1.1 %d ' % status)
    assert b'\r\nConnection: close\r\n' in answer
    assert [(r['status'], bool(r['malformed'])) for r in recorded(server)] == [(status, True)]


def test_a_fault_in_a_service_is_500_and_the_server_goes_on(server, capfd):
    assert ask(server.port, '/fail').status == 500
    assert ask(server.port, '/x').status == 200
    assert [r['status'] for r in recorded(server)] == [500, 200]
    assert 'a fault in a service' in capfd.readouterr().err


def test_a_burst_of_connections_is_not_refused(server):
    waiting = [socket.create_connection(('127.0.0.1', server.port), timeout=10) for _ in range(200)]
    for connection in waiting:
        connection.sendall(b'GET /x HTTP/1.1\r\nConnection: close\r\n\r\n')
    answers = [read_all(connection) for connection in waiting]
    for connection in waiting:
        connection.close()
    assert [a[:15] for a in answers] == [b'HTTP/1.1 200 OK'] * 200


# --- the records

def test_a_request_is_recorded_as_it_was_sent(server):
    began = time.time()
    with socket.create_connection(('127.0.0.1', server.port), timeout=10) as connection:
        connection.sendall(b'POST /a%20b?c=d HTTP/1.1\r\nhOST: x\r\nX-Twice: 1\r\nx_under: \xff\r\n'
                           b'X-TWICE:2  \r\nEmpty:\r\nConnection: close\r\nContent-Length: 3\r\n'
                           b'\r\n\0\xff\n')
        here = connection.getsockname()
        read_all(connection)
    record, = recorded(server)
    assert record['headers'] == [
        ['hOST', 'x'], ['X-Twice', '1'], ['x_under', '\xff'], ['X-TWICE', '2'], ['Empty', ''],
        ['Connection', 'close'], ['Content-Length', '3']]
    assert (record['method'], record['target'], record['version']) == (
        'POST', '/a%20b?c=d', 'HTTP/1.1')
    assert base64.b64decode(record['body']) == b'\0\xff\n'
    assert (record['peer'], record['peer_port']) == here
    assert record['status'] == 200 and record['malformed'] is None
    assert began <= record['time'] <= time.time()


def test_of_a_long_body_64_kib_are_kept(server):
    body = os.urandom(65537)
    ask(server.port, '/', body=body, method='POST')
    record, = recorded(server)
    assert base64.b64decode(record['body']) == body[:65536]
    assert record['body_size'] == 65537


def test_records_of_many_threads_do_not_mix(server):
    def client(number):
        connection = http.client.HTTPConnection('127.0.0.1', server.port, timeout=10)
        for turn in range(25):
            connection.request('POST', '/%d/%d' % (number, turn), b'x' * 5000)
            connection.getresponse().read()
        connection.close()

    threads = [threading.Thread(target=client, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(r['target'] for r in recorded(server)) == sorted(
        '/%d/%d' % (n, turn) for n in range(16) for turn in range(25))


def test_records_are_for_their_owner_alone_also_when_made_anew(server):
    path = server.recorder.path
    assert os.stat(path).st_mode & 0o777 == 0o600
    os.unlink(path)
    ask(server.port, '/x')
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert len(recorded(server)) == 1
    os.chmod(path, 0o644)
    ask(server.port, '/x')
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_without_a_record_there_is_no_answer(server, capfd):
    os.unlink(server.recorder.path)
    os.mkdir(server.recorder.path)
    assert ask(server.port, '/x').status == 500
    assert 'cannot record' in capfd.readouterr().err


@pytest.mark.parametrize('service', ['keystone', 'quantum', 'nova'])
def test_records_cannot_be_deleted_over_the_network(tmp_path, service):
    (tmp_path / 'nova.conf').write_text('[DEFAULT]\n')
    lab = Lab(tmp_path)
    port = lab.start(service, *(['--nova-conf', str(tmp_path / 'nova.conf')] * (service == 'nova')))
    assert ask(port, '/records', method='DELETE').status == 404
    assert [r['method'] for r in lab.records(service)] == ['DELETE']
    lab.close()


# --- the state

def test_a_changed_state_is_served_without_a_restart(tmp_path):
    lab = Lab(tmp_path)
    port = lab.start('keystone')
    given = {'username': 'quantum', 'password': 'new'}
    login = json.dumps({'auth': {'passwordCredentials': given}})
    assert ask(port, '/v2.0/tokens', body=login.encode(), method='POST').status == 401
    lab.write(dict(state(), admin={'user': 'quantum', 'password': 'new', 'tenant': 'service'}))
    assert ask(port, '/v2.0/tokens', body=login.encode(), method='POST').status == 200
    lab.close()


def test_a_state_that_breaks_later_is_reported_once_and_the_last_good_one_stays(tmp_path, capfd):
    lab = Lab(tmp_path)
    port = lab.start('keystone')
    lab.write('{')
    assert [ask(port, '/v3').status for _ in range(3)] == [200] * 3
    assert capfd.readouterr().err.count('keeping the last good state') == 1
    os.unlink(lab.state_path)
    assert ask(port, '/v3').status == 200
    lab.close()


def broken(*path, **change):
    """The good state with one field deep inside changed, or taken out where there is no change."""
    data = state()
    entry = data
    for step in path[:-1]:
        entry = entry[step]
    entry.pop(path[-1])
    if change:
        entry[path[-1]] = change['to']
    return data


@pytest.mark.parametrize('data, complaint', [
    ('{', 'line 1'),
    ('[]', 'top level: expected an object'),
    (broken('region'), 'region: missing'),
    (broken('admin', 'password', to=''), 'admin.password: empty'),
    (broken('routers', to={}), 'routers: expected a list'),
    (broken('routers', 1, 'networks', 0, 'port_id'), 'routers[1].networks[0].port_id: missing'),
    (broken('routers', 0, 'networks', 0, 'cidr', to='10.0.0.1/24'), 'routers[0].networks[0].cidr'),
    (broken('routers', 1, 'id', to=ROUTER_A), 'router %s is there twice' % ROUTER_A),
    (broken('instances', 1, 'port_id', to=PORT_A), 'port %s is there twice' % PORT_A),
    (broken('instances', 1, 'uuid', to=GUEST_A), 'instances[1].uuid: %s is used twice' % GUEST_A),
    (broken('instances', 0, 'fixed_ip', to='10.9.0.3'), 'instances[0].fixed_ip: network '),
    (broken('instances', 0, 'fixed_ip', to='nowhere'), 'instances[0].fixed_ip: '),
    (broken('instances', 0, 'user_data_base64', to='!'), 'instances[0].user_data_base64: '),
    (broken('instances', 0, 'network_id', to=7), 'instances[0].network_id: expected a text'),
    (dict(state(), token_lifetime=-1), 'token_lifetime: expected no negative number'),
    (dict(state(), family='nova'), 'family: expected quantum or neutron'),
    (dict(state(), extra_ports=['x']), 'extra_ports: expected objects'),
])
def test_a_wrong_state_is_named_at_start(tmp_path, data, complaint):
    lab = Lab(tmp_path)
    lab.write(data)
    with pytest.raises(command.StateError) as caught:
        lab.start('keystone')
    assert str(caught.value).startswith('state file %s: ' % lab.state_path)
    assert complaint in str(caught.value)


# --- the processes

def spawn(*arguments):
    """The stand-in as its unit runs it."""
    return subprocess.Popen([sys.executable, '-m', 'cloudstub'] + list(arguments), cwd=FILES,
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def base_arguments(lab, service, listen='127.0.0.1:0'):
    """The arguments that every service takes."""
    return [service, '--state', lab.state_path, '--listen', listen,
            '--records', os.path.join(lab.folder, 'records')]


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('service', ['keystone', 'quantum', 'nova'])
def test_a_service_says_when_it_listens_and_a_signal_ends_it_with_0(tmp_path, service, number):
    lab = Lab(tmp_path)
    (tmp_path / 'nova.conf').write_text('[DEFAULT]\n')
    more = ['--nova-conf', str(tmp_path / 'nova.conf')] if service == 'nova' else []
    process = spawn(*(base_arguments(lab, service) + more))
    line = process.stdout.readline()
    assert line.startswith('%s listens on 127.0.0.1:' % service)
    port = int(line.rpartition(':')[2])
    with socket.create_connection(('127.0.0.1', port), timeout=10):     # must not delay the end
        assert ask(port, '/').status in (200, 300)
        began = time.time()
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (0, '', '')
    assert time.time() - began < 3
    assert len(lab.records(service)) == 1


@pytest.mark.parametrize('case', [
    'no state', 'bad listen', 'port in use', 'no nova.conf', 'not ini', 'bad flag',
    'records is a file', 'no service'])
def test_a_start_that_fails_is_one_line_and_status_2(tmp_path, case):
    lab = Lab(tmp_path)
    conf = tmp_path / 'nova.conf'
    conf.write_text('secret\n' if case == 'not ini'
                    else '[DEFAULT]\nservice_quantum_metadata_proxy = maybe\n')
    taken = socket.create_server(('127.0.0.1', 0))
    in_use = '127.0.0.1:%d' % taken.getsockname()[1]
    arguments, complaint = {
        'no state': (['keystone', '--state', '/nowhere/state', '--listen', '127.0.0.1:0',
                      '--records', str(tmp_path)], 'state file /nowhere/state: No such file'),
        'bad listen': (base_arguments(lab, 'quantum', 'here'), 'expected ADDR:PORT'),
        'port in use': (base_arguments(lab, 'quantum', in_use),
                        in_use + ': Address already in use'),
        'no nova.conf': (base_arguments(lab, 'nova') + ['--nova-conf', '/nowhere/conf'],
                         '/nowhere/conf: No such file'),
        'not ini': (base_arguments(lab, 'nova') + ['--nova-conf', str(conf)],
                    'line 1: expected ini'),
        'bad flag': (base_arguments(lab, 'nova') + ['--nova-conf', str(conf)],
                     'expected a boolean'),
        'records is a file': (['keystone', '--state', lab.state_path, '--listen', '127.0.0.1:0',
                               '--records', str(conf)], '%s: File exists' % conf),
        'no service': ([], 'SERVICE'),
    }[case]
    process = spawn(*arguments)
    out, err = process.communicate(timeout=20)
    taken.close()
    assert (process.returncode, out, err.count('\n')) == (2, '', 1)
    assert complaint in err
    assert err.startswith('cloudstub') and 'secret' not in err
