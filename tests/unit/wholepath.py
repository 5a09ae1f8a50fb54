"""Guest -> proxy -> agent -> nova as processes of their own, for the tests that need the whole path."""
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile

from loopback import DEADLINE, OPTIONS, ROOT, Answering, ini, receive, wait_until

ROUTER = '11111111-2222-3333-4444-555555555555'
INSTANCE = 'aaaaaaaa-2222-3333-4444-555555555555'

# argv: proxy or agent, a configuration file. The port API knows four addresses, unless one is given.
CHILD = r'''
import sys
before = set(sys.modules)       # not ours: what this Python was started with
import logging, socket
sys.path.insert(0, %r)
logging.basicConfig(level=logging.INFO, format='%%(name)s: %%(message)s')
from mdproxy import config, trust
sources = config.Sources((), (sys.argv[2],), ())
if sys.argv[1] == 'agent' or sources.load().builtin_agent:
    from mdproxy import agent, portapi, ports
    class Api(object):
        def __init__(self, options):
            pass
        def token_age(self):
            return None
        def renewed(self, options):
            return self
        def resolve(self, identity, ip, mac):
            return {
                '127.0.0.1': ports.Outcome('found', ports.Instance(%r, 'tenant-1', 'port-1'), ''),
                '127.0.0.2': ports.Outcome('none', None, 'no port with it'),
                '127.0.0.3': ports.Outcome('many', None, '2 ports have it'),
                '127.0.0.4': ports.Outcome('error', None, 'answered 500'),
                'fe80::3': ports.Outcome('found', ports.Instance(%r, 'tenant-1', mac), ''),
            }[ip]
    if 'stand-in' in sources.load().port_api_url:
        portapi.PortApi = Api
if sys.argv[1] == 'agent':
    sys.exit(agent.run(sources))
from mdproxy import proxy
listener = socket.socket()
listener.bind(('127.0.0.1', 0))
listener.listen(1024)
print(listener.getsockname()[1])
sys.stdout.flush()
status = proxy.run(trust.Identity('router', %r), [listener], sources)
print(' '.join(set(sys.modules) - before))
sys.exit(status)
''' % (ROOT, INSTANCE, INSTANCE, ROUTER)


class Child(object):
    """A process with a log."""

    def __init__(self, kind, path):
        self._log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, '-c', CHILD, kind, path],
            stdout=subprocess.PIPE, stderr=self._log, close_fds=True)

    def log(self):
        self._log.seek(0)
        return self._log.read().decode()

    def end(self, signum=signal.SIGTERM):
        """Exit status and standard output; fails when the process does not end."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        wait_until(lambda: self.process.poll() is not None)
        with contextlib.closing(self.process.stdout):
            return self.process.returncode, self.process.stdout.read().decode()

    def descriptors(self):
        return len(os.listdir('/proc/%d/fd' % self.process.pid))


class Path(object):
    """A proxy and an agent before a nova at a port."""

    def __init__(self, nova_port, folder, **options):
        self.socket = str(folder.join('metadata_proxy'))
        self.options = dict(OPTIONS, metadata_proxy_socket=self.socket,
                            nova_metadata_port=nova_port, port_api_url='http://stand-in')
        self._ini = str(folder.ensure('configuration', dir=True).join('mdproxy.ini'))
        self.configure(**options)
        self.children = []
        self.agent = self.proxy = None

    def configure(self, **options):
        """Write the configuration with other values; the processes do not know yet."""
        self.options.update(options)
        with open(self._ini, 'w') as out:
            out.write(ini(self.options))

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        for child in self.children:
            if child.process.poll() is None:
                child.process.kill()
                child.process.wait()
        if kind is None:
            for child in self.children:
                assert 'Traceback' not in child.log()
                assert 'the secret' not in child.log()

    def start(self, kind):
        child = Child(kind, self._ini)
        self.children.append(child)
        return child

    def start_agent(self):
        self.agent = self.start('agent')
        wait_until(lambda: self.agent.process.poll() is not None or 'serving' in self.agent.log())
        return self

    def start_proxy(self):
        self.proxy = self.start('proxy')
        self.port = int(self.proxy.process.stdout.readline())
        wait_until(lambda: 'serving' in self.proxy.log())
        return self

    def guest(self, ip='127.0.0.1',
              data=b'GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'):
        """The status and the whole of what a guest with this address gets."""
        with contextlib.closing(socket.socket()) as sock:
            sock.settimeout(DEADLINE)
            sock.bind((ip, 0))
            sock.connect(('127.0.0.1', self.port))
            sock.sendall(data)
            answer = receive(sock)
        return int(answer.split(b' ')[1]), answer


@contextlib.contextmanager
def whole_path(folder, script, **options):
    """A running path, and the nova behind it."""
    with Answering(script) as nova, Path(nova.port, folder, **options) as path:
        yield path.start_agent().start_proxy(), nova


