"""What is in the cloud: the state file (format in the package's docstring) read into what services
serve.

Ids that the file leaves out are made from those it has, so they stay the same over every rereading
and in every process.
"""
import base64
import binascii
import hashlib
import ipaddress
import json
import os
import sys
import threading
import uuid

_NAMES = uuid.UUID('6d1d0c6e-7f0f-4f0e-8f6b-3a1b8b7f9e11')      # name space of ids made here


class StateError(Exception):
    """A state that cannot be used; the message names the file, the field and what is wrong."""


class StateFile:
    """The state file at `path`. `cloud` is the Cloud it describes now; StateError only from
    here."""

    def __init__(self, path):
        self.path = path
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._cloud = self._load()

    @property
    def cloud(self):
        """The Cloud as of now; the last good one where the file became unusable."""
        with self._lock:
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp     # first, so that one fault is reported once
                try:
                    self._cloud = self._load()
                except StateError as error:
                    print('%s; keeping the last good state' % error, file=sys.stderr, flush=True)
            return self._cloud

    def _look(self):
        try:
            info = os.stat(self.path)
        except OSError:
            return None
        return info.st_mtime_ns, info.st_ino, info.st_size

    def _load(self):
        try:
            with open(self.path, encoding='utf-8') as file:
                return Cloud(json.load(file))
        except OSError as error:
            raise StateError('state file %s: %s' % (self.path, error.strerror)) from None
        except (ValueError, StateError) as error:
            raise StateError('state file %s: %s' % (self.path, error)) from None


class Cloud:
    """One state. `ports`, `networks`, `subnets`, `routers` are lists of dicts as the port API shows
    them; `instances` maps uuid to the instance's dict, with every default filled in and `user_data`
    in bytes."""

    def __init__(self, data):
        top = Entry(data, '')
        self.region, host = top.text('region'), top.text('endpoint_host')
        self.identity_url = top.text('identity_url', 'http://%s:5000' % host).rstrip('/')
        self.network_url = top.text('network_url', 'http://%s:9696' % host).rstrip('/')
        self.family = top.choice('family', ('quantum', 'neutron'))
        self.token_lifetime = top.number('token_lifetime', 3600)
        self.password_max = top.number('password_max', 255)
        admin = Entry(top.get('admin', dict), 'admin.')
        self.user, self.password = admin.text('user'), admin.text('password')
        self.tenant = admin.text('tenant')
        self.user_id, self.tenant_id = made_id('user', self.user), made_id('tenant', self.tenant)
        self.ports, self.networks, self.subnets, self.routers = [], [], [], []
        self.instances = {}
        for router in top.entries('routers'):
            self._add_router(router)
        for network in top.entries('networks', []):
            self._add_network(network, network.text('tenant_id'))
        for instance in top.entries('instances'):
            self._add_instance(instance)
        self.ports += top.get('extra_ports', list, [])
        self._refuse_twins()

    def _add_router(self, entry):
        router = {'id': entry.text('id'), 'name': entry.text('name', ''),
                  'tenant_id': entry.text('tenant_id'), 'admin_state_up': True, 'status': 'ACTIVE',
                  'external_gateway_info': None}
        self.routers.append(router)
        for network in entry.entries('networks'):
            subnet = self._add_network(network, network.text('tenant_id', router['tenant_id']))
            self._add_port(network.text('port_id'), network.text('id'), router['tenant_id'],
                           router['id'], 'network:router_interface',
                           (subnet['id'], subnet['gateway_ip']), network.text('mac', ''))
        if entry.get('gateway', dict, None):
            gateway = Entry(entry.get('gateway', dict), entry.where + 'gateway.')
            router['external_gateway_info'] = {'network_id': gateway.text('network_id')}
            # quantum gives a gateway port no tenant, so that tenants do not see it
            self._add_port(gateway.text('port_id'), gateway.text('network_id'), '', router['id'],
                           'network:router_gateway',
                           (made_id('subnet', gateway.text('network_id')), gateway.text('ip')))

    def _add_network(self, entry, tenant_id):
        """Add what of the network and its subnet is new; the subnet."""
        network_id, cidr = entry.text('id'), entry.text('cidr')
        subnet_id = entry.text('subnet_id', made_id('subnet', network_id, cidr))
        known = {network['id']: network for network in self.networks}
        network = known.get(network_id)
        if network is None:
            network = {'id': network_id, 'name': entry.text('name', ''), 'tenant_id': tenant_id,
                       'admin_state_up': True, 'status': 'ACTIVE', 'shared': False, 'subnets': []}
            self.networks.append(network)
        for subnet in self.subnets:
            if subnet['id'] == subnet_id:
                return dict(subnet, gateway_ip=entry.text('gateway_ip', subnet['gateway_ip']))
        subnet = self._make_subnet(entry, subnet_id, tenant_id)
        network['subnets'].append(subnet_id)
        self.subnets.append(subnet)
        if entry.get('dhcp', dict, None):
            dhcp = Entry(entry.get('dhcp', dict), entry.where + 'dhcp.')
            device = dhcp.text('device_id', 'dhcp%s-%s' % (made_id('host', 'dhcp'), network_id))
            self._add_port(dhcp.text('port_id'), network_id, tenant_id, device, 'network:dhcp',
                           (subnet_id, dhcp.text('ip')))
        return subnet

    @staticmethod
    def _make_subnet(entry, subnet_id, tenant_id):
        try:
            block = ipaddress.ip_network(entry.text('cidr'))
            gateway, first, last = str(block[1]), str(block[2]), str(block[-2])
        except (ValueError, IndexError) as error:
            raise StateError('%scidr: %s' % (entry.where, error)) from None
        return {'id': subnet_id, 'name': '', 'tenant_id': tenant_id, 'network_id': entry.text('id'),
                'ip_version': block.version, 'cidr': entry.text('cidr'),
                'gateway_ip': entry.text('gateway_ip', gateway), 'enable_dhcp': True,
                'allocation_pools': [{'start': first, 'end': last}],
                'dns_nameservers': [], 'host_routes': [], 'shared': False}

    def _add_instance(self, entry):
        name, key = entry.text('uuid'), entry.text('key_name', '')
        if name in self.instances:
            raise StateError('%suuid: %s is used twice' % (entry.where, name))
        self.instances[name] = {
            'uuid': name, 'ec2_id': entry.text('ec2_id'), 'name': entry.text('name'),
            'tenant_id': entry.text('tenant_id'), 'fixed_ip': entry.text('fixed_ip'),
            'hostname': entry.text('hostname', host_name(entry.text('name'))),
            'availability_zone': entry.text('availability_zone', 'nova'),
            'key_name': key, 'key_data': entry.text('key_data') if key else '',
            'metadata': entry.get('metadata', dict, {}), 'user_data': self._user_data(entry),
            'image_id': entry.text('image_id', 'ami-00000001'),
            'instance_type': entry.text('instance_type', 'm1.tiny'),
            'launch_index': int(entry.number('launch_index', 0)),
            'reservation_id': entry.text('reservation_id', 'r-' + digest(name)[:8]),
            'security_groups': entry.get('security_groups', list, ['default']),
            'public_ip': entry.text('public_ip', '')}
        self._add_port(entry.text('port_id'), entry.text('network_id'), entry.text('tenant_id'),
                       name, entry.text('device_owner', 'compute:nova'),
                       (self._subnet_of(entry), entry.text('fixed_ip')), entry.text('mac'))

    @staticmethod
    def _user_data(entry):
        text = entry.text('user_data_base64', '')
        try:
            return base64.b64decode(text, validate=True) if text else None
        except binascii.Error as error:
            raise StateError('%suser_data_base64: %s' % (entry.where, error)) from None

    def _subnet_of(self, entry):
        """The id of the subnet that holds the instance's fixed IP; its network must have such a
        one."""
        network_id, address = entry.text('network_id'), entry.text('fixed_ip')
        for subnet in self.subnets:
            try:
                inside = ipaddress.ip_address(address) in ipaddress.ip_network(subnet['cidr'])
            except ValueError as error:
                raise StateError('%sfixed_ip: %s' % (entry.where, error)) from None
            if subnet['network_id'] == network_id and inside:
                return subnet['id']
        raise StateError('%sfixed_ip: network %s has no subnet with %s'
                         % (entry.where, network_id, address))

    def _add_port(self, port_id, network_id, tenant_id, device_id, owner, fixed_ip, mac=''):
        self.ports.append({
            'id': port_id, 'name': '', 'network_id': network_id, 'tenant_id': tenant_id,
            'mac_address': mac or made_mac(port_id), 'admin_state_up': True, 'status': 'ACTIVE',
            'fixed_ips': [{'subnet_id': fixed_ip[0], 'ip_address': fixed_ip[1]}],
            'device_id': device_id, 'device_owner': owner})

    def _refuse_twins(self):
        for kind, rows in (('router', self.routers), ('port', self.ports)):
            seen = set()
            for row in rows:
                if not isinstance(row, dict) or not isinstance(row.get('id'), str):
                    raise StateError('extra_ports: expected objects with an id')
                if row['id'] in seen:
                    raise StateError('%s %s is there twice' % (kind, row['id']))
                seen.add(row['id'])


class Entry:
    """One JSON object of the state; `where` leads to it and opens every complaint about it."""

    def __init__(self, data, where):
        self.data, self.where = data, where
        if not isinstance(data, dict):
            raise StateError('%s: expected an object' % (where.rstrip('.') or 'top level'))

    def get(self, name, kind, *default):
        """The field `name`, which must be of the type `kind`; StateError if missing without
        default."""
        value = self.data.get(name)
        if value is None:       # null is Ansible's way to leave out
            if default:
                return default[0]
            raise StateError('%s%s: missing' % (self.where, name))
        if not isinstance(value, kind) or isinstance(value, bool):
            raise StateError('%s%s: expected %s' % (self.where, name, _KINDS[kind]))
        return value

    def text(self, name, *default):
        """A text field; without default it must not be empty."""
        value = self.get(name, str, *default)
        if not value and not default:
            raise StateError('%s%s: empty' % (self.where, name))
        return value

    def number(self, name, default):
        """A number that is not negative."""
        value = self.get(name, (int, float), default)
        if value < 0:
            raise StateError('%s%s: expected no negative number' % (self.where, name))
        return value

    def choice(self, name, allowed):
        """One of `allowed`; the first is the default."""
        value = self.text(name, allowed[0])
        if value not in allowed:
            raise StateError('%s%s: expected %s' % (self.where, name, ' or '.join(allowed)))
        return value

    def entries(self, name, *default):
        """A list of objects, as Entry each."""
        return [Entry(item, '%s%s[%d].' % (self.where, name, number))
                for number, item in enumerate(self.get(name, list, *default))]


_KINDS = {str: 'a text', dict: 'an object', list: 'a list', (int, float): 'a number'}


def digest(text):
    """64 hex digits that depend on nothing but `text`."""
    return hashlib.sha256(text.encode('utf-8')).hexdigest()


def made_id(*parts):
    """A uuid that depends on nothing but `parts`."""
    return str(uuid.uuid5(_NAMES, '\n'.join(parts)))


def made_mac(port_id):
    """A MAC address in quantum's default range, made from the port's id."""
    tail = digest(port_id)
    return 'fa:16:3e:%s:%s:%s' % (tail[:2], tail[2:4], tail[4:6])


def host_name(name):
    """An instance's host name from its name, as nova makes it: lower case, blanks and _ to -, the
    rest of what a host name may not hold left out."""
    dashed = name.replace(' ', '-').replace('_', '-')
    kept = ''.join(c for c in dashed if c.isascii() and (c.isalnum() or c in '.-'))
    return kept.lower().strip('.-')
