"""Ours: a proxy for each router with an agent beside it or on another machine, or one process for all."""
import itertools
import json
import os
import socket

import interpreters
import nova
import portapi
import processes
import subject
import topology

LINK_SECRET = 'the secret of the link'
_STATUS = b'GET /status HTTP/1.0\r\n\r\n'


class Ours(subject.Subject):
    """What all of ours have in common: a router with guests, a port API, ini files."""

    def __init__(self, interpreter):
        super().__init__()
        self.interpreter, self.python = interpreter, interpreter.series
        self._numbers = itertools.count()

    def start(self):
        if self.router is None:
            self.make_router(with_api=True)
            self.configure()
        self.start_others()
        self.start_server()

    def configure(self):
        """Write the ini files."""

    def start_others(self):
        """Start what the server needs."""

    def run(self, name, *words, **kwargs):
        """A Process of mdproxy that reads NAME.ini. only: the routers of the node that it runs on."""
        argv = self.interpreter.command(*words) + ['--config-file', self.path(name + '.ini')]
        if 'only' in kwargs:
            argv = topology.as_only(kwargs['only'], argv)
        return processes.Process(argv, self.path('%s-%d.log' % (name, next(self._numbers))), cwd='/',
                                 env=self.interpreter.environment)

    def write_ini(self, name, options, agent, status='status'):
        """NAME.ini with more options of ours, in ini form. agent: for who asks port API and nova.

        status: name of the folder of status sockets.
        """
        lines = ['[DEFAULT]', 'metadata_proxy_socket = ' + self.path('run/metadata_proxy')]
        if agent:
            lines += ['auth_url = http://127.0.0.1:%d/v2.0' % self.api.port,
                      'admin_tenant_name = ' + portapi.TENANT, 'admin_user = ' + portapi.USER,
                      'admin_password = ' + portapi.PASSWORD,
                      'nova_metadata_port = %d' % nova.PORT,
                      'metadata_proxy_shared_secret = ' + subject.SECRET]
        lines += ['[mdproxy]', 'user = ' + interpreters.USER, 'status_folder = ' + self.path(status)]
        self.write(name + '.ini', '\n'.join(lines + options + ['']))


class _WithAgent(subject.PerRouter, Ours):
    """A proxy for each router, and an agent."""

    most_routers = 500
    def configure(self):
        self.write_ini('agent', self.agent_options(), agent=True)
        self.write_ini('proxy', self.proxy_options(), agent=False)

    def start_others(self):
        self.agent = self.run('agent', 'agent')
        self.agent.until('serving')

    def begin(self, router):
        return self.run('proxy', 'proxy', '--router-id', router.id, '--netns', router.netns)

    def agent_options(self):
        """Of ours, for the agent, lines of an ini file."""
        return []

    def proxy_options(self):
        """Of ours, for the proxies."""
        return []


class Unix(_WithAgent):
    """per_router with a local agent: proxy and agent over a unix socket."""

    name = 'unix'


class Signed(_WithAgent):
    """per_router with a remote agent: over TCP, every request signed."""

    name = 'tcp'
    most_routers = 0            # as Unix
    _ports = itertools.count(8776)

    def __init__(self, interpreter):
        super().__init__(interpreter)
        self._address = '127.0.0.1:%d' % next(self._ports)

    def agent_options(self):
        return ['agent_listen = ' + self._address, 'link_secret = ' + LINK_SECRET]

    def proxy_options(self):
        return ['agents = ' + self._address, 'link_secret = ' + LINK_SECRET]


class Shared(Ours):
    """shared with a builtin agent: one process for all routers, or several."""

    workers = 1
    most_routers = 500

    @property
    def name(self):
        return 'shared' if self.workers == 1 else 'shared-%d' % self.workers

    def configure(self):
        for name in ('proxies', 'many'):
            self.write_ini(name, ['builtin_agent = true', 'workers = %d' % self.workers,
                                  'lock_file = ' + self.path(name + '.lock')], agent=True, status=name)

    def start_server(self):
        self.begin_server()
        self._await(self.server, 'proxies', 1)

    def begin_server(self):
        self.server = self._master('proxies', [self.router])

    def serve(self, routers):
        """One process for these, instead of the one of the last call."""
        self.forget()
        self._many['master'] = self._master('many', routers)
        self._await(self._many['master'], 'many', len(routers))
        return [self._many['master']]

    def forget(self):
        while self._many:
            self._many.popitem()[1].stop()

    def _master(self, name, routers):
        return self.run(name, 'proxy', '--discover', only=routers)

    def _await(self, master, folder, count):
        """Wait until so many routers are served, by workers that stay."""
        def is_steady():
            master.check()
            told = _told(os.path.join(self.path(folder), 'master.sock'))
            return (told and told['namespaces']['served'] == count and not told['changing']
                    and len(told['workers']) == self.workers)
        processes.wait_until(is_steady, '%d served: %s' % (count, master.log_path), processes.LONG)


class SharedByTwo(Shared):
    """The same with two workers."""

    workers = 2
    most_routers = 0            # as Shared


def _told(path):
    """What a status socket tells; empty while it is not there."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(processes.DEADLINE)
    try:
        sock.connect(path)
        sock.sendall(_STATUS)
        answer = b''.join(iter(lambda: sock.recv(65536), b''))
    except OSError:
        return {}
    finally:
        sock.close()
    return json.loads(answer.partition(b'\r\n\r\n')[2].decode('utf-8') or '{}')
