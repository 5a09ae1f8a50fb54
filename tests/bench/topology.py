"""One router with its guests, as namespaces: guests -> veth -> router with the role's rules.

Every subject has a router of its own, and all have the same addresses. A guest is a source address:
the guests' namespace owns the whole network, so a thousand of them need nothing to be made. They are
behind one address of the link, so that the neighbour table of the kernel, which has room for 1024,
is not what is measured.
"""
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
_RULES = os.path.join(ROOT, 'roles', 'router_proxy', 'templates', 'proxy.rules.j2')


def guest_address(number):
    """Address of a guest, 0 to GUESTS - 1."""
    return str(ipaddress.ip_address(_FIRST + number))


class Router(object):
    """A router that is there from the start; the rules lead its guests to port 9697."""

    def __init__(self):
        self.id, self.network = str(uuid.uuid4()), str(uuid.uuid4())
        self.netns, self.guests = 'qrouter-' + self.id, 'guests-' + self.id
        interface = 'qr-' + self.id[:11]
        for netns in (self.netns, self.guests):
            ip('netns', 'add', netns)
            ip('-n', netns, 'link', 'set', 'lo', 'up')
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
        processes.run(within(self.netns, ['iptables-restore']), self._rules())

    def _rules(self):
        with open(_RULES) as template:
            text = template.read()
        for name, value in (('id', self.id), ('interface', 'qr-+'), ('port', str(PORT))):
            text = text.replace('{{ router_proxy_%s }}' % name, value)
        if '{{' in text:
            raise processes.BenchError('%s has variables that are not known here' % _RULES)
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
