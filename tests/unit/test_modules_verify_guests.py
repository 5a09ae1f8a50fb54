"""verify_guests: what a guest's answers are compared with. The hops: tests/integration/test_verify.py."""
import base64
import collections
import json
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import ansible_module  # noqa: E402

ansible_module.needs_ansible()

verify_guests = ansible_module.imported('verify_guests')
GUEST = dict(name='red', fixed_ip='10.0.0.3', ec2_id='i-0000000b', user_data_base64='AP8=')


def answers(**changes):
    """A guest's answers, each of the four paths by a word."""
    texts = dict(zip(('instance_id', 'ip', 'user_data', 'openstack'), verify_guests['_PATHS']))
    found = dict(instance_id=b'i-0000000b', ip=b'10.0.0.3', user_data=b'\0\xff',
                 openstack=json.dumps(dict(uuid='the-instance')).encode('ascii'))
    found.update(changes)
    return dict((texts[name], content if isinstance(content, list)
                 else [200, base64.b64encode(content).decode('ascii')]) for name, content in found.items())


def compared(found, **guest):
    """(hop, detail) of the guest's row."""
    verifier = verify_guests['Verifier'](None, dict(router_id='r', resolved='', guest=dict(GUEST, **guest)))
    try:
        verifier.compare(found, 'the-instance')
    except verify_guests['Broken'] as broken:
        return broken.hop, broken.detail
    return '', ''


def test_a_guest_with_its_own_data_is_well():
    assert compared(answers()) == ('', '')


@pytest.mark.parametrize('changes, hop, words', [
    (dict(instance_id=b'i-0000000c'), 'data', 'instance-id is i-0000000c, expected i-0000000b'),
    (dict(ip=b'10.0.0.4'), 'data', 'local-ipv4 is 10.0.0.4, expected 10.0.0.3'),
    (dict(openstack=b'{"uuid": "other"}'), 'data', 'instance is other, expected the-instance'),
    (dict(openstack=b'{}'), 'data', 'is no metadata'),
    (dict(openstack=b'<html>'), 'data', 'is no metadata'),
    (dict(user_data=b'\0'), 'data', 'user data'),
    (dict(user_data=[404, '']), 'nova', 'user-data is answered 404'),
    (dict(openstack=[500, '']), 'nova', 'meta_data.json is answered 500')])
def test_what_differs_is_named(changes, hop, words):
    found, detail = compared(answers(**changes))
    assert found == hop and words in detail


@pytest.mark.parametrize('body, hop', [(b'bad identity headers', 'agent'),
                                       (b'<html>403 Forbidden</html>', 'nova')])
def test_who_refuses_is_told_by_its_words(monkeypatch, body, hop):
    """The agent a proxy whose clock differs, or nova the agent."""
    told = dict(answers=answers(instance_id=[403, base64.b64encode(body).decode('ascii')]), milliseconds=1)
    monkeypatch.setitem(verify_guests, 'in_namespace', lambda name, function: dict(value=told))
    module = collections.namedtuple('Module', 'params')(dict(timeout=1))
    verifier = verify_guests['Verifier'](module, dict(router_id='r', resolved='', guest=GUEST))

    def find_broken_hop(symptom, nova):
        raise verify_guests['Broken']('nova', nova)
    monkeypatch.setattr(verifier, 'find_broken_hop', find_broken_hop)
    with pytest.raises(verify_guests['Broken']) as found:
        verifier.ask()
    assert found.value.hop == hop


def test_a_guest_without_user_data_is_well_when_none_is_expected():
    assert compared(answers(user_data=[404, '']), user_data_base64='') == ('', '')


@pytest.mark.parametrize('said, detail', [
    ('', 'mdproxy resolve said nothing'),
    ('agent.ini: cannot be read\n', 'agent.ini: cannot be read'),
    ('{"outcome": "error", "reason": "no token"}', 'the port API fails: no token'),
    ('{"outcome": "none", "reason": "nobody"}', 'no port found: nobody')])
def test_what_was_said_of_an_address_instead_of_an_instance_is_told(said, detail):
    verifier = verify_guests['Verifier'](None, dict(router_id='r', resolved=said, guest=GUEST))
    with pytest.raises(verify_guests['Broken']) as broken:
        verifier.resolve()
    assert (broken.value.hop, broken.value.detail) == ('port', detail)


def test_a_namespace_that_does_not_exist_is_an_error_and_is_not_made():
    result = verify_guests['in_namespace']('mdproxy-test-nowhere', lambda: 1)
    assert 'No such file or directory' in result['error']
    assert not os.path.exists('/var/run/netns/mdproxy-test-nowhere')
