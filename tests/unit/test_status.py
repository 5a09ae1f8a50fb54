"""What a process tells of itself, asked over real sockets."""
import contextlib
import json
import os
import pwd
import re
import signal
import socket
import stat
import sys
import time

import pytest
from exposition import families, values
from loopback import (
    Options,
    Running,
    ask,
    connected,
    get,
    listening,
    open_folder,
    receive,
    wait_until,
)

import mdproxy
from mdproxy import eventloop, metrics, privileges, server, status, unixsocket

ROUTER = '11111111-2222-3333-4444-555555555555'
GET = b'GET /status HTTP/1.1\r\nHost: x\r\n\r\n'
PYTHON = '%d.%d.%d' % sys.version_info[:3]


class Site(object):
    """A process' status on a unix socket and on TCP."""

    def __init__(self, running, folder, **options):
        self.running = running
        self.registry = metrics.Registry({'role': 'proxy', 'router': ROUTER})
        self.requests = self.registry.counter('mdproxy_requests_total', 'Requests.', 'status')
        self.seconds = self.registry.histogram('mdproxy_request_seconds', 'Duration.', (0.1, 1.0))
        self.registry.read('gauge', 'mdproxy_connections', 'Connections.', lambda: 7)
        self.told = {'endpoints': [{'name': 'nova', 'up': True, 'failures': 0, 'last_error': ''}]}
        self.listener = status.open_socket(folder, 'router-' + ROUTER, 'nobody')
        self.path = '%s/router-%s.sock' % (folder, ROUTER)
        self.management = listening()
        self.port = self.management.getsockname()[1]
        self.status = running.call(self._begin, Options(**options))

    def _begin(self, options):
        found = status.Status(self.running.loop, self.registry, lambda: self.told, options, self._trace)
        found.serve([self.listener, self.management])
        return found

    def _trace(self, identity, told):
        """Knows it a moment later."""
        self.running.loop.call_later(0.01, told, {'asked': [identity.kind, identity.id]})

    @property
    def connections(self):
        return self.status._server.connections


@pytest.fixture
def running():
    with Running() as running:
        yield running


@pytest.fixture
def run():
    """As /run: root's, and all may enter."""
    with open_folder(0o755) as made:
        yield made


@pytest.fixture
def folder(run):
    if os.geteuid() != 0:
        os.mkdir(run + '/mdproxy')
    return run + '/mdproxy/status'


@pytest.fixture
def site(running, folder):
    return Site(running, folder)


def test_metrics_are_valid_and_counted(running, site):
    running.call(site.requests.add, 200, 12)
    code, head, body = get(site.path, b'/metrics')
    assert code == 200 and b'Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n' in head
    found = values(body.decode())
    own = (('role', 'proxy'), ('router', ROUTER))
    assert found['mdproxy_requests_total'] == {own + (('status', '200'),): 12}
    assert found['mdproxy_connections'] == {own: 7}
    assert abs(found['mdproxy_start_time_seconds'][own] - time.time()) < 60
    assert found['mdproxy_info'] == {
        (('python', PYTHON),) + own + (('version', mdproxy.__version__),): 1}
    assert families(body.decode())['mdproxy_request_seconds'][0] == 'histogram'


@pytest.mark.parametrize('target', [b'/status', b'/', b'/status?from=somewhere'])
def test_the_status_is_json(running, site, target):
    running.call(site.requests.add, 200, 3)
    running.call(site.requests.add, 502)
    for _ in range(4):
        running.call(site.seconds.observe, 0.05)
    code, head, body = get(site.path, target)
    assert code == 200 and b'Content-Type: application/json\r\n' in head
    found = json.loads(body.decode())
    assert found.pop('uptime') >= 0
    assert re.match(r'20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z', found.pop('started'))
    assert found == {
        'role': 'proxy', 'router': ROUTER, 'version': mdproxy.__version__, 'python': PYTHON,
        'pid': os.getpid(), 'requests': {'200': 3, '502': 1}, 'connections': 7,
        'latency': {'p50': 0.05, 'p99': 0.099}, 'endpoints': site.told['endpoints']}


def test_before_the_first_request_there_is_no_latency(site):
    assert json.loads(get(site.path)[2].decode())['latency'] == {'p50': None, 'p99': None}


def test_the_management_address_tells_the_same(site):
    assert get(site.port, b'/metrics')[2] == get(site.path, b'/metrics')[2]


def test_the_path_is_gone_for_those_on_the_unix_socket_alone(site):
    target = b'/path?router=' + ROUTER.encode()
    code, head, body = get(site.path, target)
    assert code == 200 and b'application/json' in head
    assert json.loads(body.decode()) == {'asked': ['router', ROUTER]}
    assert get(site.port, target)[0] == 404


@pytest.mark.parametrize('target', [b'/metrics', b'/status'])
def test_head_is_the_same_without_the_body(site, target):
    code, head, body = get(site.path, target, method=b'HEAD')
    assert (code, body) == (200, b'')
    assert int(re.search(br'Content-Length: (\d+)', head).group(1)) > 100


@pytest.mark.parametrize('method, target, code', [
    (b'GET', b'/latest/meta-data', 404), (b'GET', b'/metrics/', 404),
    (b'POST', b'/metrics', 405), (b'PUT', b'/', 405), (b'POST', b'/other', 404),
    (b'POST', b'/path', 405), (b'GET', b'/path', 400), (b'GET', b'/path?router=x', 400),
    (b'GET', b'/path?network=11111111-2222-3333-4444-555555555555', 400)])
def test_nothing_else_is_here(site, method, target, code):
    found, head, _ = get(site.path, target, method=method, fields=b'Content-Length: 0\r\n')
    assert found == code
    assert (b'Allow: GET, HEAD\r\n' in head) == (code == 405)


def test_a_connection_carries_several_questions(site):
    with contextlib.closing(connected(site.port)) as sock:
        for _ in range(3):
            sock.sendall(GET)
            assert receive(sock, b'}\n').startswith(b'HTTP/1.1 200 OK\r\n')


def test_what_cannot_be_told_is_500_and_the_process_goes_on(running, site):
    site.told = None
    assert get(site.path)[0] == 500
    assert len(running.errors) == 1
    running.errors[:] = []
    assert get(site.path, b'/metrics')[0] == 200


def test_only_few_may_ask_at_once(site):
    held = [connected(site.path) for _ in range(32)]
    wait_until(lambda: len(site.connections) == 32)
    assert get(site.path)[0] == 503
    held.pop().close()
    wait_until(lambda: len(site.connections) < 32)
    assert get(site.path)[0] == 200
    for sock in held:
        sock.close()


def test_who_asks_slowly_is_not_waited_for(running, folder):
    site = Site(running, folder, head_timeout=0.2, idle_timeout=0.2)
    assert b' 408 ' in ask(site.path, b'GET /sta')
    with contextlib.closing(connected(site.path)) as sock:
        assert receive(sock) == b''
    limits = site.status._limits
    assert max(limits.body_timeout, limits.write_timeout, limits.drain_timeout) <= 5.0


def test_draining_removes_the_socket_and_closes_everything(running, site):
    drained = []
    idle = connected(site.port)
    idle.sendall(GET)
    receive(idle, b'}\n')
    running.call(site.status.drain, lambda: drained.append(True))
    assert not os.path.exists(site.path)
    assert receive(idle) == b''
    idle.close()
    wait_until(lambda: drained)
    with pytest.raises(socket.error):
        connected(site.port)


def test_draining_leaves_the_socket_of_a_successor(running, site, folder):
    os.unlink(site.path)
    successor = status.open_socket(folder, 'router-' + ROUTER, 'nobody')
    drained = []
    running.call(site.status.drain, lambda: drained.append(True))
    wait_until(lambda: drained)
    connected(site.path).close()
    successor.close()


def test_a_socket_that_cannot_be_removed_does_not_stop_the_end(running, site, monkeypatch):
    def refuse(*_):
        raise OSError(13, 'Permission denied')
    monkeypatch.setattr(unixsocket, 'remove', refuse)
    drained = []
    running.call(site.status.drain, lambda: drained.append(True))
    wait_until(lambda: drained)


def test_a_guests_requests_are_served_while_others_ask(running, site):
    """The same loop: a guest waits for no more than the formatting of an answer."""
    listener = listening()
    running.call(server.Server, running.loop, [(listener, None)],
                 lambda exchange: exchange.respond(200, 'ok'), lambda *_: None, Options())
    askers = [connected(site.path) for _ in range(20)]
    for sock in askers:
        sock.sendall(GET * 50)
    started = time.time()
    assert get(listener.getsockname()[1])[0] == 200
    assert time.time() - started < 1
    for sock in askers:
        sock.close()


@pytest.mark.skipif(os.geteuid() != 0, reason='only root gives sockets to others')
def test_root_makes_folder_and_socket_for_the_serving_user(folder):
    nobody = pwd.getpwnam('nobody')
    groups = os.getgroups()
    listener = status.open_socket(folder, 'agent', 'nobody')
    assert (os.geteuid(), os.getegid(), os.getgroups()) == (0, os.getgid(), groups)
    for path, mode in ((os.path.dirname(folder), 0o750), (folder, 0o750),
                       (folder + '/agent.sock', 0o660)):
        found = os.stat(path)
        assert (found.st_uid, found.st_gid) == (nobody.pw_uid, nobody.pw_gid)
        assert stat.S_IMODE(found.st_mode) == mode
    listener.close()


@pytest.mark.skipif(os.geteuid() != 0, reason='only root gives folders to others')
def test_where_the_user_may_not_make_the_folder_root_does(run):
    with contextlib.closing(status.open_socket(run + '/status', 'agent', 'nobody')):
        assert os.stat(run + '/status').st_uid == pwd.getpwnam('nobody').pw_uid


@pytest.mark.skipif(os.geteuid() != 0, reason='only root could be tricked')
def test_root_gives_nothing_away_through_a_link_of_the_user(run, folder):
    """The serving user can put what it likes where its folder was."""
    precious = run + '/precious'
    os.mkdir(precious, 0o700)
    os.mkdir(os.path.dirname(folder))
    os.chown(os.path.dirname(folder), pwd.getpwnam('nobody').pw_uid, -1)
    os.symlink(precious, folder)
    with pytest.raises(unixsocket.SocketError):
        status.open_socket(folder, 'agent', 'nobody')
    assert os.stat(precious).st_uid == 0 and os.listdir(precious) == []


def test_a_second_of_the_same_name_has_no_status(folder):
    with contextlib.closing(status.open_socket(folder, 'agent', 'nobody')):
        with pytest.raises(unixsocket.SocketError) as caught:
            status.open_socket(folder, 'agent', 'nobody')
    assert 'agent.sock: another process listens there' in str(caught.value)


def test_a_folder_that_cannot_be_made_is_told(run):
    open(run + '/a', 'w').close()
    with pytest.raises((unixsocket.SocketError, privileges.PrivilegeError)) as caught:
        status.open_socket(run + '/a/status', 'agent', 'nobody')
    assert run + '/a' in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason='others serve as themselves')
def test_a_user_that_does_not_exist_is_told(folder):
    with pytest.raises(privileges.PrivilegeError) as caught:
        status.open_socket(folder, 'agent', 'no-such-user')
    assert 'no-such-user' in str(caught.value)


def test_a_server_that_became_another_process_removes_the_socket_it_inherited(folder):
    """As an opener's server does: another process than the one that made the socket serves it."""
    listener = status.open_socket(folder, 'agent', 'nobody')
    path = folder + '/agent.sock'
    child = os.fork()
    if not child:
        try:
            loop = eventloop.Loop()
            told = status.Status(loop, metrics.Registry({}), dict, Options())
            told.serve([listener])
            os._exit(eventloop.run_until_terminated(loop, told.drain))
        finally:
            os._exit(9)
    listener.close()
    try:
        assert json.loads(get(path)[2].decode())['pid'] == child
    finally:
        os.kill(child, signal.SIGTERM)
        ended = os.waitpid(child, 0)[1]
    assert ended == 0 and not os.path.exists(path)
