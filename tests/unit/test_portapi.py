"""Who owns an address: asked of a Keystone and a Quantum of threads, over loopback."""
import json
import re
import subprocess
import sys
import threading
import time

import pytest
from loopback import ROOT, Answering, Options, Running, wait_until

try:
    from urllib.parse import parse_qsl
except ImportError:     # 2.7
    from urlparse import parse_qsl

from mdproxy import portapi, ports
from mdproxy.trust import Identity

pytest.importorskip('requests')

ROUTER = Identity('router', '11111111-1111-1111-1111-111111111111')
OTHER = Identity('router', '22222222-2222-2222-2222-222222222222')
NETWORK = Identity('network', 'net-1')
MAC = 'fa:16:3e:00:00:01'


def port(name, network, ip, device, owner='compute:nova', tenant='tenant-1', **more):
    return dict({'id': name, 'network_id': network, 'device_id': device, 'device_owner': owner,
                 'tenant_id': tenant, 'fixed_ips': [{'subnet_id': 's', 'ip_address': ip}]}, **more)


def usual_ports():
    return [port('if-1', 'net-1', '10.0.0.1', ROUTER.id, 'network:router_interface'),
            port('if-2', 'net-2', '10.0.0.1', OTHER.id, 'network:router_interface'),
            port('dhcp-1', 'net-1', '10.0.0.2', 'dhcp-agent', 'network:dhcp'),
            port('port-1', 'net-1', '10.0.0.3', 'instance-1'),
            port('port-2', 'net-2', '10.0.0.3', 'instance-2', tenant='tenant-2'),
            port('port-3', 'net-1', '10.0.0.33', 'instance-3')]


class Cloud(object):
    """Keystone v2.0 and v3 and the ports API on one port, with the filters' real meaning: values of
    one name are alternatives, names are conditions, what is absent or unknown matches all."""

    def __init__(self, versions=('v2.0', 'v3'), token_life=3600, page=None):
        self.versions, self.token_life, self.page = versions, token_life, page
        self.ports, self.tokens, self.queries, self.delay = usual_ports(), [], [], 0
        self.refused, self.override, self.issued = set(), None, {}
        self._lock = threading.Lock()
        self._server = Answering(self._script)
        self.requests = self._server.requests
        self.url = 'http://127.0.0.1:%d' % self._server.port

    def __enter__(self):
        self._server.__enter__()
        return self

    def __exit__(self, *args):
        self._server.__exit__(*args)

    def _script(self, server, sock, _number):
        while True:
            head, body = server.read(sock)
            if not head:
                return
            time.sleep(self.delay)
            with self._lock:
                answer = self.override or self._answer(head.decode(), body)
            if answer == 'hang':
                time.sleep(3)
                return
            status, fields, document = answer
            if not isinstance(document, bytes):
                document = json.dumps(document).encode()
            sock.sendall(('HTTP/1.1 %d X\r\n%sContent-Length: %d\r\n\r\n'
                          % (status, fields, len(document))).encode() + document)

    def _answer(self, head, body):
        path, _, query = head.split(' ')[1].partition('?')
        if path == '/identity/v2.0/tokens' and 'v2.0' in self.versions:
            return self._v2(json.loads(body.decode())['auth'])
        if path == '/identity/v3/auth/tokens' and 'v3' in self.versions:
            return self._v3(json.loads(body.decode())['auth'])
        if path == '/network/v2.0/ports':
            token = [line[14:].strip() for line in head.split('\r\n')
                     if line.lower().startswith('x-auth-token: ')]
            if token != self.tokens[-1:] or token[0] in self.refused:
                return 401, '', {}
            if time.time() > self.issued[token[0]] + self.token_life:
                return 401, '', {}
            return self._list(query)
        return 404, '', {}

    def _times(self):
        stamp = '%Y-%m-%dT%H:%M:%SZ'
        now = time.time() - 86400       # a clock a day behind ours
        return (time.strftime(stamp, time.gmtime(now)),
                time.strftime(stamp, time.gmtime(now + self.token_life)))

    def _token(self):
        token = 'token-%d' % (len(self.tokens) + 1)
        self.tokens.append(token)
        self.issued[token] = time.time()
        return token

    def asked_for(self, what):
        """Queries that begin with a word."""
        return [query for query in list(self.queries) if query.startswith(what)]

    def _v2(self, auth):
        if auth != {'tenantName': 'service', 'passwordCredentials': {
                'username': 'quantum', 'password': 'the password'}}:
            return 401, '', {}
        issued, expires = self._times()
        return 200, '', {'access': {
            'token': {'id': self._token(), 'issued_at': issued, 'expires': expires},
            'serviceCatalog': [
                {'type': 'compute', 'endpoints': [{'region': 'one', 'publicURL': self.url}]},
                {'type': 'network', 'endpoints': [
                    {'region': 'zero', 'publicURL': self.url + '/nowhere'},
                    {'region': 'one', 'publicURL': self.url + '/network/',
                     'adminURL': self.url + '/admin'}]}]}}

    def _v3(self, auth):
        user = auth['identity']['password']['user']
        if (user != {'name': 'quantum', 'password': 'the password', 'domain': {'name': 'Default'}}
                or auth['scope'] != {
                    'project': {'name': 'service', 'domain': {'name': 'Default'}}}):
            return 401, '', {}
        issued, expires = self._times()
        return 201, 'X-Subject-Token: %s\r\n' % self._token(), {'token': {
            'issued_at': issued, 'expires_at': expires, 'catalog': [
                {'type': 'network', 'endpoints': [
                    {'interface': 'admin', 'region': 'one', 'url': self.url + '/admin'},
                    {'interface': 'public', 'region': 'zero', 'url': self.url + '/nowhere'},
                    {'interface': 'public', 'region': 'one', 'url': self.url + '/network'}]}]}}

    def _list(self, query):
        self.queries.append(query)
        pairs = parse_qsl(query)
        asked = dict((name, [value for key, value in pairs if key == name]) for name, _ in pairs)
        found = [port for port in self.ports if all(
            port.get(name) in asked[name]
            for name in ('device_id', 'device_owner', 'network_id', 'mac_address') if name in asked)]
        wanted = [value.partition('=')[2] for value in asked.get('fixed_ips', ())]
        if wanted:
            found = [port for port in found
                     if any(fixed['ip_address'] in wanted for fixed in port['fixed_ips'])]
        if not self.page:
            return 200, '', {'ports': found}
        start = int(asked.get('marker', ['0'])[-1])
        answer = {'ports': found[start:start + self.page]}
        if start + self.page < len(found):
            link = 'http://elsewhere.invalid/ports?%s&marker=%d' % (query, start + self.page)
            answer['ports_links'] = [{'rel': 'next', 'href': link}]
        return 200, '', answer


def options(cloud, path='/identity/v2.0', **more):
    return Options(**dict(dict(auth_strategy='keystone', auth_url=cloud.url + path,
                               auth_region='one', api_timeout=1.0), **more))


@pytest.fixture
def cloud():
    with Cloud() as cloud:
        yield cloud


def resolve(cloud, identity=ROUTER, ip='10.0.0.3', **more):
    return portapi.PortApi(options(cloud, **more)).resolve(identity, ip)


def test_the_same_address_is_another_instance_behind_another_router(cloud):
    api = portapi.PortApi(options(cloud))
    assert api.resolve(ROUTER, '10.0.0.3').instance == ('instance-1', 'tenant-1', 'port-1')
    assert api.resolve(OTHER, '10.0.0.3').instance == ('instance-2', 'tenant-2', 'port-2')
    assert api.resolve(NETWORK, '10.0.0.3').instance == ('instance-1', 'tenant-1', 'port-1')
    assert len(cloud.tokens) == 1


def test_the_token_stays_as_long_as_the_options_say_the_same(cloud):
    api = portapi.PortApi(options(cloud))
    api.resolve(ROUTER, '10.0.0.3')
    assert api.renewed(options(cloud, nova_timeout=1.0)) is api
    other = api.renewed(options(cloud, admin_password='another'))
    assert other is not api and other.token_age() is None
    api.close()
    assert api.resolve(ROUTER, '10.0.0.3').reason == ports.FOUND    # one that was under way, say


def test_everything_that_is_read_of_the_options_counts():
    with open(portapi.__file__.rstrip('c')) as source:
        read = set(re.findall(r'options\.([a-z_]+)', source.read()))
    assert read == set(portapi._OPTIONS)


def test_only_what_the_protocol_needs_is_asked(cloud):
    resolve(cloud)
    assert 'fixed_ips=ip_address%3D10.0.0.3&' in cloud.queries[0]
    assert cloud.queries[1].startswith('device_id=%s&device_owner=network%%3Arouter_interface&'
                                       % ROUTER.id)


def test_what_is_found_is_native_text(cloud):
    assert [type(part) for part in resolve(cloud).instance] == [str] * 3


@pytest.mark.parametrize('identity, ip', [
    (ROUTER, '10.0.0.99'),                                              # nobody has it
    (Identity('router', '33333333-3333-3333-3333-333333333333'), '10.0.0.3'),  # no interfaces
    (Identity('network', 'net-9'), '10.0.0.3'),
    (ROUTER, '10.0.0.1'), (ROUTER, '10.0.0.2')])                        # Quantum's own
def test_no_port_is_none(cloud, identity, ip):
    outcome = resolve(cloud, identity, ip)
    assert (outcome.reason, outcome.instance) == (ports.NONE, None)
    assert outcome.detail


def test_filters_that_the_api_ignores_change_nothing(cloud):
    everything = lambda query: (200, '', {'ports': cloud.ports})  # noqa: E731
    cloud._list = everything
    assert resolve(cloud).instance.device_id == 'instance-1'
    assert resolve(cloud, ip='10.0.0.99').reason == ports.NONE
    unknown = Identity('router', '33333333-3333-3333-3333-333333333333')
    assert resolve(cloud, unknown).reason == ports.NONE


def test_several_ports_are_many(cloud):
    cloud.ports += [port('if-3', 'net-2', '10.0.1.1', ROUTER.id, 'network:router_interface')]
    outcome = resolve(cloud)
    assert outcome.reason == ports.MANY
    assert 'port-1, port-2' in outcome.detail


@pytest.mark.parametrize('owner', portapi.ROUTER_INTERFACES)
def test_distributed_and_ha_routers_have_interfaces_too(cloud, owner):
    cloud.ports[0]['device_owner'] = owner
    assert resolve(cloud).instance.device_id == 'instance-1'


@pytest.mark.parametrize('device', ['', None, 'a\r\nX-Tenant-ID: other', 'a b', u'\xe4'])
def test_a_device_id_that_is_no_id_goes_nowhere(cloud, device):
    cloud.ports[3]['device_id'] = device
    outcome = resolve(cloud)
    assert (outcome.reason, outcome.instance) == (ports.NONE, None)
    assert 'device_id' in outcome.detail


def test_a_project_is_a_tenant(cloud):
    cloud.ports[3]['project_id'] = cloud.ports[3].pop('tenant_id')
    assert resolve(cloud).instance.tenant_id == 'tenant-1'


def test_spellings_of_an_ipv6_address_are_one_address(cloud):
    cloud.ports[3]['fixed_ips'] = [{'ip_address': '2001:DB8:0::3'}]
    cloud._list = lambda query: (200, '', {'ports': cloud.ports})
    assert resolve(cloud, ip='2001:db8::3').instance.device_id == 'instance-1'


def test_behind_a_mac_address_is_the_one_port_on_the_routers_networks_that_has_it(cloud):
    for index, mac in ((3, MAC), (4, MAC), (5, 'fa:16:3e:00:00:33')):
        cloud.ports[index]['mac_address'] = mac
    api = portapi.PortApi(options(cloud))
    assert api.resolve(ROUTER, 'fe80::3', MAC).instance.device_id == 'instance-1'
    assert api.resolve(OTHER, 'fe80::3', MAC).instance.device_id == 'instance-2'
    assert api.resolve(NETWORK, 'fe80::3', MAC).instance.device_id == 'instance-1'
    assert api.resolve(ROUTER, 'fe80::3', 'fa:16:3e:00:00:99').reason == ports.NONE
    assert len(cloud.asked_for('mac_address=fa%3A16%3A3e%3A00%3A00%3A01&')) == 3


def test_a_mac_address_is_compared_here_too_in_either_case(cloud):
    cloud._list = lambda query: (200, '', {'ports': cloud.ports})
    for spelled, reason in ((MAC.upper(), ports.FOUND), (None, ports.NONE), ('', ports.NONE)):
        cloud.ports[3]['mac_address'] = spelled
        assert portapi.PortApi(options(cloud)).resolve(ROUTER, 'fe80::3', MAC).reason == reason


def test_a_mac_address_on_two_networks_of_a_router_is_many(cloud):
    cloud.ports += [port('if-3', 'net-2', '10.0.1.1', ROUTER.id, 'network:router_interface')]
    cloud.ports[3]['mac_address'] = cloud.ports[4]['mac_address'] = MAC
    outcome = portapi.PortApi(options(cloud)).resolve(ROUTER, 'fe80::3', MAC)
    assert outcome.reason == ports.MANY
    assert 'MAC address %s: port-1, port-2' % MAC in outcome.detail


def test_the_mac_address_of_a_router_is_no_guests(cloud):
    cloud.ports[0]['mac_address'] = MAC
    assert portapi.PortApi(options(cloud)).resolve(ROUTER, 'fe80::3', MAC).reason == ports.NONE


def test_all_pages_are_read_before_one_port_is_the_only_one(cloud):
    cloud.page = 1
    assert resolve(cloud).instance.device_id == 'instance-1'
    cloud.ports.append(port('port-9', 'net-1', '10.0.0.3', 'instance-9'))
    assert resolve(cloud).reason == ports.MANY


def test_an_interface_added_a_moment_ago_counts(cloud):
    api = portapi.PortApi(options(cloud))
    assert api.resolve(ROUTER, '10.0.0.3').reason == ports.FOUND
    cloud.ports += [port('if-4', 'net-4', '10.4.0.1', ROUTER.id, 'network:router_interface'),
                    port('port-4', 'net-4', '10.4.0.3', 'instance-4')]
    assert api.resolve(ROUTER, '10.4.0.3').instance.device_id == 'instance-4'


def test_the_networks_of_a_router_are_asked_once_for_many_guests(cloud):
    api = portapi.PortApi(options(cloud))
    for number in range(4, 30):
        cloud.ports.append(port('p%d' % number, 'net-1', '10.0.0.%d' % number, 'i%d' % number))
        assert api.resolve(ROUTER, '10.0.0.%d' % number).instance.device_id == 'i%d' % number
    assert len(cloud.asked_for('device_id')) == 1


@pytest.mark.parametrize('path, versions', [
    ('/identity/v2.0', ('v2.0', 'v3')), ('/identity/v2.0/', ('v2.0',)), ('/identity/v3', ('v3',)),
    ('/identity', ('v2.0', 'v3')), ('/identity', ('v2.0',)), ('/identity/', ('v3',))])
def test_keystone_is_asked_in_the_version_that_auth_url_and_server_have(path, versions):
    with Cloud(versions) as cloud:
        assert resolve(cloud, path=path).instance.device_id == 'instance-1'


def test_noauth_needs_no_keystone_but_the_address(cloud):
    cloud._answer = lambda head, body: cloud._list(head.split(' ')[1].partition('?')[2])
    noauth = Options(auth_strategy='noauth', port_api_url=cloud.url + '/network/v2.0')
    assert portapi.PortApi(noauth).resolve(ROUTER, '10.0.0.3').instance.device_id == 'instance-1'
    with pytest.raises(ValueError):
        portapi.PortApi(Options(auth_strategy='noauth', port_api_url=''))
    with pytest.raises(ValueError):
        portapi.PortApi(Options(auth_strategy='keystone', auth_url=''))


def test_port_api_url_overrides_the_catalog(cloud):
    override = cloud.url + '/network'
    assert resolve(cloud, auth_region='no such', port_api_url=override).reason == ports.FOUND


def test_without_a_region_the_first_endpoint_is_taken_and_an_unknown_one_is_an_error(cloud):
    outcome = resolve(cloud, auth_region='')
    assert outcome.reason == ports.ERROR and '/nowhere/v2.0/ports' in outcome.detail
    outcome = resolve(cloud, auth_region='two')
    assert outcome.reason == ports.ERROR and 'region two' in outcome.detail


def test_a_refused_token_is_renewed_once(cloud):
    api = portapi.PortApi(options(cloud))
    api.resolve(ROUTER, '10.0.0.3')
    cloud.refused.add('token-1')
    assert api.resolve(OTHER, '10.0.0.3').reason == ports.FOUND
    assert cloud.tokens == ['token-1', 'token-2']
    cloud.refused.update('token-%d' % number for number in range(9))
    assert api.resolve(ROUTER, '10.0.0.33').reason == ports.ERROR
    assert len(cloud.tokens) == 3


def test_a_token_is_renewed_before_it_expires_by_the_servers_own_clock():
    with Cloud(token_life=2) as cloud:
        api = portapi.PortApi(options(cloud))
        begin = time.time()
        api.resolve(ROUTER, '10.0.0.3')
        api.resolve(OTHER, '10.0.0.3')
        assert len(cloud.tokens) == 1 or time.time() - begin > 1.5
        time.sleep(max(0, begin + 1.9 - time.time()))
        assert api.resolve(OTHER, '10.0.0.3').reason == ports.FOUND
        assert len(cloud.tokens) == 2


def together(count, function):
    """What function(number) returned in so many threads at once."""
    results = []
    threads = [threading.Thread(target=lambda number: results.append(function(number)), args=[number])
               for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_many_threads_renew_one_token_and_ask_once_for_a_routers_networks(cloud):
    api = portapi.PortApi(options(cloud))
    cloud.delay = 0.05
    assert api.token_age() is None
    outcomes = together(8, lambda _: api.resolve(ROUTER, '10.0.0.3'))
    assert [outcome.reason for outcome in outcomes] == [ports.FOUND] * 8
    assert len(cloud.tokens) == 1 and 0 <= api.token_age() < 5
    assert len(cloud.asked_for('device_id')) == 1


@pytest.mark.parametrize('hanging', ['/tokens', 'device_id='])
def test_threads_that_waited_for_what_failed_do_not_try_one_by_one(cloud, hanging):
    answer = cloud._answer
    cloud._answer = lambda head, body: 'hang' if hanging in head else answer(head, body)
    api, begin = portapi.PortApi(options(cloud, api_timeout=0.5)), time.time()
    outcomes = together(8, lambda number: api.resolve(ROUTER, '10.0.0.3'))
    assert time.time() - begin < 8 * 0.5        # what one after the other would take at least
    assert [outcome.silent for outcome in outcomes] == [True] * 8


@pytest.mark.parametrize('override, detail', [
    ((500, '', {}), 'answered 500'), ((200, '', b'<html>'), 'not JSON'),
    ((200, '', []), 'no token'),
    ((200, '', {'access': None}), 'no token'), ((401, '', {}), 'answered 401'),
    ((302, 'Location: http://127.0.0.1:1/\r\n', {}), 'answered 302'),
    ('hang', 'no answer within 1 s')])
def test_a_keystone_that_fails_is_an_error_that_says_how_no_secret(cloud, override, detail):
    cloud.override = override
    outcome = resolve(cloud)
    assert outcome.reason == ports.ERROR
    assert detail in outcome.detail and '/identity/v2.0/tokens' in outcome.detail
    assert 'the password' not in outcome.detail


@pytest.mark.parametrize('answer', [{'ports': 5}, [], {'ports': [{}]}, {'ports': [None]}, b'\xff'])
def test_a_port_api_that_answers_nonsense_is_an_error(cloud, answer):
    cloud._list = lambda query: (200, '', answer)
    assert resolve(cloud).reason == ports.ERROR


def test_an_answer_that_never_ends_is_cut_off(cloud):
    def script(server, sock, _number):
        server.read(sock)
        sock.sendall(b'HTTP/1.1 200 OK\r\n\r\n')
        while True:
            sock.sendall(b' ' * 4096)
            time.sleep(0.01)
    with Answering(script) as server:
        begin = time.time()
        outcome = resolve(cloud, port_api_url='http://127.0.0.1:%d' % server.port)
        assert outcome.reason == ports.ERROR
        assert time.time() - begin < 5


def test_an_api_that_is_not_there_is_an_error():
    with Cloud() as gone:
        pass
    outcome = resolve(gone)
    assert 'cannot be reached' in outcome.detail and outcome.silent


@pytest.mark.parametrize('override, silent', [
    ('hang', True), ((500, '', {}), False), ((200, '', b'<html>'), False)])
def test_an_error_tells_whether_there_was_an_answer(cloud, override, silent):
    cloud.override = override
    outcome = resolve(cloud, api_timeout=0.3)
    assert (outcome.reason, outcome.silent) == (ports.ERROR, silent)


def test_what_the_command_shows(cloud):
    assert portapi.resolve(options(cloud), ROUTER, '10.0.0.3') == {
        'outcome': 'found', 'port': 'port-1', 'instance': 'instance-1', 'tenant': 'tenant-1',
        'reason': ''}
    missing = portapi.resolve(options(cloud), ROUTER, '10.0.0.99')
    assert missing['outcome'] == 'none' and missing['instance'] == '' and missing['reason']


def test_the_command_finds_a_link_local_address_by_its_mac_address(cloud):
    cloud.ports[3]['mac_address'] = MAC
    for ip, mac in (('fe80::3', MAC), ('fe80::f816:3eff:fe00:1', None)):
        assert portapi.resolve(options(cloud), ROUTER, ip, mac)['instance'] == 'instance-1'
    missing = portapi.resolve(options(cloud), ROUTER, 'fe80::3')
    assert missing['outcome'] == 'none' and 'without a neighbour entry' in missing['reason']


@pytest.fixture
def running():
    with Running() as running:
        yield running


class Storm(object):
    """Guests of several routers, all with addresses that others have too, who all ask at once."""

    def __init__(self, running, cloud, guests, routers=4, **more):
        self.running, self.answers = running, {}
        wanted = options(cloud, **dict(dict(api_timeout=5.0), **more))
        self.api = portapi.PortApi(wanted)
        self.lookup = ports.PortLookup(running.loop, self.api, wanted)
        cloud.ports, self.keys = [], []
        for number in range(routers):
            router = Identity('router', '%08d-0000-0000-0000-000000000000' % number)
            network = 'net-%d' % number
            cloud.ports.append(port('if-%d' % number, network, '10.0.0.1', router.id,
                                    'network:router_interface'))
            for guest in range(2, 2 + guests // routers):
                ip = '10.0.%d.%d' % divmod(guest, 256)
                self.keys.append((router, ip))
                cloud.ports.append(port('port', network, ip, '%s-%s' % (router.id, ip)))

    def begin(self):
        def answered(outcome, key):
            self.answers[key] = outcome

        def ask_all():
            for key in self.keys:
                self.lookup.find(key[0], key[1], None, answered, key)
        self.running.call(ask_all)

    def end(self, seconds=30):
        """The outcomes of those who did not get their own instance."""
        wait_until(lambda: len(self.answers) == len(self.keys), seconds)
        return [outcome for (router, ip), outcome in self.answers.items()
                if not outcome.instance
                or outcome.instance.device_id != '%s-%s' % (router.id, ip)]


@pytest.fixture
def storm(running, cloud):
    storms = []

    def storm(*args, **more):
        storms.append(Storm(running, cloud, *args, **more))
        return storms[-1]
    yield storm
    for one in storms:
        one.lookup.close()


def test_a_storm_costs_one_query_a_guest_and_one_a_router(storm, cloud):
    cloud.delay = 0.02
    asked = storm(200)
    asked.begin()
    assert asked.end() == []
    assert len(cloud.tokens) == 1
    assert len(cloud.asked_for('device_id')) == 4 and len(cloud.queries) == 204
    assert asked.lookup.outcomes['miss'] == 200
@pytest.mark.parametrize('with_token', [False, True])
def test_an_api_that_hangs_costs_all_who_wait_one_timeout(storm, cloud, with_token):
    asked = storm(400, api_timeout=0.5)
    if with_token:
        assert asked.api.resolve(*asked.keys[0]).reason == ports.FOUND
    before = len(cloud.requests)
    cloud.override = 'hang'
    begin = time.time()
    asked.begin()
    failed = asked.end()
    assert time.time() - begin < 1.5
    assert len(cloud.requests) - before <= 4
    assert [outcome.detail.partition(': ')[2] for outcome in failed] == [
        'no answer within 0.5 s'] * 400
    cloud.override = None

    def ask_again():
        asked.answers.clear()
        asked.begin()
        return not asked.end()
    wait_until(ask_again)


def test_one_call_that_hangs_fails_no_other(storm, cloud):
    cloud.delay, answer = 0.02, cloud._answer
    asked = storm(200, routers=1, api_timeout=1.0)
    stuck = 'ip_address%3D10.0.0.2&'
    cloud._answer = lambda head, body: 'hang' if stuck in head else answer(head, body)
    asked.begin()
    assert len(asked.end()) == 1


def test_a_token_refused_in_a_storm_is_renewed_once_and_fails_no_lookup(storm, cloud):
    cloud.delay = 0.01
    asked = storm(200, api_threads=8)
    asked.begin()
    wait_until(lambda: len(cloud.queries) > 50)
    cloud.refused.add('token-1')
    assert asked.end() == []
    assert cloud.tokens == ['token-1', 'token-2']


def test_a_token_that_expires_in_a_storm_is_renewed_once_and_fails_no_lookup(storm, cloud):
    cloud.delay, cloud.token_life = 0.04, 2
    asked = storm(240)
    begin = time.time()
    asked.begin()
    assert asked.end() == []
    lives = (time.time() - begin) / 1.8
    assert 2 <= len(cloud.tokens) <= 1 + lives


def test_importing_portapi_imports_no_requests():
    code = ('import sys; sys.path.insert(0, %r); import mdproxy.portapi; '
            'sys.exit("requests" in sys.modules or "ssl" in sys.modules)' % ROOT)
    assert subprocess.call([sys.executable, '-c', code]) == 0
