"""What `mdproxy probe` makes of what it found. In real namespaces: tests/integration."""
import json
import os
import time

import pytest
from exposition import values
from loopback import Answering, open_folder

from mdproxy import namespaces, probe

A, B, C = ('%d1111111-2222-3333-4444-555555555555' % number for number in range(3))
ANSWER = {'connected': 0.2, 'answered': 3.0, 'status': 404, 'text': 'no instance has this address'}
FOUND = {'lookup': {'outcome': 'none', 'detail': '', 'milliseconds': 50.0},
         'nova': {'status': 200, 'detail': '', 'milliseconds': 4.0}, 'endpoints': []}


def entry(outcome, hop='', detail='', **hops):
    return {'router': A, 'outcome': outcome, 'hop': hop, 'detail': detail, 'hops': hops}


def judged(monkeypatch, answer, port=9697, listening=True):
    """(hop, hops that are well) after a guest's answer."""
    monkeypatch.setattr(probe, '_redirected', lambda netns: port)
    monkeypatch.setattr(probe, '_is_listening', lambda netns, port=None: listening)
    found = entry('well')
    try:
        probe._judge(found, answer, 'qrouter-' + A)
        hop = ''
    except probe._NotThere as broken:
        hop = broken.hop
    return hop, sorted(found['hops'])


@pytest.mark.parametrize('answer, hop, well', [
    (ANSWER, '', ['agent', 'listener', 'rule']),
    (dict(ANSWER, status=200), '', ['agent', 'listener', 'rule']),
    (dict(ANSWER, status=403), 'agent', ['listener', 'rule']),
    (dict(ANSWER, status=502), 'agent', ['listener', 'rule']),
    (dict(ANSWER, status=503, text='the port API does not answer'), 'lookup', ['listener', 'rule']),
    (dict(ANSWER, status=503, text='too busy'), 'listener', ['listener', 'rule']),
    (dict(ANSWER, status=500), 'listener', ['listener', 'rule']),
    ({'connected': 0.2, 'error': 'timed out'}, 'listener', ['listener', 'rule'])])
def test_the_answer_tells_which_hop_is_broken(monkeypatch, answer, hop, well):
    assert judged(monkeypatch, answer) == (hop, well)


@pytest.mark.parametrize('port, listening, hop', [
    (None, False, 'listener'), (None, True, 'rule'), (9697, False, 'listener'), (9697, True, 'rule')])
def test_without_a_connection_rule_and_listener_are_looked_for(monkeypatch, port, listening, hop):
    assert judged(monkeypatch, {'error': 'Connection refused'}, port, listening) == (hop, [])


def looked_behind(found):
    """(outcome, hop) when the agent's socket tells this."""
    with open_folder(0o755) as folder:
        body = json.dumps(found).encode()

        def script(server, sock, _number):
            server.read(sock)
            sock.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s' % (len(body), body))
        made = entry('well')
        with Answering(script, os.path.join(folder, 'agent.sock')):
            try:
                probe._look_behind(made, A, folder)
            except probe._NotThere as broken:
                return 'down', broken.hop
        return made['outcome'], made['hop']


@pytest.mark.parametrize('changed, outcome, hop', [
    ({}, 'well', ''),
    ({'lookup': {'outcome': 'error', 'detail': 'no answer', 'milliseconds': 1.0}}, 'down', 'lookup'),
    ({'nova': {'status': 0, 'detail': 'Connection refused', 'milliseconds': 1.0}}, 'down', 'nova'),
    ({'nova': {'status': 403, 'detail': '', 'milliseconds': 1.0}}, 'down', 'nova'),
    ({'nova': {'status': 500, 'detail': '', 'milliseconds': 1.0}}, 'down', 'nova'),
    ({'nova': {'status': 404, 'detail': '', 'milliseconds': 1.0}}, 'well', ''),
    ({'endpoints': [{'name': 'a', 'up': False, 'last_error': 'gone'}]}, 'degraded', 'nova')])
def test_what_lies_behind_the_agent_is_told_by_its_process(changed, outcome, hop):
    assert looked_behind(dict(FOUND, **changed)) == (outcome, hop)


@pytest.mark.parametrize('outcomes, status', [
    ([], 0), (['well'], 0), (['well', 'idle'], 0), (['idle'], 0), (['well', 'down'], 1), (['degraded'], 1),
    (['degraded', 'down'], 1), (['down'], 2), (['down', 'idle'], 2)])
def test_the_exit_status_is_for_monitoring(outcomes, status):
    assert probe.exit_status([entry(outcome) for outcome in outcomes]) == status


def test_the_table_is_for_persons():
    lines = probe.table([
        entry('well', rule=None, listener=0.1, agent=12.3, lookup=50.0, nova=4.0),
        dict(entry('down', 'nova', 'refused', rule=None, listener=0.1, agent=9.0, lookup=1.0), router=B),
        dict(entry('idle', detail='no internal interface'), router=C)]).splitlines()
    assert [line.split()[0] for line in lines] == ['ROUTER', B, C, A]
    assert lines[1].split()[1:3] == ['ok', '0.1'] and lines[1].endswith('broken  down: nova: refused')
    assert lines[2].endswith('idle: no internal interface')
    assert lines[3].endswith('12.3 ms  50.0 ms  4.0 ms  well')


def test_metrics_are_for_routers_that_have_guests():
    found = values(probe.prometheus([
        dict(entry('degraded', 'nova', rule=None, nova=4.0), router=A), dict(entry('down', 'rule'), router=B),
        dict(entry('idle'), router=C)]))
    assert found['mdproxy_probe_down'] == {(('router', A),): 0, (('router', B),): 1}
    assert found['mdproxy_probe_degraded'] == {(('router', A),): 1, (('router', B),): 0}
    assert found['mdproxy_probe_broken'] == {(('hop', 'nova'), ('router', A)): 1,
                                             (('hop', 'rule'), ('router', B)): 1}
    assert found['mdproxy_probe_seconds'] == {(('hop', 'nova'), ('router', A)): 0.004}
    assert abs(found['mdproxy_probe_time_seconds'][()] - time.time()) < 60


def test_a_router_that_is_not_on_this_host_is_down(tmpdir):
    found, = probe.collect([A], str(tmpdir))
    assert (found['outcome'], found['hop']) == ('down', 'namespace') and 'does not exist' in found['detail']


def test_the_routers_that_have_rules_are_those_of_the_jobs(tmpdir):
    for name in (A + '.rules', A + '.ini', B + '.ini', 'other.rules', B + '.rules.old'):
        tmpdir.join(name).ensure()
    assert probe.ruled(str(tmpdir)) == [A]
    assert probe.collect([], str(tmpdir)) == []     # none is not all
    with pytest.raises(namespaces.NamespaceError):
        probe.ruled(str(tmpdir.join('nowhere')))
