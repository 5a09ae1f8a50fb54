"""Folsom in a box: its services in containers, a cloud made through their APIs, and guests that ask.

NOVA_SOURCE and QUANTUM_SOURCE are clones of nova and neutron, or the URLs of their repositories.
"""
import base64
import contextlib
import functools
import json
import os
import re
import shlex
import subprocess
import sys
import uuid
from collections import namedtuple

import equipment
import requests

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
STATE = os.path.join(ROOT, 'build', 'lab', 'folsom')
INVENTORY = os.path.join(ROOT, 'inventories', 'folsom')
SOURCES = {'nova': os.environ.get('NOVA_SOURCE', ''), 'quantum': os.environ.get('QUANTUM_SOURCE', '')}
SUBNET, GATEWAY_IP, OUTSIDE = '10.0.0.0/24', '10.0.0.1', '203.0.113.0/24'
INSTANCE_ID = '/latest/meta-data/instance-id'
PATIENCE = 45           # seconds for the l3 agent to plug everything anew, and for who serves to follow

Project = namedtuple('Project', 'name tenant_id network_id subnet_id router_id')
Guest = namedtuple('Guest', 'name project fixed_ip port_id uuid ec2_id user_data')
Answer = namedtuple('Answer', 'status body')
NO_ANSWER = Answer(0, b'')
wait_until = functools.partial(equipment.wait_until, deadline=PATIENCE)
# Contents, owners and modes of trees, programs and configuration.
_SNAPSHOT = r"""
cd /usr/lib/python2.7/dist-packages
find nova quantum /usr/bin/quantum-* /usr/bin/nova-* /etc/quantum -type f 2>/dev/null \
    -printf '%p %m %u %g %s\n' -exec sha256sum {} + | sort
"""


def playbook(path, **variables):
    """What ansible-playbook says; AssertionError with it where it fails."""
    done = subprocess.run(
        [os.path.join(os.path.dirname(sys.executable), 'ansible-playbook'), '-i', INVENTORY,
         os.path.join(ROOT, path), '-e', json.dumps(variables)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=dict(os.environ, MDPROXY_LAB='folsom'))
    assert done.returncode == 0, done.stdout
    return done.stdout


def run(host, *words, given=None):
    """Output of a command that root runs on a host; AssertionError where it fails."""
    done = subprocess.run(
        ['ssh', '-F', os.path.join(STATE, 'ssh_config'), host,
         'sudo -- ' + ' '.join(map(shlex.quote, words))],
        input=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


class Cloud:
    """The services of one base, which is its tag. guests: those that are there."""

    def __init__(self, base):
        self.base, self.guests = base, []

    def install(self):
        """Fresh containers with the services of the base, and a network to the outside."""
        self.playbook(os.path.join(HERE, 'install.yml'))
        with open(os.path.join(STATE, 'ssh_config')) as config:
            address = re.search(r'Host api1\s+HostName (\S+)', config.read()).group(1)
        self.quantum = 'http://%s:9696/v2.0/' % address
        self.outside = self.create('network', tenant_id='service', name='outside',
                                   **{'router:external': True})['id']
        self.create('subnet', tenant_id='service', network_id=self.outside, ip_version=4, cidr=OUTSIDE,
                    enable_dhcp=False)

    def playbook(self, path, **variables):
        """As `playbook`, with the base and the sources."""
        sources = dict((name + '_source', source) for name, source in SOURCES.items())
        return playbook(path, folsom_base=self.base, **dict(sources, **variables))

    def call(self, method, path, body=None):
        """What quantum's API answers, as JSON."""
        answer = requests.request(method, self.quantum + path, json=body, timeout=30)
        assert answer.ok, (method, path, answer.status_code, answer.text)
        return answer.json() if answer.content else None

    def create(self, kind, **fields):
        return self.call('POST', kind + 's', {kind: fields})[kind]

    def add_project(self, name):
        """A tenant's network, and a router between it and the outside."""
        own = dict(tenant_id=uuid.uuid4().hex)
        network = self.create('network', name=name, **own)['id']
        subnet = self.create('subnet', network_id=network, ip_version=4, cidr=SUBNET,
                             gateway_ip=GATEWAY_IP, **own)['id']
        router = self.create('router', name=name, **own)['id']
        self.call('PUT', 'routers/' + router,
                  {'router': {'external_gateway_info': {'network_id': self.outside}}})
        self.call('PUT', 'routers/%s/add_router_interface' % router, {'subnet_id': subnet})
        return Project(name, own['tenant_id'], network, subnet, router)

    def remove_router(self, project):
        self.call('PUT', 'routers/%s/remove_router_interface' % project.router_id,
                  {'subnet_id': project.subnet_id})
        self.call('DELETE', 'routers/' + project.router_id)

    def wait_for_router(self, project, there=True):
        """Return when the l3 agent has given a router its interface, or taken it away."""
        show = 'ip -n qrouter-%s -o address show 2>/dev/null || true' % project.router_id
        wait_until(lambda: (' %s/' % GATEWAY_IP in run('network1', 'sh', '-c', show)) == there,
                   'the l3 agent has seen the router')

    def add_port(self, project, instance, fixed_ip=None):
        """A port of an instance; quantum chooses the address where none is given."""
        addresses = {'fixed_ips': [{'ip_address': fixed_ip}]} if fixed_ip else {}
        return self.create('port', tenant_id=project.tenant_id, network_id=project.network_id, name='',
                           device_id=instance, device_owner='compute:nova', admin_state_up=True, **addresses)

    def add_guest(self, project, name, fixed_ip):
        """An instance in nova with a port in the project's network, and a namespace for its guest."""
        instance, user_data = str(uuid.uuid4()), bytes(range(256)) + name.encode()
        port = self.add_port(project, instance, fixed_ip)
        asked = dict(uuid=instance, project_id=project.tenant_id, hostname=name,
                     user_data=base64.b64encode(user_data).decode())
        ec2_id = run('api1', 'sudo', '-u', 'nova', 'instance', given=json.dumps(asked))
        run('network1', 'guest', name, port['id'], port['mac_address'], fixed_ip)
        self.guests.append(Guest(name, project, fixed_ip, port['id'], instance, ec2_id, user_data))
        return self.guests[-1]

    def remove_guest(self, guest):
        run('network1', 'ip', 'netns', 'delete', 'guest-' + guest.name)
        self.call('DELETE', 'ports/' + guest.port_id)
        self.guests.remove(guest)

    @contextlib.contextmanager
    def another_address(self, guest, address):
        """The guest has one more address."""
        words = ('ip', '-n', 'guest-' + guest.name, 'address')
        run('network1', *words, 'add', address + '/24', 'dev', 'eth0')
        try:
            yield
        finally:
            run('network1', *words, 'delete', address + '/24', 'dev', 'eth0')

    def ask(self, guest, path=INSTANCE_ID, address='', *headers):
        """The Answer to a guest, from its own or another of its addresses; NO_ANSWER where there is none."""
        answer = json.loads(run('network1', 'ask', guest.name, path, address, *headers))
        return Answer(answer['status'], base64.b64decode(answer['body']))

    def ask_all(self):
        """Answers by name of guest."""
        return dict((guest.name, self.ask(guest)) for guest in self.guests)

    def is_served(self, guest):
        return self.ask(guest) == Answer(200, guest.ec2_id.encode())

    def all_served(self):
        return all(map(self.is_served, self.guests))

    def note_guests(self):
        """Tell the inventory, and with it verify, who is there."""
        routers = [dict(node='network1', router_id=guest.project.router_id, guest=dict(
            name=guest.name, fixed_ip=guest.fixed_ip, ec2_id=guest.ec2_id,
            user_data_base64=base64.b64encode(guest.user_data).decode())) for guest in self.guests]
        with open(os.path.join(STATE, 'routers.json'), 'w') as out:
            json.dump(routers, out)

    def lead_answers_back(self, project):
        """The route to guests that Folsom's own way to metadata needs, which has room for one project."""
        ports = self.call('GET', 'ports?device_owner=network:router_gateway&device_id=' + project.router_id)
        gateway_ip = ports['ports'][0]['fixed_ips'][0]['ip_address']
        run('network1', 'ip', 'route', 'replace', SUBNET, 'via', gateway_ip)

    def interfaces(self):
        """Numbers and names of the interfaces of all routers; a number is not given again."""
        found = set()
        for router_id in set(guest.project.router_id for guest in self.guests):
            links = run('network1', 'ip', '-n', 'qrouter-' + router_id, '-o', 'link')
            found.update(re.findall(r'^(\d+: q[rg]-[^@:]+)', links, re.MULTILINE))
        return found

    def take_snapshot(self):
        """What a rollback has to bring back, as a text for each host."""
        return dict((host, run(host, 'sh', '-c', _SNAPSHOT)) for host in ('api1', 'network1'))
