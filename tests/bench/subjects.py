"""What is measured: each subject is something that guests, or wrk, can ask, and knows its processes.

A Subject has
    name, python    'builtin', '3.11'; python is None for what is not ours
    label           both, as the report shows them
    netns, url      where and what wrk asks
    router          its topology.Router, or None
    api             its portapi.PortApi, or None when nothing looks ports up
    processes       of the subject itself, neither nova nor the port API
    server          that of them which guests talk to
    start(), stop()
    start_server(), stop_server()   the server alone
"""
import itertools
import os

import interpreters
import isolation
import nova
import portapi
import processes
import topology

SECRET, LINK_SECRET = 'the shared secret', 'the secret of the link'


class Subject(object):
    """What all have in common."""

    name = None
    python = interpreter = router = api = server = netns = None
    url = 'http://%s/' % topology.METADATA
    is_per_router = False       # a process of its own for each router, with an agent elsewhere

    @property
    def label(self):
        return '%s %s' % (self.name, self.python) if self.python else self.name

    @property
    def processes(self):
        return [self.server] if self.server else []

    def folder(self):
        """A new folder of its own."""
        path = os.path.join(isolation.FOLDER, self.label.replace(' ', '-'))
        os.mkdir(path)
        return path

    def stop(self):
        for process in self.processes:
            process.stop()


class Straight(Subject):
    """wrk beside nova, nothing in between: what all others are shares of."""

    name, url = 'straight', 'http://127.0.0.1:%d/' % nova.PORT

    def start(self):
        topology.have_many_connections()
        self.server = nova.start(os.path.join(self.folder(), 'nginx'))


class Redirect(Subject):
    """The same nginx where the proxy would be: what the way through the namespaces leaves."""

    name = 'redirect'

    def start(self):
        self.router = topology.Router()
        self.netns = self.router.guests
        self.server = nova.start(os.path.join(self.folder(), 'nginx'), '0.0.0.0:%d' % topology.PORT,
                                 self.router.netns)


class Ours(Subject):
    """A proxy for one router. Subclasses say in ini form how it comes to an agent."""

    def __init__(self, interpreter):
        self.interpreter, self.python = interpreter, interpreter.series
        self._folder = None
        self._agent = None

    @property
    def processes(self):
        return [process for process in (self.server, self._agent) if process]

    def start(self):
        if self._folder is None:
            self._folder = self.folder()
            self.router = topology.Router()
            self.netns = self.router.guests
            self.api = portapi.PortApi(self.router, os.path.join(self._folder, 'portapi'))
            self.api.begin(0)
            self._write('agent', self.agent_options(), agent=True)
            self._write('proxy', self.proxy_options(), agent=not self.is_per_router)
        if self.is_per_router:
            self._agent = self._run('agent', 'agent')
            self._agent.until('serving')
        self.start_server()

    def start_server(self):
        self.begin_server()
        self.server.until('serving router ' + self.router.id)

    def begin_server(self):
        """Start the server and do not wait for it."""
        self.server = self._run('proxy', 'proxy', '--router-id', self.router.id,
                                '--netns', self.router.netns)

    def stop_server(self):
        self.server.stop()

    def agent_options(self):
        """Of ours, for the agent, in ini form."""
        return ''

    def proxy_options(self):
        """Of ours, for the proxy."""
        return ''

    def path(self, name):
        """A path in its folder."""
        return os.path.join(self._folder, name)

    def _run(self, name, *words):
        argv = self.interpreter.command(*words) + ['--config-file', self.path(name + '.ini')]
        return processes.Process(argv, self.path(name + '.log'), cwd='/',
                                 env=self.interpreter.environment)

    def _write(self, name, options, agent):
        lines = ['[DEFAULT]', 'metadata_proxy_socket = ' + self.path('run/metadata_proxy')]
        if agent:
            lines += ['auth_url = http://127.0.0.1:%d/v2.0' % self.api.port,
                      'admin_tenant_name = ' + portapi.TENANT, 'admin_user = ' + portapi.USER,
                      'admin_password = ' + portapi.PASSWORD,
                      'nova_metadata_port = %d' % nova.PORT,
                      'metadata_proxy_shared_secret = ' + SECRET]
        lines += ['[mdproxy]', 'user = ' + interpreters.USER,
                  'status_folder = ' + self.path('status'), options, '']
        with open(self.path(name + '.ini'), 'w') as ini:
            ini.write('\n'.join(lines))


class Builtin(Ours):
    """One process: the proxy is its own agent."""

    name = 'builtin'

    def proxy_options(self):
        return 'builtin_agent = true'


class Unix(Ours):
    """Proxy and agent as two processes, over a unix socket."""

    name, is_per_router = 'unix', True


class Signed(Ours):
    """Proxy and agent as on two machines: over TCP, every request signed."""

    name, is_per_router = 'tcp', True
    _ports = itertools.count(8776)

    def __init__(self, interpreter):
        super().__init__(interpreter)
        self._address = '127.0.0.1:%d' % next(self._ports)

    def agent_options(self):
        return 'agent_listen = %s\nlink_secret = %s' % (self._address, LINK_SECRET)

    def proxy_options(self):
        return 'agents = %s\nlink_secret = %s' % (self._address, LINK_SECRET)


PLAIN, OURS = (Straight, Redirect), (Builtin, Unix, Signed)
NAMES = tuple(kind.name for kind in PLAIN + OURS)


def make(all_interpreters, only):
    """The subjects to measure; straight first, which is always there. only: names, none for all."""
    found = [kind() for kind in PLAIN if kind is Straight or not only or kind.name in only]
    return found + [kind(interpreter) for interpreter in all_interpreters for kind in OURS
                    if not only or kind.name in only]
