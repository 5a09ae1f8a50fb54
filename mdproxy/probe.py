"""`mdproxy probe`: the way of a guest's request, gone from behind each router.

Rules kept:

- The probe is a guest for a moment: a network namespace without a name, at the far end of a pair of
  interfaces whose near end is `qr-probePID` in the router's. So rules and packet filter treat it as they
  treat guests. When its process ends, however that happens, the kernel removes namespace and pair.
- It asks from an address that no port has (trace.PROBE). So 404 means that proxy, agent and port API are
  alive; what lies behind the agent is asked on the status socket of the process that has it in it.
- Guests count: a router without an internal interface has none, and is idle, not down.
"""
from __future__ import unicode_literals

import errno
import json
import os
import re
import signal
import socket
import subprocess
import time

from . import discovery, eventloop, metrics, namespaces, overview, trace, trust
from .http1 import BODY, END, HEAD, ProtocolError, ResponseReader, format_request

WELL, IDLE, DEGRADED, DOWN = 'well', 'idle', 'degraded', 'down'
HOPS = ('rule', 'listener', 'agent', 'lookup', 'nova')
PATIENCE = 5.0                      # seconds for an answer; the least patient guest has no more
_TOGETHER = 8                       # routers that are probed at a time
_ATTEMPTS = (0.3, 1.0, PATIENCE)    # seconds for a connection; the first may be lost while links come up
_LONGEST = 15                       # seconds for one router
_METADATA = '169.254.169.254'
_GATEWAY = '192.0.0.7'              # the router's address for the probe, beside trace.PROBE
_RULE = re.compile(r'^-A .*-d 169\.254\.169\.254/32 .*--dport 80 .*-j REDIRECT --to-ports (\d+)',
                   re.MULTILINE)
_WHY = {403: 'agent', 502: 'agent', 504: 'agent'}      # the hop that a status tells of
_REFUSALS = {403: '%d, it does not believe the agent: its shared secret is another one'}
_WORST = (WELL, IDLE, DEGRADED, DOWN)


class _NotThere(Exception):
    """A hop that is broken, and how that shows."""

    def __init__(self, hop, detail):
        super(_NotThere, self).__init__(hop, detail)
        self.hop, self.detail = hop, detail


def ruled(folder):
    """Ids of the routers that have rules in this folder, which is where jobs of routers have them.

    Raises NamespaceError when it cannot be read, which does not mean that there are none.
    """
    try:
        names = [os.path.splitext(name) for name in os.listdir(folder)]
    except OSError as error:
        raise namespaces.NamespaceError('%s: %s' % (folder, error.strerror))
    return [id for id, kind in names if kind == '.rules' and trust.is_uuid(id)]


def collect(routers, folder):
    """What was found behind each router, a list of dicts sorted by id; routers None: all of this host's.

    router, outcome (WELL, IDLE, DEGRADED or DOWN), hop and detail (the first that is broken, and how), and
    hops: {name: milliseconds} of those that are well, as HOPS. folder: where the status sockets are.
    """
    if routers is None:
        routers = [identity.id for identity in discovery.find(False).values()]
    routers, entries = sorted(set(routers)), []
    for first in range(0, len(routers), _TOGETHER):
        begun = [_Probe(router) for router in routers[first:first + _TOGETHER]]
        entries += [probe.entry(folder) for probe in begun]
    return entries


def exit_status(entries):
    """0 every router is well or idle, 1 some are not, 2 none is served that has guests."""
    outcomes = [entry['outcome'] for entry in entries if entry['outcome'] != IDLE]
    if outcomes and all(outcome == DOWN for outcome in outcomes):
        return 2
    return int(any(outcome != WELL for outcome in outcomes))


def table(entries):
    """The entries for a person, those with trouble first."""
    entries = sorted(entries, key=lambda entry: -_WORST.index(entry['outcome']))
    rows = [['ROUTER'] + [hop.upper() for hop in HOPS] + ['OUTCOME']]
    for entry in entries:
        hops = [_shown(entry, hop) for hop in HOPS]
        said = ': '.join(part for part in (entry['outcome'], entry['hop'], entry['detail']) if part)
        rows.append([entry['router']] + hops + [said])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ''.join('  '.join(cell.ljust(width) if number in (0, len(row) - 1) else cell.rjust(width)
                             for number, (cell, width) in enumerate(zip(row, widths))).rstrip() + '\n'
                   for row in rows)


def prometheus(entries):
    """The entries as an exposition, native str."""
    served = [entry for entry in entries if entry['outcome'] != IDLE]

    def those(outcome):
        return lambda: dict((entry['router'], int(entry['outcome'] == outcome)) for entry in served)

    def seconds():
        return dict(((entry['router'], hop), milliseconds / 1000.0) for entry in served
                    for hop, milliseconds in entry['hops'].items() if milliseconds is not None)

    def broken():
        return dict(((entry['router'], entry['hop']), 1) for entry in served if entry['hop'])
    told = metrics.Registry({})
    told.read('gauge', 'mdproxy_probe_down', 'Whether guests of the router are not served.', those(DOWN),
              'router')
    told.read('gauge', 'mdproxy_probe_degraded', 'Whether something is broken that others stand in for.',
              those(DEGRADED), 'router')
    told.read('gauge', 'mdproxy_probe_broken', 'The first hop that is broken; the value is always 1.', broken,
              ('router', 'hop'))
    told.read('gauge', 'mdproxy_probe_seconds', 'Time of each hop that is well.', seconds, ('router', 'hop'))
    told.read('gauge', 'mdproxy_probe_time_seconds', 'When this was found out, Unix time.', time.time)
    return told.prometheus()


def _shown(entry, hop):
    if hop in entry['hops']:
        milliseconds = entry['hops'][hop]
        return 'ok' if milliseconds is None else '%.1f ms' % milliseconds
    return 'broken' if hop == entry['hop'] else '-'


class _Probe(object):
    """The probe of one router, which begins when it is made."""

    def __init__(self, router):
        self._router, self._netns = router, namespaces.PREFIXES['router'] + router
        self._guest, self._error = None, ''
        try:
            if _has_guests(self._netns):
                self._guest = _Guest(self._netns)
        except namespaces.NamespaceError as error:
            self._error = '%s' % error

    def entry(self, folder):
        """What was found, as of `collect`."""
        entry = {'router': self._router, 'outcome': WELL, 'hop': '', 'detail': '', 'hops': {}}
        try:
            if self._error:
                raise _NotThere('namespace', self._error)
            if self._guest is None:
                entry.update(outcome=IDLE, detail='no internal interface')
            else:
                _judge(entry, self._guest.answer(), self._netns)
                _look_behind(entry, self._router, folder)
        except namespaces.NamespaceError as error:
            entry.update(outcome=DOWN, hop='namespace', detail='%s' % error)
        except _NotThere as broken:
            entry.update(outcome=DOWN, hop=broken.hop, detail=broken.detail)
        return entry


def _has_guests(netns):
    with namespaces.inside(netns):
        return any(not name.startswith(_Guest.PREFIX) for name in namespaces.internal_interfaces())


def _judge(entry, answer, netns):
    """The hops as far as the guest's own answer tells of them. Raises _NotThere."""
    if 'connected' not in answer:
        port = _redirected(netns)
        if port is None and not _is_listening(netns):
            raise _NotThere('listener', 'neither rule nor listener; does what serves the router run?')
        if port is None:
            raise _NotThere('rule', 'nothing leads guests to a proxy')
        if not _is_listening(netns, port):
            raise _NotThere('listener', 'nobody listens on port %d' % port)
        raise _NotThere('rule', 'port %d does not take what is led there: %s' % (port, _error(answer)))
    entry['hops'].update(rule=None, listener=answer['connected'])
    if 'status' not in answer:
        raise _NotThere('listener', _error(answer))
    status, said = answer['status'], '%d %s' % (answer['status'], answer['text'])
    if status == 503 and 'port API' in said:
        raise _NotThere('lookup', said)
    if status not in (200, 404):
        raise _NotThere(_WHY.get(status, 'listener'), said.strip())
    entry['hops']['agent'] = answer['answered']


def _error(answer):
    return answer.get('error', 'the probe came to nothing')


def _look_behind(entry, router, folder):
    """What the process that has the agent in it finds. Raises _NotThere."""
    found, error = _traced(router, folder)
    if error:
        # Not the agent: it has just answered. Nor the port API, which it has asked for that.
        raise _NotThere('nova', error)
    if not found:
        entry['detail'] = 'the agent is on another host, which knows of lookup and nova'
        return
    lookup, nova = found['lookup'], found['nova']
    if lookup['outcome'] == 'error':
        raise _NotThere('lookup', lookup['detail'])
    entry['hops']['lookup'] = lookup['milliseconds']
    if nova['status'] not in (200, 404):
        refusal = _REFUSALS.get(nova['status'], 'it answers %d') % nova['status']
        raise _NotThere('nova', nova['detail'] or refusal)
    entry['hops']['nova'] = nova['milliseconds']
    ill = ['%s: %s' % (one['name'], one['last_error']) for one in found['endpoints'] if not one['up']]
    if ill:
        entry.update(outcome=DEGRADED, hop='nova', detail='; '.join(ill))


def _traced(router, folder):
    """(what /path says, '') of the first process that knows, ({}, why not), or ({}, '') where none has the
    agent in it."""
    for name in ('agent', 'router-' + router, 'worker-0'):
        path = os.path.join(folder, name + '.sock')
        if os.path.exists(path):
            text, error = overview.page(path, b'/path?router=' + router.encode('ascii'), PATIENCE)
            if not error:
                return json.loads(text), ''
            if 'status 404' not in error:       # which is a proxy with agents elsewhere
                return {}, error
    return {}, ''


def _redirected(netns):
    """The port that guests of the router are led to, or None. Raises NamespaceError."""
    try:
        with namespaces.inside(netns):
            process = subprocess.Popen(['iptables-save', '-t', 'nat'], stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, close_fds=True)
        found = _RULE.search(process.communicate()[0].decode('utf-8', 'replace'))
    except OSError as error:
        raise namespaces.NamespaceError('iptables-save cannot be run: %s' % error.strerror)
    return int(found.group(1)) if found else None


def _is_listening(netns, port=None):
    """Whether anybody does on that port, or on any."""
    with namespaces.inside(netns):
        with open('/proc/self/net/tcp') as sockets:
            rows = [line.split() for line in sockets]
    return any(row[3] == '0A' and (port is None or row[1].endswith(':%04X' % port)) for row in rows)


class _Guest(object):
    """A process that asks as a guest of the router would, from when it is made."""

    PREFIX = 'qr-probe'

    def __init__(self, netns):
        self._netns = netns
        reading, writing = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.close(reading)
            self._run(writing)
        os.close(writing)
        self._reading = reading

    def answer(self):
        """`connected` and `answered` in milliseconds, `status` and `text`, as far as it came, and `error`.

        Raises NamespaceError where it could not be one.
        """
        with os.fdopen(self._reading) as told:
            text = told.read()
        os.waitpid(self._pid, 0)
        found = json.loads(text) if text else {'namespace': 'the probe ended without a word'}
        if 'namespace' in found:
            raise namespaces.NamespaceError(found['namespace'])
        return found

    def _run(self, writing):
        """In the child, which does not come back from here."""
        found = {}
        signal.alarm(_LONGEST)      # whatever happens
        try:
            self._move_in('%s%d' % (self.PREFIX, os.getpid() % 1000000))
            self._ask(found)
        except namespaces.NamespaceError as error:
            found['namespace'] = '%s' % error
        except (EnvironmentError, socket.error, ProtocolError) as error:
            found['error'] = '%s' % (getattr(error, 'strerror', None) or error)
        finally:
            with os.fdopen(writing, 'w') as out:
                out.write(str(json.dumps(found)))
            os._exit(0)

    def _move_in(self, interface):
        namespaces.enter_new()
        namespaces.run_ip('link', 'add', 'eth0', 'type', 'veth', 'peer', 'name', interface)
        namespaces.run_ip('link', 'set', interface, 'netns', self._netns)
        with namespaces.inside(self._netns):
            namespaces.run_ip('address', 'add', _GATEWAY, 'peer', trace.PROBE, 'dev', interface)
            namespaces.run_ip('link', 'set', interface, 'up')
        namespaces.run_ip('address', 'add', trace.PROBE, 'peer', _GATEWAY, 'dev', 'eth0')
        namespaces.run_ip('link', 'set', 'eth0', 'up')
        namespaces.run_ip('route', 'add', _METADATA, 'via', _GATEWAY)

    def _ask(self, found):
        sock, began = _connection()
        found['connected'] = trace.milliseconds(began)
        began = eventloop.stopwatch()
        sock.settimeout(PATIENCE)
        sock.sendall(format_request(b'GET', b'/', [(b'Host', _METADATA.encode('ascii')),
                                                   (b'Connection', b'close')], b''))
        status, text = _response(sock)
        found.update(answered=trace.milliseconds(began), status=status, text=text)


def _connection():
    """A connection to the metadata address, and when that was begun which came about."""
    for number, seconds in enumerate(_ATTEMPTS, 1):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.settimeout(seconds)
        began = eventloop.stopwatch()
        try:
            sock.connect((str(_METADATA), 80))
            return sock, began
        except socket.timeout:
            sock.close()
            if number == len(_ATTEMPTS):
                raise socket.error(errno.ETIMEDOUT, 'no connection within %g s' % seconds)


def _response(sock):
    """(status, first line of the body) of the answer. Raises ProtocolError, and socket.error."""
    reader, status, body = ResponseReader(), 0, b''
    reader.expect(b'GET')
    while True:
        data = sock.recv(65536)
        for kind, value in (reader.feed(data) if data else reader.eof()):
            if kind is HEAD:
                status = value.status
            elif kind is BODY:
                body += value
            elif kind is END:
                return status, body.decode('utf-8', 'replace').split('\n')[0][:100]
        if not data:
            raise socket.error(errno.ECONNRESET, 'closed without an answer')
