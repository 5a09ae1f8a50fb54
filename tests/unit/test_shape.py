"""What the path costs besides moving bytes: counted, not timed, as that is where its speed comes from."""
import contextlib
import threading

import pytest
from loopback import (
    OK,
    Answering,
    Options,
    Running,
    connected,
    keep_answering,
    listening,
    receive,
    wait_until,
)
from wholepath import INSTANCE, ROUTER

from mdproxy import agent, portapi, ports, proxy, trust

REQUEST = b'GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: x\r\n\r\n'
LAST_REQUEST = REQUEST.replace(b'\r\n\r\n', b'\r\nConnection: close\r\n\r\n')


class CountedEpoll(object):
    """An epoll that notes every epoll_ctl(2)."""

    def __init__(self, epoll):
        self.poll, self.close, self._epoll, self.changes = epoll.poll, epoll.close, epoll, []

    def register(self, *args):
        self.changes.append('register')
        self._epoll.register(*args)

    def modify(self, *args):
        self.changes.append('modify')
        self._epoll.modify(*args)

    def unregister(self, *args):
        self.changes.append('unregister')
        self._epoll.unregister(*args)


class CountedApi(object):
    """A port API that has a port for everybody, and notes in `looked_up` whose."""

    looked_up = may_answer = None       # of a test

    def __init__(self, options):
        pass

    def token_age(self):
        return None

    def resolve(self, identity, ip, mac):
        self.looked_up.append(ip)
        self.may_answer.wait()
        return ports.Outcome('found', ports.Instance(INSTANCE, 'tenant-1', 'port-1'), '')


class Served(object):
    """A router that is served. epoll: of proxy and agent, which have one loop here."""

    def __init__(self, port, nova, epoll, api):
        self.port, self.nova, self.epoll, self.api = port, nova, epoll, api


@pytest.fixture(params=['builtin', 'agent'])
def served(request, tmpdir, monkeypatch):
    api = type('Api', (CountedApi,), {'looked_up': [], 'may_answer': threading.Event()})
    api.may_answer.set()
    monkeypatch.setattr(portapi, 'PortApi', api)
    with Answering(keep_answering(OK)) as nova:
        running = Running()
        epoll = running.loop._epoll = CountedEpoll(running.loop._epoll)
        options = Options(nova_metadata_port=nova.port, builtin_agent=request.param == 'builtin',
                          metadata_proxy_socket=str(tmpdir.join('agent')), port_api_url='http://stand-in')
        listener = listening(1024)
        services = [proxy.Proxy(running.loop, {}, options)]
        services[0].serve([(listener, trust.Identity('router', ROUTER))])
        if request.param == 'agent':
            services.append(agent.Agent(running.loop, options))
            services[1].serve()
        port = listener.getsockname()[1]
        with running:
            yield Served(port, nova, epoll, api)
        for service in services:
            service.close()


@contextlib.contextmanager
def guests(served, count):
    """Connections of guests who all asked at the same time and have their answers."""
    socks = [connected(served.port) for _ in range(count)]
    try:
        ask(socks)
        yield socks
    finally:
        for sock in socks:
            sock.close()


def ask(socks, request=REQUEST):
    """Ask on all, then read the answers."""
    for sock in socks:
        sock.sendall(request)
    for sock in socks:
        assert receive(sock, b'\r\n\r\nok').startswith(b'HTTP/1.1 200 ')


def test_a_kept_connection_changes_nothing_in_epoll(served):
    with guests(served, 4) as socks:
        del served.epoll.changes[:]
        for _ in range(25):
            for sock in socks:          # more at once might need one more connection to nova
                ask([sock])
        assert served.epoll.changes == []


def test_a_connection_per_request_is_registered_once_and_unregistered_once(served):
    with guests(served, 1):
        del served.epoll.changes[:]
        for _ in range(25):
            with contextlib.closing(connected(served.port)) as sock:
                ask([sock], LAST_REQUEST)
                assert receive(sock) == b''
    assert served.epoll.changes[:50] == ['register', 'unregister'] * 25


def test_nova_is_connected_to_once_for_each_request_under_way_and_never_again(served):
    for _ in range(2):
        with guests(served, 8) as socks:
            for _ in range(10):
                ask(socks)
            assert 1 <= served.nova.connections <= 8


def test_guests_one_after_the_other_share_one_connection_to_nova(served):
    for _ in range(25):
        with guests(served, 1):
            pass
    assert served.nova.connections == 1


def test_a_guest_is_looked_up_once_however_many_of_its_requests_wait(served):
    served.api.may_answer.clear()
    socks = [connected(served.port) for _ in range(16)]
    for sock in socks:
        sock.sendall(REQUEST)
    wait_until(lambda: served.api.looked_up)
    served.api.may_answer.set()
    for sock in socks:
        assert receive(sock, b'\r\n\r\nok').startswith(b'HTTP/1.1 200 ')
        sock.close()
    with guests(served, 16):
        assert served.api.looked_up == ['127.0.0.1']
