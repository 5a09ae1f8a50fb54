"""Ansible filter: what was found out about every router's path, put together for the report.

Rules kept:

- A hop is `ok`, `broken`, `degraded` or `unknown`, and unknown is what lies behind a broken one: nobody
  came as far as that.
- What a guest got counts more than what the probe got: one that was answered proves every hop of its way.
- Trouble comes first, and every trouble says what to do.
"""
from __future__ import absolute_import, division, print_function

from ansible.errors import AnsibleFilterError

HOPS = ('guest', 'namespace', 'rule', 'proxy', 'agent', 'lookup', 'nova')
# What `mdproxy probe` and verify_guests call these, and what only verify_guests can find.
_NAMES = {'listener': 'proxy', 'port': 'lookup', 'data': 'nova'}
_OUTCOMES = ('down', 'degraded', 'well', 'idle')
_UNREACHED = 'could not be asked; the run says why'


def verify_report(hosts, remedies, settings):
    """All that was found, as the report's JSON has it.

    hosts: each with name, groups, reached (bool), `host` (of tasks/hosts.yml) and `node` (of
    tasks/routers.yml: probed, entries of `mdproxy probe --json`; guests, rows of verify_guests; trouble),
    or {} for either. remedies: {hop: text with {router} and {host}}, hops as both call them.
    Gives settings and hosts, routers (how many by outcome), causes (by hop: of how
    many routers, in all and by host, and one's detail) and paths, those in trouble first: host,
    router_id, outcome (down, degraded, well, idle), troubles (hop, detail, remedy; each once), note, hops
    (name, state, milliseconds or None) and guests. Raises AnsibleFilterError for what is no hop.
    """
    paths = [path for host in hosts if host['node'] for path in _paths(host['name'], host['node'], remedies)]
    paths.sort(key=lambda path: (_OUTCOMES.index(path['outcome']), path['host'], path['router_id']))
    counts = dict((outcome, sum(path['outcome'] == outcome for path in paths)) for outcome in _OUTCOMES)
    return dict(settings, hosts=[_host(host) for host in hosts], paths=paths, routers=counts,
                causes=_causes(paths))


def _causes(paths):
    """At a glance: one entry for each hop that is in trouble anywhere, in their order."""
    causes = []
    for hop in HOPS:
        hosts, details = {}, []
        for path in paths:
            said = [trouble['detail'] for trouble in path['troubles'] if _name(trouble['hop']) == hop]
            if said:
                hosts[path['host']] = hosts.get(path['host'], 0) + 1
                details += said
        if details:
            causes.append(dict(hop=hop, routers=sum(hosts.values()), hosts=hosts, detail=details[0]))
    return causes


def _host(host):
    """A row of the report's table of hosts."""
    blank = dict.fromkeys(('python', 'service_manager', 'release', 'tree'), '')
    trouble = host['node'].get('trouble', '') if host['reached'] else _UNREACHED
    return dict(blank, **dict(host['host'], name=host['name'], groups=host['groups'], trouble=trouble))


def _paths(host, node, remedies):
    """The paths of one node's routers."""
    probed = dict((entry['router'], entry) for entry in node['probed'])
    guests = {}
    for guest in node['guests']:
        guests.setdefault(guest['router_id'], []).append(guest)
    for router_id in set(probed) | set(guests):
        path = dict(_path(probed.get(router_id), guests.get(router_id, [])), host=host, router_id=router_id)
        for trouble in path['troubles']:
            trouble['remedy'] = remedies[trouble['hop']].format(router=router_id, host=host)
        yield path


def _path(probed, guests):
    """One router's: outcome, troubles, hops, guests. probed: None where nobody probed."""
    failing = [guest for guest in guests if guest['hop']]
    troubles, states = [], dict.fromkeys(HOPS, 'unknown')
    times = dict.fromkeys(HOPS)
    outcome = 'well'
    if probed:
        outcome = probed['outcome']
        times.update((_name(hop), spent) for hop, spent in probed['hops'].items())
        # An idle router's namespace was seen, and nothing else.
        states.update((hop, 'ok') for hop in ['namespace'] + [_name(hop) for hop in probed['hops']])
        if probed['hop']:
            troubles.append(dict(hop=probed['hop'], detail=probed['detail']))
            states.update(_seen(_name(probed['hop']), 'degraded' if outcome == 'degraded' else 'broken'))
    if len(failing) < len(guests):
        states.update((hop, 'ok') for hop in HOPS if states[hop] == 'unknown')
    for guest in failing:
        if outcome != 'down':
            outcome = 'degraded' if len(failing) < len(guests) else 'down'
        if _name(guest['hop']) not in [_name(trouble['hop']) for trouble in troubles]:
            troubles.append(dict(hop=guest['hop'], detail='guest %s: %s' % (guest['name'], guest['detail'])))
        seen = _seen(_name(guest['hop']), 'broken')
        if 'agent' in seen:         # it came as far as the proxy
            seen['guest'] = 'ok'
        states.update((hop, state) for hop, state in seen.items() if states[hop] in ('unknown', 'ok'))
    return dict(outcome=outcome, troubles=troubles, guests=guests,
                note='' if not probed or probed['hop'] else probed['detail'],
                hops=[dict(name=hop, state=states[hop], milliseconds=times[hop]) for hop in HOPS])


def _seen(broken, state):
    """What is known of the hops when one is broken: those before it are ok, but of the guest nobody knows."""
    before = HOPS[1:HOPS.index(broken)]
    return dict([(hop, 'ok') for hop in before] + [(broken, state)])


def _name(hop):
    """The report's name of it."""
    name = _NAMES.get(hop, hop)
    if name not in HOPS:
        raise AnsibleFilterError('%s is no hop; expected one of %s'
                                 % (hop, ', '.join(sorted(HOPS + tuple(_NAMES)))))
    return name


class FilterModule(object):
    """Ansible's entry."""

    def filters(self):
        return dict(verify_report=verify_report)
