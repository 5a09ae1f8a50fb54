"""The whole path without containers: guest, redirect, proxy, agent, port API, nova's stand-in."""
import base64
import hashlib
import hmac
import os
import signal
import socket
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import equipment  # noqa: E402

equipment.requirements()

from equipment import (  # noqa: E402
    METADATA,
    SECRET,
    Cloud,
    Router,
    ask,
    get,
    is_open,
    isolated_network,
    wait_until,
    working_folder,
)

INSTANCE_ID = b'/latest/meta-data/instance-id'
PASSWORD = b'/openstack/2013-04-04/password'


class Path(object):
    """Two routers of two tenants at the same addresses, served; the cloud behind them."""

    def __init__(self, folder):
        self.red, self.blue = Router('r'), Router('b')
        self.cloud = Cloud(folder, [self.red, self.blue])
        self.proxies = {}

    def make(self):
        for router in (self.red, self.blue):
            router.make()
        self.cloud.start()
        for router in (self.red, self.blue):
            self.proxies[router.id] = self.cloud.serve(router)

    def remove(self):
        self.cloud.stop()
        for router in (self.red, self.blue):
            router.remove()

    def nova_after(self, function):
        """What nova got while the function ran."""
        before = len(self.cloud.records('nova'))
        function()
        return self.cloud.records('nova')[before:]


@pytest.fixture(scope='module')
def path():
    with working_folder() as folder:
        made = Path(folder)
        try:
            made.make()
            yield made
        finally:
            made.remove()


def test_guests_of_a_network_without_a_router_are_served_where_the_address_is(path):
    red = path.red
    with isolated_network(red) as (server, guest):
        proxy = path.cloud.run('proxy', '--network-id', red.network, '--netns', server, '--wait', '--listen',
                               METADATA + ':80', '--config-file', path.cloud.folder + '/proxy.ini')
        proxy.until('serving network ' + red.network)
        assert get(guest, INSTANCE_ID) == (200, red.ec2_id.encode())
        assert get(guest, b'/latest/user-data') == (200, red.user_data)
        assert proxy.stop() == 0


def expected_headers(router, nova_port, *more):
    """All that nova may get for a router's guest."""
    signature = hmac.new(SECRET.encode(), router.instance.encode(), hashlib.sha256).hexdigest()
    return [['Host', '127.0.0.1:%d' % nova_port], ['X-Forwarded-For', router.fixed_ip],
            ['X-Instance-ID', router.instance], ['X-Tenant-ID', router.tenant],
            ['X-Instance-ID-Signature', signature]] + [list(field) for field in more]


def test_guests_at_the_same_address_get_their_own_instance(path):
    for router in (path.red, path.blue, path.red):
        assert get(router.guest, INSTANCE_ID) == (200, router.ec2_id.encode())
        assert get(router.guest, b'/latest/meta-data/local-ipv4') == (200, router.fixed_ip.encode())
    assert path.red.ec2_id != path.blue.ec2_id


def test_user_data_arrives_byte_for_byte(path):
    for router in (path.red, path.blue):
        assert get(router.guest, b'/latest/user-data') == (200, router.user_data)
        assert get(router.guest, b'/openstack/latest/user_data') == (200, router.user_data)


def test_what_nova_does_not_have_is_404(path):
    assert get(path.red.guest, b'/latest/meta-data/no-such-thing')[0] == 404


def test_several_requests_on_one_connection_are_answered_in_order(path):
    one = b'GET %s HTTP/1.1\r\nHost: m\r\n\r\n'
    last = b'GET %s HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n'
    answer = ask(path.blue.guest, (one + one + last).replace(b'%s', INSTANCE_ID))
    assert answer.count(b'HTTP/1.1 200') == 3
    assert answer.count(path.blue.ec2_id.encode()) == 3


def test_nova_gets_these_headers_and_no_other(path):
    records = path.nova_after(lambda: get(path.red.guest, INSTANCE_ID, b'Accept: */*\r\nUser-Agent: c\r\n'))
    assert len(records) == 1
    assert records[0]['headers'] == expected_headers(path.red, path.cloud.nova_port)
    assert (records[0]['method'], records[0]['target']) == ('GET', INSTANCE_ID.decode())


def test_the_password_is_posted_once_with_its_bytes(path):
    body = b'\0\xff pass\r\n\r\nword'
    fields = b'Content-Type: application/octet-stream\r\nContent-Length: %d\r\n' \
        .replace(b'%d', str(len(body)).encode())
    records = path.nova_after(lambda: get(path.blue.guest, PASSWORD, fields, b'POST', body))
    assert [(r['method'], r['target'], r['status']) for r in records] == [('POST', PASSWORD.decode(), 200)]
    assert base64.b64decode(records[0]['body']) == body
    assert records[0]['headers'] == expected_headers(
        path.blue, path.cloud.nova_port, ('Content-Type', 'application/octet-stream'),
        ('Content-Length', str(len(body))))
    assert get(path.blue.guest, PASSWORD) == (200, body)
    assert get(path.red.guest, PASSWORD) == (200, b'')
    assert get(path.blue.guest, PASSWORD, fields, b'POST', body)[0] == 409


def forgeries(victim):
    """(lines of a head) by which a guest could try to be another, the mark `f0r9ed` in each."""
    values = {b'X-Instance-ID': victim.instance, b'X-Tenant-ID': victim.tenant,
              b'X-Forwarded-For': '10.0.0.9', b'X-Quantum-Router-ID': victim.id,
              b'X-Quantum-Network-ID': victim.network, b'X-Neutron-Router-ID': victim.id,
              b'X-Neutron-Network-ID': victim.network, b'X-Instance-ID-Signature': '0' * 64,
              b'Forwarded': 'for=10.0.0.9', b'X-Real-IP': '10.0.0.9', b'Proxy-Authorization': 'x',
              b'X-Auth-Token': 'x', b'Cookie': 'a=b', b'Authorization': 'Basic x'}
    for name in sorted(values):
        value = values[name].encode()
        for spelled in (name, name.lower(), name.upper(), name.swapcase()):
            yield spelled + b': ' + value + b'\r\nX-Mark: f0r9ed\r\n'
        yield name + b':' + value + b'\r\n' + name + b':f0r9ed\r\n'
        yield name.replace(b'-', b'_') + b': ' + value + b' f0r9ed\r\n'
        yield name + b' : ' + value + b' f0r9ed\r\n'
        yield name + b'\t: ' + value + b' f0r9ed\r\n'
        yield b' ' + name + b': ' + value + b' f0r9ed\r\n'
        yield b'X-A: f0r9ed\n' + name + b': ' + value + b'\r\n'
        yield b'X-A: f0r9ed\r' + name + b': ' + value + b'\r\n'
        yield b'X-A: f0r9ed\r\n\t' + name + b': ' + value + b'\r\n'
        yield b': ' + value + b'\r\n' + name + b'\0: f0r9ed\r\n'
        yield b'Connection: ' + name + b', f0r9ed\r\n' + name + b': ' + value + b'\r\n'
        yield b'Transfer-Encoding: chunked\r\n' + name + b': ' + value + b'\r\n\r\n0\r\n' + name \
            + b': f0r9ed\r\n'


def test_forged_headers_change_nothing_however_they_are_spelled(path):
    expected = expected_headers(path.red, path.cloud.nova_port)
    statuses = []

    def forge():
        for fields in forgeries(path.blue):
            status, body = get(path.red.guest, INSTANCE_ID, fields)
            assert status in (200, 400), fields
            assert status == 400 or body == path.red.ec2_id.encode(), fields
            statuses.append(status)
    records = path.nova_after(forge)
    assert len(records) == statuses.count(200)
    assert statuses.count(200) >= 60 and statuses.count(400) >= 60
    for record in records:
        assert record['headers'] == expected
    assert 'f0r9ed' not in path.cloud.recorded_text().lower()


def test_a_request_smuggled_in_a_body_is_not_sent_by_itself(path):
    inner = b'GET /latest/user-data HTTP/1.1\r\nHost: m\r\nX-Instance-ID: f0r9ed\r\n\r\n'
    length = str(len(inner)).encode()

    def smuggle():
        both = b'Content-Length: ' + length + b'\r\nTransfer-Encoding: chunked\r\n'
        assert get(path.red.guest, INSTANCE_ID, both, b'POST', b'0\r\n\r\n' + inner)[0] == 400
        twice = b'Content-Length: 0\r\nContent-Length: ' + length + b'\r\n'
        assert get(path.red.guest, INSTANCE_ID, twice, b'POST', inner)[0] == 400
    assert path.nova_after(smuggle) == []


def test_the_proxies_port_is_closed_to_everything_that_was_not_redirected(path):
    red = path.red
    doors = [(red.guest, red.gateway), (red.guest, equipment.METADATA), (red.guest, red.external_ip),
             (red.outside, red.external_ip), (red.outside, red.gateway), (red.netns, '127.0.0.1')]
    for netns, host in doors:
        assert not is_open(netns, host, 9697), (netns, host)
    assert not is_open(red.outside, equipment.METADATA, 80)
    assert is_open(red.guest, equipment.METADATA, 80)


def test_it_is_the_rules_that_close_the_port_and_the_redirect_comes_back_with_them(path):
    red = path.red
    rules = os.path.join(path.cloud.folder, red.id + '.rules')
    assert path.cloud.run('rules', 'remove', red.netns).status() == 0
    try:
        assert is_open(red.guest, red.gateway, 9697)
        assert not is_open(red.guest, equipment.METADATA, 80)
        assert path.cloud.run('rules', 'check', red.netns, rules).status() == 1
    finally:
        assert path.cloud.run('rules', 'apply', red.netns, rules).status() == 0
    assert not is_open(red.guest, red.gateway, 9697)
    assert get(red.guest, INSTANCE_ID) == (200, red.ec2_id.encode())


def test_a_guest_that_the_cloud_does_not_know_is_404_and_nova_is_not_asked(path):
    guest = path.blue.guest
    equipment.ip('-n', guest, 'address', 'add', '10.0.0.77/24', 'dev', 'eth0')
    sock = equipment.socket_in(guest)
    sock.settimeout(equipment.DEADLINE)

    def strange():
        sock.bind(('10.0.0.77', 0))
        sock.connect((equipment.METADATA, 80))
        sock.sendall(b'GET ' + INSTANCE_ID + b' HTTP/1.0\r\n\r\n')
        assert sock.recv(65536).split()[1] == b'404'
    assert path.nova_after(strange) == []
    sock.close()
    wait_until(lambda: 'guest 10.0.0.77: 404' in path.cloud.agent.log, 'a line of the agent\'s log')


def test_the_one_who_serves_has_nothing_of_root_and_lives_in_the_hosts_namespace(path):
    for process in list(path.proxies.values()) + [path.cloud.agent]:
        status = dict(line.split(':', 1) for line in process.proc('status').splitlines())
        assert set(status['Uid'].split() + status['Gid'].split()) == set(['65534'])
        assert status['Groups'].split() == []
        for name in ('CapEff', 'CapPrm', 'CapInh', 'CapAmb'):
            assert int(status.get(name, '0'), 16) == 0, name
        assert status.get('NoNewPrivs', '1').strip() == '1'
        assert os.stat('/proc/%d/ns/net' % process.pid).st_ino == os.stat('/proc/self/ns/net').st_ino


def test_a_proxys_process_is_the_server_alone(path):
    for router in (path.red, path.blue):
        proxy = path.proxies[router.id]
        words = proxy.proc('cmdline').split('\0')
        assert words[1] == '-EsS' and 'serve' in words and 'router=' + router.id in words
        assert not any(word.startswith('-') for word in words[2:])      # the opener's own
        assert 'libssl' not in proxy.proc('maps') and 'libcrypto' not in proxy.proc('maps')


def test_the_agents_socket_is_for_its_user_and_group_alone(path):
    found = os.stat(path.cloud.socket)
    assert found.st_mode & 0o777 == 0o660
    assert os.stat(os.path.dirname(path.cloud.socket)).st_mode & 0o777 == 0o750
    assert found.st_uid == 65534


def test_resolve_tells_which_instance_an_address_belongs_to(path):
    config = os.path.join(path.cloud.folder, 'agent.ini')
    for router in (path.red, path.blue):
        process = path.cloud.run('resolve', '--json', '--router-id', router.id, '--config-file', config,
                                 router.fixed_ip)
        assert process.status() == 0
        assert '"instance": "%s"' % router.instance in process.log
        assert '"port": "%s"' % router.port in process.log
    process = path.cloud.run('resolve', '--router-id', path.red.id, '--config-file', config, '10.0.0.99')
    assert process.status() == 1
    assert 'no port of an instance has this address' in process.log


def test_a_second_proxy_for_the_same_router_is_told_so(path):
    process = path.cloud.run('proxy', '--router-id', path.red.id, '--netns', path.red.netns,
                             '--set', 'user=nobody')
    assert process.status() == 1
    assert 'namespace %s: cannot listen on 0.0.0.0 port 9697' % path.red.netns in process.log
    assert 'another proxy serves there' in process.log


def test_sigterm_ends_a_proxy_with_0_and_frees_the_port(path):
    red = path.red
    assert path.proxies[red.id].stop(signal.SIGTERM) == 0
    with pytest.raises((socket.error, OSError)):
        ask(red.guest, b'GET / HTTP/1.0\r\n\r\n')
    path.proxies[red.id] = path.cloud.serve(red)
    assert get(red.guest, INSTANCE_ID) == (200, red.ec2_id.encode())
