"""The port API's stand-in: who may ask, what its filters mean, how it refuses."""
import sys

import pytest

if sys.version_info < (3, 9):
    pytest.skip('the stand-in runs on the lab\'s API host, which has 3.9', allow_module_level=True)

import json
import os
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from test_cloudstub_server import (
    GATE_A,
    GATE_B,
    GUEST_A,
    GUEST_B,
    NET_A,
    NET_B,
    PORT_A,
    PORT_B,
    ROUTER_A,
    ROUTER_B,
    TEMPLATE,
    Lab,
    ask,
    command,
    state,
)

DHCP, OUTER, EXTERNAL, EXTRA = (TEMPLATE % ('c' * 8, number) for number in range(4))
GATES = [GATE_A, GATE_B]
EVERY = [GATE_A, PORT_A, GATE_B, PORT_B, DHCP, OUTER, EXTRA]


class Cloud(object):
    """A running port API and a token for it."""

    def __init__(self, lab):
        self.lab, self.port = lab, lab.start('quantum')
        self.tokens = command.Tokens.beside(lab.state_path)
        self.token = self.tokens.issue(60, 'admin-tenant')[0]

    def get(self, target, token=None, method='GET'):
        """The answer and its JSON."""
        answer = ask(self.port, target, [('X-Auth-Token', token or self.token)], method=method)
        return answer, json.loads(answer.body) if answer.body else None

    def ids(self, query, collection='ports'):
        """The ids found, in no order."""
        answer, data = self.get('/v2.0/%s?%s' % (collection, query))
        assert answer.status == 200, data
        return sorted(row['id'] for row in data[collection])


def rich_state():
    """Two tenants' routers, a DHCP port, a gateway port, and a port with two fixed IPs."""
    data = state()
    network = data['routers'][0]['networks'][0]
    network['dhcp'] = {'port_id': DHCP, 'ip': '10.0.0.2'}
    data['routers'][0]['gateway'] = {'port_id': OUTER, 'network_id': EXTERNAL, 'ip': '192.0.2.10'}
    data['extra_ports'] = [{
        'id': EXTRA, 'name': 'two', 'network_id': NET_B, 'tenant_id': 'tenant-b', 'device_id': '',
        'device_owner': '', 'mac_address': 'fa:16:3e:99:99:99', 'admin_state_up': False,
        'status': 'DOWN', 'fixed_ips': [{'subnet_id': 'sub-1', 'ip_address': '10.0.0.4'},
                                        {'subnet_id': 'sub-2', 'ip_address': '10.0.0.5'}]}]
    return data


@pytest.fixture
def cloud(tmp_path):
    lab = Lab(tmp_path, **rich_state())
    yield Cloud(lab)
    lab.close()


# --- filters

@pytest.mark.parametrize('query, found', [
    ('', EVERY),
    ('fixed_ips=ip_address%3D10.0.0.3', [PORT_A, PORT_B]),
    ('fixed_ips=ip_address=10.0.0.3', [PORT_A, PORT_B]),
    ('fixed_ips=ip_address%3D10.0.0.3&network_id=' + NET_A, [PORT_A]),
    ('network_id=' + NET_A, [GATE_A, PORT_A, DHCP]),
    ('network_id=%s&network_id=%s&fixed_ips=ip_address%%3D10.0.0.3' % (NET_A, NET_B),
     [PORT_A, PORT_B]),
    ('network_id=nowhere', []),
    ('device_id=' + ROUTER_A, [GATE_A, OUTER]),
    ('device_id=%s&device_owner=network:router_interface' % ROUTER_A, [GATE_A]),
    ('device_id=%s&device_id=%s&device_owner=network%%3Arouter_interface' % (ROUTER_A, ROUTER_B),
     GATES),
    ('device_id=' + GUEST_B, [PORT_B]),
    ('device_owner=network:router_interface', GATES),
    ('device_owner=network:router_gateway', [OUTER]),
    ('device_owner=network:dhcp', [DHCP]),
    ('device_owner=compute:nova', [PORT_A, PORT_B]),
    ('device_owner=network', []),
    ('tenant_id=tenant-a', [GATE_A, PORT_A, DHCP]),
    ('project_id=tenant-a', [GATE_A, PORT_A, DHCP]),
    ('id=%s&id=%s' % (PORT_A, GATE_B), [PORT_A, GATE_B]),
    ('id=%s&tenant_id=tenant-b' % PORT_A, []),
    ('mac_address=fa:16:3e:00:00:0b', [PORT_B]),
    ('mac_address=fa:16:3e:00:00:0b&network_id=' + NET_A, []),
    ('mac_address=fa:16:3e:00:00:0a&mac_address=fa:16:3e:00:00:0b', [PORT_A, PORT_B]),
    ('mac_address=FA:16:3E:00:00:0B', []),
    ('mac_address=fa-16-3e-00-00-0b', []),
    ('mac_address=', EVERY),
    ('admin_state_up=False', [EXTRA]),
    ('admin_state_up=0&admin_state_up=true', EVERY),
    ('status=DOWN', [EXTRA]),
    ('name=two', [EXTRA]),
    # more values of fixed_ips: alternatives of one kind, both kinds on one and the same fixed IP
    ('fixed_ips=ip_address%3D10.0.0.3&fixed_ips=ip_address%3D10.0.0.4', [PORT_A, PORT_B, EXTRA]),
    ('fixed_ips=subnet_id%3Dsub-1', [EXTRA]),
    ('fixed_ips=subnet_id%3Dsub-1&fixed_ips=ip_address%3D10.0.0.4', [EXTRA]),
    ('fixed_ips=subnet_id%3Dsub-1&fixed_ips=ip_address%3D10.0.0.5', []),
    ('fixed_ips=ip_address%3D10.0.0', []),
    ('fixed_ips=ip_address%3D', []),
    # traps of the real one: what does not filter lets everything through
    ('network_id=', EVERY),
    ('network_id=&network_id=' + NET_A, [GATE_A, PORT_A, DHCP]),
    ('no_such_attribute=x', EVERY),
    ('fixed_ips=colour%3Dred', EVERY),
    ('fixed_ips=True', EVERY),
])
def test_filters(cloud, query, found):
    assert cloud.ids(query) == sorted(found)


@pytest.mark.parametrize('query, complaint', [
    ('fixed_ips=10.0.0.3', "'10.0.0.3' is not of the form <key>=[value]"),
    ('fixed_ips=%3D10.0.0.3', 'is not of the form'),
    ('admin_state_up=maybe', "'maybe' is not boolean"),
])
def test_a_filter_out_of_form_is_400(cloud, query, complaint):
    answer, data = cloud.get('/v2.0/ports?' + query)
    assert (answer.status, answer.headers['Content-Type']) == (400, 'application/json')
    assert list(data) == ['QuantumError'] and complaint in data['QuantumError']


def test_fields_select(cloud):
    _, data = cloud.get('/v2.0/ports?fields=id&fields=tenant_id&fields=bogus&id=' + PORT_A)
    assert data == {'ports': [{'id': PORT_A, 'tenant_id': 'tenant-a'}]}
    _, data = cloud.get('/v2.0/ports/%s?fields=device_id' % PORT_A)
    assert data == {'port': {'device_id': GUEST_A}}


# --- what is shown

def test_a_guests_port_is_whole(cloud):
    port = cloud.get('/v2.0/ports/' + PORT_A)[1]['port']
    subnet = cloud.get('/v2.0/subnets?network_id=' + NET_A)[1]['subnets'][0]
    assert port == {
        'id': PORT_A, 'name': '', 'network_id': NET_A, 'tenant_id': 'tenant-a', 'status': 'ACTIVE',
        'admin_state_up': True, 'mac_address': 'fa:16:3e:00:00:0a', 'device_id': GUEST_A,
        'device_owner': 'compute:nova',
        'fixed_ips': [{'subnet_id': subnet['id'], 'ip_address': '10.0.0.3'}]}


def test_a_routers_interface_holds_the_gateway_address(cloud):
    port = cloud.get('/v2.0/ports/' + GATE_A)[1]['port']
    assert (port['device_id'], port['fixed_ips'][0]['ip_address']) == (ROUTER_A, '10.0.0.1')


def test_networks_subnets_and_routers_belong_together(cloud):
    assert cloud.ids('', 'networks') == [NET_A, NET_B]
    assert cloud.ids('tenant_id=tenant-b', 'routers') == [ROUTER_B]
    network = cloud.get('/v2.0/networks/' + NET_B)[1]['network']
    subnet = cloud.get('/v2.0/subnets/' + network['subnets'][0])[1]['subnet']
    assert (subnet['network_id'], subnet['cidr'], subnet['gateway_ip'], subnet['ip_version']) == (
        NET_B, '10.0.0.0/24', '10.0.0.1', 4)
    found = cloud.ids('ip_version=4&cidr=10.0.0.0/24&network_id=' + NET_B, 'subnets')
    assert found == [subnet['id']]
    router = cloud.get('/v2.0/routers/' + ROUTER_A)[1]['router']
    assert router['external_gateway_info'] == {'network_id': EXTERNAL}


def test_one_network_may_have_two_subnets_and_two_routers(tmp_path):
    data = state()
    data['routers'][0]['networks'].append(
        {'id': NET_A, 'port_id': EXTRA, 'gateway_ip': '10.0.1.1', 'cidr': '10.0.1.0/24'})
    data['routers'][1]['networks'].append(
        {'id': NET_A, 'port_id': DHCP, 'gateway_ip': '10.0.0.254', 'cidr': '10.0.0.0/24'})
    data['instances'][0]['fixed_ip'] = '10.0.1.3'
    lab = Lab(tmp_path, **data)
    cloud = Cloud(lab)
    network = cloud.get('/v2.0/networks/' + NET_A)[1]['network']
    port = cloud.get('/v2.0/ports/' + PORT_A)[1]['port']
    assert len(network['subnets']) == 2
    assert port['fixed_ips'][0]['subnet_id'] == network['subnets'][1]
    assert cloud.ids('network_id=' + NET_A) == sorted([GATE_A, EXTRA, DHCP, PORT_A])
    assert cloud.ids('fixed_ips=ip_address%3D10.0.0.254') == [DHCP]
    lab.close()


def test_the_suffix_json_and_the_version_list(cloud):
    assert cloud.get('/v2.0/ports.json')[1] == cloud.get('/v2.0/ports')[1]
    assert cloud.get('/v2.0/ports/%s.json' % PORT_A)[1] == cloud.get('/v2.0/ports/' + PORT_A)[1]
    assert json.loads(ask(cloud.port, '/').body)['versions'][0]['id'] == 'v2.0'
    assert len(cloud.get('/v2.0/')[1]['resources']) == 4


def test_head_has_no_body(cloud):
    answer, data = cloud.get('/v2.0/ports', method='HEAD')
    assert (answer.status, data) == (200, None)


# --- refusals

def test_an_unknown_port_is_404_in_quantums_shape(cloud):
    answer, data = cloud.get('/v2.0/ports/' + ROUTER_A)
    assert answer.status == 404
    assert data == {'QuantumError': 'Port %s could not be found on network None' % ROUTER_A}


def test_the_family_neutron_words_its_errors_its_own_way(tmp_path):
    lab = Lab(tmp_path, family='neutron')
    answer, data = Cloud(lab).get('/v2.0/ports/' + ROUTER_A)
    assert answer.status == 404 and data['NeutronError']['type'] == 'PortNotFound'
    lab.close()


@pytest.mark.parametrize('target', ['/v2.0/floatingips', '/v2.0/ports/not-a-uuid', '/v2.0/ports/',
                                    '/v2.0/ports.xml', '/v3/ports', '/ports'])
def test_an_unknown_path_is_404(cloud, target):
    assert ask(cloud.port, target, [('X-Auth-Token', cloud.token)]).status == 404


@pytest.mark.parametrize('spelled, found', [
    ('fa:16:3e:00:00:0b', [PORT_B]), ('FA:16:3E:00:00:0B', [PORT_B]), ('fa-16-3e-00-00-0b', [PORT_B]),
    ('fa16.3e00.000b', [PORT_B]), ('fa:16:3e:00:00:0c', []), ('0b', [])])
def test_the_family_neutron_knows_a_mac_address_in_any_spelling(tmp_path, spelled, found):
    lab = Lab(tmp_path, family='neutron')
    assert Cloud(lab).ids('mac_address=' + spelled) == found
    lab.close()


def test_it_is_for_reading(cloud):
    answer = ask(cloud.port, '/v2.0/ports', [('X-Auth-Token', cloud.token)], b'{}', 'POST')
    assert (answer.status, answer.headers['Allow']) == (405, 'GET, HEAD')


# --- tokens

def refused(cloud, headers):
    """Whether the answer is the one of Keystone's middleware to a bad token."""
    answer = ask(cloud.port, '/v2.0/ports', headers)
    return answer.status == 401 and (
        answer.headers['WWW-Authenticate'] == "Keystone uri='http://api1:5000'")


def test_without_a_good_token_there_is_401_and_keystones_address(cloud):
    expiry, rest = cloud.token.split('.', 1)
    later = '%x.%s' % (int(expiry, 16) + 1000000, rest)
    assert refused(cloud, [])
    assert refused(cloud, [('X-Auth-Token', '')])
    assert refused(cloud, [('X-Auth-Token', 'guess')])
    assert refused(cloud, [('X-Auth-Token', later)])
    assert refused(cloud, [('X-Auth-Token', cloud.token), ('X-Auth-Token', cloud.token)])
    assert not refused(cloud, [('X-Auth-Token', cloud.token)])


def test_a_keystones_token_is_good_until_it_expires_and_no_longer(tmp_path):
    lab = Lab(tmp_path, token_lifetime=0.6)
    login = json.dumps({'auth': {'passwordCredentials': {'username': 'quantum', 'password': 'pass'},
                                 'tenantName': 'service'}})
    keystone, cloud = lab.start('keystone'), Cloud(lab)
    began = time.time()
    answer = ask(keystone, '/v2.0/tokens', body=login.encode(), method='POST')
    token = json.loads(answer.body)['access']['token']['id']
    assert len(cloud.get('/v2.0/ports', token)[1]['ports']) == 4
    while not refused(cloud, [('X-Auth-Token', token)]):
        assert time.time() < began + 10
    assert time.time() - began > 0.59   # the token's expiry is kept in thousandths of a second
    lab.close()


def test_every_token_ends_when_the_key_is_deleted(cloud):
    os.unlink(cloud.tokens.path)
    assert refused(cloud, [('X-Auth-Token', cloud.token)])


def test_an_unscoped_token_sees_nothing(cloud):
    token = cloud.tokens.issue(60)[0]
    assert cloud.get('/v2.0/ports', token)[1] == {'ports': []}
    assert cloud.get('/v2.0/ports/' + PORT_A, token)[0].status == 404
