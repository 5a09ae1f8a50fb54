"""A cloud of today: two projects in neutron and nova, agents and proxies of ours before them.

Both projects have a router, with the same subnet behind it, and an instance with the same fixed IP.
Routers, networks and ports are made through neutron's API, instances with nova's objects.
"""
import base64
import contextlib
import os

import services
from equipment import SECRET, USER, Process, Router, ip

SUBNET = '10.0.0.0/24'
_AGENT = """
[DEFAULT]
auth_strategy = noauth
nova_metadata_port = {nova}
metadata_proxy_shared_secret = {secret}
metadata_proxy_socket = {folder}/{name}/metadata_proxy
[mdproxy]
port_api_url = {neutron}
header_family = neutron
user = {user}
status_folder = {folder}/{name}/status
"""
_PROXY = """
[DEFAULT]
metadata_proxy_socket = {folder}/{name}/metadata_proxy
[mdproxy]
header_family = neutron
user = {user}
"""


class Cloud:
    """Two projects in neutron and nova; agents and proxies of ours before them."""

    def __init__(self, folder):
        self.folder, self.processes, self.routers = folder, [], []
        self.neutron = self.nova = None

    def start(self):
        self.neutron = services.Neutron(self.folder + '/neutron')
        instances = [self._project(letter) for letter in 'rb']
        self.nova = services.Nova(self.folder + '/nova', self.neutron, SECRET, instances)
        self.red, self.blue = self.routers
        for router in self.routers:
            router.make()
        self.agent = self.start_agent('agent', SECRET)
        for router in self.routers:
            self.serve(router, 'agent')

    def _project(self, letter):
        """A project's network, router and port in neutron; what nova is to know of its instance."""
        router, neutron = Router(letter), self.neutron
        self.routers.append(router)
        network = neutron.create('network', project_id=router.tenant, name='inside')
        subnet = neutron.create('subnet', project_id=router.tenant, network_id=network['id'], ip_version=4,
                                cidr=SUBNET, gateway_ip=router.gateway)
        made = neutron.create('router', project_id=router.tenant, name='router')
        neutron.call('PUT', '/routers/%s/add_router_interface' % made['id'], {'subnet_id': subnet['id']})
        port = neutron.create('port', project_id=router.tenant, network_id=network['id'],
                              device_id=router.instance, device_owner='compute:nova',
                              fixed_ips=[{'ip_address': router.fixed_ip}])
        router.id, router.network, router.port = made['id'], network['id'], port['id']
        router.netns, router.guest, router.outside = (
            prefix + router.id for prefix in ('qrouter-', 'guest-', 'outside-'))
        return dict(uuid=router.instance, project=router.tenant, hostname='guest-' + letter,
                    user_data=base64.b64encode(router.user_data).decode(), port=router.port,
                    network=router.network, mac=port['mac_address'], fixed_ip=router.fixed_ip,
                    cidr=SUBNET, gateway=router.gateway)

    def _config(self, file_name, text, **more):
        path = os.path.join(self.folder, file_name)
        with open(path, 'w') as out:
            out.write(text.format(folder=self.folder, user=USER, **more))
        return path

    def start_agent(self, name, secret):
        """An agent of ours with a socket of this name, when it serves."""
        config = self._config(name + '.ini', _AGENT, name=name, secret=secret, nova=self.nova.port,
                              neutron=self.neutron.url)
        agent = self.run('agent', '--config-file', config)
        agent.until('serving')
        return agent

    def run(self, *words, **kwargs):
        """A Process that goes with the cloud."""
        self.processes.append(Process(self.folder, *words, **kwargs))
        return self.processes[-1]

    def rules(self, router):
        """Path of the router's rules."""
        path = os.path.join(self.folder, router.id + '.rules')
        with open(path, 'w') as out:
            out.write(router.rules())
        return path

    def serve(self, router, name):
        """A router's proxy with its rules before the agent of this name, when it serves."""
        config = self._config('proxy-%s.ini' % name, _PROXY, name=name)
        proxy = self.run('proxy', '--router-id', router.id, '--netns', router.netns,
                         '--rules', self.rules(router), '--config-file', config)
        proxy.until('serving router ' + router.id)
        return proxy

    def stop(self):
        for process in self.processes:
            process.kill()
        for service in (self.nova, self.neutron):
            if service is not None:
                service.stop()
        for router in self.routers:
            router.remove()

    @contextlib.contextmanager
    def elsewhere(self, router):
        """The router and its guest once more, in namespaces where nobody serves yet."""
        other = Router(router.letter)
        other.make()
        try:
            other.id = router.id
            yield other
        finally:
            other.remove()


@contextlib.contextmanager
def sending_from(router, address):
    """The router's guest takes another address."""
    ip('-n', router.guest, 'address', 'add', address + '/24', 'dev', 'eth0')
    ip('-n', router.guest, 'route', 'replace', 'default', 'via', router.gateway, 'src', address)
    try:
        yield
    finally:
        ip('-n', router.guest, 'route', 'replace', 'default', 'via', router.gateway, 'src', router.fixed_ip)
        ip('-n', router.guest, 'address', 'delete', address + '/24', 'dev', 'eth0')
