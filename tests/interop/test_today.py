"""The whole path with today's neutron and nova: guest, redirect, our proxy and agent, their services.

Two projects have a router each, with the same subnet behind it, and an instance with the same fixed IP.
Routers, networks and ports are made through neutron's API, instances with nova's objects.
"""
import base64
import contextlib
import json
import os
import sqlite3
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), 'integration')]

import equipment  # noqa: E402

equipment.requirements()

import services  # noqa: E402
from equipment import SECRET, USER, Process, Router, get, wait_until, working_folder  # noqa: E402

SUBNET, STRANGER = '10.0.0.0/24', '10.0.0.77'
INSTANCE_ID = b'/latest/meta-data/instance-id'
PASSWORD = b'/openstack/2013-04-04/password'
_AGENT = """
[DEFAULT]
auth_strategy = noauth
nova_metadata_port = {nova}
metadata_proxy_shared_secret = {secret}
metadata_proxy_socket = {folder}/{name}/metadata_proxy
[mdproxy]
port_api_url = {neutron}
header_family = neutron
user = {user}
"""
_PROXY = """
[DEFAULT]
metadata_proxy_socket = {folder}/{name}/metadata_proxy
[mdproxy]
header_family = neutron
user = {user}
"""


class Cloud:
    """Two projects in neutron and nova; agents and proxies of ours before them."""

    def __init__(self, folder):
        self.folder, self.processes, self.routers = folder, [], []
        self.neutron = self.nova = None

    def start(self):
        self.neutron = services.Neutron(self.folder + '/neutron')
        instances = [self._project(letter) for letter in 'rb']
        self.nova = services.Nova(self.folder + '/nova', self.neutron, SECRET, instances)
        self.red, self.blue = self.routers
        for router in self.routers:
            router.make()
        self.agent = self.start_agent('agent', SECRET)
        for router in self.routers:
            self.serve(router, 'agent')

    def _project(self, letter):
        """A project's network, router and port in neutron; what nova is to know of its instance."""
        router, neutron = Router(letter), self.neutron
        self.routers.append(router)
        network = neutron.create('network', project_id=router.tenant, name='inside')
        subnet = neutron.create('subnet', project_id=router.tenant, network_id=network['id'], ip_version=4,
                                cidr=SUBNET, gateway_ip=router.gateway)
        made = neutron.create('router', project_id=router.tenant, name='router')
        neutron.call('PUT', '/routers/%s/add_router_interface' % made['id'], {'subnet_id': subnet['id']})
        port = neutron.create('port', project_id=router.tenant, network_id=network['id'],
                              device_id=router.instance, device_owner='compute:nova',
                              fixed_ips=[{'ip_address': router.fixed_ip}])
        router.id, router.network, router.port = made['id'], network['id'], port['id']
        router.netns, router.guest, router.outside = (
            prefix + router.id for prefix in ('qrouter-', 'guest-', 'outside-'))
        return dict(uuid=router.instance, project=router.tenant, hostname='guest-' + letter,
                    user_data=base64.b64encode(router.user_data).decode(), port=router.port,
                    network=router.network, mac=port['mac_address'], fixed_ip=router.fixed_ip,
                    cidr=SUBNET, gateway=router.gateway)

    def _config(self, file_name, text, **more):
        path = os.path.join(self.folder, file_name)
        with open(path, 'w') as out:
            out.write(text.format(folder=self.folder, user=USER, **more))
        return path

    def start_agent(self, name, secret):
        """An agent of ours with a socket of this name, when it serves."""
        config = self._config(name + '.ini', _AGENT, name=name, secret=secret, nova=self.nova.port,
                              neutron=self.neutron.url)
        agent = Process(self.folder, 'agent', '--config-file', config)
        self.processes.append(agent)
        agent.until('serving')
        return agent

    def serve(self, router, name):
        """A router's proxy with its rules before the agent of this name, when it serves."""
        rules = os.path.join(self.folder, router.id + '.rules')
        with open(rules, 'w') as out:
            out.write(router.rules())
        config = self._config('proxy-%s.ini' % name, _PROXY, name=name)
        proxy = Process(self.folder, 'proxy', '--router-id', router.id, '--netns', router.netns,
                        '--rules', rules, '--config-file', config)
        self.processes.append(proxy)
        proxy.until('serving router ' + router.id)
        return proxy

    def stop(self):
        for process in self.processes + [self.nova, self.neutron]:
            if process is not None:
                getattr(process, 'kill', getattr(process, 'stop', None))()
        for router in self.routers:
            router.remove()


@pytest.fixture(scope='module')
def cloud():
    with working_folder() as folder:
        made = Cloud(folder)
        try:
            made.start()
            yield made
        finally:
            made.stop()


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


@contextlib.contextmanager
def sending_from(router, address):
    """The router's guest takes another address."""
    equipment.ip('-n', router.guest, 'address', 'add', address + '/24', 'dev', 'eth0')
    equipment.ip('-n', router.guest, 'route', 'replace', 'default', 'via', router.gateway, 'src', address)
    try:
        yield
    finally:
        equipment.ip('-n', router.guest, 'route', 'replace', 'default', 'via', router.gateway,
                     'src', router.fixed_ip)
        equipment.ip('-n', router.guest, 'address', 'delete', address + '/24', 'dev', 'eth0')


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
    with sending_from(cloud.red, address):
        status, body = get(cloud.red.guest, b'/openstack/latest/meta_data.json')
        assert status == 404
        assert cloud.blue.instance.encode() not in body
        wait_until(lambda: cloud.red.tenant in cloud.nova.log, 'nova says whose project does not match')


def test_nova_refuses_an_agent_with_another_secret_and_the_agent_says_so(cloud):
    agent = cloud.start_agent('stranger', 'another secret')
    other = Router('o')
    other.make()
    try:
        # The same router in neutron's eyes, from another namespace.
        other.id = cloud.red.id
        cloud.serve(other, 'stranger')
        assert get(other.guest, INSTANCE_ID)[0] == 403
        assert 'shared secrets differ' in agent.until('nova refused the signature')
        assert 'does not match the expected signature' in cloud.nova.log
        assert 'another secret' not in agent.log
    finally:
        cloud.processes.pop().kill()
        other.remove()
