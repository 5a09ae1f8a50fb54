"""Agents on other machines, several of them, several novas, an agent inside: as real processes."""
import contextlib
import os
import signal
import socket

import pytest
from loopback import (
    OK,
    Answering,
    connected,
    get,
    keep_answering,
    listening,
    open_folder,
    receive,
    wait_until,
)
from wholepath import ROUTER, Path, whole_path

from mdproxy import link, trust
from mdproxy.http1 import Request

LINK = 'secret of the link'
IDENTITY = trust.Identity('router', ROUTER)


def free_port():
    with contextlib.closing(listening()) as sock:
        return sock.getsockname()[1]


@contextlib.contextmanager
def remote(folder, script=None, **options):
    """A path whose proxy reaches its agent over TCP alone."""
    address = ('127.0.0.1', free_port())
    options = dict(dict(agent_listen=address, agents=(address,), link_secret=LINK), **options)
    with whole_path(folder, script or keep_answering(OK), **options) as (path, nova):
        yield path, nova, address[1]


def fields(secret=LINK, guest='127.0.0.1', target=b'/x', mac=None, told=None, **kwargs):
    """The head of a request as a proxy with this secret would send it. told: another MAC address than
    the one that it signs."""
    request = Request(b'GET', target, 1, [], b'', True)
    signed = link.Link(secret, 60.0, **kwargs).headers(IDENTITY, guest, request, mac)
    head = trust.agent_headers(IDENTITY, guest, 'quantum', request, 'a', told or mac)[1:]
    return b''.join(b'%s: %s\r\n' % field for field in signed + head)


def test_an_agent_on_another_machine_believes_what_is_signed(tmpdir):
    with remote(tmpdir) as (path, nova, port):
        assert path.guest()[0] == 200
        assert path.guest(data=b'POST /p HTTP/1.1\r\nHost: x\r\nConnection: close\r\n'
                               b'Content-Type: a/b\r\nContent-Length: 3\r\n\r\nabc')[0] == 200
        assert nova.requests[1][1] == b'abc'
        assert get(port, b'/x', fields())[0] == 200
        assert not any(b'mdproxy' in head.lower() for head, _ in nova.requests)


def test_over_tcp_the_mac_address_is_believed_as_it_was_signed(tmpdir):
    mac, other = 'fa:16:3e:00:00:01', 'fa:16:3e:00:00:02'
    with remote(tmpdir) as (_, nova, port):
        assert get(port, b'/x', fields(guest='fe80::3', mac=mac))[0] == 200
        assert get(port, b'/x', fields(guest='fe80::3', mac=mac, told=other))[0] == 403
        assert get(port, b'/x', fields(guest='fe80::3', told=other))[0] == 403
        assert len(nova.requests) == 1


@pytest.mark.parametrize('forged, reason', [
    (b'X-Forwarded-For: 127.0.0.1\r\nX-Quantum-Router-ID: %s\r\n' % ROUTER.encode(), 'missing'),
    (fields('another secret'), 'wrong'),
    (fields(target=b'/y'), 'wrong'),
    (fields().replace(b'For: 127.0.0.1', b'For: 127.0.0.4'), 'wrong'),
    (fields(clock=lambda: 1000000000), 'old')])
def test_it_believes_nobody_else(tmpdir, forged, reason):
    with remote(tmpdir) as (path, nova, port):
        assert get(port, b'/x', forged)[0] == 403
        assert nova.requests == []
        assert 'proxy 127.0.0.1: 403 bad identity headers' in path.agent.log()
        assert reason in path.agent.log() and LINK not in path.agent.log()


def test_a_guest_cannot_hand_a_signature_through(tmpdir):
    with remote(tmpdir) as (path, nova, _):
        forged = fields(guest='127.0.0.4')
        assert path.guest(data=b'GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n'
                               % forged)[0] == 200
        assert b'127.0.0.4' not in nova.requests[0][0]


def test_both_sides_need_the_same_secret(tmpdir):
    with remote(tmpdir) as (path, _, _):
        path.configure(link_secret='changed on one side alone')
        path.agent.process.send_signal(signal.SIGHUP)
        wait_until(lambda: 'read again' in path.agent.log())
        assert path.guest()[0] == 403
        path.proxy.process.send_signal(signal.SIGHUP)
        wait_until(lambda: 'read again' in path.proxy.log())
        assert path.guest()[0] == 200
        assert 'link_secret' in path.agent.log()


def test_agents_stand_in_for_each_other(tmpdir):
    first, second = str(tmpdir.join('first')), str(tmpdir.join('second'))
    with whole_path(tmpdir, keep_answering(OK), metadata_proxy_socket=first,
                    agents=(first, second)) as (path, nova):
        assert [path.guest()[0] for _ in range(4)] == [200] * 4
        killed = path.agent
        path.configure(metadata_proxy_socket=second)
        path.start_agent()
        assert [path.guest()[0] for _ in range(4)] == [200] * 4
        killed.end(signal.SIGKILL)
        assert [path.guest()[0] for _ in range(4)] == [200] * 4
        assert path.proxy.log().count('%s is down' % first) == 1


@pytest.mark.parametrize('method, body, expected, times', [
    (b'GET', b'', [200, 200], 3), (b'POST', b'x', [200, 502], 2)])
def test_an_agent_killed_within_a_request_is_made_good_for_a_get_alone(tmpdir, method, body,
                                                                      expected, times):
    first, second = str(tmpdir.join('first')), str(tmpdir.join('second'))

    def script(server, sock, number):
        server.read(sock)
        wait_until(lambda: len(server.requests) >= 2)       # one by way of each agent
        if number == 1:
            path.agent.end(signal.SIGKILL)
        wait_until(lambda: path.agent.process.returncode is not None)
        sock.sendall(OK)
    with whole_path(tmpdir, script, metadata_proxy_socket=first, agents=(first, second)) as (path, nova):
        path.configure(metadata_proxy_socket=second)
        path.start_agent()
        request = b'%s /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n' % method
        request += b'Content-Length: %d\r\n\r\n%s' % (len(body), body)
        guests = [connected(path.port) for _ in range(2)]
        for guest in guests:
            guest.sendall(request)
        assert sorted(int(receive(guest).split(b' ')[1]) for guest in guests) == expected
        assert len(nova.requests) == times


def test_novas_stand_in_for_each_other(tmpdir):
    def once(server, sock, _number):
        server.read(sock)
        sock.sendall(OK)
    with Answering(once) as other, Answering(once) as nova:
        endpoints = (('127.0.0.1', nova.port), ('127.0.0.1', other.port))
        with Path(1, tmpdir, nova_endpoints=endpoints) as path:
            path.start_agent().start_proxy()
            assert [path.guest()[0] for _ in range(4)] == [200] * 4
            assert [len(nova.requests), len(other.requests)] == [2, 2]
            nova.__exit__()
            assert [path.guest()[0] for _ in range(4)] == [200] * 4
            assert '127.0.0.1 port %d is down' % nova.port in path.agent.log()


def test_a_proxy_may_be_its_own_agent(tmpdir):
    with Answering(keep_answering(OK)) as nova, Path(nova.port, tmpdir, builtin_agent=True) as path:
        path.start_proxy()
        assert path.guest()[0] == 200
        assert b'\r\nX-Instance-ID-Signature: ' in nova.requests[0][0]
        assert path.guest('127.0.0.2')[0] == path.guest('127.0.0.3')[0] == 404
        assert path.guest('127.0.0.4')[0] == 503
        assert path.proxy.end()[0] == 0


def test_sighup_reads_the_configuration_again(tmpdir):
    with whole_path(tmpdir, keep_answering(OK), rate_limit=1, rate_burst=1) as (path, _), \
            Answering(keep_answering(OK.replace(b'ok', b'oh'))) as other:
        assert [path.guest()[0] for _ in range(2)] == [200, 429]
        with contextlib.closing(connected(path.port)) as held:
            path.configure(rate_limit=0, nova_metadata_port=other.port)
            for child in path.children:
                child.process.send_signal(signal.SIGHUP)
                wait_until(lambda: 'read again' in child.log())     # noqa: B023
            status, answer = path.guest()
            assert status == 200 and answer.endswith(b'oh')
            held.sendall(b'GET /x HTTP/1.1\r\nHost: x\r\n\r\n')    # of before, and still open
            assert receive(held, b'oh')


def test_a_configuration_that_cannot_be_used_changes_nothing(tmpdir):
    with whole_path(tmpdir, keep_answering(OK)) as (path, _):
        path.configure(nova_metadata_port=0, nova_metadata_ip='no host has spaces')
        for child in path.children:
            child.process.send_signal(signal.SIGHUP)
            wait_until(lambda: 'stays as it was: ' in child.log())     # noqa: B023
        assert 'nova_metadata_port: expected a port number' in path.agent.log()
        assert path.guest()[0] == 200
        path.configure(nova_metadata_port=1)
        path.agent.process.send_signal(signal.SIGHUP)
        wait_until(lambda: 'cannot be resolved' in path.agent.log())
        assert path.guest()[0] == 200


def test_what_was_refused_changed_nothing_at_all(tmpdir):
    with remote(tmpdir) as (path, nova, port):
        with Answering(keep_answering(OK)) as other:
            path.configure(nova_metadata_port=other.port, agent_listen='', link_secret='')
            path.agent.process.send_signal(signal.SIGHUP)
            wait_until(lambda: 'stays as it was: link_secret is empty' in path.agent.log())
            assert path.guest()[0] == 200
            assert nova.requests and not other.requests


def test_a_proxy_does_not_become_its_own_agent_on_the_way(tmpdir):
    with Answering(keep_answering(OK)) as nova, Path(nova.port, tmpdir, builtin_agent=True) as path:
        path.start_proxy()
        path.configure(builtin_agent=False, metadata_proxy_shared_secret='')
        path.proxy.process.send_signal(signal.SIGHUP)
        wait_until(lambda: 'builtin_agent has changed; that takes a restart' in path.proxy.log())
        assert path.guest()[0] == 200


def test_an_agent_ends_although_its_socket_cannot_be_removed(tmpdir):
    folder = tmpdir.mkdir('run')
    with whole_path(tmpdir, keep_answering(OK),
                    metadata_proxy_socket=str(folder.join('agent'))) as (path, _):
        folder.rename(tmpdir.join('gone'))
        tmpdir.join('run').write('not a folder')
        assert path.agent.end()[0] == 0
        assert 'is left over' in path.agent.log()


def test_what_only_a_restart_changes_is_said(tmpdir):
    with whole_path(tmpdir, keep_answering(OK)) as (path, _):
        path.configure(metadata_proxy_socket=str(tmpdir.join('other')), agents=(path.socket,))
        for child in path.children:
            child.process.send_signal(signal.SIGHUP)
            wait_until(lambda: 'read again' in child.log())     # noqa: B023
        assert 'metadata_proxy_socket has changed; that takes a restart' in path.agent.log()
        assert path.guest()[0] == 200


@pytest.fixture
def run():
    """As /run, but that everybody may make things in it."""
    with open_folder(0o777) as made:
        yield made


def accepts(port):
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(('127.0.0.1', port)) == 0


def test_metrics_and_status_are_told_on_a_socket_of_their_own(tmpdir, run):
    port = free_port()
    folder = os.path.join(run, 'status')
    with whole_path(tmpdir, keep_answering(OK), status_folder=folder) as (path, _):
        assert path.guest()[0] == 200 and path.guest('127.0.0.4')[0] == 503
        status, _, text = get(os.path.join(folder, 'agent.sock'), b'/metrics')
        assert status == 200
        assert b'mdproxy_requests_total{role="agent",status="200"} 1' in text
        assert b'mdproxy_lookups_total{' in text and b'mdproxy_endpoint_up{' in text
        assert get(path.port, b'/metrics')[2] == b'ok'      # a guest's way leads to nova
        path.configure(status_listen=('127.0.0.1', port))
        path.proxy.end()
        path.start_proxy()
        wait_until(lambda: accepts(port))       # which it does a moment after it serves
        status, _, text = get(port, b'/status')
        assert status == 200 and ROUTER.encode() in text
        assert path.agent.end()[0] == path.proxy.end()[0] == 0
        assert os.listdir(folder) == []


def test_a_status_address_that_is_taken_costs_the_status_alone(tmpdir):
    with contextlib.closing(listening()) as taken:
        address = taken.getsockname()
        with whole_path(tmpdir, keep_answering(OK), status_listen=address) as (path, _):
            assert path.guest()[0] == 200
            assert 'status_listen: nothing is told there' in path.agent.log()


def test_a_stranger_of_the_management_network_gets_nothing_out_of_a_flood(tmpdir):
    with remote(tmpdir) as (path, nova, port):
        for _ in range(200):
            with contextlib.closing(socket.create_connection(('127.0.0.1', port), 5)) as sock:
                sock.sendall(b'GET /x HTTP/1.1\r\nHost: x\r\n\r\n')
                assert b' 400 ' in receive(sock, b'\r\n\r\n')
        assert nova.requests == []
        assert path.agent.log().count('bad identity headers') < 60
        assert path.guest()[0] == 200
