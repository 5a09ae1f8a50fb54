"""What may cross each border, and what the agent believes."""
import hashlib
import hmac
import json

import pytest

from mdproxy import http1, trust

ROUTER = '7f0f5cd4-5f0b-4f6c-9d0e-0a1b2c3d4e5f'
NETWORK = '11111111-2222-3333-4444-555555555555'
MAC = 'fa:16:3e:00:00:01'
FORGED = [(b'host', b'evil'), (b'x-forwarded-for', b'10.0.0.9'), (b'forwarded', b'for=10.0.0.9'),
          (b'x-instance-id', b'i-evil'), (b'x-tenant-id', b'evil'),
          (b'x-instance-id-signature', b'0' * 64), (b'x-quantum-router-id', b'evil'),
          (b'x-neutron-network-id', b'evil'), (b'x-quantum-guest-mac', b'fa:16:3e:00:00:99'),
          (b'x-neutron-guest-mac', b'fa:16:3e:00:00:99'), (b'connection', b'x-tenant-id'),
          (b'proxy-authorization', b'evil'), (b'content-length', b'3'),
          (b'transfer-encoding', b'chunked'), (b'cookie', b'evil')]


def request(body=b'', headers=()):
    method = b'POST' if body else b'GET'
    return http1.Request(method, b'/', 1, FORGED + list(headers), body, True)


def told(router=ROUTER, name=b'x-quantum-router-id', guest=b'10.0.0.3'):
    """What an honest proxy's request has at the agent."""
    return [(b'host', b'a'), (name, router.encode('ascii')), (b'x-forwarded-for', guest)]


def refusal(headers):
    with pytest.raises(trust.TrustError) as caught:
        trust.read_identity(headers)
    assert caught.value.status == 400
    return caught.value


# Signatures

def test_the_signature_is_the_one_that_nova_computes():
    expected = hmac.new(b'secret', b'i-1', hashlib.sha256).hexdigest().encode('ascii')
    for secret in ('secret', b'secret', u'secret'):
        assert trust.sign(secret, 'i-1') == expected
        assert trust.sign(secret, u'i-1') == expected


def test_the_signature_has_a_known_value():
    assert trust.sign('key', 'The quick brown fox jumps over the lazy dog') == \
        b'f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8'


@pytest.mark.parametrize('secret', ['', b'', u''])
def test_an_empty_secret_signs_nothing(secret):
    with pytest.raises(ValueError):
        trust.sign(secret, 'i-1')


@pytest.mark.parametrize('compare', [trust.same, trust._same_portable])
@pytest.mark.parametrize('a, b, equal', [
    (b'abc', b'abc', True), (b'abc', b'abd', False), (b'abc', b'bbc', False),
    (b'abc', b'ab', False), (b'', b'', True), (b'', b'a', False), (b'\x00', b'\xff', False)])
def test_secrets_are_compared(compare, a, b, equal):
    assert compare(a, b) is equal


def test_text_and_bytes_of_one_secret_are_the_same():
    assert trust.same('abc', b'abc') and trust.same(u'\xe9', u'\xe9'.encode('utf-8'))
    assert not trust.same(u'\xe9', u'\xe8')


def test_the_portable_compare_looks_at_every_byte():
    class Counting(bytearray):
        looked = 0

        def __getitem__(self, index):
            Counting.looked += 1
            return bytearray.__getitem__(self, index)

    trust.bytearray = Counting
    try:
        assert not trust._same_portable(b'xbcdef', b'abcdef')
    finally:
        del trust.bytearray
    assert Counting.looked == 12


# Addresses

@pytest.mark.parametrize('text, canonical', [
    ('10.0.0.3', '10.0.0.3'), ('FE80:0::0:1', 'fe80::1'), ('::ffff:10.0.0.3', '10.0.0.3'),
    ('::', '::'), ('255.255.255.255', '255.255.255.255')])
def test_an_address_has_one_spelling(text, canonical):
    assert trust.canonical_ip(text) == canonical
    assert type(trust.canonical_ip(text)) is str


NOT_ADDRESSES = ['', ' ', '10.0.0', '10.0.0.3.4', '10.0.0.256', '010.0.0.3', '0xa.0.0.3',
                 '10.0.0.3 ', '10.0.0.3, 10.0.0.4', '10.0.0.3:80', '[::1]', 'fe80::1%eth0', '::g',
                 'guest', '10.0.0.3\n', '10.0.0.3\x00', '\xe9', '167772163']


@pytest.mark.parametrize('text', NOT_ADDRESSES)
def test_what_is_not_one_address_is_none(text):
    with pytest.raises(ValueError):
        trust.canonical_ip(text)


# Proxy to agent

@pytest.mark.parametrize('family, kind, name', [
    ('quantum', 'router', b'X-Quantum-Router-ID'), ('quantum', 'network', b'X-Quantum-Network-ID'),
    ('neutron', 'router', b'X-Neutron-Router-ID'), ('neutron', 'network', b'X-Neutron-Network-ID')])
def test_the_agent_gets_the_sockets_identity_and_nothing_of_the_guests(family, kind, name):
    headers = trust.agent_headers(trust.Identity(kind, ROUTER), '10.0.0.3', family, request(), 'a')
    assert headers == [(b'Host', b'a'), (b'X-Forwarded-For', b'10.0.0.3'),
                       (name, ROUTER.encode('ascii'))]


def test_the_type_of_a_body_goes_with_it():
    kind = (b'content-type', b'text/plain; charset=x')
    identity = trust.Identity('router', ROUTER)
    for make in (lambda asked: trust.agent_headers(identity, '10.0.0.3', 'quantum', asked, b'a'),
                 lambda asked: trust.nova_headers('i', 't', '10.0.0.3', 's', asked, b'a')):
        assert make(request(b'abc', [kind]))[-1] == (b'Content-Type', kind[1])
        for asked in (request(b'', [kind]), request(b'abc'), request(b'abc', [kind, kind])):
            assert b'Content-Type' not in dict(make(asked))


@pytest.mark.parametrize('family', ['quantum', 'neutron'])
@pytest.mark.parametrize('kind', ['router', 'network'])
@pytest.mark.parametrize('guest', ['10.0.0.3', 'fd00::3'])
def test_what_the_proxy_writes_the_agent_reads(family, kind, guest):
    identity = trust.Identity(kind, ROUTER)
    reader = http1.RequestReader()
    reader.feed(http1.format_request(b'GET', b'/', trust.agent_headers(
        identity, guest, family, request(), '169.254.169.254'), b''))
    read = trust.read_identity(reader.next_request().headers)
    assert read == (identity, guest, None)
    assert type(read[0].id) is str and type(read[1]) is str


def test_uuid_and_address_are_read_in_canonical_form():
    assert trust.read_identity(told(ROUTER.upper(), guest=b'FD00::0:3')) == \
        (trust.Identity('router', ROUTER), 'fd00::3', None)


@pytest.mark.parametrize('first', sorted(trust._KINDS))
@pytest.mark.parametrize('second', sorted(trust._KINDS))
def test_two_identities_are_none(first, second):
    """LP 1865036, and the same header twice."""
    error = refusal(told(name=first) + [(second, NETWORK.encode('ascii'))])
    assert error.reason == 'more than one identity'
    assert error.header.lower() == b', '.join([first, second]).decode('ascii')


def test_no_identity_is_refused():
    assert 'no identity' in refusal([(b'x-forwarded-for', b'10.0.0.3')]).reason


NOT_UUIDS = ['', 'router', ROUTER + ' ', ROUTER + '\n', ROUTER[:-1], ROUTER + '0',
             ROUTER.replace('-', ''), '{%s}' % ROUTER, 'g' + ROUTER[1:],
             '%s, %s' % (ROUTER, ROUTER), '../' + ROUTER]


@pytest.mark.parametrize('value', NOT_UUIDS)
def test_a_uuid_has_one_form(value):
    assert trust.is_uuid(ROUTER) and trust.is_uuid(ROUTER.upper())
    assert not trust.is_uuid(value)


@pytest.mark.parametrize('value', NOT_UUIDS)
def test_an_identity_that_is_no_uuid_is_refused(value):
    error = refusal(told(value))
    assert error.header == 'X-Quantum-Router-ID' and error.reason.startswith('not a uuid: ')


@pytest.mark.parametrize('value', NOT_ADDRESSES)
def test_an_address_that_is_none_is_refused(value):
    error = refusal(told(guest=value if str is bytes else value.encode('latin-1')))
    assert error.header == 'X-Forwarded-For' and error.reason.startswith('not an IP address: ')


def test_there_is_exactly_one_address():
    """OSSN-0074: an appended address would let the guest choose the first."""
    assert refusal(told()[:-1]).reason == 'missing'
    assert refusal(told() + [(b'x-forwarded-for', b'10.0.0.3')]).reason == 'more than one'


def test_a_refusal_shows_little_of_the_value_and_no_control_byte():
    error = refusal(told('\x1b' + 'x' * 1000))
    assert len(str(error)) < 120 and '\x1b' not in str(error)
    assert str(error).startswith("X-Quantum-Router-ID: not a uuid: '")


# A link-local guest's MAC address

@pytest.mark.parametrize('ip, is_one', [
    ('fe80::1', True), ('fe80::a9fe:a9fe', True), ('febf:1::', True), ('fe90::1', True),
    ('fec0::1', False), ('fe7f::1', False), ('fe8::1', False), ('fd00::fe80', False),
    ('::1', False), ('::1:fe80:1', False), ('10.0.0.3', False), ('169.254.0.1', False)])
def test_link_local_is_what_the_first_ten_bits_say(ip, is_one):
    assert trust.canonical_ip(ip) == ip
    assert trust.is_link_local(ip) is is_one


@pytest.mark.parametrize('family, name', [('quantum', b'X-Quantum-Guest-MAC'),
                                          ('neutron', b'X-Neutron-Guest-MAC')])
def test_the_mac_address_goes_to_the_agent_and_is_read_there(family, name):
    identity = trust.Identity('router', ROUTER)
    headers = trust.agent_headers(identity, 'fe80::3', family, request(), 'a', MAC)
    assert headers[1] == (b'X-Forwarded-For', b'fe80::3') and headers[3:] == [(name, MAC.encode('ascii'))]
    reader = http1.RequestReader()
    reader.feed(http1.format_request(b'GET', b'/', headers, b''))
    read = trust.read_identity(reader.next_request().headers)
    assert read == (identity, 'fe80::3', MAC)
    assert type(read[2]) is str


def told_mac(value=b'fa:16:3e:00:00:01', name=b'x-quantum-guest-mac', guest=b'fe80::3'):
    return told(guest=guest) + [(name, value)]


@pytest.mark.parametrize('guest', [b'10.0.0.3', b'fd00::3', b'2001:db8::3', b'::ffff:10.0.0.3'])
def test_a_mac_address_beside_an_address_that_says_who_it_is_is_refused(guest):
    assert 'not with a guest address' in refusal(told_mac(guest=guest)).reason


@pytest.mark.parametrize('value', [
    b'', b'fa:16:3e:00:00', b'fa:16:3e:00:00:01 ', b'fa:16:3e:00:00:01\n', b'fa-16-3e-00-00-01',
    b'fa163e000001', b'FA:16:3E:00:00:01', b'fa:16:3e:00:00:0g', b'01:00:5e:00:00:01', b'ff:ff:ff:ff:ff:ff',
    b'fa:16:3e:00:00:01,fa:16:3e:00:00:02', b'fa:16:3e:00:00:01:02', b'\xff' * 17])
def test_a_mac_address_has_one_form(value):
    error = refusal(told_mac(value))
    assert error.header == 'X-Quantum-Guest-MAC' and error.reason.startswith('not a MAC address: ')
    assert not trust.is_mac(value)


@pytest.mark.parametrize('name', [b'x-quantum-guest-mac', b'x-neutron-guest-mac'])
def test_two_mac_addresses_are_none(name):
    assert refusal(told_mac() + [(name, b'fa:16:3e:00:00:01')]).reason == 'more than one'


def test_a_mac_address_before_what_a_proxy_adds_may_be_a_guests():
    """haproxy, as neutron configures it, passes a guest's fields on and adds its own behind them."""
    fields = told_mac()
    assert trust.read_identity(fields)[2] == MAC
    assert 'a guest may have written it' in refusal(fields[-1:] + fields[:-1]).reason


@pytest.mark.parametrize('ip, mac', [
    ('fe80::f816:3eff:fe00:1', 'fa:16:3e:00:00:01'), ('fe80::ff:fe00:1', '02:00:00:00:00:01'),
    ('fe80::200:ff:fe00:1', '00:00:00:00:00:01'), ('fe80::b061:a3ff:fec1:35c7', 'b2:61:a3:c1:35:c7')])
def test_without_a_neighbour_entry_the_address_says_of_which_mac_address_it_is_made(ip, mac):
    assert trust.believed_mac(ip, None) == trust.believed_mac(ip, mac) == mac
    assert type(trust.believed_mac(ip, None)) is str


@pytest.mark.parametrize('ip', ['fe80::3', 'fe80::f816:3e00:fe00:1', 'fe80::f816:3eff:ff00:1',
                                'fe80:1::f816:3eff:fe00:1', 'fe80::1:f816:3eff:fe00:1'])
def test_an_address_that_is_made_otherwise_needs_an_entry(ip):
    assert trust.believed_mac(ip, MAC) == MAC
    with pytest.raises(trust.TrustError) as caught:
        trust.believed_mac(ip, None)
    assert caught.value.status == 404
    assert caught.value.reason == 'no port for a link-local address without a neighbour entry'


def test_an_entry_and_an_address_that_disagree_are_nobody():
    """Either may be what a guest has chosen."""
    with pytest.raises(trust.TrustError) as caught:
        trust.believed_mac('fe80::f816:3eff:fe00:2', MAC)
    assert caught.value.status == 404
    assert 'fa:16:3e:00:00:02' in caught.value.reason and MAC in caught.value.reason


@pytest.mark.parametrize('ip', ['10.0.0.3', '2001:db8::f816:3eff:fe00:1'])
def test_other_addresses_have_no_need_of_a_mac_address(ip):
    assert trust.believed_mac(ip, None) is None


# Agent to nova

def test_nova_gets_the_ports_instance_and_tenant_signed():
    assert trust.nova_headers('i-1', 't-1', '10.0.0.3', 'secret', request(), 'nova:8775') == [
        (b'Host', b'nova:8775'), (b'X-Forwarded-For', b'10.0.0.3'), (b'X-Instance-ID', b'i-1'),
        (b'X-Tenant-ID', b't-1'), (b'X-Instance-ID-Signature', trust.sign('secret', 'i-1'))]


def test_ids_may_come_as_json_gives_them():
    port = json.loads('{"device_id": "%s", "tenant_id": "t"}' % ROUTER)
    headers = trust.nova_headers(port['device_id'], port['tenant_id'], '10.0.0.3', 's', request(),
                                 'n')
    assert all(type(name) is bytes and type(value) is bytes for name, value in headers)


@pytest.mark.parametrize('value', [
    'i\r\nX-Tenant-ID: victim', 'i\n', 'i\r', '', 'a b', 'a\tb', 'a\x00', u'\xe9', 'x' * 256])
def test_a_ports_id_cannot_be_a_header_of_its_own(value):
    """A tenant chooses the device_id of the ports it creates."""
    for ids, header in (((value, 't'), 'X-Instance-ID'), (('i', value), 'X-Tenant-ID')):
        with pytest.raises(trust.TrustError) as caught:
            trust.nova_headers(ids[0], ids[1], '10.0.0.3', 's', request(), 'n')
        assert (caught.value.status, caught.value.header) == (404, header)
        assert '\r' not in str(caught.value) and '\n' not in str(caught.value)
