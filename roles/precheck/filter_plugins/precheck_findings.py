"""Ansible filter: what of a host would stop a rollout, or will be changed by it.

Rules kept:

- `stop` is what no run can mend; `warn` is what a run mends, or what is odd and stops nobody.
- Each finding says what to do.
"""
from __future__ import absolute_import, division, print_function

import hashlib
import hmac

_FREE, _FILES = 50 << 20, 500        # bytes and inodes for a release and what it was made of; twice and more
_PACKAGES = {'ip': 'iproute2 (iproute on old hosts)', 'iptables-save': 'iptables',
             'iptables-restore': 'iptables'}


def precheck_findings(host, wanted):
    """Findings of a host: dicts of check, level and text.

    host: what precheck_host told. wanted: window (seconds that clocks may differ, 0 where nobody minds),
    digest (of the secret that the inventory has), others ({host: digest}), routers (ids that the node should
    serve, none for all that it has), probed (entries of `mdproxy probe`).
    """
    return [dict(check=check, level=level, text=text) for check, level, text in
            list(_tools(host)) + list(_space(host)) + list(_clock(host, wanted))
            + list(_secrets(host, wanted)) + list(_routers(host, wanted)) + list(_served(wanted))]


def _tools(host):
    for name in host['missing']:
        yield 'commands', 'stop', 'there is no %s; install %s' % (name, _PACKAGES.get(name, name))
    if host['namespaces']:
        yield 'namespaces', 'stop', ('no network namespace can be made: %s; the kernel, or the container '
                                     'that this is, does not let root' % host['namespaces'])


def _space(host):
    for folder in host['folders']:
        if folder['error']:
            yield 'disk', 'stop', '%(path)s: %(error)s; mount it for writing' % folder
        elif folder['free'] < _FREE or 0 <= folder['files'] < _FILES:
            files = 'any number of' if folder['files'] < 0 else folder['files']
            yield 'disk', 'stop', ('%s: %d MB and %s files are free, expected %d MB and %d; make room'
                                   % (folder['path'], folder['free'] >> 20, files, _FREE >> 20, _FILES))


def _clock(host, wanted):
    apart, window = host['ahead'], float(wanted['window'])
    if window and abs(apart) > window / 2:
        yield 'clock', 'stop', ('%.0f s %s the controller\'s clock; proxies and agents of other hosts '
                                'refuse each other beyond %g s: correct it, run NTP'
                                % (abs(apart), 'ahead of' if apart > 0 else 'behind', window))
    elif abs(apart) > 30:
        yield 'clock', 'warn', ('%.0f s %s the controller\'s clock; run NTP'
                                % (abs(apart), 'ahead of' if apart > 0 else 'behind'))


def _secrets(host, wanted):
    for name, digest in sorted(wanted['others'].items()):
        if digest and wanted['digest'] and digest != wanted['digest']:
            yield 'secret', 'stop', (
                'metadata_shared_secret is another one here (digest %s) than for %s (%s); set it once, for '
                'all groups' % (wanted['digest'], name, digest))
            break
    for found in host['secrets']:
        if wanted['digest'] and found['digest'] != wanted['digest']:
            yield 'secret', 'warn', (
                '%s has another metadata_shared_secret (digest %s) than the inventory (%s), so that guests '
                'may be told 403; a run of site.yml on all hosts puts the inventory\'s everywhere'
                % (found['path'], found['digest'], wanted['digest']))


def _routers(host, wanted):
    there = dict((router['router_id'], router) for router in host['routers'])
    for router_id in sorted(set(wanted['routers']) - set(there)):
        yield 'router', 'warn', ('%s is to be served and has no namespace; its job will wait for it: is '
                                 'the l3 agent running?' % router_id)
    for router_id, router in sorted(there.items()):
        if wanted['routers'] and router_id not in wanted['routers']:
            continue
        if router['error']:
            yield 'router', 'stop', ('qrouter-%s cannot be entered: %s; `ip netns delete` removes what is '
                                     'left of one' % (router_id, router['error']))
        elif router['taken']:
            yield 'router', 'stop', (
                'qrouter-%s: the proxy\'s port is taken by `%s`; end that, and where it is an l3 agent\'s '
                'proxy tell that agent enable_metadata_proxy = False'
                % (router_id, '`, `'.join(router['taken'])))
        elif not router['interfaces']:
            yield 'router', 'warn', 'qrouter-%s has no internal interface (qr-*), so no guests' % router_id


def _served(wanted):
    """What is broken before anything is changed; a run may mend it, and nobody should blame it for that."""
    for entry in wanted['probed']:
        concerns = not wanted['routers'] or entry['router'] in wanted['routers']
        if concerns and entry['outcome'] in ('down', 'degraded'):
            yield 'served', 'warn', ('router %(router)s is %(outcome)s already: %(hop)s: %(detail)s; '
                                     'playbooks/verify.yml says what repairs it' % entry)


def precheck_digest(secret):
    """What tells two secrets apart and neither to anybody; precheck_host makes it in the same way."""
    if not secret:
        return ''
    return hmac.new(secret.encode('utf-8'), b'mdproxy precheck', hashlib.sha256).hexdigest()[:12]


class FilterModule(object):
    """Ansible's entry."""

    def filters(self):
        return dict(precheck_findings=precheck_findings, precheck_digest=precheck_digest)
