"""What the integration tests share: routers and guests as namespaces, the cloud's stand-in, processes.

The commands run with the interpreter MDPROXY_PYTHON (and MDPROXY_PYTHONPATH, where its requests
is); without it with the tests' own, or that of the same version in /usr/bin where the
serving user may not run the tests' own. Everything has a name of its own and goes when the test ends.
"""
import base64
import contextlib
import ctypes
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEADLINE = 15.0         # seconds after which a test that waits has failed
CLOSED = 1.0            # seconds without an answer after which a port counts as closed
USER = 'nobody'         # serves; is on every machine
SECRET = 'the shared secret'
METADATA, METADATA6 = '169.254.169.254', 'fe80::a9fe:a9fe'
MAC = 'fa:16:3e:00:00:%02x'     # of the guest of a cloud's router, by its number
_RULES = os.path.join(ROOT, 'roles', 'router_proxy', 'templates', 'proxy.rules.j2')
_CLONE_NEWNET, _CLONE_NEWNS = 0x40000000, 0x00020000
_found = []             # what _python() found


def as_user():
    """Become the serving user, in a child that is about to run something."""
    entry = pwd.getpwnam(USER)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def _runs_as_user(python):
    try:
        return subprocess.call([python, '-c', ''], preexec_fn=as_user, cwd='/') == 0
    except OSError:
        return False


def _python():
    """(interpreter, PYTHONPATH) of the commands, or None when the serving user may run none."""
    if not _found:
        _found.append(_find_python())
    return _found[0]


def _find_python():
    chosen = os.environ.get('MDPROXY_PYTHON')
    if chosen:
        candidates, path = [chosen], os.environ.get('MDPROXY_PYTHONPATH', '')
    else:
        candidates = [sys.executable, '/usr/bin/python%d.%d' % sys.version_info[:2]]
        path = os.pathsep.join(entry for entry in sys.path if os.path.isdir(entry)
                               and ('site-packages' in entry or 'requests' in os.listdir(entry)))
    for python in candidates:
        if _runs_as_user(python):
            return python, path
    return None


def requirements():
    """Skip the test file, in a word, where namespaces cannot be made or nobody could serve in them."""
    if os.geteuid() != 0:
        pytest.skip('needs root', allow_module_level=True)
    for command in ('ip', 'iptables-restore', 'unshare'):
        if not any(os.access(os.path.join(folder, command), os.X_OK)
                   for folder in os.environ['PATH'].split(os.pathsep)):
            pytest.skip('needs ' + command, allow_module_level=True)
    if _python() is None:
        pytest.skip('user %s may not run %s; set MDPROXY_PYTHON' % (USER, sys.executable),
                    allow_module_level=True)
    python, path = _python()
    if subprocess.call([python, '-c', 'import requests'], stderr=subprocess.PIPE,
                       env=dict(os.environ, PYTHONPATH=path)):
        pytest.skip(python + ' has no requests; set MDPROXY_PYTHONPATH',
                    allow_module_level=True)


def wait_until(condition, what, deadline=DEADLINE):
    """The first true value of condition(); fails the test when there is none in so many seconds."""
    end = time.time() + deadline
    while True:
        value = condition()
        if value:
            return value
        assert time.time() < end, 'not within %g s: %s' % (deadline, what)
        time.sleep(0.02)


def ip(*words):
    """Run `ip`; fails the test with what it said."""
    process = subprocess.Popen(('ip',) + words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out = process.communicate()[0].decode('utf-8')
    assert process.returncode == 0, '%s: %s' % (' '.join(words), out)
    return out


def iptables_save(netns):
    """The packet filter's chains and rules of a namespace, without counters and comments."""
    out = ip('netns', 'exec', netns, 'iptables-save')
    return [line.split(' [')[0] for line in out.splitlines() if not line.startswith('#')]


@contextlib.contextmanager
def namespace(prefix='mdproxy-test'):
    """A namespace of its own; its name."""
    name = '%s-%s' % (prefix, uuid.uuid4())
    ip('netns', 'add', name)
    try:
        ip('-n', name, 'link', 'set', 'lo', 'up')
        yield name
    finally:
        ip('netns', 'delete', name)


@contextlib.contextmanager
def private_folder_of_namespaces():
    """A folder of named namespaces that nobody else sees, empty; for who serves all that it finds."""
    libc = ctypes.CDLL(None, use_errno=True)
    home, folder = os.open('/proc/self/ns/mnt', os.O_RDONLY), os.getcwd()
    assert libc.unshare(_CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
    try:
        if not os.path.isdir('/run/netns'):
            os.mkdir('/run/netns', 0o755)
        for words in (['--make-rprivate', '/'], ['-t', 'tmpfs', 'tmpfs', '/run/netns']):
            subprocess.check_call(['mount'] + words)
        yield
    finally:
        assert libc.setns(home, _CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
        os.close(home)
        os.chdir(folder)


def socket_in(netns, family=socket.AF_INET):
    """A socket in a namespace; this thread is in it for no longer than it takes."""
    libc = ctypes.CDLL(None, use_errno=True)
    home, there = (os.open(path, os.O_RDONLY) for path in ('/proc/thread-self/ns/net',
                                                           '/var/run/netns/' + netns))
    try:
        assert libc.setns(there, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            return socket.socket(family, socket.SOCK_STREAM)
        finally:
            assert libc.setns(home, _CLONE_NEWNET) == 0, 'lost in namespace ' + netns
    finally:
        os.close(home)
        os.close(there)


def is_open(netns, host, port):
    """Whether a connection from inside a namespace is accepted."""
    with contextlib.closing(socket_in(netns)) as sock:
        sock.settimeout(CLOSED)
        try:
            sock.connect((host, port))
        except (socket.timeout, socket.error):
            return False
        return True


def ask(netns, data, host=METADATA, port=80):
    """Send bytes from inside a namespace and return all that comes until the other side closes."""
    with contextlib.closing(socket_in(netns)) as sock:
        sock.settimeout(DEADLINE)
        sock.connect((host, port))
        sock.sendall(data)
        answer = b''
        while True:
            piece = sock.recv(65536)
            if not piece:
                return answer
            answer += piece


def own_address6(netns):
    """The link-local address of eth0, when it is found to be nobody else's."""
    def found():
        words = ip('-n', netns, '-6', '-o', 'address', 'show', 'dev', 'eth0', 'scope', 'link').split()
        return 'tentative' not in words and words[words.index('inet6') + 1].partition('/')[0]
    return wait_until(found, 'a link-local address')


def ask6(netns, data):
    """As `ask`, over IPv6 through eth0; None when there is no connection."""
    with contextlib.closing(socket_in(netns, socket.AF_INET6)) as sock:
        sock.settimeout(CLOSED)
        index = int(ip('-n', netns, '-o', 'link', 'show', 'eth0').split(':')[0])
        try:
            sock.connect((METADATA6, 80, 0, index))
            sock.sendall(data)
            return b''.join(iter(lambda: sock.recv(65536), b''))
        except (socket.timeout, socket.error):
            return None


def get(netns, target, fields=b'', method=b'GET', body=b''):
    """(status, body) of one request from inside a namespace; `fields` are lines of the head."""
    answer = ask(netns, method + b' ' + target + b' HTTP/1.1\r\nHost: ' + METADATA.encode()
                 + b'\r\nConnection: close\r\n' + fields + b'\r\n' + body)
    head, _, body = answer.partition(b'\r\n\r\n')
    assert head.startswith(b'HTTP/1.1 '), answer
    if b'\r\ntransfer-encoding: chunked' in head.lower():
        body = _dechunked(body)
    return int(head.split()[1]), body


def _dechunked(body):
    whole = b''
    while True:
        size, _, body = body.partition(b'\r\n')
        if not int(size, 16):
            return whole
        whole, body = whole + body[:int(size, 16)], body[int(size, 16) + 2:]


class Process(object):
    """A command of mdproxy, or with `argv` another one; what it says goes to a file.

    Standard error goes there too, or with `stderr` to an open file of the caller's. preexec_fn: called
    in the child, as by subprocess.
    """

    def __init__(self, folder, *words, **kwargs):
        python, path = _python()
        argv = kwargs.get('argv') or [python, '-m', 'mdproxy'] + list(words)
        environment = dict(os.environ, PYTHONPATH=path, PYTHONDONTWRITEBYTECODE='1')
        environment.update(kwargs.get('environment', {}))
        self.log_path = os.path.join(folder, 'log-%s' % uuid.uuid4().hex)
        with open(self.log_path, 'w') as log:
            self._process = subprocess.Popen(argv, cwd=kwargs.get('cwd', ROOT), env=environment,
                                             stdout=log, stderr=kwargs.get('stderr', subprocess.STDOUT),
                                             preexec_fn=kwargs.get('preexec_fn'))
        self.pid = self._process.pid

    @property
    def log(self):
        """All that it said so far."""
        with open(self.log_path) as log:
            return log.read()

    def ended(self):
        """Its exit status, or None while it runs."""
        return self._process.poll()

    def until(self, text):
        """Wait until it has said this; what it said."""
        def said():
            assert text in self.log or self.ended() is None, self.log
            return text in self.log and self.log
        return wait_until(said, '%r in the log: %s' % (text, self.log))

    def wait_for(self, condition, what, deadline=DEADLINE):
        """As `wait_until`; fails at once when the process has ended."""
        def met():
            assert self.ended() is None, self.log
            return condition()
        return wait_until(met, what, deadline)

    def status(self):
        """Its exit status, waited for."""
        wait_until(lambda: self.ended() is not None, 'end of the process: ' + self.log)
        return self.ended()

    def stop(self, number=signal.SIGTERM):
        """Send a signal and wait; the exit status."""
        if self.ended() is None:
            self._process.send_signal(number)
        return self.status()

    def kill(self):
        """End it whatever it does."""
        if self.ended() is None:
            self._process.kill()
            self._process.wait()

    def proc(self, name):
        """Content of a file of /proc/PID."""
        with open('/proc/%d/%s' % (self.pid, name)) as found:
            return found.read()


@contextlib.contextmanager
def working_folder():
    """A folder that the serving user may enter, which pytest's are not."""
    folder = tempfile.mkdtemp(prefix='mdproxy-test-')
    os.chmod(folder, 0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class Router(object):
    """A router's namespace with one guest on its inside and the world on its outside.

    Every router has the same subnet and every guest the same fixed IP.
    """

    fixed_ip, gateway, external_ip = '10.0.0.3', '10.0.0.1', '203.0.113.11'

    def __init__(self, letter):
        self.id, self.network, self.port, self.instance = (str(uuid.uuid4()) for _ in range(4))
        self.tenant, self.letter = 'tenant-' + letter, letter
        self.ec2_id = 'i-%08x' % ord(letter)
        self.user_data = b'#!/bin/sh\n\0\xff\xfe\r\n\r\n' + letter.encode() + bytes(bytearray(range(256)))
        self.netns, self.guest, self.outside = 'qrouter-' + self.id, 'guest-' + self.id, 'outside-' + self.id
        self._made = []

    def make(self):
        """Make the namespaces that are not there, and the links between them."""
        for name in (self.netns, self.guest, self.outside):
            if name not in self._made:
                ip('netns', 'add', name)
                self._made.append(name)
                ip('-n', name, 'link', 'set', 'lo', 'up')
        self._link('qr-' + self.id[:11], self.gateway, self.guest, self.fixed_ip)
        self._link('qg-' + self.id[:11], self.external_ip, self.outside, '203.0.113.1')
        ip('netns', 'exec', self.netns, 'sysctl', '-q', '-w', 'net.ipv4.ip_forward=1')
        ip('-n', self.guest, 'route', 'add', 'default', 'via', self.gateway)
        ip('-n', self.outside, 'route', 'add', 'default', 'via', self.external_ip)

    def _link(self, interface, address, other, other_address):
        # To a namespace that is not quite gone, and may be at any moment.
        subprocess.call(('ip', '-n', other, 'link', 'delete', 'eth0'), stderr=subprocess.PIPE)
        ip('-n', self.netns, 'link', 'add', interface, 'type', 'veth', 'peer', 'name', 'eth0',
           'netns', other)
        for netns, name, ours in ((self.netns, interface, address), (other, 'eth0', other_address)):
            ip('-n', netns, 'address', 'add', ours + '/24', 'dev', name)
            ip('-n', netns, 'link', 'set', name, 'up')

    def guest_has_mac(self, mac):
        """Give the guest a MAC address, by which it is known over IPv6."""
        for words in (['down'], ['address', mac], ['up']):
            ip('-n', self.guest, 'link', 'set', 'eth0', *words)
        ip('-n', self.guest, 'route', 'replace', 'default', 'via', self.gateway)
        own_address6(self.guest)

    def lose(self):
        """Delete the router's own namespace, as an l3 agent does; the others are left."""
        self._made.remove(self.netns)
        ip('netns', 'delete', self.netns)

    def remove(self):
        """Remove the namespaces that were made."""
        while self._made:
            ip('netns', 'delete', self._made.pop())

    def rules(self, port=9697):
        """The router's rules as the role writes them."""
        with open(_RULES) as template:
            text = template.read()
        for name, value in (('id', self.id), ('interface', 'qr-+'), ('port', str(port))):
            text = text.replace('{{ router_proxy_%s }}' % name, value)
        assert '{{' not in text
        return text


@contextlib.contextmanager
def isolated_network(router):
    """A router's network without the router: the namespace of its DHCP server, and a guest; (both)."""
    server, guest = 'qdhcp-' + router.network, 'isolated-' + router.network
    try:
        for name in (server, guest):
            ip('netns', 'add', name)
            ip('-n', name, 'link', 'set', 'lo', 'up')
        ip('-n', server, 'link', 'add', 'tap0', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', guest)
        for netns, device, address in ((server, 'tap0', '10.0.0.2/24'), (server, 'tap0', METADATA + '/16'),
                                       (guest, 'eth0', router.fixed_ip + '/24')):
            ip('-n', netns, 'address', 'add', address, 'dev', device)
            ip('-n', netns, 'link', 'set', device, 'up')
        ip('-n', guest, 'route', 'add', METADATA + '/32', 'via', '10.0.0.2')
        yield server, guest
    finally:
        for name in (server, guest):
            ip('netns', 'delete', name)


class Cloud(object):
    """The stand-in's three services on loopback and the agent that asks them."""

    def __init__(self, folder, routers):
        self.folder, self.routers, self.processes = folder, routers, []
        self.records_folder = os.path.join(folder, 'records')
        self.socket = os.path.join(folder, 'run', 'metadata_proxy')
        self.state = os.path.join(folder, 'state.json')

    def start(self):
        """Start the services and the agent; returns when the agent serves."""
        self._write('nova.conf', '[DEFAULT]\nservice_quantum_metadata_proxy = True\n'
                    'quantum_metadata_proxy_shared_secret = %s\n' % SECRET)
        self._write('state.json', json.dumps(self._state()))
        ports = dict((name, self._stub(name)) for name in ('keystone', 'quantum', 'nova'))
        self._write('state.json', json.dumps(self._state(
            identity_url='http://127.0.0.1:%d' % ports['keystone'],
            network_url='http://127.0.0.1:%d' % ports['quantum'])))
        config = self._write('agent.ini', '\n'.join((
            '[DEFAULT]', 'auth_url = http://127.0.0.1:%d/v2.0' % ports['keystone'],
            'admin_tenant_name = service', 'admin_user = quantum', 'admin_password = the password',
            'nova_metadata_port = %d' % ports['nova'], 'metadata_proxy_shared_secret = ' + SECRET,
            'metadata_proxy_socket = ' + self.socket, '[mdproxy]', 'user = ' + USER, '')))
        self.nova_port = ports['nova']
        self.agent = self.run('agent', '--config-file', config)
        self.agent.until('serving')

    def run(self, *words, **kwargs):
        """A Process that goes with the cloud."""
        self.processes.append(Process(self.folder, *words, **kwargs))
        return self.processes[-1]

    def serve(self, router, *settings):
        """Start a router's proxy with its rules; the Process, when guests are answered.

        settings: NAME=VALUE of more options.
        """
        proxy = self.start_proxy(router, *settings)
        proxy.until('serving router ' + router.id)
        return proxy

    def start_proxy(self, router, *settings, **kwargs):
        """As `serve`, without waiting; kwargs are those of Process."""
        rules = self._write(router.id + '.rules', router.rules())
        config = self._write('proxy.ini', '[DEFAULT]\nmetadata_proxy_socket = %s\n[mdproxy]\nuser = %s\n'
                             % (self.socket, USER))
        return self.run('proxy', '--router-id', router.id, '--netns', router.netns, '--rules', rules,
                        '--config-file', config,
                        *['--set=' + setting for setting in settings], **kwargs)

    def stop(self):
        """End every process."""
        for process in self.processes:
            process.kill()

    def records(self, service):
        """What a service of the stand-in got so far, oldest first."""
        with open(os.path.join(self.records_folder, service + '.jsonl')) as lines:
            return [json.loads(line) for line in lines]

    def recorded_text(self):
        """Everything that any service got, bodies too, as one text."""
        text = []
        for service in ('keystone', 'quantum', 'nova'):
            for record in self.records(service):
                body = base64.b64decode(record['body']).decode('latin-1')
                text.append(json.dumps(record) + body)
        return '\n'.join(text)

    def _write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path + '.new', 'w') as out:
            out.write(text)
        os.chmod(path + '.new', 0o644)
        os.rename(path + '.new', path)
        return path

    def _state(self, **more):
        routers, instances = [], []
        for number, router in enumerate(self.routers):
            routers.append({'id': router.id, 'tenant_id': router.tenant, 'networks': [
                {'id': router.network, 'port_id': str(uuid.uuid4()), 'gateway_ip': router.gateway,
                 'cidr': '10.0.0.0/24'}]})
            instances.append({
                'uuid': router.instance, 'ec2_id': router.ec2_id, 'name': 'guest-' + router.letter,
                'tenant_id': router.tenant, 'network_id': router.network, 'port_id': router.port,
                'fixed_ip': router.fixed_ip, 'mac': MAC % number,
                'user_data_base64': base64.b64encode(router.user_data).decode('ascii')})
        return dict({'region': 'test', 'endpoint_host': '127.0.0.1', 'routers': routers,
                     'instances': instances, 'admin': {'user': 'quantum', 'password': 'the password',
                                                       'tenant': 'service'}}, **more)

    def _stub(self, service):
        python = sys.executable if sys.version_info >= (3, 9) else 'python3'
        words = [python, '-m', 'cloudstub', service, '--state', self.state,
                 '--listen', '127.0.0.1:0', '--records', self.records_folder]
        if service == 'nova':
            words += ['--nova-conf', os.path.join(self.folder, 'nova.conf')]
        process = self.run(argv=words, cwd=os.path.join(ROOT, 'roles', 'lab', 'files'),
                           environment={'PYTHONPATH': ''})
        said = process.until('%s listens on 127.0.0.1:' % service)
        return int(said.split('127.0.0.1:')[1].split()[0])
