"""The report says of every router how far its guests get, and what to do."""
import os
import sys

import pytest

errors = pytest.importorskip('ansible.errors')
yaml = pytest.importorskip('yaml')
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ROLE = os.path.join(ROOT, 'roles', 'verify')
sys.path.insert(0, os.path.join(ROLE, 'filter_plugins'))

import verify_report  # noqa: E402

SETTINGS = {'mode': 'shared'}
REMEDIES = dict((hop, 'mend %s of {router} on {host}' % hop) for hop in (
    'guest', 'namespace', 'rule', 'proxy', 'listener', 'agent', 'lookup', 'port', 'nova', 'data'))
ALL = dict(rule=None, listener=0.1, agent=2.0, lookup=1.5, nova=3.0)


def probed(outcome='well', hop='', detail='', router='r1', **hops):
    return dict(router=router, outcome=outcome, hop=hop, detail=detail, hops=hops)


def guest(hop='', name='red', router='r1'):
    return dict(name=name, router_id=router, hop=hop, detail=hop and 'no ' + hop, fixed_ip='10.0.0.3',
                instance_id='', ec2_id='', milliseconds=0)


def host(name='n1', probed=(), guests=(), reached=True, **more):
    return dict(dict(name=name, groups=['network_nodes'], host={}, reached=reached,
                     node=dict(probed=list(probed), guests=list(guests), trouble='')), **more)


def report(*hosts):
    return verify_report.FilterModule().filters()['verify_report'](list(hosts), REMEDIES, SETTINGS)


def path(entry=None, *guests):
    """The one path of a report of one probe and these guests."""
    found, = report(host(probed=[entry] if entry else [], guests=guests))['paths']
    return found


def states(found):
    return ' '.join(hop['state'] for hop in found['hops'])


def test_a_router_that_is_well_has_the_time_of_every_hop():
    found = path(probed(**ALL), guest())
    assert (found['outcome'], found['troubles']) == ('well', [])
    assert (found['host'], found['router_id']) == ('n1', 'r1')
    assert states(found) == 'ok ok ok ok ok ok ok'
    assert [hop['milliseconds'] for hop in found['hops']] == [None, None, None, 0.1, 2.0, 1.5, 3.0]


def test_without_a_guest_nothing_is_claimed_of_one():
    assert states(path(probed(**ALL))) == 'unknown ok ok ok ok ok ok'


@pytest.mark.parametrize('hop, known', [
    ('namespace', 'unknown broken unknown unknown unknown unknown unknown'),
    ('rule', 'unknown ok broken unknown unknown unknown unknown'),
    ('listener', 'unknown ok ok broken unknown unknown unknown'),
    ('agent', 'unknown ok ok ok broken unknown unknown'),
    ('lookup', 'unknown ok ok ok ok broken unknown'),
    ('nova', 'unknown ok ok ok ok ok broken')])
def test_behind_a_hop_that_is_broken_nothing_is_known(hop, known):
    found = path(probed('down', hop, 'it is gone'))
    assert (found['outcome'], states(found)) == ('down', known)
    assert found['troubles'] == [dict(hop=hop, detail='it is gone', remedy='mend %s of r1 on n1' % hop)]


def test_a_guest_that_is_answered_proves_what_nobody_else_could_see():
    """As lookup and nova, which are another host's business when the agent is."""
    found = path(probed(rule=None, listener=0.1, agent=2.0), guest())
    assert states(found) == 'ok ok ok ok ok ok ok'
    assert path(probed('idle', detail='no internal interface'))['note'] == 'no internal interface'


def test_what_probe_and_guest_found_alike_is_said_once():
    found = path(probed('down', 'listener', 'nobody listens', rule=None), guest('proxy'))
    assert [trouble['hop'] for trouble in found['troubles']] == ['listener']
    assert states(found) == 'unknown ok ok broken unknown unknown unknown'


def test_a_guest_whose_port_is_not_there_came_as_far_as_the_lookup():
    found = path(probed(**ALL), guest('port'), guest(name='blue'))
    assert found['outcome'] == 'degraded'
    assert states(found) == 'ok ok ok ok ok broken ok'
    assert found['troubles'][0]['detail'] == 'guest red: no port'
    assert path(probed(**ALL), guest('port'))['outcome'] == 'down'


def test_a_hop_that_others_stand_in_for_is_degraded():
    found = path(probed('degraded', 'nova', 'one of two', **ALL))
    assert (found['outcome'], states(found)) == ('degraded', 'unknown ok ok ok ok ok degraded')


def test_trouble_comes_first_and_is_counted_by_hop():
    found = report(host('n1', [probed(**ALL), probed('down', 'agent', 'gone', router='r2')]),
                   host('n2', [probed('down', 'agent', 'gone', router='r3'),
                               probed('degraded', 'nova', 'one of two', router='r0', **ALL)]))
    assert [one['router_id'] for one in found['paths']] == ['r2', 'r3', 'r0', 'r1']
    assert found['routers'] == dict(down=2, degraded=1, well=1, idle=0)
    assert found['causes'] == [dict(hop='agent', routers=2, hosts={'n1': 1, 'n2': 1}, detail='gone'),
                               dict(hop='nova', routers=1, hosts={'n2': 1}, detail='one of two')]
    assert found['mode'] == 'shared'


def test_hosts_that_were_not_reached_or_have_no_routers_are_named():
    told = dict(python='3.9.2', service_manager='systemd', release='', tree='nova 2012.2.4')
    hosts = report(host('n1', reached=False, node={}), dict(host('api1', node={}), host=told))['hosts']
    assert hosts[0]['trouble'] == 'could not be asked; the run says why' and hosts[0]['release'] == ''
    assert hosts[1]['tree'] == 'nova 2012.2.4' and hosts[1]['trouble'] == ''


def test_every_hop_has_a_remedy_in_the_role():
    with open(os.path.join(ROLE, 'vars', 'main.yml')) as found:
        remedies = yaml.safe_load(found)['verify_remedies']
    assert sorted(remedies) == sorted(REMEDIES)
    for hop, remedy in remedies.items():
        assert remedy.format(router='r1', host='n1'), hop


def test_what_is_no_hop_is_refused():
    with pytest.raises(errors.AnsibleFilterError) as caught:
        report(host(probed=[probed('down', 'moon', '')]))
    assert str(caught.value).startswith('moon is no hop; expected one of agent, ')
