#!/usr/bin/python
"""Ansible module: ask for metadata as guests do, and when that fails find the hop that broke."""
from __future__ import absolute_import, division, print_function

DOCUMENTATION = r"""
module: verify_guests
short_description: Ask for metadata from inside guests' namespaces
description:
  - Asks as each guest for its metadata and compares it with what the cloud says of its address.
  - When something is wrong, looks at every hop from the guest on and names the first that is broken,
    which is one of C(guest), C(rule), C(proxy), C(agent), C(port), C(nova) or C(data).
  - Changes nothing and never fails for a guest's sake; the caller judges C(guests).
options:
  guests:
    description:
      - Each with C(router_id) and C(guest) (C(name), C(fixed_ip), C(ec2_id), C(user_data_base64)).
      - C(resolved) is what C(mdproxy resolve --json) says of the guest's address where the agent runs.
    type: list
    elements: dict
    required: true
  port:
    description: Port of the proxies.
    type: int
    default: 9697
  timeout:
    description: Seconds that one request may take.
    type: int
    default: 10
  agents:
    description: >-
      The agents that the proxies take turns to ask, each a unix socket's path or HOST:PORT; none when
      the proxies are their own.
    type: list
    elements: str
    required: true
author: mdproxy maintainers
"""

RETURN = r"""
guests:
  description: For each guest C(name), C(router_id), C(fixed_ip), C(instance_id), C(ec2_id),
    C(milliseconds), C(hop) (empty when all is well) and C(detail).
  returned: always
  type: list
"""

import base64
import json
import os
import socket
import time

from ansible.module_utils import namespace_child
from ansible.module_utils.basic import AnsibleModule

try:
    from http.client import HTTPConnection
except ImportError:
    from httplib import HTTPConnection

_ADDRESS = '169.254.169.254'
_PATHS = ('/latest/meta-data/instance-id', '/latest/meta-data/local-ipv4', '/latest/user-data',
          '/openstack/latest/meta_data.json')
# What a status means when every hop before nova is well.
_NOVA = {
    400: 'missed a header; does it run with the metadata proxy options?',
    403: 'refused the signature; the shared secrets of agent and nova differ',
    404: 'knows no such instance of that tenant, or does not run with the metadata proxy options',
    502: 'cannot be reached from the agent',
    504: 'did not answer in time',
}
# How the agent itself refuses a proxy (mdproxy.agent); nova's 403 is passed on with nova's words.
_AGENT_REFUSES = b'bad identity headers'


class Broken(Exception):
    """A hop that is broken, and how that shows."""

    def __init__(self, hop, detail):
        Exception.__init__(self, hop, detail)
        self.hop, self.detail = hop, detail


def in_namespace(name, function):
    """What namespace_child.run gives of a function in the named namespace."""
    def inside():
        namespace_child.enter(name)
        return function()
    return namespace_child.run(inside)


def ask(timeout):
    """The guest's requests over one connection: {path: [status, body in base64]} and the first's time; or
    why it is `unconnected`."""
    connection = HTTPConnection(_ADDRESS, 80, timeout=timeout)
    answers, began, first = {}, time.time(), None
    try:
        connection.connect()
    except (EnvironmentError, socket.error) as error:
        return dict(unconnected=str(error))
    for path in _PATHS:
        connection.request('GET', path)
        response = connection.getresponse()
        answers[path] = [response.status, base64.b64encode(response.read()).decode()]
        if first is None:
            first = int((time.time() - began) * 1000 + 0.5)
    return dict(answers=answers, milliseconds=first)


def connected(agent, timeout):
    """A socket connected to an agent: a unix socket's path, HOST:PORT or [IPV6]:PORT."""
    if not agent.startswith('/'):
        host, _, port = agent.rpartition(':')
        return socket.create_connection((host.strip('[]'), int(port)), timeout)
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.settimeout(timeout)
    try:
        probe.connect(agent)
    except (OSError, socket.error):
        probe.close()
        raise
    return probe


class Verifier(object):
    """Looks at the hops of one guest's path, in their order."""

    def __init__(self, module, entry):
        self.module, self.router_id, self.guest = module, entry['router_id'], entry['guest']
        self.router = 'qrouter-' + self.router_id
        self.resolved = entry['resolved']
        self.row = dict(name=self.guest['name'], router_id=self.router_id, hop='', detail='',
                        fixed_ip=self.guest['fixed_ip'], instance_id='', ec2_id='', milliseconds=0)

    def run(self):
        try:
            self.compare(self.ask(), self.resolve())
        except Broken as broken:
            self.row.update(hop=broken.hop, detail=broken.detail)
        return self.row

    def ask(self):
        """What the guest is answered; when that is not metadata, the hop that broke."""
        result = in_namespace('guest-' + self.guest['name'],
                              lambda: ask(self.module.params['timeout']))
        if 'error' in result:
            self.find_broken_hop('the guest is told nothing: ' + result['error'])
        unconnected = result['value'].get('unconnected')
        if unconnected:
            self.find_broken_hop('the guest cannot connect: ' + unconnected, connects=False)
        self.row['milliseconds'] = result['value']['milliseconds']
        answers = result['value']['answers']
        status, body = answers[_PATHS[0]]
        if status == 403 and _AGENT_REFUSES in base64.b64decode(body):
            raise Broken('agent', 'refused the proxy: between the two mdproxy_link_secret or the clocks '
                         'differ, the agent\'s log says which; the guest is told 403')
        if status != 200:
            self.find_broken_hop('the guest is told %d' % status, _NOVA.get(status, 'failed'))
        return answers

    def find_broken_hop(self, symptom, nova='refused or did not answer', connects=True):
        """Raise Broken for the first hop that is, or for nova when all before it are well.

        nova: what it means when it is nova. connects: whether the guest has come as far as the proxy.
        """
        for name in ('guest-' + self.guest['name'], self.router):
            if not os.path.exists('/var/run/netns/' + name):
                raise Broken('guest', 'there is no namespace %s' % name)
        redirected = 'REDIRECT --to-ports %d' % self.module.params['port'] in self.rules()
        listening = self.listening()
        if not redirected and not listening:
            raise Broken('proxy', 'neither rule nor listener in %s; does mdproxy-proxy-%s run, or '
                         'mdproxy-proxies, or the l3 agent\'s proxy? %s'
                         % (self.router, self.router_id, symptom))
        if not redirected:
            raise Broken('rule', 'no redirect rule in %s; %s' % (self.router, symptom))
        if not listening:
            raise Broken('proxy', 'nobody listens on port %d in %s; %s'
                         % (self.module.params['port'], self.router, symptom))
        if not connects:
            raise Broken('guest', 'rule and listener are in %s, but the guest does not get there: its link, '
                         'its route to the gateway or ARP entry of it, or a packet filter; %s'
                         % (self.router, symptom))
        self.connect_to_an_agent(symptom)
        self.resolve()
        raise Broken('nova', '%s; %s' % (nova, symptom))

    def rules(self):
        return self.module.run_command(['ip', 'netns', 'exec', self.router, 'iptables-save',
                                        '-t', 'nat'])[1]

    def listening(self):
        def table():
            with open('/proc/self/net/tcp') as four, open('/proc/self/net/tcp6') as six:
                return four.read() + six.read()
        rows = [line.split() for line in in_namespace(self.router, table).get('value', '').splitlines()]
        return any(len(row) > 3 and row[3] == '0A'
                   and row[1].endswith(':%04X' % self.module.params['port']) for row in rows)

    def connect_to_an_agent(self, symptom):
        """Raise Broken when every agent that the proxies can ask is gone."""
        failures = []
        for agent in self.module.params['agents']:
            try:
                connected(agent, self.module.params['timeout']).close()
                return
            except (OSError, socket.error) as error:
                failures.append('%s: %s' % (agent, error.strerror or error))
        if failures:
            raise Broken('agent', '; '.join(failures + [symptom]))

    def resolve(self):
        """The instance that the cloud's API names for the guest's address."""
        try:
            found = json.loads(self.resolved)
        except ValueError:
            raise Broken('port', self.resolved.strip() or 'mdproxy resolve said nothing')
        if found['outcome'] != 'found':
            said = {'error': 'the port API fails: %s'}.get(found['outcome'], 'no port found: %s')
            raise Broken('port', said % found['reason'])
        return found['instance']

    def compare(self, answers, instance):
        """The answers must be those of the instance that the cloud says the guest is."""
        if answers[_PATHS[2]][0] == 404 and not self.guest.get('user_data_base64'):
            answers[_PATHS[2]] = [200, '']      # nova's way to say that there is none
        for path in _PATHS:
            if answers[path][0] != 200:
                raise Broken('nova', '%s is answered %d' % (path, answers[path][0]))
        texts = dict((path, base64.b64decode(answers[path][1])) for path in _PATHS)
        self.row['ec2_id'] = texts[_PATHS[0]].decode('utf-8', 'replace')
        try:
            self.row['instance_id'] = json.loads(texts[_PATHS[3]].decode())['uuid']
        except (ValueError, KeyError):
            raise Broken('data', '%s is no metadata' % _PATHS[3])
        expected = [('instance', self.row['instance_id'], instance),
                    ('local-ipv4', texts[_PATHS[1]].decode('utf-8', 'replace'), self.guest['fixed_ip'])]
        if 'ec2_id' in self.guest:
            expected.append(('instance-id', self.row['ec2_id'], self.guest['ec2_id']))
        for name, got, wanted in expected:
            if got != wanted:
                raise Broken('data', '%s is %s, expected %s' % (name, got, wanted))
        if self.guest.get('user_data_base64', answers[_PATHS[2]][1]) != answers[_PATHS[2]][1]:
            raise Broken('data', 'user data is not this instance\'s')


def main():
    module = AnsibleModule(supports_check_mode=True, argument_spec=dict(
        guests=dict(type='list', elements='dict', required=True),
        port=dict(type='int', default=9697), timeout=dict(type='int', default=10),
        agents=dict(type='list', elements='str', required=True)))
    rows = [Verifier(module, entry).run() for entry in module.params['guests']]
    module.exit_json(changed=False, guests=rows)


if __name__ == '__main__':
    main()
