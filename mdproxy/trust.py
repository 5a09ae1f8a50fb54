"""What may cross each border: guest -> proxy -> agent -> nova.

Rules kept:

- Nothing is copied from a guest's head but the Content-Type of its body. Everything else in a head
  that goes up is written here from what the sender of that head knows by itself.
- The agent acts on exactly one identity and exactly one guest address. Two that disagree are not
  resolved in favour of one: they are refused (LP 1865036, OSSN-0074).
- A guest's MAC address is told where its address says nothing to the port API: link-local, and
  nowhere else. It is believed from a proxy alone that writes its heads itself, as ours do: haproxy,
  which neutron uses, passes on what a guest writes, and puts its own fields behind that.
- What another service tells is not trusted to be a header value: a tenant chooses the device_id of
  its own ports, and a line end in there would be a header of its own.

Theory of operation: three lists of headers, one for each border, and the check that reads the
middle one. A TrustError names the header and the reason, so that one log line tells an operator
which side to look at.
"""
import re
import socket
from collections import namedtuple

_ID_HEADERS = {
    'quantum': {'router': b'X-Quantum-Router-ID', 'network': b'X-Quantum-Network-ID'},
    'neutron': {'router': b'X-Neutron-Router-ID', 'network': b'X-Neutron-Network-ID'},
}
_KINDS = dict((header.lower(), (kind, header))
              for family in _ID_HEADERS.values() for kind, header in family.items())
_MAC_HEADERS = {'quantum': b'X-Quantum-Guest-MAC', 'neutron': b'X-Neutron-Guest-MAC'}
_MACS = dict((header.lower(), header) for header in _MAC_HEADERS.values())
_MAC = re.compile(br'[0-9a-f][02468ace](?::[0-9a-f]{2}){5}\Z')     # odd: of a group, no sender's
_LINK_LOCAL = re.compile(r'fe[89ab][0-9a-f]:')
_UUID = re.compile(br'[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z')
_WORD = re.compile(br'[\x21-\x7e]{1,255}\Z')  # a port's device_id and tenant_id hold 255


class Identity(namedtuple('Identity', 'kind id')):
    """Who asks: kind is 'router' or 'network', id its uuid in lower case, a native str."""

    __slots__ = ()

    def guest(self, address):
        """The guest at an address, for a log line."""
        return '%s %s guest %s' % (self.kind, self.id, address)


class TrustError(Exception):
    """A header that must not be believed or must not be sent.

    status: the HTTP status to answer (int). header: its name. reason: what is wrong with it, with
    the value as a short repr at most. Both native str, safe to log.
    """

    def __init__(self, status, header, reason):
        Exception.__init__(self, status, header, reason)
        self.status = status
        self.header = header
        self.reason = reason

    def __str__(self):
        return '%s: %s' % (self.header, self.reason)


def is_uuid(text):
    """Whether this (native str or bytes) is the id of a router or network, in either case."""
    try:
        return _UUID.match(_bytes(text).lower()) is not None
    except UnicodeError:            # a file's name may be anything
        return False


def is_mac(text):
    """Whether this (native str or bytes) is the MAC address of a guest, as 'fa:16:3e:00:00:01'."""
    return _MAC.match(_bytes(text)) is not None


def is_link_local(ip):
    """Whether an address, as `canonical_ip` gives it, is of fe80::/10."""
    return _LINK_LOCAL.match(ip) is not None


def believed_mac(ip, mac):
    """The MAC address by which the port of a guest is looked up, native str; None where its address
    will do, which is not link-local.

    ip: as `canonical_ip` gives it. mac: what the proxy told, or None. Without it that counts of which
    the address was made (EUI-64), as neutron's agent has it: port security lets no other link-local
    address out of a port. TrustError with status 404 when there is neither, or they disagree.
    """
    if ':' not in ip or not is_link_local(ip):
        return None
    made_of = _eui64(ip)
    if not (mac or made_of):
        raise TrustError(404, _native(_MAC_HEADERS['quantum']),
                         'no port for a link-local address without a neighbour entry')
    if mac and made_of and mac != made_of:
        raise TrustError(404, _native(_MAC_HEADERS['quantum']),
                         'its neighbours know %s, and its address was made of %s' % (mac, made_of))
    return mac or made_of


def _eui64(ip):
    """The MAC address of which a link-local address was made (RFC 4291, appendix A); None when it was
    made otherwise."""
    octets = bytearray(socket.inet_pton(socket.AF_INET6, ip))
    if octets[2:8] + octets[11:13] != b'\0\0\0\0\0\0\xff\xfe':
        return None
    mac = [octets[8] ^ 2] + list(octets[9:11]) + list(octets[13:])
    return ':'.join('%02x' % octet for octet in mac)


def sign(secret, instance_id):
    """The X-Instance-ID-Signature of nova: hex HMAC-SHA256 of the instance id, bytes.

    secret: native str or bytes; ValueError if it is empty, because that is what an attacker
    would try first, and what nova and upstream's agent have as default.
    """
    # Here and in `same`: 3 MB of libcrypto, which a proxy on a unix socket has no use for.
    import hashlib
    import hmac
    key = _bytes(secret)
    if not key:
        raise ValueError('the shared secret is empty')
    return hmac.new(key, _bytes(instance_id), hashlib.sha256).hexdigest().encode('ascii')


def _same_portable(a, b):
    """Python before 2.7.7 has no hmac.compare_digest: look at every byte, whatever was found."""
    if len(a) != len(b):
        return False
    a, b = bytearray(a), bytearray(b)
    difference = 0
    for i in range(len(a)):
        difference |= a[i] ^ b[i]
    return difference == 0


def same(a, b):
    """Whether two secrets or signatures (bytes or native str) are equal, in a time that does not
    tell where they differ (CVE-2014-3517). Their length is no secret."""
    import hmac
    compare = getattr(hmac, 'compare_digest', _same_portable)
    return compare(_bytes(a), _bytes(b))


def canonical_ip(text):
    """An IPv4 or IPv6 address in the one spelling used for look-ups, a native str.

    text: native str. An IPv4 address mapped into IPv6, as a dual-stack socket gives it, becomes
    IPv4; ValueError for anything that is not an address, zones (fe80::1%eth0) included.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            packed = socket.inet_pton(family, text)
        except (socket.error, TypeError, ValueError):  # the latter two: NUL, or not ASCII
            continue
        if packed.startswith(b'\0' * 10 + b'\xff\xff'):
            return socket.inet_ntop(socket.AF_INET, packed[12:])
        return socket.inet_ntop(family, packed)
    raise ValueError('not an IP address')


def agent_headers(identity, guest_ip, family, request, host, mac=None):
    """What the proxy sends to the agent, a list of (name, value) in bytes.

    identity: of the listening socket. guest_ip: of the connection, native str. family: 'quantum'
    or 'neutron', the spelling of the header (Havana renamed it). request: the guest's; only the
    Content-Type of a body is taken from it. host: value of Host, native str or bytes. mac: with a
    link-local address alone, that of neighbours.Neighbours; upstream's agent passes it over.
    """
    headers = [
        (b'Host', _bytes(host)),
        (b'X-Forwarded-For', _bytes(guest_ip)),
        (_ID_HEADERS[family][identity.kind], _bytes(identity.id)),
    ]
    if mac:
        headers.append((_MAC_HEADERS[family], _bytes(mac)))
    return headers + _content_type(request)


def read_identity(headers):
    """Who asks, as the proxy says it: (Identity, guest address in canonical form, its MAC address or
    None), the latter two native str.

    headers: of the request to the agent, names in lower case. TrustError with status 400 unless
    there is exactly one of the four id headers, a uuid, and exactly one X-Forwarded-For, one
    address: a list in it would mean that somebody has forwarded what a guest wrote. The same for a
    MAC address that is not one, or that comes with an address which needs none.
    """
    ids = [field for field in headers if field[0] in _KINDS]
    if len(ids) != 1:
        names = ', '.join(_native(_KINDS[name][1]) for name, _ in ids)
        raise TrustError(400, names or 'X-Quantum-Router-ID',
                         'more than one identity' if ids else 'no identity: none of the headers '
                         'X-{Quantum,Neutron}-{Router,Network}-ID')
    name, value = ids[0]
    kind, header = _KINDS[name]
    if not is_uuid(value):
        raise TrustError(400, _native(header), 'not a uuid: ' + _short(value))
    guest_ip = _forwarded_for(headers)
    return Identity(kind, _native(value.lower())), guest_ip, _guest_mac(headers, guest_ip)


def _forwarded_for(headers):
    addresses = [value for name, value in headers if name == b'x-forwarded-for']
    if len(addresses) != 1:
        raise TrustError(400, 'X-Forwarded-For', 'more than one' if addresses else 'missing')
    try:
        return canonical_ip(_native(addresses[0]))
    except ValueError:
        reason = 'not an IP address: ' + _short(addresses[0])
    raise TrustError(400, 'X-Forwarded-For', reason)


def _guest_mac(headers, guest_ip):
    macs = [field for field in headers if field[0] in _MACS]
    if not macs:
        return None
    name, value = macs[0]
    reason = None
    if len(macs) != 1:
        reason = 'more than one'
    elif not is_mac(value):
        reason = 'not a MAC address: ' + _short(value)
    elif not is_link_local(guest_ip):
        reason = 'not with a guest address like ' + guest_ip
    elif not any(field[0] in _KINDS for field in headers[:headers.index(macs[0])]):
        reason = 'before the identity, so a guest may have written it'
    if reason:
        raise TrustError(400, _native(_MACS[name]), reason)
    return _native(value)


def nova_headers(instance_id, tenant_id, guest_ip, secret, request, host):
    """What the agent sends to nova-api-metadata, a list of (name, value) in bytes.

    instance_id, tenant_id: device_id and tenant_id (project_id) of the port that was found, str
    (on Python 2 also unicode, as json gives it). guest_ip: native str. secret: shared with nova.
    request, host: as in agent_headers. TrustError with status 404 if the port's ids cannot be
    header values: such a port belongs to no instance.
    """
    instance = _word('X-Instance-ID', instance_id)
    headers = [
        (b'Host', _bytes(host)),
        (b'X-Forwarded-For', _bytes(guest_ip)),
        (b'X-Instance-ID', instance),
        (b'X-Tenant-ID', _word('X-Tenant-ID', tenant_id)),  # CVE-2013-6419
        (b'X-Instance-ID-Signature', sign(secret, instance)),
    ]
    return headers + _content_type(request)


def _content_type(request):
    """The one field of a guest's that goes up, and only with the body that it describes."""
    if not request.body:
        return []
    value = request.header(b'content-type')
    return [] if value is None else [(b'Content-Type', value)]


def _word(header, text):
    """Visible ASCII without spaces: room for any id, none for a second header."""
    value = _bytes(text)
    if not _WORD.match(value):
        raise TrustError(404, header, 'not an id: ' + _short(value))
    return value


def _bytes(text):
    return text if isinstance(text, bytes) else text.encode('utf-8')


def _native(value):
    """bytes as str of this Python; latin-1 so that no byte can make it fail."""
    return value if str is bytes else value.decode('latin-1')


def _short(value):
    return repr(value[:40]).lstrip('b')
