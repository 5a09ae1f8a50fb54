"""A guest that asks fe80::a9fe:a9fe, in real namespaces: it is led to the port, and known by its MAC."""
import contextlib
import os
import socket
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import equipment  # noqa: E402

equipment.requirements()

from equipment import (  # noqa: E402
    CLOSED,
    DEADLINE,
    MAC,
    METADATA6,
    Cloud,
    Router,
    ask6,
    ip,
    iptables_save,
    own_address6,
    socket_in,
    wait_until,
    working_folder,
)

sys.path.insert(0, equipment.ROOT)

from mdproxy import namespaces, neighbours, rules  # noqa: E402

if subprocess.call(['unshare', '--net', 'ip6tables', '-t', 'nat', '-S'], stdout=subprocess.PIPE,
                   stderr=subprocess.PIPE):
    pytest.skip('needs a kernel with the nat table of IPv6', allow_module_level=True)


@pytest.fixture(scope='module')
def router():
    router = Router('s')
    try:
        router.make()
        router.inside, router.outer = 'qr-' + router.id[:11], 'qg-' + router.id[:11]
        for interface in (router.inside, router.outer):
            ip('-n', router.netns, 'address', 'add', METADATA6 + '/64', 'dev', interface, 'nodad')
        for netns in (router.netns, router.guest, router.outside):
            wait_until(lambda netns=netns: 'tentative' not in ip('-n', netns, '-6', 'address'),
                       'own link-local addresses')
        yield router
    finally:
        router.remove()


@pytest.fixture
def listener(router):
    """A server of both families in the router's namespace, and the rules of both."""
    for text, family in ((rules.for_guests(), rules.IPV4), (rules.for_guests6(), rules.IPV6)):
        rules.Rules(text, 'test', family).apply(router.netns)
    with contextlib.closing(namespaces.open_listener('::', 9697, netns=router.netns)) as sock:
        sock.settimeout(DEADLINE)
        yield sock


@pytest.fixture
def table(router):
    with contextlib.closing(neighbours.Neighbours(neighbours.open_socket(router.netns))) as table:
        yield table


def link(netns, interface='eth0'):
    """(index, MAC address) of an interface."""
    words = ip('-n', netns, '-o', 'link', 'show', interface).split()
    return int(words[0].rstrip(':')), words[words.index('link/ether') + 1]


def connected(netns, host, port, interface='eth0'):
    """A socket of a namespace that is connected, or None when that does not succeed."""
    sock = socket_in(netns, socket.AF_INET6)
    sock.settimeout(CLOSED)
    try:
        index = link(netns, interface)[0] if interface else 0
        sock.connect((host, port, 0, index))
        return sock
    except (socket.timeout, socket.error):
        sock.close()
        return None


def accepted(router, listener):
    """(address, interface index) of the guest that asks, as the server has it."""
    with contextlib.closing(connected(router.guest, METADATA6, 80)):
        sock, peer = listener.accept()
        with contextlib.closing(sock):
            assert sock.getsockname()[1] == 9697
    return peer[0].partition('%')[0], peer[3]


def test_a_guest_comes_from_its_own_address_and_the_routers_interface(router, listener):
    assert accepted(router, listener) == (own_address6(router.guest), link(router.netns, router.inside)[0])


def test_a_guest_of_ipv4_reaches_the_same_server(router, listener):
    with contextlib.closing(socket_in(router.guest)) as sock:
        sock.settimeout(DEADLINE)
        sock.connect((equipment.METADATA, 80))
        server, peer = listener.accept()
        server.close()
    assert peer[0] == '::ffff:' + router.fixed_ip


@pytest.mark.parametrize('who, host, port, interface', [
    ('guest', METADATA6, 9697, 'eth0'), ('outside', METADATA6, 80, 'eth0'),
    ('outside', METADATA6, 9697, 'eth0'), ('netns', '::1', 9697, None)])
def test_nobody_else_reaches_the_port(router, listener, who, host, port, interface):
    assert connected(getattr(router, who), host, port, interface) is None


def test_the_guests_mac_address_is_in_the_routers_table(router, listener, table):
    address, interface = accepted(router, listener)
    assert table.mac(address, interface) == link(router.guest)[1]
    assert table.mac(address, link(router.netns, router.outer)[0]) is None
    assert table.mac('fe80::dead', interface) is None


def test_a_process_without_rights_outside_of_the_namespace_reads_it_too(router, listener):
    address, interface = accepted(router, listener)
    with contextlib.closing(neighbours.open_socket(router.netns)) as sock:
        process = subprocess.Popen(
            [equipment._python()[0], '-c', 'import os, sys; from mdproxy import neighbours\n'
             'table = neighbours.Neighbours(neighbours.inherited_socket(0))\n'
             'print("%s %d" % (table.mac(sys.argv[1], int(sys.argv[2])), os.geteuid()))',
             address, str(interface)],
            stdin=sock, stdout=subprocess.PIPE, preexec_fn=equipment.as_user, cwd=equipment.ROOT,
            env=dict(os.environ, PYTHONDONTWRITEBYTECODE='1'))
    mac, user = process.communicate()[0].decode('ascii').split()
    assert mac == link(router.guest)[1] and int(user) != 0


@pytest.mark.parametrize('single', [True, False], ids=['one entry', 'the whole table'])
@pytest.mark.parametrize('state, counts', [
    ('permanent', True), ('reachable', True), ('stale', True), ('noarp', False), ('failed', False)])
def test_only_an_entry_that_was_resolved_counts(router, table, single, state, counts):
    table._single = single
    index = link(router.netns, router.inside)[0]
    ip('-n', router.netns, 'neighbour', 'replace', 'fe80::77', 'lladdr', '02:00:00:00:00:77', 'dev',
       router.inside, 'nud', state)
    assert table.mac('fe80::77', index) == ('02:00:00:00:00:77' if counts else None)


def test_two_sockets_read_two_namespaces(router, table):
    for netns, interface, mac in ((router.netns, router.inside, '02:00:00:00:00:01'),
                                  (router.outside, 'eth0', '02:00:00:00:00:02')):
        ip('-n', netns, 'neighbour', 'replace', 'fe80::88', 'lladdr', mac, 'dev', interface)
    with contextlib.closing(neighbours.Neighbours(neighbours.open_socket(router.outside))) as other:
        assert table.mac('fe80::88', link(router.netns, router.inside)[0]) == '02:00:00:00:00:01'
        assert other.mac('fe80::88', link(router.outside)[0]) == '02:00:00:00:00:02'


def test_a_namespace_that_does_not_exist_is_named():
    with pytest.raises(namespaces.NamespaceError) as caught:
        neighbours.open_socket('mdproxy-test-nowhere')
    assert 'namespace mdproxy-test-nowhere does not exist' in str(caught.value)


def test_the_rules_of_the_families_are_applied_and_removed_apart():
    with equipment.namespace() as netns:
        for text, family in ((rules.for_guests(), rules.IPV4), (rules.for_guests6(), rules.IPV6)):
            wanted = rules.Rules(text, 'test', family)
            assert wanted.differ(netns) and wanted.apply(netns)
            assert not wanted.differ(netns) and not wanted.apply(netns)
        before = iptables_save(netns)
        assert rules.remove(netns, rules.IPV6) and not rules.remove(netns, rules.IPV6)
        assert 'mdproxy-' not in ip('netns', 'exec', netns, 'ip6tables-save')
        assert iptables_save(netns) == before and '-A PREROUTING -j mdproxy-PREROUTING' in before


def test_a_routers_own_proxy_serves_guests_of_ipv6_when_that_is_wanted():
    red, blue = Router('r'), Router('b')
    request = b'GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n'
    with working_folder() as folder:
        cloud = Cloud(folder, [red, blue])
        try:
            for number, router in enumerate(cloud.routers):
                router.make()
                router.guest_has_mac(MAC % number)
            cloud.start()
            cloud.serve(blue)
            proxy = cloud.serve(red, 'ipv6=true')
            assert ask6(red.guest, request).endswith(b'\r\n\r\n' + red.ec2_id.encode())
            assert ask6(blue.guest, request) is None
            assert proxy.stop() == 0
            assert cloud.run('rules', 'remove', red.netns).status() == 0
            assert METADATA6 not in ip('-n', red.netns, '-6', 'address')
            assert 'mdproxy' not in ip('netns', 'exec', red.netns, 'ip6tables-save')
        finally:
            cloud.stop()
            for router in cloud.routers:
                router.remove()
