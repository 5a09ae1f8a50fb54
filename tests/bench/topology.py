"""Routers as namespaces, with guests: guests -> veth -> router with the role's rules; and without.

Every subject has a router of its own, and all have the same addresses. A guest is a source address:
the guests' namespace owns the whole network, so a thousand of them need nothing to be made. They are
behind one address of the link, so that the neighbour table of the kernel, which has room for 1024,
is not what is measured.
"""
import contextlib
import ipaddress
import os
import uuid

import isolation
import processes

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
METADATA = '169.254.169.254'
PORT = 9697
GUEST, GATEWAY = '10.0.0.2', '10.0.0.1'         # of the link; the first also is wrk's address
NETWORK = ipaddress.ip_network(u'10.0.0.0/20')
GUESTS = 2400           # addresses that have an instance
_FIRST = int(NETWORK.network_address) + 16
_LISTENS = '0A'         # in /proc/net/tcp
RULES = os.path.join(ROOT, 'roles', 'router_proxy', 'templates', 'proxy.rules.j2')

_AS_ONLY = """
mkdir -p /run/node
mount -t tmpfs node /run/node
for name in $1; do
    : >/run/node/$name
    mount --bind /run/netns/$name /run/node/$name
done
mount --rbind /run/node /run/netns
shift
exec "$@"
"""


def guest_address(number):
    """Address of a guest, 0 to GUESTS - 1."""
    return str(ipaddress.ip_address(_FIRST + number))


class EmptyRouter(object):
    """A router without guests, for what grows with their number."""

    def __init__(self):
        self.id, self.network = str(uuid.uuid4()), str(uuid.uuid4())
        self.netns = 'qrouter-' + self.id
        self._make(self.netns)

    def is_served(self):
        """Whether somebody listens on port 9697."""
        with isolation.inside(self.netns), contextlib.ExitStack() as files:
            tables = [files.enter_context(open('/proc/thread-self/net/' + name)) for name in ('tcp', 'tcp6')]
            rows = [line.split() for table in tables for line in table]
        return any(row[3] == _LISTENS and row[1].endswith(':%04X' % PORT) for row in rows)

    @staticmethod
    def _make(netns):
        ip('netns', 'add', netns)
        ip('-n', netns, 'link', 'set', 'lo', 'up')


class Router(EmptyRouter):
    """A router with guests; the rules lead them to port 9697."""

    def __init__(self):
        super().__init__()
        self.guests = 'guests-' + self.id
        self._make(self.guests)
        interface = 'qr-' + self.id[:11]
        ip('-n', self.netns, 'link', 'add', interface, 'type', 'veth', 'peer', 'name', 'eth0',
           'netns', self.guests)
        for netns, name, own, other in ((self.netns, interface, GATEWAY, GUEST),
                                        (self.guests, 'eth0', GUEST, GATEWAY)):
            ip('-n', netns, 'address', 'add', own, 'peer', other, 'dev', name)
            ip('-n', netns, 'link', 'set', name, 'up')
        ip('-n', self.netns, 'route', 'add', str(NETWORK), 'via', GUEST)
        ip('-n', self.guests, 'route', 'add', 'local', str(NETWORK), 'dev', 'lo')
        ip('-n', self.guests, 'route', 'add', 'default', 'via', GATEWAY)
        with isolation.inside(self.guests):
            have_many_connections()
        self.rules = rules_of(self.id)
        processes.run(within(self.netns, ['iptables-restore']), self.rules)


def rules_of(router_id):
    """What the role has iptables-restore read for a router."""
    with open(RULES) as template:
        text = template.read()
    for name, value in (('id', router_id), ('interface', 'qr-+'), ('port', str(PORT))):
        text = text.replace('{{ router_proxy_%s }}' % name, value)
    if '{{' in text:
        raise processes.BenchError('%s has variables that are not known here' % RULES)
    return text


def have_many_connections():
    """Let one address open a connection per request, many thousand in a second."""
    for name, value in (('ip_local_port_range', '1024 65535'), ('tcp_tw_reuse', '1')):
        with open('/proc/sys/net/ipv4/' + name, 'w') as setting:
            setting.write(value)


def ip(*words):
    """Run `ip`."""
    return processes.run(('ip',) + words)


def within(netns, argv):
    """A command line that runs argv in a named namespace, or where the run is."""
    return ['ip', 'netns', 'exec', netns] + argv if netns else argv


def as_only(routers, argv):
    """A command line that runs argv on a node that has these routers and no others."""
    return ['unshare', '--mount', 'sh', '-ec', _AS_ONLY, 'sh', ' '.join(one.netns for one in routers)] + argv
