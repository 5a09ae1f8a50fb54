"""What guests get through guest, redirect, our proxy and agent, today's neutron and nova."""
import json
import os
import sqlite3

from cloud_of_today import sending_from
from equipment import SECRET, get, wait_until

from mdproxy import overview

STRANGER = '10.0.0.77'
INSTANCE_ID = b'/latest/meta-data/instance-id'
PASSWORD = b'/openstack/2013-04-04/password'


def test_guests_at_the_same_address_get_their_own_instance(cloud):
    answers = [get(router.guest, INSTANCE_ID) for router in (cloud.red, cloud.blue, cloud.red)]
    assert [status for status, _ in answers] == [200, 200, 200], cloud.nova.log
    assert answers[0] == answers[2] != answers[1]


def test_the_uuid_and_project_of_meta_data_json_are_the_guest_s_own(cloud):
    for router in cloud.routers:
        status, body = get(router.guest, b'/openstack/latest/meta_data.json')
        assert status == 200
        told = json.loads(body)
        assert (told['uuid'], told['project_id']) == (router.instance, router.tenant)


def test_the_hostname_is_the_guest_s_own(cloud):
    for router in cloud.routers:
        assert get(router.guest, b'/latest/meta-data/hostname') == (
            200, ('guest-%s.novalocal' % router.letter).encode())


def test_binary_user_data_arrives_byte_for_byte(cloud):
    for router in cloud.routers:
        assert get(router.guest, b'/openstack/latest/user_data') == (200, router.user_data)
        assert get(router.guest, b'/latest/user-data') == (200, router.user_data)


def test_a_posted_password_is_noted_by_nova_for_this_instance_and_once(cloud):
    body = b'the guest chose this'
    fields = b'Content-Length: %d\r\n' % len(body)
    assert get(cloud.red.guest, PASSWORD, fields, b'POST', body)[0] == 200
    database = sqlite3.connect(os.path.join(cloud.folder, 'nova', 'cell1.sqlite'))
    noted = database.execute('SELECT instance_uuid, value FROM instance_system_metadata '
                             "WHERE key = 'password_0' AND value != ''").fetchall()
    database.close()
    assert noted == [(cloud.red.instance, body.decode())]
    assert get(cloud.blue.guest, PASSWORD) == (200, b'')


def test_what_nova_does_not_have_is_404(cloud):
    for target in (b'/latest/meta-data/no-such-thing', b'/openstack/latest/no-such-thing'):
        assert get(cloud.red.guest, target)[0] == 404


def test_an_address_that_no_port_has_is_404(cloud):
    with sending_from(cloud.red, STRANGER):
        assert get(cloud.red.guest, INSTANCE_ID)[0] == 404
        assert STRANGER in cloud.agent.log
    assert get(cloud.red.guest, INSTANCE_ID)[0] == 200


def test_a_port_that_points_to_another_project_s_instance_is_404(cloud):
    """CVE-2013-6419: a project writes its port's device_id itself."""
    address = '10.0.0.66'
    cloud.neutron.create('port', project_id=cloud.red.tenant, network_id=cloud.red.network,
                         device_id=cloud.blue.instance, device_owner='compute:nova',
                         fixed_ips=[{'ip_address': address}])
    said = len(cloud.nova.log)
    with sending_from(cloud.red, address):
        status, body = get(cloud.red.guest, b'/openstack/latest/meta_data.json')
        assert status == 404
        assert cloud.blue.instance.encode() not in body
        wait_until(lambda: cloud.red.tenant in cloud.nova.log[said:], 'nova says whose project it is not')


def traced(cloud, name):
    """What the agent of this name tells the probe."""
    path = os.path.join(cloud.folder, name, 'status', 'agent.sock')
    text, error = overview.page(path, b'/path?router=' + cloud.red.id.encode(), 10)
    assert not error
    return json.loads(text)


def test_the_probe_s_question_is_answered_404_and_leaves_nova_alone_after_it(cloud):
    for _ in range(3):
        found = traced(cloud, 'agent')
        assert (found['lookup']['outcome'], found['nova']['detail']) == ('none', '')
        assert found['nova']['status'] in (200, 404)
    assert found['nova']['status'] == 200
    assert cloud.nova.log.count('Failed to get metadata for instance id: 00000000-') == 1


def test_nova_refuses_an_agent_with_another_secret_and_the_agent_says_so(cloud):
    agent = cloud.start_agent('stranger', 'another secret')
    with cloud.elsewhere(cloud.red) as red:
        cloud.serve(red, 'stranger')
        assert get(red.guest, INSTANCE_ID)[0] == 403
        assert 'shared secrets differ' in agent.until('nova refused the signature')
        assert 'does not match the expected signature' in cloud.nova.log
        assert traced(cloud, 'stranger')['nova']['status'] == 403
        for log in (agent.log, cloud.nova.log):
            assert 'another secret' not in log and SECRET not in log
