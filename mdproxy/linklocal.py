"""fe80::a9fe:a9fe, the metadata address of IPv6, on a router's internal interfaces.

A guest asks who has it before it sends anything, so the router must have it as an address of its own,
on each interface. No duplicate is looked for (nodad): every router of every tenant has it.
"""
from __future__ import unicode_literals

import logging
import subprocess

from . import namespaces, rules

ADDRESS = 'fe80::a9fe:a9fe'
_HEX = 'fe8000000000000000000000a9fea9fe'       # as /proc/net/if_inet6 writes it

_log = logging.getLogger('mdproxy.linklocal')


def wanted_rules(port):
    """[rules.Rules that lead guests of IPv6 to a port], or none, which is said, where that cannot be."""
    if available():
        return [rules.Rules(rules.for_guests6(port=port), 'the rules for guests of IPv6', rules.IPV6)]
    _log.error('ipv6: guests of IPv6 are not served: no nat table for them in this kernel or ip6tables')
    return []


def available():
    """Whether this kernel and this iptables can lead guests of IPv6 to a port."""
    try:
        return subprocess.call(['unshare', '--net', 'ip6tables-save', '-t', 'nat'],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, close_fds=True) == 0
    except OSError:
        return False


def add(netns):
    """Give the address to the internal interfaces that lack it; True when there was one."""
    return _change(netns, 'add', lambda has: not has, ('nodad',))


def remove(netns):
    """Take the address away, and the rules that go with it; True when an interface had it."""
    had = _change(netns, 'delete', lambda has: has)
    if had:
        rules.remove(netns, rules.IPV6)
    return had


def _change(netns, verb, wanted, more=()):
    if namespaces.inode(netns) is None:
        return False
    try:
        with namespaces.inside(netns):
            internal = [name for name, has in _interfaces() if wanted(has)]
            for name in internal:
                _ip(netns, '-6', 'address', verb, ADDRESS + '/64', 'dev', name, *more)
    except namespaces.NamespaceError as error:
        raise rules.RulesError(str(error))
    return bool(internal)


def _interfaces():
    """(name, whether it has the address) of the internal interfaces of the namespace that this is in."""
    names = namespaces.internal_interfaces()
    try:
        with open('/proc/self/net/if_inet6') as table:
            rows = [line.split() for line in table]
        having = set(row[5] for row in rows if row[0] == _HEX)
    except IOError:                 # a kernel without IPv6
        having = ()
    return [(name, name in having) for name in names]


def _ip(netns, *words):
    try:
        namespaces.run_ip(*words)
    except namespaces.NamespaceError as error:
        raise rules.RulesError('namespace %s: %s' % (netns, error))
