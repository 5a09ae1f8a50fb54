"""What others run: neutron's haproxy before its metadata agent, and upstream's proxy and agent on Folsom.

Both are upstream's own code with upstream's own defaults. What stands in is the RPC that neutron's agent
makes for a port (neutron_lookup.py), and the port API that Folsom's agent asks (portapi.py).
"""
import os
import struct

import interpreters
import nova
import portapi
import processes
import subject
import topology

_SHARED = '<dq'          # of neutron_lookup.py
HERE = os.path.dirname(os.path.abspath(__file__))
_HAPROXY = os.path.join(topology.ROOT, 'tests', 'interop', 'neutron_haproxy.py')
_NEUTRON_CONF = """\
[DEFAULT]
transport_url = fake://
state_path = {folder}
metadata_proxy_socket = {folder}/metadata_proxy
metadata_proxy_shared_secret = {secret}
nova_metadata_host = 127.0.0.1
nova_metadata_port = {nova}
[AGENT]
report_interval = 0
"""
_FOLSOM_CONF = """\
[DEFAULT]
state_path = {folder}
metadata_proxy_socket = {folder}/metadata_proxy
metadata_proxy_shared_secret = {secret}
nova_metadata_ip = 127.0.0.1
nova_metadata_port = {nova}
auth_url = http://127.0.0.1:{port}/v2.0
auth_region = {region}
admin_tenant_name = {tenant}
admin_user = {user}
admin_password = {password}
"""


class Peer(subject.PerRouter):
    """A proxy for each router, and an agent behind a unix socket."""

    is_peer = True

    def _removed_socket(self):
        """Path of the agent's socket, which is not there until it listens."""
        path = self.path('metadata_proxy')
        if os.path.exists(path):
            os.unlink(path)
        return path


class Haproxy(Peer):
    """neutron's haproxy and metadata agent. A lookup takes `delay` seconds, of which a request makes two."""

    most_routers = 500

    def __init__(self, venv):
        super().__init__()
        self._python = os.path.join(venv, 'bin', 'python')
        self._conf = None

    @property
    def name(self):
        return 'haproxy %g ms' % (1000 * self.delay) if self.delay else 'haproxy'

    def start(self):
        if self.router is None:
            self.make_router(with_api=False)
            folder = os.path.dirname(self.path('metadata_proxy'))
            os.chmod(folder, 0o755)
            self.write('agent.ini', _NEUTRON_CONF.format(
                folder=folder, secret=subject.SECRET, nova=nova.PORT))
            self._conf = self._configuration(folder)
        self.begin_lookups(self.delay)
        path = self._removed_socket()
        self.agent = processes.Process(
            [self._python, os.path.join(HERE, 'neutron_lookup.py'), self.path('lookups'),
             '--config-file', self.path('agent.ini')], self.path('agent.log'), cwd='/')
        processes.wait_until(lambda: self.agent.check() or os.path.exists(path), path, processes.LONG)
        os.chmod(path, 0o666)       # as haproxy's user, neutron's, would be let in
        self.start_server()

    def begin(self, router):
        conf = self.write(router.id + '.conf', self._conf.replace(self.router.id, router.id))
        return processes.Process(topology.within(router.netns, ['haproxy', '-db', '-f', conf]),
                                 self.path(router.id + '.log'))

    def begin_lookups(self, delay):
        path, mode = self.path('lookups'), 'r+b' if os.path.exists(self.path('lookups')) else 'w+b'
        with open(path, mode) as shared:        # mapped by the agent, so never another file
            shared.write(struct.pack(_SHARED, delay, 0))

    def lookups(self):
        with open(self.path('lookups'), 'rb') as shared:
            return {'lookups': struct.unpack(_SHARED, shared.read())[1]}

    def _configuration(self, folder):
        """As neutron writes it for the router with guests."""
        path = processes.run([self._python, _HAPROXY, self.router.id, self.path('metadata_proxy'),
                              interpreters.USER, 'nogroup', folder]).splitlines()[-1]
        with open(path) as written:
            return written.read()


class SlowHaproxy(Haproxy):
    """The same with lookups of 10 ms."""

    delay = 0.01
    most_routers = 0            # as Haproxy


class Folsom(Peer):
    """Upstream's proxy and agent on Folsom, the series of this toolkit; the port API takes no time."""

    name = 'folsom'
    most_routers = 100

    def __init__(self, python, site, tree):
        """python: 2.7. site: folder of what quantum imports. tree: quantum's, patched."""
        super().__init__()
        self._argv = [python, os.path.join(HERE, 'folsom_program.py'), site, tree]
        self._tree = tree
        libraries = os.path.join(os.path.dirname(os.path.dirname(python)), 'lib', 'x86_64-linux-gnu')
        self._environment = dict(os.environ, LD_LIBRARY_PATH=libraries)

    def start(self):
        if self.router is None:
            self.make_router(with_api=True)
            self.write('quantum.ini', _FOLSOM_CONF.format(
                folder=os.path.dirname(self.path('')), secret=subject.SECRET, nova=nova.PORT,
                port=self.api.port, region=portapi.REGION, tenant=portapi.TENANT, user=portapi.USER,
                password=portapi.PASSWORD))
        path = self._removed_socket()
        self.agent = self._run('agent', 'quantum-metadata-agent')
        processes.wait_until(lambda: self.agent.check() or os.path.exists(path), path)
        self.start_server()

    def begin(self, router):
        return self._run(router.id, 'quantum-ns-metadata-proxy', '--nodaemonize', '--router_id=' + router.id,
                         '--metadata_port=%d' % topology.PORT, '--pid_file=' + self.path(router.id + '.pid'),
                         netns=router.netns)

    def _run(self, name, program, *words, **kwargs):
        argv = self._argv + [os.path.join(self._tree, 'bin', program)] + list(words)
        argv.append('--config-file=' + self.path('quantum.ini'))
        return processes.Process(topology.within(kwargs.get('netns'), argv),
                                 self.path(name + '.log'), env=self._environment, cwd='/')


def haproxy(venv):
    """neutron's subjects, or raises Missing."""
    if not venv or not os.path.exists(os.path.join(venv, 'bin', 'python')):
        raise processes.Missing('no virtualenv with neutron; make bench has one')
    return [Haproxy(venv), SlowHaproxy(venv)]


def folsom(python, site, tree):
    """Folsom's subject, or raises Missing."""
    if not (python and site and tree):
        raise processes.Missing('no quantum tree; with NOVA_SOURCE and QUANTUM_SOURCE make bench has one')
    return [Folsom(python, site, tree)]
