"""What guests of Folsom get: before this toolkit comes, with it, and when it was taken back."""
import json
import re

import pytest
from folsom_cloud import INSTANCE_ID, NO_ANSWER, Answer, run, wait_until

STRANGER = '10.0.0.77'
AGENT = 'quantum-l3-agent'


def test_pristine_folsom_serves_no_guest_that_shares_its_address(cloud):
    assert cloud.pristine['lone'] == Answer(200, cloud.lone.ec2_id.encode())
    assert cloud.pristine['red'].status == 500      # FixedIpAssociatedWithMultipleInstances
    assert cloud.pristine['blue'] == NO_ANSWER      # what comes back goes to the other project


def test_site_yml_patches_and_verify_finds_every_guest_with_its_own_metadata(toolkit):
    assert re.findall(r'network1  (\w+) .* ok, (i-\w+)', toolkit.said) == [
        (guest.name, guest.ec2_id) for guest in toolkit.cloud.guests]


def test_a_second_run_of_site_yml_changes_nothing(toolkit):
    assert re.findall(r'changed=(\d+)', toolkit.playbook('site.yml')) == ['0'] * 3


def test_the_proxies_are_run_by_whom_the_lifecycle_names(toolkit):
    routers = [guest.project.router_id for guest in (toolkit.cloud.red, toolkit.cloud.blue)]
    assert toolkit.proxies() == dict((toolkit.known_pid(router), router) for router in routers)


def test_the_probe_finds_every_hop_well(toolkit):
    entries = json.loads(run('network1', 'mdproxy', 'probe', '--json'))
    routers = [guest.project.router_id for guest in (toolkit.cloud.red, toolkit.cloud.blue)]
    assert [(entry['router'], entry['outcome']) for entry in entries] == [
        (router, 'well') for router in sorted(routers)]
    assert all(sorted(entry['hops']) == ['agent', 'listener', 'lookup', 'nova', 'rule'] for entry in entries)


def test_each_guest_gets_its_own_instance_id_hostname_user_data_and_uuid(toolkit):
    for guest in toolkit.cloud.guests:
        def ask(path, guest=guest):
            return toolkit.cloud.ask(guest, path)
        assert ask(INSTANCE_ID) == Answer(200, guest.ec2_id.encode())
        assert ask('/latest/meta-data/hostname') == Answer(200, guest.name.encode() + b'.novalocal')
        assert ask('/latest/meta-data/local-ipv4') == Answer(200, guest.fixed_ip.encode())
        assert ask('/latest/user-data') == Answer(200, guest.user_data)
        assert json.loads(ask('/openstack/latest/meta_data.json').body)['uuid'] == guest.uuid


@pytest.mark.parametrize('path', ['/latest/meta-data/no-such-thing', '/openstack/latest/no-such-thing'])
def test_what_nova_does_not_have_is_404(toolkit, path):
    assert toolkit.cloud.ask(toolkit.cloud.red, path).status == 404


def test_an_address_that_no_port_has_is_404(toolkit):
    with toolkit.cloud.another_address(toolkit.cloud.red, STRANGER):
        assert toolkit.cloud.ask(toolkit.cloud.red, INSTANCE_ID, STRANGER).status == 404


def test_headers_of_a_guest_are_not_believed(toolkit):
    red, blue = toolkit.cloud.red, toolkit.cloud.blue
    forged = ['X-Instance-ID:' + blue.uuid, 'X-Tenant-ID:' + blue.project.tenant_id,
              'X-Quantum-Router-ID:' + blue.project.router_id,
              'X-Forwarded-For:' + toolkit.cloud.lone.fixed_ip]
    assert toolkit.cloud.ask(red, INSTANCE_ID, '', *forged) == Answer(200, red.ec2_id.encode())


def test_cve_2013_6419_a_port_that_a_tenant_points_at_another_s_instance_is_404(toolkit):
    cloud = toolkit.cloud
    port = cloud.add_port(cloud.red.project, '')
    address = port['fixed_ips'][0]['ip_address']
    try:
        cloud.call('PUT', 'ports/' + port['id'], {'port': {'device_id': cloud.blue.uuid}})
        with cloud.another_address(cloud.red, address):
            answer = cloud.ask(cloud.red, '/openstack/latest/meta_data.json', address)
    finally:
        cloud.call('DELETE', 'ports/' + port['id'])
    assert answer.status == 404
    assert cloud.blue.uuid.encode() not in answer.body
    log = run('api1', 'journalctl', '--unit', 'nova-api-metadata', '--grep', 'does not match tenant_id')
    assert cloud.red.project.tenant_id in log and cloud.blue.uuid in log


def test_guests_are_served_when_the_l3_agent_has_restarted(toolkit):
    before = toolkit.cloud.interfaces()
    run('network1', 'systemctl', 'restart', AGENT)
    wait_until(lambda: len(toolkit.cloud.interfaces() - before) == len(before),
               'the l3 agent has plugged every interface anew')
    wait_until(toolkit.cloud.all_served, 'every guest is served again')


def test_guests_are_served_when_the_l3_agent_has_made_every_namespace_anew(toolkit):
    run('network1', 'systemctl', 'stop', AGENT)
    for router_id in set(guest.project.router_id for guest in toolkit.cloud.guests):
        run('network1', 'ip', 'netns', 'delete', 'qrouter-' + router_id)
    run('network1', 'systemctl', 'start', AGENT)
    wait_until(toolkit.cloud.all_served, 'every guest is served again')


def test_a_router_that_is_added_through_the_api_is_served_and_removed_it_leaves_nothing(toolkit):
    cloud, green = toolkit.cloud, toolkit.cloud.add_project('green')
    guest = cloud.add_guest(green, 'green', cloud.red.fixed_ip)
    try:
        cloud.wait_for_router(green)
        if toolkit.lifecycle == 'jobs':
            toolkit.playbook('playbooks/routers.yml', router_id=green.router_id)
        wait_until(cloud.all_served, 'every guest is served, also behind the new router')
    finally:
        cloud.remove_guest(guest)
        cloud.remove_router(green)
    cloud.wait_for_router(green, there=False)
    if toolkit.lifecycle == 'jobs':
        # Folsom's l3 agent leaves the namespace of a router that is gone.
        run('network1', 'ip', 'netns', 'delete', 'qrouter-' + green.router_id)
        toolkit.playbook('playbooks/routers.yml', router_id=green.router_id)
        assert green.router_id not in run('network1', 'find', '/etc', '/run/mdproxy', '/var/lib/mdproxy')
    wait_until(lambda: green.router_id not in toolkit.proxies().values(), 'its proxy is gone')
    run('network1', 'mdproxy', 'status')        # which fails when it misses a process
    assert cloud.all_served()


def test_a_rollback_brings_pristine_folsom_back(toolkit):
    cloud = toolkit.cloud
    toolkit.roll_back()
    assert toolkit.proxies() == {}
    assert cloud.take_snapshot() == cloud.snapshot
    wait_until(lambda: cloud.is_served(cloud.lone), 'Folsom serves the guest with an address of its own')
    assert cloud.ask_all() == cloud.pristine
