"""Who owns an address: asked of a Keystone and a Quantum of threads, over loopback."""
import json
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

from mdproxy import ports
from mdproxy.trust import Identity

pytest.importorskip('requests')

ROUTER = Identity('router', '11111111-1111-1111-1111-111111111111')
OTHER = Identity('router', '22222222-2222-2222-2222-222222222222')
NETWORK = Identity('network', 'net-1')


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
        self.refused, self.override = set(), None
        self._lock = threading.Lock()
        self._server = Answering(self._script)
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
            return self._list(query)
        return 404, '', {}

    def _times(self):
        stamp = '%Y-%m-%dT%H:%M:%SZ'
        now = time.time() - 86400       # a clock a day behind ours
        return (time.strftime(stamp, time.gmtime(now)),
                time.strftime(stamp, time.gmtime(now + self.token_life)))

    def _token(self):
        self.tokens.append('token-%d' % (len(self.tokens) + 1))
        return self.tokens[-1]

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
            port[name] in asked[name] for name in ('device_id', 'device_owner', 'network_id')
            if name in asked)]
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
    return ports.PortApi(options(cloud, **more)).resolve(identity, ip)


def test_the_same_address_is_another_instance_behind_another_router(cloud):
    api = ports.PortApi(options(cloud))
    assert api.resolve(ROUTER, '10.0.0.3').instance == ('instance-1', 'tenant-1', 'port-1')
    assert api.resolve(OTHER, '10.0.0.3').instance == ('instance-2', 'tenant-2', 'port-2')
    assert api.resolve(NETWORK, '10.0.0.3').instance == ('instance-1', 'tenant-1', 'port-1')
    assert len(cloud.tokens) == 1


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


@pytest.mark.parametrize('owner', ports.ROUTER_INTERFACES)
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


def test_all_pages_are_read_before_one_port_is_the_only_one(cloud):
    cloud.page = 1
    assert resolve(cloud).instance.device_id == 'instance-1'
    cloud.ports.append(port('port-9', 'net-1', '10.0.0.3', 'instance-9'))
    assert resolve(cloud).reason == ports.MANY


def test_an_interface_added_a_moment_ago_counts(cloud):
    api = ports.PortApi(options(cloud))
    assert api.resolve(ROUTER, '10.0.0.3').reason == ports.FOUND
    cloud.ports += [port('if-4', 'net-4', '10.4.0.1', ROUTER.id, 'network:router_interface'),
                    port('port-4', 'net-4', '10.4.0.3', 'instance-4')]
    assert api.resolve(ROUTER, '10.4.0.3').instance.device_id == 'instance-4'


def test_the_networks_of_a_router_are_asked_once_for_many_guests(cloud):
    api = ports.PortApi(options(cloud))
    for number in range(4, 30):
        cloud.ports.append(port('p%d' % number, 'net-1', '10.0.0.%d' % number, 'i%d' % number))
        assert api.resolve(ROUTER, '10.0.0.%d' % number).instance.device_id == 'i%d' % number
    assert len([query for query in cloud.queries if query.startswith('device_id')]) == 1


@pytest.mark.parametrize('path, versions', [
    ('/identity/v2.0', ('v2.0', 'v3')), ('/identity/v2.0/', ('v2.0',)), ('/identity/v3', ('v3',)),
    ('/identity', ('v2.0', 'v3')), ('/identity', ('v2.0',)), ('/identity/', ('v3',))])
def test_keystone_is_asked_in_the_version_that_auth_url_and_server_have(path, versions):
    with Cloud(versions) as cloud:
        assert resolve(cloud, path=path).instance.device_id == 'instance-1'


def test_noauth_needs_no_keystone_but_the_address(cloud):
    cloud._answer = lambda head, body: cloud._list(head.split(' ')[1].partition('?')[2])
    noauth = Options(auth_strategy='noauth', port_api_url=cloud.url + '/network/v2.0')
    assert ports.PortApi(noauth).resolve(ROUTER, '10.0.0.3').instance.device_id == 'instance-1'
    with pytest.raises(ValueError):
        ports.PortApi(Options(auth_strategy='noauth', port_api_url=''))
    with pytest.raises(ValueError):
        ports.PortApi(Options(auth_strategy='keystone', auth_url=''))


def test_port_api_url_overrides_the_catalog(cloud):
    override = cloud.url + '/network'
    assert resolve(cloud, auth_region='no such', port_api_url=override).reason == ports.FOUND


def test_without_a_region_the_first_endpoint_is_taken_and_an_unknown_one_is_an_error(cloud):
    outcome = resolve(cloud, auth_region='')
    assert outcome.reason == ports.ERROR and '/nowhere/v2.0/ports' in outcome.detail
    outcome = resolve(cloud, auth_region='two')
    assert outcome.reason == ports.ERROR and 'region two' in outcome.detail


def test_a_refused_token_is_renewed_once(cloud):
    api = ports.PortApi(options(cloud))
    api.resolve(ROUTER, '10.0.0.3')
    cloud.refused.add('token-1')
    assert api.resolve(OTHER, '10.0.0.3').reason == ports.FOUND
    assert cloud.tokens == ['token-1', 'token-2']
    cloud.refused.update('token-%d' % number for number in range(9))
    assert api.resolve(ROUTER, '10.0.0.33').reason == ports.ERROR
    assert len(cloud.tokens) == 3


def test_a_token_is_renewed_before_it_expires_by_the_servers_own_clock():
    with Cloud(token_life=2) as cloud:
        api = ports.PortApi(options(cloud))
        begin = time.time()
        api.resolve(ROUTER, '10.0.0.3')
        api.resolve(OTHER, '10.0.0.3')
        assert len(cloud.tokens) == 1 or time.time() - begin > 1.5
        time.sleep(max(0, begin + 1.9 - time.time()))
        assert api.resolve(OTHER, '10.0.0.3').reason == ports.FOUND
        assert len(cloud.tokens) == 2


def test_many_threads_renew_one_token(cloud):
    api, outcomes = ports.PortApi(options(cloud)), []
    cloud.delay = 0.02
    threads = [threading.Thread(target=lambda: outcomes.append(api.resolve(ROUTER, '10.0.0.3')))
               for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.reason for outcome in outcomes] == [ports.FOUND] * 8
    assert len(cloud.tokens) == 1


def test_threads_that_waited_for_a_token_that_failed_do_not_try_one_by_one(cloud):
    api, begin = ports.PortApi(options(cloud)), time.time()
    cloud.override = 'hang'
    threads = [threading.Thread(target=api.resolve, args=(ROUTER, '10.0.0.3')) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.time() - begin < 3.5


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
    assert 'cannot be reached' in resolve(gone).detail


def test_what_the_command_shows(cloud):
    assert ports.resolve(options(cloud), ROUTER, '10.0.0.3') == {
        'outcome': 'found', 'port': 'port-1', 'instance': 'instance-1', 'tenant': 'tenant-1',
        'reason': ''}
    missing = ports.resolve(options(cloud), ROUTER, '10.0.0.99')
    assert missing['outcome'] == 'none' and missing['instance'] == '' and missing['reason']


class Api(object):
    """In place of PortApi: answers when it is let."""

    def __init__(self):
        self.asked, self.free, self.outcome = [], threading.Event(), None
        self.free.set()

    def resolve(self, identity, ip):
        self.asked.append(ip)
        self.free.wait(10)
        return self.outcome or ports.Outcome(ports.FOUND, ports.Instance(ip, 't', 'p'), '')


class Lookups(object):
    def __init__(self, running, **more):
        self.running, self.api, self.answers = running, Api(), []
        self.lookup = ports.PortLookup(running.loop, self.api, Options(**more))

    def find(self, ip='10.0.0.3', identity=ROUTER):
        self.running.call(self.lookup.find, identity, ip,
                          lambda outcome, number: self.answers.append(outcome), 1)

    def ask(self, *args):
        count = len(self.answers)
        self.find(*args)
        wait_until(lambda: len(self.answers) > count)
        return self.answers[-1]


@pytest.fixture
def running():
    with Running() as running:
        yield running


def test_who_asks_for_the_same_waits_for_one_lookup(running):
    lookups = Lookups(running)
    lookups.api.free.clear()
    for _ in range(50):
        lookups.find()
    lookups.find('10.0.0.4')
    lookups.find('10.0.0.3', OTHER)
    lookups.api.free.set()
    wait_until(lambda: len(lookups.answers) == 52)
    assert sorted(lookups.api.asked) == ['10.0.0.3', '10.0.0.3', '10.0.0.4']
    lookups.lookup.close()


@pytest.mark.parametrize('reason, option', [
    (ports.FOUND, 'cache_ttl'), (ports.NONE, 'negative_cache_ttl'),
    (ports.MANY, 'negative_cache_ttl')])
def test_an_answer_is_believed_for_its_time(running, reason, option):
    ttls = {'cache_ttl': 60.0, 'negative_cache_ttl': 60.0}
    ttls[option] = 0.15
    lookups = Lookups(running, **ttls)
    lookups.api.outcome = ports.Outcome(reason, None, '')
    assert [lookups.ask().reason for _ in range(3)] == [reason] * 3
    assert len(lookups.api.asked) == 1
    time.sleep(0.2)
    lookups.ask()
    assert len(lookups.api.asked) == 2
    lookups.lookup.close()


def test_a_failure_is_forgotten_soon(running):
    lookups = Lookups(running)
    lookups.api.outcome = ports.Outcome(ports.ERROR, None, 'down')
    assert lookups.ask().reason == lookups.ask().reason == ports.ERROR
    assert len(lookups.api.asked) == 1
    lookups.api.outcome = None
    wait_until(lambda: lookups.ask().reason == ports.FOUND)
    lookups.lookup.close()


def test_nobody_waits_for_ever_and_the_answer_still_counts(running):
    lookups = Lookups(running, api_timeout=0.1)
    lookups.api.free.clear()
    assert lookups.ask().reason == ports.ERROR
    assert lookups.ask().reason == ports.ERROR
    lookups.api.free.set()
    wait_until(lambda: lookups.ask().reason == ports.FOUND)
    assert len(lookups.api.asked) == 1
    lookups.lookup.close()


def test_the_cache_is_bounded_and_forgets_the_oldest(running, monkeypatch):
    monkeypatch.setattr(ports, 'CACHE_SIZE', 3)
    lookups = Lookups(running)
    for ip in '12341':
        lookups.ask(ip)
    assert lookups.api.asked == list('12341')
    assert len(lookups.lookup._cache) == 3
    lookups.lookup.close()


def test_no_more_threads_than_allowed(running):
    lookups = Lookups(running, api_threads=3)
    before = threading.active_count()
    lookups.api.free.clear()
    for number in range(10):
        lookups.find(str(number))
    wait_until(lambda: len(lookups.api.asked) == 3)
    assert threading.active_count() == before + 3
    lookups.api.free.set()
    wait_until(lambda: len(lookups.answers) == 10)
    lookups.lookup.close()
    wait_until(lambda: threading.active_count() == before)


def test_importing_ports_imports_no_requests():
    code = ('import sys; sys.path.insert(0, %r); import mdproxy.ports; '
            'sys.exit("requests" in sys.modules or "ssl" in sys.modules)' % ROOT)
    assert subprocess.call([sys.executable, '-c', code]) == 0
