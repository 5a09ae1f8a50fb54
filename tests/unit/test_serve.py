"""From the opener to the process that serves: descriptors, words, memory, and who is told what."""
import os
import signal
import socket
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from loopback import ROOT, wait_until  # noqa: E402

from mdproxy import config, logs, namespaces, opener, unixsocket  # noqa: E402

ROUTER = '11111111-2222-3333-4444-555555555555'
PACKAGE = os.path.join(ROOT, 'mdproxy')


def free_port(host='127.0.0.1', family=socket.AF_INET):
    probe = socket.socket(family)
    try:
        probe.bind((host, 0))
    except socket.error:
        pytest.skip('no ' + host)
    port = probe.getsockname()[1]
    probe.close()
    return port


# Run as a process: opens a listener and becomes a process that shows its descriptors. The pipe is what
# a caller without close-on-exec has left open.
_OPENER = '''
import fcntl, os, sys
sys.path.insert(0, %(root)r)
from mdproxy import namespaces, opener
for descriptor in os.pipe():
    fcntl.fcntl(descriptor, fcntl.F_SETFD, 0)
listener = namespaces.open_listener(%(host)r, %(port)d)
opener.exec_server([sys.executable, '-c', %(server)r, str(listener.fileno())], [listener.fileno()])
'''
_SERVER = '''
import os, socket, sys
sys.path.insert(0, %(root)r)
links = [os.path.join('/proc/self/fd', n) for n in os.listdir('/proc/self/fd') if int(n) > 2]
open_ones = [os.readlink(link) for link in links if os.path.lexists(link)]
assert [link.split(':')[0] for link in open_ones] == ['socket'], open_ones
from mdproxy import namespaces
listener = namespaces.inherited_listener(int(sys.argv[1]))
assert listener.family == getattr(socket, %(family)r)
print(listener.getsockname()[1])
listener.close()
probe = socket.socket(listener.family)
assert probe.connect_ex((%(host)r, %(port)d)), 'somebody still listens'
'''


@pytest.mark.parametrize('host, family', [('127.0.0.1', 'AF_INET'), ('::1', 'AF_INET6')])
def test_the_server_inherits_the_listener_and_nothing_else(host, family):
    values = dict(root=ROOT, host=host, family=family, port=free_port(host, getattr(socket, family)))
    values['server'] = _SERVER % values
    process = subprocess.Popen([sys.executable, '-c', _OPENER % values], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    assert process.communicate()[0].decode().strip() == str(values['port'])
    assert process.returncode == 0


def test_a_server_that_cannot_be_run_is_named():
    listener = namespaces.open_listener('127.0.0.1', free_port())
    with pytest.raises(namespaces.NamespaceError) as caught:
        opener.exec_server(['/nonexistent/python', 'proxy'], [listener.fileno()])
    listener.close()
    assert str(caught.value).startswith('/nonexistent/python cannot be run as user %d' % os.geteuid())


class Server(object):
    """`serve` with a listener of ours, as the opener would exec it."""

    def __init__(self, tmpdir, *words, **kwargs):
        self.port = free_port()
        self.socket = str(tmpdir.join('agent'))
        listener = namespaces.open_listener('127.0.0.1', self.port)
        number = os.dup(listener.fileno())
        listener.close()
        argv = [sys.executable, kwargs.get('flags', '-EsS'), PACKAGE, 'serve', 'router=' + ROUTER,
                'listen-fd=%d' % number, 'set=metadata_proxy_socket=' + self.socket,
                'set=status_folder='] + list(words)
        self.log = tmpdir.join('log')
        inherited = [number] + kwargs.get('hand', [])
        with open(str(self.log), 'w') as log:
            self.process = subprocess.Popen(argv, stderr=log,
                                            preexec_fn=lambda: opener.exec_server(argv, inherited))
        os.close(number)

    def ask(self):
        """Answer of the proxy, which has no agent."""
        guest = socket.create_connection(('127.0.0.1', self.port), 10)
        guest.sendall(b'GET / HTTP/1.0\r\n\r\n')
        answer = guest.recv(65536)
        guest.close()
        return answer

    def maps(self):
        """Names of what is mapped into its memory."""
        with open('/proc/%d/maps' % self.process.pid) as maps:
            return maps.read()

    def end(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait()


@pytest.fixture
def serving(tmpdir):
    """serving(*words): a Server; all are ended."""
    made = []

    def start(*words, **kwargs):
        made.append(Server(tmpdir, *words, **kwargs))
        return made[-1]
    yield start
    for server in made:
        server.end(signal.SIGKILL)


def test_it_serves_until_it_is_told_to_end(serving):
    server = serving()
    assert server.ask().startswith(b'HTTP/1.1 502')
    assert server.end() == 0
    assert 'serving router ' + ROUTER in server.log.read()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_whoever_was_told_that_it_serves_may_end_it_at_once(serving, pipe, tmpdir, number):
    path = tmpdir.join('pid')
    server = serving('ready-fd=%d' % pipe[1], 'pid-file=%s' % path, hand=[pipe[1]])
    path.write(str(server.process.pid))
    assert told(pipe) == b'0'
    server.process.send_signal(signal.SIGHUP)
    assert server.end(number) == 0
    assert not path.check()


def test_it_has_the_id_in_its_command_line_and_python_too(serving):
    """What upstream's agents look for in /proc/PID/cmdline (bug 1177416)."""
    server = serving()
    server.ask()
    with open('/proc/%d/cmdline' % server.process.pid) as cmdline:
        words = cmdline.read()
    assert ROUTER in words and 'python' in words
    assert 'libssl' not in server.maps() and 'libcrypto' not in server.maps()


# In a process of its own, because modules stay.
_IMPORTED = '''
import sys
sys.argv = ['mdproxy', 'serve', 'no-config=1', 'config-file=/nonexistent']
sys.path.insert(0, %r)
from mdproxy import serve, proxy
costly = 'argparse optparse json gettext ssl _ssl _hashlib site ctypes requests pyroute2 subprocess tempfile'
found = [name for name in costly.split() if sys.modules.get(name)]
assert not found, found
''' % ROOT


def test_it_imports_nothing_that_costs_memory():
    assert subprocess.call([sys.executable, '-EsS', '-c', _IMPORTED]) == 0


# What a known answer is: RFC 4231, test case 2.
_SIGNED = '''
from mdproxy import link
import hashlib, hmac
assert hmac.new(b'Jefe', b'what do ya want for nothing?', hashlib.sha256).hexdigest() == (
    '5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843')
maps = open('/proc/self/maps').read()
assert sys.version_info[0] == 2 or 'libcrypto' not in maps, maps
'''


def test_links_are_signed_without_openssl():
    assert subprocess.call([sys.executable, '-EsS', '-c', _IMPORTED + _SIGNED]) == 0


def test_with_site_tls_stays_possible():
    """A proxy that is its own agent asks Keystone, perhaps by https."""
    code = 'import sys; sys.path.insert(0, %r); from mdproxy import serve; import ssl' % ROOT
    assert subprocess.call([sys.executable, '-Es', '-c', code]) == 0


def test_only_a_proxy_that_is_its_own_agent_runs_with_site():
    for builtin, flags in ((False, '-EsS'), (True, '-Es')):
        words = opener._interpreter(config.Options({'builtin_agent': builtin}))
        assert words == [sys.executable, flags, PACKAGE, 'serve']


@pytest.mark.parametrize('daemonize, there, file, expected', [
    (True, True, None, (None, 'daemon')), (True, False, None, (None, None)),
    (False, True, None, (None, None)), (True, True, '/a/log', ('/a/log', None))])
def test_a_daemon_logs_to_syslog_where_there_is_one_and_no_file(monkeypatch, tmpdir, daemonize, there,
                                                                file, expected):
    monkeypatch.setattr(opener, '_SYSLOG', str(tmpdir.join('log').ensure() if there else tmpdir.join('none')))
    proxy = opener.Proxy(None, None, config.Sources((), (), ()), daemonize=daemonize,
                         log=logs.Destination(file, None))
    assert proxy._log == expected


@pytest.fixture
def pipe():
    """(reading, writing) descriptors."""
    ends = os.pipe()
    yield ends
    for descriptor in ends:
        try:
            os.close(descriptor)
        except OSError:
            pass


def told(ends):
    os.close(ends[1])
    return os.read(ends[0], 8)


def test_who_started_it_is_told_when_it_serves_and_then_let_go(serving, pipe, tmpdir):
    server = serving('ready-fd=%d' % pipe[1], hand=[pipe[1]])
    assert told(pipe) == b'0'
    assert os.read(pipe[0], 8) == b''           # the server has closed its end
    assert server.ask().startswith(b'HTTP/1.1 502')
    folder = '/proc/%d/fd/' % server.process.pid
    assert [os.readlink(folder + name) for name in '012'] == ['/dev/null'] * 3


@pytest.mark.parametrize('words, status, reason', [
    (['config-file=/nonexistent'], b'2', '/nonexistent: cannot be read'),
    (['set=max_body=0'], b'2', '--set max_body: expected a whole number'),
    (['listen-fd=999'], b'1', 'descriptor 999 is not a socket')])
def test_who_started_it_is_told_why_it_does_not_serve(serving, pipe, tmpdir, words, status, reason):
    words = words + ['ready-fd=%d' % pipe[1], 'pid-file=%s' % tmpdir.join('pid')]
    server = serving(*words, hand=[pipe[1]])
    assert told(pipe) == status
    assert server.process.wait() == int(status)
    assert server.log.read().startswith('mdproxy: ' + reason) and server.log.read().count('\n') == 1


def test_it_removes_its_own_pid_file_and_no_other(serving, tmpdir):
    path = tmpdir.join('pid')
    for written, stays in (('%d', False), ('%d0', True)):
        server = serving('pid-file=%s' % path)
        path.write(written % server.process.pid)
        server.ask()
        assert server.end() == 0
        assert path.check() is stays


def test_it_ends_when_its_namespace_is_not_there(serving, tmpdir):
    path = str(tmpdir.join('status.sock'))
    status = unixsocket.listen(path, 0o600)
    number = os.dup(status.fileno())
    status.close()
    server = serving('netns=mdproxy-test-nowhere', 'inode=4:4026531840', 'pid-file=%s' % tmpdir.join('pid'),
                     'status-fd=%d' % number, hand=[number])
    os.close(number)
    tmpdir.join('pid').write(str(server.process.pid))
    assert server.process.wait() == 0
    assert not tmpdir.join('pid').check() and not os.path.exists(path)
    assert server.log.read().count('\n') == 2       # that it serves, and that it does not
    assert 'namespace mdproxy-test-nowhere is gone: the proxy ends' in server.log.read()


def test_its_log_file_is_its_standard_error(serving, tmpdir):
    path = tmpdir.join('own.log')
    number = os.open(str(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    server = serving('log-file=%s' % path, 'log-fd=%d' % number, hand=[number])
    os.close(number)
    server.ask()
    assert os.readlink('/proc/%d/fd/2' % server.process.pid) == str(path)
    wait_until(lambda: '502' in path.read())
    assert 'INFO mdproxy.proxy: serving router' in path.read()
    assert server.log.read() == ''
