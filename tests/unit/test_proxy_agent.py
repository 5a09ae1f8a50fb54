"""Guest -> proxy -> agent -> nova, as processes of their own over real sockets."""
import contextlib
import hashlib
import hmac
import json
import os
import re
import signal
import socket
import stat
import time
import zlib

import pytest
from loopback import DEADLINE, OK, Answering, ask, connected, get, keep_answering, receive, wait_until
from wholepath import INSTANCE, ROUTER, Path, whole_path

ALL_BYTES = bytes(bytearray(range(256)))


def fields(head):
    return [tuple(line.split(b': ', 1)) for line in head.split(b'\r\n')[1:]]


def dechunked(body):
    data = b''
    while True:
        size, _, body = body.partition(b'\r\n')
        if int(size, 16) == 0:
            assert body == b'\r\n'
            return data
        data, body = data + body[:int(size, 16)], body[int(size, 16) + 2:]


def nova_fields(nova, ip=b'127.0.0.1'):
    signature = hmac.new(b'the secret', INSTANCE.encode(), hashlib.sha256).hexdigest().encode()
    return sorted([(b'Host', b'127.0.0.1:%d' % nova.port), (b'X-Forwarded-For', ip),
                   (b'X-Instance-ID', INSTANCE.encode()), (b'X-Tenant-ID', b'tenant-1'),
                   (b'X-Instance-ID-Signature', signature)])


FORGED = b''.join(b'%s: forged\r\n' % name for name in (
    b'X-Instance-ID', b'x-instance-id', b'X-INSTANCE-ID', b'X-Tenant-ID',
    b'X-Instance-ID-Signature', b'X-Forwarded-For', b'x-forwarded-for', b'Forwarded',
    b'X-Quantum-Router-ID', b'X-Quantum-Network-ID', b'X-Neutron-Router-ID',
    b'X-Neutron-Network-ID', b'X-Quantum-Guest-MAC', b'X-Neutron-Guest-MAC',
    b'X-Real-IP', b'Proxy-Authorization', b'Cookie', b'X-HTTP-Method-Override', b'Keep-Alive', b'TE')) + (
    b'Connection: close, X-Forwarded-For, X-Instance-ID, Host\r\n')


def test_nova_hears_who_asks_from_us_alone(tmpdir):
    with whole_path(tmpdir, keep_answering(OK)) as (path, nova):
        answer = ask(path.port, b'GET /latest/meta-data/instance-id?a=%20b HTTP/1.1\r\n'
                                b'Host: evil\r\n' + FORGED + b'\r\n')
        assert answer == b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok'
        head, _ = nova.requests[0]
        assert head.split(b'\r\n')[0] == b'GET /latest/meta-data/instance-id?a=%20b HTTP/1.1'
        assert sorted(fields(head)) == nova_fields(nova)
        assert b'forged' not in head and b'evil' not in head


@pytest.mark.parametrize('family, name', [('quantum', b'X-Quantum-Router-ID'),
                                          ('neutron', b'X-Neutron-Router-ID')])
def test_the_agent_hears_router_and_address_from_the_proxy_alone(tmpdir, family, name):
    with Path(1, tmpdir, header_family=family) as path:
        with Answering(keep_answering(OK), path.socket) as agent:
            path.start_proxy().guest(data=b'GET /x HTTP/1.1\r\nHost: evil\r\n' + FORGED + b'\r\n')
            path.guest(data=b'POST /x HTTP/1.1\r\nHost: evil\r\nContent-Type: a/b\r\n'
                            b'Content-Length: 3\r\n' + FORGED + b'\r\nabc')
        known = [(b'Host', b'169.254.169.254'), (b'X-Forwarded-For', b'127.0.0.1'),
                 (name, ROUTER.encode())]
        assert sorted(fields(agent.requests[0][0])) == known
        assert sorted(fields(agent.requests[1][0])) == sorted(
            known + [(b'Content-Type', b'a/b'), (b'Content-Length', b'3')])


def test_a_password_is_posted(tmpdir):
    with whole_path(tmpdir, keep_answering(OK)) as (path, nova):
        status = get(path.port, b'/openstack/2013-04-04/password', b'Content-Length: 256\r\n',
                     b'POST', ALL_BYTES)[0]
        assert status == 200
        assert nova.requests[0][1] == ALL_BYTES
        chunked = b'Transfer-Encoding: chunked\r\nContent-Type: text/x\r\n'
        assert get(path.port, b'/p', chunked, b'PUT', b'3\r\nabc\r\n0\r\n\r\n')[0] == 200
        head, body = nova.requests[1]
        assert body == b'abc'
        assert sorted(fields(head)) == sorted(nova_fields(nova) + [
            (b'Content-Type', b'text/x'), (b'Content-Length', b'3')])


LARGE = ALL_BYTES * (5 * 4096)
GZIP = zlib.compress(ALL_BYTES)
UNCHANGED = [
    (b'HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nX-Of-Nova: 1\r\n'
     b'Set-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 256\r\n', ALL_BYTES),
    (b'HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n' % len(GZIP), GZIP),
    (b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\n' % len(LARGE), LARGE),
    (b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n', b''),
    (b'HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n', b'\x00\xff\r\n'),
    (b'HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n', b'oops'),
    (b'HTTP/1.1 204 No Content\r\n', b''),
    (b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n', b''),
    (b'HTTP/1.1 300 Multiple Choices\r\nContent-Length: 2\r\n', b'[]'),
]


@pytest.mark.parametrize('head, body', UNCHANGED,
                         ids='binary gzip large empty 404 500 204 304 300'.split())
def test_what_nova_says_passes_byte_for_byte(tmpdir, head, body):
    with whole_path(tmpdir, keep_answering(head + b'\r\n' + body)) as (path, _):
        assert path.guest()[1] == head + b'Connection: close\r\n\r\n' + body


@pytest.mark.parametrize('answer', [
    b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n'
    + b'10000\r\n%s\r\n' % (ALL_BYTES * 256) * 80 + b'0\r\n\r\n',
    b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n' + LARGE,
    b'HTTP/1.0 200 OK\r\n\r\n' + LARGE], ids=['chunked', 'until close', 'HTTP/1.0'])
def test_bodies_of_unknown_length_pass_whole(tmpdir, answer):
    def script(server, sock, _number):
        server.read(sock)
        sock.sendall(answer)
    with whole_path(tmpdir, script) as (path, _):
        head, _, body = path.guest()[1].partition(b'\r\n\r\n')
        assert b'\r\nTransfer-Encoding: chunked' in head
        assert dechunked(body) == LARGE
        head, _, body = path.guest(data=b'GET / HTTP/1.0\r\n\r\n')[1].partition(b'\r\n\r\n')
        assert b'chunked' not in head
        assert body == LARGE


def test_head_has_the_length_and_no_body_and_the_connection_goes_on(tmpdir):
    def script(server, sock, _number):
        while True:
            head, _ = server.read(sock)
            if not head:
                return
            sock.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n'
                         + (b'' if head.startswith(b'HEAD') else b'ok'))
    with whole_path(tmpdir, script) as (path, nova):
        data = b'HEAD /x HTTP/1.1\r\nHost: x\r\n\r\n' b'GET /y HTTP/1.1\r\nHost: x\r\n\r\n'
        with contextlib.closing(connected(path.port)) as sock:
            sock.sendall(data)
            answer = receive(sock, b'\r\n\r\nok')
        one = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n'
        assert answer == one + one + b'ok'


def test_a_body_that_follows_a_head_is_nobodys_answer(tmpdir):
    """User data is a tenant's own: it must not come to another one's guest as an answer."""
    def script(server, sock, _number):
        head, _ = server.read(sock)
        sock.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n')
        if head.startswith(b'HEAD'):
            time.sleep(0.1)
            sock.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno')
            server.read(sock)
        else:
            sock.sendall(b'o' * 40)
    with whole_path(tmpdir, script) as (path, nova):
        with contextlib.closing(connected(path.port)) as sock:
            sock.sendall(b'HEAD /x HTTP/1.1\r\nHost: x\r\n\r\n')
            receive(sock, b'\r\n\r\n')
            assert path.guest()[1].endswith(b'o' * 40)
            time.sleep(0.2)
            assert path.guest()[1].endswith(b'o' * 40)


def test_a_slow_guest_gets_a_large_body_whole(tmpdir):
    size = 40 << 20
    answer = b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s' % (size, b'x' * size)
    with whole_path(tmpdir, keep_answering(answer)) as (path, _):
        with contextlib.closing(socket.socket()) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            sock.settimeout(DEADLINE)
            sock.connect(('127.0.0.1', path.port))
            sock.sendall(b'GET / HTTP/1.0\r\n\r\n')
            time.sleep(0.5)         # time in which a proxy without limits would have read it all
            memory = [int(re.search(r'VmRSS:\s+(\d+)', open('/proc/%d/status' % child.process.pid)
                                    .read()).group(1)) for child in path.children]
            assert max(memory) < 40 << 10
            assert receive(sock).endswith(b'\r\n\r\n' + b'x' * size)


def test_no_instance_and_several_are_404_and_the_log_says_which(tmpdir):
    with whole_path(tmpdir, keep_answering(OK)) as (path, nova):
        assert path.guest('127.0.0.2')[0] == path.guest('127.0.0.3')[0] == 404
        assert path.guest('127.0.0.1')[0] == 200
        assert len(nova.requests) == 1
        line = 'router %s guest 127.0.0.%d: 404 no instance has this address: %s\n'
        assert line % (ROUTER, 2, 'no port with it') in path.agent.log()
        assert line % (ROUTER, 3, '2 ports have it') in path.agent.log()


def test_a_port_api_that_fails_is_503(tmpdir):
    with whole_path(tmpdir, keep_answering(OK)) as (path, _):
        status, answer = path.guest('127.0.0.4')
        assert status == 503 and b'\r\nRetry-After: ' in answer
        assert b'answered 500' not in answer and 'answered 500' in path.agent.log()


def test_a_nova_that_is_not_there_is_502_until_it_is(tmpdir):
    with Answering(keep_answering(OK)) as gone:
        pass
    with Path(gone.port, tmpdir) as path:
        path.start_agent().start_proxy()
        status, answer = path.guest()
        assert status == 502 and answer.endswith(b'the metadata API cannot be reached')
        assert 'guest 127.0.0.1: 502 the metadata API cannot be reached' in path.agent.log()
        with Answering(keep_answering(OK), port=gone.port):
            assert path.guest()[0] == 200


def test_a_nova_that_is_too_slow_is_504(tmpdir):
    def script(server, sock, _number):
        server.read(sock)
        server.read(sock)
    with whole_path(tmpdir, script, nova_timeout=0.3) as (path, _):
        status, answer = path.guest()
        assert status == 504 and answer.endswith(b'the metadata API did not answer in time')
        assert ': 504 ' in path.agent.log()


def test_a_nova_that_talks_nonsense_is_502(tmpdir):
    with whole_path(tmpdir, keep_answering(b'SSH-2.0\r\n\r\n')) as (path, _):
        status, answer = path.guest()
        assert status == 502 and answer.endswith(b'the metadata API gave no valid answer')


def test_an_answer_of_nova_that_breaks_off_is_a_reset_for_the_guest(tmpdir):
    def script(server, sock, _number):
        server.read(sock)
        sock.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n')
    with whole_path(tmpdir, script) as (path, _):
        with pytest.raises(socket.error):
            path.guest(data=b'GET / HTTP/1.0\r\n\r\n')
        wait_until(lambda: 'cut off' in path.agent.log() and 'cut off' in path.proxy.log())


def test_a_signature_that_nova_refuses_is_explained_to_the_operator(tmpdir):
    refusal = b'HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno'
    with whole_path(tmpdir, keep_answering(refusal)) as (path, _):
        assert path.guest()[1].endswith(b'\r\n\r\nno')
        assert 'shared secrets differ' in path.agent.log()


def test_an_agent_that_is_not_there_is_502(tmpdir):
    with Path(1, tmpdir) as path:
        status, answer = path.start_proxy().guest()
        assert status == 502 and answer.endswith(b'the metadata agent cannot be reached')
        assert path.socket.encode() not in answer
        assert 'router %s guest 127.0.0.1: 502 the metadata agent' % ROUTER in path.proxy.log()


def test_an_agent_that_is_too_slow_is_504(tmpdir):
    def script(server, sock, _number):
        server.read(sock)
        server.read(sock)
    with Path(1, tmpdir, agent_timeout=0.3) as path:
        with Answering(script, path.socket):
            status, answer = path.start_proxy().guest()
            assert status == 504 and answer.endswith(b'the metadata agent did not answer in time')


def test_a_bad_request_of_a_guest_is_logged_with_router_and_guest(tmpdir):
    with Path(1, tmpdir) as path:
        assert path.start_proxy().guest(data=b'GET / HTTP/1.1\r\nBad_Name: \x01\r\n\r\n')[0] == 400
        assert 'router %s guest 127.0.0.1: 400 ' % ROUTER in path.proxy.log()


@pytest.mark.parametrize('forged', [
    b'', b'X-Forwarded-For: 10.0.0.3\r\n', b'X-Forwarded-For: x\r\nX-Quantum-Router-ID: %s\r\n',
    b'X-Forwarded-For: 10.0.0.3\r\nX-Quantum-Router-ID: %s\r\nX-Quantum-Network-ID: %s\r\n'])
def test_the_agent_believes_no_half_an_identity(tmpdir, forged):
    with Path(1, tmpdir) as path:
        path.start_agent()
        assert get(path.socket, b'/', forged.replace(b'%s', ROUTER.encode()))[0] == 400


def test_the_agent_knows_a_link_local_guest_by_its_mac_address(tmpdir):
    who = b'X-Forwarded-For: fe80::3\r\nX-Quantum-Router-ID: %s\r\n' % ROUTER.encode()
    mac = b'X-Quantum-Guest-MAC: fa:16:3e:00:00:01\r\n'
    with Answering(keep_answering(OK)) as nova, Path(nova.port, tmpdir) as path:
        path.start_agent()
        assert get(path.socket, b'/', who + mac)[0] == 200
        assert sorted(fields(nova.requests[0][0])) == nova_fields(nova, b'fe80::3')
        assert get(path.socket, b'/', who)[0] == 404
        assert 'guest fe80::3: 404 no instance has this address: no port for a link-local address without' \
            in path.agent.log()
        assert get(path.socket, b'/', mac + who)[0] == 400
        assert get(path.socket, b'/', who.replace(b'fe80::3', b'127.0.0.1') + mac)[0] == 400
        assert len(nova.requests) == 1


def test_an_agent_may_be_killed_and_started_again(tmpdir):
    with whole_path(tmpdir, keep_answering(OK)) as (path, _):
        with contextlib.closing(connected(path.port)) as sock:
            request = b'GET /x HTTP/1.1\r\nHost: x\r\n\r\n'
            sock.sendall(request)
            assert b' 200 ' in receive(sock, b'ok')
            path.agent.end(signal.SIGKILL)
            sock.sendall(request)
            assert b' 502 ' in receive(sock, b'reached')
            assert os.path.exists(path.socket)      # left behind, and replaced
            path.start_agent()
            sock.sendall(request)
            assert b' 200 ' in receive(sock, b'ok')


def test_an_agent_killed_within_a_request_costs_that_request_only(tmpdir):
    def script(server, sock, number):
        server.read(sock)
        if number > 1:
            sock.sendall(OK)
        else:
            server.read(sock)
    with whole_path(tmpdir, script) as (path, nova):
        with contextlib.closing(connected(path.port)) as sock:
            sock.sendall(b'GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n')
            wait_until(lambda: nova.requests)
            path.agent.end(signal.SIGKILL)
            assert receive(sock).split(b' ')[1] == b'502'
        path.start_agent()
        assert path.guest()[0] == 200


def test_a_second_agent_does_not_take_the_place_of_a_living_one(tmpdir):
    with whole_path(tmpdir, keep_answering(OK)) as (path, _):
        second = path.start('agent')
        assert second.end(0)[0] == 1
        assert '%s: another process listens there' % path.socket in second.log()
        assert path.guest()[0] == 200


def test_a_socket_that_cannot_be_made_is_an_error_that_names_it(tmpdir):
    with Path(1, tmpdir, metadata_proxy_socket=str(tmpdir.join('no', 'such', 'folder'))) as path:
        agent = path.start('agent')
        assert agent.end(0)[0] == 1
        assert '%s: No such file' % path.options['metadata_proxy_socket'] in agent.log()


def test_the_socket_has_its_mode_and_goes_with_the_agent(tmpdir):
    with Path(1, tmpdir, metadata_proxy_socket_mode=0o620) as path:
        path.start_agent()
        assert stat.S_IMODE(os.stat(path.socket).st_mode) == 0o620
        assert path.agent.end()[0] == 0
        assert not os.path.exists(path.socket)


def test_sigterm_lets_requests_under_way_end(tmpdir):
    def script(server, sock, _number):
        server.read(sock)
        wait_until(lambda: path.proxy.log().count('serving') and stopped)
        time.sleep(0.2)
        sock.sendall(OK)
    stopped = []
    with whole_path(tmpdir, script) as (path, nova):
        with contextlib.closing(connected(path.port)) as busy, \
                contextlib.closing(connected(path.port)) as idle:
            busy.sendall(b'GET /x HTTP/1.1\r\nHost: x\r\n\r\n')
            idle.sendall(b'nothing yet'[:0])
            wait_until(lambda: nova.requests)
            for child in path.children:
                child.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not os.path.exists(path.socket))
            stopped.append(True)
            answer = receive(busy)
            assert answer.split(b' ')[1] == b'200' and b'\r\nConnection: close\r\n' in answer
            assert receive(idle) == b''
        assert [child.end(0)[0] for child in path.children] == [0, 0]


def test_sigterm_waits_no_longer_than_drain_timeout(tmpdir):
    def script(server, sock, _number):
        server.read(sock)
        server.read(sock)
    with whole_path(tmpdir, script, drain_timeout=0.3) as (path, nova):
        with contextlib.closing(connected(path.port)) as sock:
            sock.sendall(b'GET /x HTTP/1.1\r\nHost: x\r\n\r\n')
            wait_until(lambda: nova.requests)
            begin = time.time()
            assert path.proxy.end()[0] == 0
            assert path.agent.end()[0] == 0
            assert 0.2 < time.time() - begin < 4


def test_a_serving_proxy_has_imported_nothing_heavy(tmpdir):
    with whole_path(tmpdir, keep_answering(OK)) as (path, _):
        assert path.guest()[0] == 200
        assert path.guest('127.0.0.2')[0] == 404
        status, modules = path.proxy.end()
        assert status == 0
        # argparse, json and ConfigParser cost little and belong to whoever reads the options.
        heavy = {'requests', 'urllib3', 'pyroute2', 'ssl', 'asyncio', 'http.client', 'httplib',
                 'email', 'multiprocessing', 'concurrent', 'ctypes', 'mdproxy.ports',
                 'mdproxy.agent', 'queue', 'Queue', 'inspect', 'xml', 'unittest', 'pickle'}
        assert heavy & set(modules.split()) == set()


def test_nothing_leaks(tmpdir):
    def script(server, sock, number):
        server.read(sock)
        if number % 3 == 1:
            sock.sendall(OK)
        elif number % 3 == 2:
            sock.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf')
    with whole_path(tmpdir, script, idle_timeout=1.0) as (path, _):
        before = [child.descriptors() for child in path.children]
        for number in range(90):
            with contextlib.closing(connected(path.port)) as sock:
                sock.sendall(b'GET / HTTP/1.1\r\nHost: x\r\n\r\n' if number % 5 else b'bad\r\n\r\n')
                try:
                    sock.recv(100)
                except socket.error:
                    pass
        wait_until(lambda: before == [child.descriptors() for child in path.children])


def test_with_a_real_port_api(tmpdir):
    pytest.importorskip('requests')
    router = {'id': 'i', 'network_id': 'n', 'device_id': ROUTER,
              'device_owner': 'network:router_interface', 'fixed_ips': [], 'tenant_id': 't'}
    guest = {'id': 'p', 'network_id': 'n', 'device_id': INSTANCE, 'device_owner': 'compute:nova',
             'fixed_ips': [{'ip_address': '127.0.0.1'}], 'tenant_id': 'tenant-1'}

    def script(server, sock, _number):
        while True:
            head, _ = server.read(sock)
            if not head:
                return
            found = [router] if b'device_id=' in head else [guest]
            body = json.dumps({'ports': found}).encode()
            sock.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s' % (len(body), body))
    with Answering(script) as api:
        with whole_path(tmpdir, keep_answering(OK),
                        port_api_url='http://127.0.0.1:%d' % api.port) as (path, nova):
            for _ in range(5):
                assert path.guest()[0] == 200
            assert path.guest('127.0.0.2')[0] == 404
            assert sorted(fields(nova.requests[0][0])) == nova_fields(nova)
            asked = [b'device_id=' in head for head, _ in api.requests]
            assert asked == [False, True, False, True]
