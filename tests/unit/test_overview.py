"""What `mdproxy status` finds out on a host, and how it says so."""
import contextlib
import json
import os
import shutil
import socket
import tempfile
import time

import pytest
from exposition import values
from loopback import Answering, Options, Running

from mdproxy import metrics, overview, privileges, status, unixsocket

A, B = '11111111-2222-3333-4444-555555555555', '99999999-2222-3333-4444-555555555555'
OK = {'name': '/run/mdproxy/agent', 'up': True, 'failures': 0, 'last_error': '', 'down_for': 0.0}
DOWN = {'name': '10.0.0.5 port 8775', 'up': False, 'failures': 3,
        'last_error': 'Connection refused', 'down_for': 12.4}


class Node(object):
    """A folder with the sockets of processes, all on one loop."""

    def __init__(self, running):
        self.running = running
        self.folder = tempfile.mkdtemp(prefix='md')
        self._others = []

    def process(self, name, labels, **told):
        """One that answers; its counters."""
        registry = metrics.Registry(labels)
        requests = registry.counter('mdproxy_requests_total', 'Requests.', 'status')
        seconds = registry.histogram('mdproxy_request_seconds', 'Duration.', (0.01, 0.1))
        registry.read('gauge', 'mdproxy_connections', 'Connections.', lambda: 2)

        def begin():
            told_by = status.Status(self.running.loop, registry, lambda: told, Options())
            told_by.serve([unixsocket.listen(self.path(name), 0o600)])
        self.running.call(begin)
        return requests, seconds

    def router(self, id, endpoint=OK):
        return self.process('router-' + id, {'role': 'proxy', 'router': id}, endpoints=[endpoint])

    def path(self, name):
        return os.path.join(self.folder, name + '.sock')

    def silent(self, name, backlog=5):
        """One that listens and does nothing else."""
        self._others.append(socket.socket(socket.AF_UNIX))
        self._others[-1].bind(self.path(name))
        self._others[-1].listen(backlog)

    def left_over(self, name):
        unixsocket.listen(self.path(name), 0o600).close()

    def close(self):
        for sock in self._others:
            sock.close()
        shutil.rmtree(self.folder)


@pytest.fixture
def node():
    with Running() as running:
        with contextlib.closing(Node(running)) as node:
            yield node


def error_of(folder):
    entry, = overview.collect(folder)
    return entry['error']


def rows(entries):
    """The table's lines without the heading and the sums."""
    lines = overview.table(entries).split('\n')
    assert lines[0].startswith('PROCESS ') and lines[0].endswith(' OUTCOME')
    assert lines[-1] == lines[-3] == ''
    return lines[1:-3]


def test_every_process_tells_for_itself_sorted_by_name(node):
    node.router(B)
    node.process('agent', {'role': 'agent'}, lookups={'hit': 1})
    node.router(A)[0].add(200, 5)
    entries = overview.collect(node.folder)
    assert [entry['name'] for entry in entries] == ['agent', 'router-' + A, 'router-' + B]
    assert entries[0]['lookups'] == {'hit': 1}
    assert (entries[1]['router'], entries[1]['requests']) == (A, {'200': 5})
    assert overview.exit_status(entries) == 0
    json.dumps(entries)


def test_where_nothing_runs_that_is_said(node):
    for folder in (node.folder, node.folder + '/none'):
        assert overview.collect(folder) == []
        assert overview.prometheus(folder) == ''
    assert overview.exit_status([]) == 2
    assert overview.table([]) == 'nothing runs here that tells of itself\n'


def test_a_dead_process_is_told_and_alone_it_is_nothing_that_runs(node):
    node.left_over('agent')
    entry, = overview.collect(node.folder)
    assert entry == {'name': 'agent', 'running': False,
                     'error': 'not running: %s is left over' % node.path('agent')}
    assert overview.exit_status([entry]) == 2
    node.router(A)
    assert overview.exit_status(overview.collect(node.folder)) == 1


@pytest.mark.parametrize('interfaces, names', [([], ['agent']), (['qr-1'], ['agent', 'router-' + A])])
def test_a_dead_proxy_is_missed_as_long_as_its_router_has_guests(node, monkeypatch, interfaces, names):
    entered = []

    @contextlib.contextmanager
    def inside(netns):
        entered.append(netns)
        yield
    monkeypatch.setattr(overview.namespaces, 'inside', inside)
    monkeypatch.setattr(overview.namespaces, 'internal_interfaces', lambda: interfaces)
    node.left_over('agent')
    node.left_over('router-' + A)
    assert [entry['name'] for entry in overview.collect(node.folder)] == names
    assert entered == ['qrouter-' + A]
    assert ('router-' + A in overview.prometheus(node.folder)) == (len(names) == 2)


def test_who_does_not_answer_costs_two_seconds_however_many(node):
    for number in range(20):
        node.silent('router-%d' % number)
    node.router(A)
    started = time.time()
    entries = overview.collect(node.folder)
    assert 1.8 < time.time() - started < 3
    assert [entry.get('error') for entry in entries].count('no answer within 2 s') == 20
    assert overview.exit_status(entries) == 1


def test_who_accepts_nobody_is_one_without_an_answer(node, monkeypatch):
    monkeypatch.setattr(overview, 'PATIENCE', 0.3)
    node.silent('agent', backlog=0)
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for sock in waiting:
        sock.setblocking(False)
        sock.connect_ex(node.path('agent'))
    assert error_of(node.folder).startswith('no answer within')
    for sock in waiting:
        sock.close()


@pytest.mark.parametrize('answer, error', [
    (b'HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\nno', 'status 500'),
    (b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno', 'not the status of a process'),
    (b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]', 'not the status of a process'),
    (b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}', 'not the status of a process'),
    (b'HTTP/1.1 200 OK\r\n\r\n' + b'x' * 2000000, 'more than 1048576 bytes'),
    (b'SSH-2.0\r\n\r\n', 'malformed'),
    (b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{', 'closed within'),
    (b'', 'closed before')])
def test_what_is_no_answer_is_told(node, answer, error):
    def script(server, sock, _number):
        server.read(sock)
        sock.sendall(answer)
    with Answering(script, node.path('agent')):
        found = error_of(node.folder)
    assert found.startswith('no valid answer: ') and error in found


def test_a_file_that_is_no_socket_is_told_and_other_names_are_not_looked_at(node):
    open(node.path('agent'), 'w').close()
    unixsocket.listen(node.folder + '/agent.other', 0o600).close()
    assert error_of(node.folder) == 'not running: %s is left over' % node.path('agent')


@pytest.mark.skipif(os.geteuid() != 0, reason='needs two users')
def test_who_may_not_ask_is_told_who_may(node):
    node.router(A)
    os.chmod(node.folder, 0o755)
    os.chown(node.path('router-' + A), privileges.ids('daemon')[0], -1)
    with privileges.acting_as('nobody'):
        entry, = overview.collect(node.folder)
    assert entry['error'] == 'not permitted: ask as root or as daemon'
    assert overview.exit_status([entry]) == 1
    os.chmod(node.folder, 0o700)
    with privileges.acting_as('nobody'):
        entry, = overview.collect(node.folder)
    assert (entry['name'], entry['error']) == (node.folder, 'not permitted: ask as root')


def test_a_process_that_ends_meanwhile_is_no_trouble(node, monkeypatch):
    node.router(A)
    monkeypatch.setattr(overview.os, 'listdir', lambda _: ['agent.sock', 'router-%s.sock' % A])
    assert [entry['name'] for entry in overview.collect(node.folder)] == ['router-' + A]


def test_the_table_has_a_line_for_each_process_and_its_figures(node):
    requests, seconds = node.process(
        'agent', {'role': 'agent'}, endpoints=[OK, dict(OK, name='b')],
        lookups={'hit': 90, 'shared': 5, 'miss': 5, 'none': 0}, api={'api': 'ok'})
    for code, count in ((200, 1000), (304, 1), (404, 20), (403, 1), (502, 2), (0, 3)):
        requests.add(code, count)
    for _ in range(10):
        seconds.observe(0.002)
    node.router(A)
    agent, router = rows(overview.collect(node.folder))
    assert agent.split() == ['agent', str(os.getpid()), '0s', '1027', '1001', '21', '2', '3',
                             '9.9ms', '2', '100', '(95%', 'hit)', '2/2', 'up', 'ok']
    assert router.split() == ['router', A, str(os.getpid()), '0s', '0', '0', '0', '0', '0', '-',
                              '2', '-', '1/1', 'up', 'ok']
    heading = overview.table(overview.collect(node.folder)).split('\n')[0]
    assert heading.index('OUTCOME') == agent.index('ok') == router.index('ok')


def test_a_master_tells_how_many_namespaces_it_serves_and_which_it_cannot(node):
    troubles = dict(('qrouter-%d' % number, 'port taken') for number in range(5))
    node.process('master', {'role': 'master'}, troubles=troubles,
                 namespaces={'served': 7, 'starting': 0, 'waiting': 3, 'failing': 5}, workers={'0': 17})
    entries = overview.collect(node.folder)
    line, = rows(entries)
    assert line.endswith('  7/12 served  qrouter-0: port taken; qrouter-1: port taken; '
                         'qrouter-2: port taken; 2 more namespaces (--json names them)')
    assert overview.exit_status(entries) == 1
    assert entries[0]['troubles'] == troubles


def test_trouble_comes_first_in_words_and_the_sums_last(node):
    node.process('agent', {'role': 'agent'}, endpoints=[DOWN], lookups={},
                 api={'api': 'failing', 'last_error': 'answered 500', 'since': 192.0, 'waiting': 4})
    node.router(A)[0].add(200, 7)
    node.router(B, dict(DOWN, name='/run/mdproxy/agent', down_for=None))
    node.left_over('router-x')
    entries = overview.collect(node.folder)
    lines = rows(entries)
    assert lines[0].endswith('  port API failing for 3m12s: answered 500; 4 requests wait; '
                             'nova 10.0.0.5 port 8775 down for 12s: Connection refused')
    assert lines[1].endswith(
        '0/1 up  agent /run/mdproxy/agent down for unknown time: Connection refused')
    assert lines[2].startswith('router x ') and lines[2].endswith(
        '  not running: %s is left over' % node.path('router-x'))
    assert lines[3].startswith('router ' + A) and lines[3].endswith(' 1/1 up  ok')
    assert overview.table(entries).split('\n')[-2] == (
        '4 processes, 3 in trouble; 7 requests: 7 ok, 0 4xx, 0 5xx, 0 cut off; 6 connections')
    assert overview.exit_status(entries) == 1


def test_a_failing_port_api_is_trouble_enough(node):
    node.process('agent', {'role': 'agent'}, endpoints=[OK], lookups={}, api={'api': 'failing'})
    assert overview.exit_status(overview.collect(node.folder)) == 1


def test_only_dead_processes_make_a_table_too(node):
    node.left_over('agent')
    line, = rows(overview.collect(node.folder))
    assert line.startswith('agent ') and 'left over' in line


def test_an_error_of_several_lines_is_still_one_line(node):
    node.router(A, dict(DOWN, last_error=u'one\ntwo\x1b[31m\tr\xe9d'))
    text = overview.table(overview.collect(node.folder))
    assert isinstance(text, str) and '\x1b' not in text and 'one two [31m r' in text
    assert len(text.rstrip('\n').split('\n')) == 4


@pytest.mark.parametrize('seconds, text', [
    (0, '0s'), (59.9, '59s'), (60, '1m00s'), (245, '4m05s'), (7980, '2h13m'), (792000, '9d04h')])
def test_durations_are_short(seconds, text):
    assert overview._span(seconds) == text


def test_the_metrics_of_a_node_are_one_valid_exposition(node):
    node.router(A)[0].add(200, 3)
    node.router(B)[1].observe(0.05)
    node.process('agent', {'role': 'agent'})[0].add(404)
    node.left_over('router-x')
    found = values(overview.prometheus(node.folder))
    assert sorted(found['mdproxy_requests_total'].values()) == [1, 3]
    counts = dict((dict(labels).get('router'), count)
                  for labels, count in found['mdproxy_request_seconds_count'].items())
    assert counts == {None: 0, A: 0, B: 1}
    assert len(found['mdproxy_info']) == 3
    assert found['mdproxy_up'] == {
        (('process', 'agent'),): 1, (('process', 'router-' + A),): 1,
        (('process', 'router-' + B),): 1, (('process', 'router-x'),): 0}


def test_five_hundred_processes_are_shown_in_time(node):
    for number in range(500):
        node.router('%08d%s' % (number, A[8:]))
    for show in (lambda: overview.table(overview.collect(node.folder)),
                 lambda: overview.prometheus(node.folder)):
        started = time.time()
        text = show()
        assert time.time() - started < 3
        assert text.count('00000499' + A[8:]) > 0
