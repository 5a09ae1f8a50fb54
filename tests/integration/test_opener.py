"""From root to a socket in a router's namespace, and to a server that is nobody."""
import contextlib
import os
import socket
import subprocess
import sys
import threading

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import equipment  # noqa: E402

equipment.requirements()

from equipment import USER, Process, Router, ip, iptables_save, namespace, socket_in, working_folder  # noqa: E402

sys.path.insert(0, equipment.ROOT)

from mdproxy import namespaces  # noqa: E402

ROUTER = '11111111-2222-3333-4444-555555555555'


@pytest.fixture
def netns():
    with namespace() as name:
        yield name


@pytest.fixture
def folder():
    with working_folder() as made:
        yield made


def here():
    return os.stat('/proc/thread-self/ns/net').st_ino


def connects(sock, port, host='127.0.0.1'):
    with contextlib.closing(sock):
        sock.settimeout(equipment.CLOSED)
        return sock.connect_ex((host, port)) == 0


@pytest.mark.parametrize('host, family, target', [
    ('0.0.0.0', socket.AF_INET, '127.0.0.1'), ('::', socket.AF_INET6, '::1')])
def test_the_listener_is_inside_and_the_opener_is_back(netns, host, family, target):
    home = here()
    listener = namespaces.open_listener(host, 9697, netns)
    try:
        assert here() == home
        assert listener.family == family
        assert connects(socket_in(netns, family), 9697, target)
        assert not connects(socket.socket(family), 9697, target)
    finally:
        listener.close()


def test_the_same_port_is_free_in_every_namespace(netns):
    with namespace() as other:
        listeners = [namespaces.open_listener('0.0.0.0', 9697, name) for name in (netns, other)]
        assert connects(socket_in(netns), 9697) and connects(socket_in(other), 9697)
        for listener in listeners:
            listener.close()


def test_the_opener_is_back_when_the_address_is_taken(netns):
    home = here()
    listener = namespaces.open_listener('0.0.0.0', 9697, netns)
    with pytest.raises(namespaces.NamespaceError) as caught:
        namespaces.open_listener('0.0.0.0', 9697, netns)
    listener.close()
    assert here() == home
    assert str(caught.value).startswith('namespace %s: cannot listen on 0.0.0.0 port 9697' % netns)


def test_descriptors_do_not_add_up(netns):
    namespaces.open_listener('0.0.0.0', 9697, netns).close()
    before = len(os.listdir('/proc/self/fd'))
    for _ in range(5):
        namespaces.open_listener('0.0.0.0', 9697, netns).close()
    assert len(os.listdir('/proc/self/fd')) == before


def test_what_is_no_namespace_cannot_be_entered():
    home, name = here(), 'mdproxy-test-%d' % os.getpid()
    path = '/var/run/netns/' + name
    open(path, 'w').close()
    try:
        with pytest.raises(namespaces.NamespaceError) as caught:
            namespaces.open_listener('0.0.0.0', 9697, name)
        assert str(caught.value) == 'namespace %s cannot be entered: Invalid argument' % name
        assert here() == home
    finally:
        os.unlink(path)


def configured(folder, user=USER):
    path = os.path.join(folder, 'proxy.ini')
    with open(path, 'w') as out:
        out.write('[DEFAULT]\nmetadata_proxy_socket = %s/none\n[mdproxy]\nuser = %s\n'
                  'status_folder = %s/status\n' % (folder, user, folder))
    return path


def serving(netns, folder, words=()):
    proxy = Process(folder, 'proxy', '--router-id', ROUTER, '--netns', netns, '--listen', '0.0.0.0:9697',
                    '--config-file', configured(folder), *words)
    proxy.until('serving router ' + ROUTER)
    return proxy


def test_the_server_answers_and_has_nothing_of_root_and_one_listening_descriptor(netns, folder):
    proxy = serving(netns, folder)
    try:
        # No agent is there, so the answer is the proxy's own.
        assert equipment.ask(netns, b'GET / HTTP/1.0\r\n\r\n', '127.0.0.1', 9697).startswith(b'HTTP/1.1 502')
        status = dict(line.split(':', 1) for line in proxy.proc('status').splitlines())
        assert set(status['Uid'].split()) == set(status['Gid'].split()) == set(['65534'])
        assert int(status['CapEff'], 16) == int(status['CapPrm'], 16) == 0
        assert status.get('NoNewPrivs', '1').strip() == '1'
        listening = [row.split()[9] for row in proxy.proc('net/tcp').splitlines()[1:]]
        found = ip('netns', 'exec', netns, 'cat', '/proc/net/tcp').splitlines()[1:]
        inode = [row.split()[9] for row in found if row.split()[3] == '0A'][0]
        assert inode not in listening, 'the process itself is in the namespace'
        links = [os.readlink('/proc/%d/fd/%s' % (proxy.pid, n))
                 for n in os.listdir('/proc/%d/fd' % proxy.pid)]
        assert links.count('socket:[%s]' % inode) == 1
        assert not [link for link in links if link.startswith('net:') or 'netns' in link]
        assert proxy.stop() == 0
        assert not connects(socket_in(netns), 9697)
    finally:
        proxy.kill()


def test_the_callers_environment_and_folder_do_not_choose_what_is_imported(netns, folder):
    evil = os.path.join(folder, 'evil')
    os.mkdir(evil)
    for name in ('logging', 'json', 'trust', 'config'):
        with open(os.path.join(evil, name + '.py'), 'w') as out:
            out.write('import os\nopen(%r + str(os.getuid()), "w").close()\n'
                      'raise ImportError("evil")\n' % os.path.join(evil, 'was-here-'))
    os.chmod(evil, 0o777)
    words = ['-Es', os.path.join(equipment.ROOT, 'mdproxy'), 'proxy', '--router-id', ROUTER,
             '--listen', '127.0.0.1:%d' % free_port(), '--config-file', configured(folder)]
    proxy = Process(folder, argv=[equipment._python()[0]] + words, cwd=evil,
                    environment={'PYTHONPATH': evil})
    try:
        proxy.until('serving router')
        assert not [name for name in os.listdir(evil) if name.startswith('was-here')]
        assert proxy.stop() == 0
    finally:
        proxy.kill()


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize('user, reason', [('no-such-user', 'does not exist'), ('root', 'must not serve')])
def test_nothing_serves_when_there_is_nobody_to_serve_as(netns, folder, user, reason):
    proxy = Process(folder, 'proxy', '--router-id', ROUTER, '--netns', netns,
                    '--config-file', configured(folder, user))
    assert proxy.status() == 1
    assert proxy.log.startswith('mdproxy: user %s ' % user) and reason in proxy.log
    assert not connects(socket_in(netns), 9697)


def test_a_configuration_that_the_server_may_not_read_is_named(netns, folder):
    path = configured(folder)
    os.chmod(path, 0o600)
    proxy = Process(folder, 'proxy', '--router-id', ROUTER, '--netns', netns, '--config-file', path)
    assert proxy.status() == 2
    assert proxy.log == 'mdproxy: %s: cannot be read: Permission denied\n' % path


def test_a_namespace_made_anew_under_its_name_is_another(folder):
    """Decision 5: what was opened before stays in the dead namespace; a start finds the new one."""
    with namespace() as name:
        old = namespaces.open_listener('0.0.0.0', 9697, name)
        ip('netns', 'delete', name)
        ip('netns', 'add', name)
        ip('-n', name, 'link', 'set', 'lo', 'up')
        assert not connects(socket_in(name), 9697)
        new = namespaces.open_listener('0.0.0.0', 9697, name)
        assert connects(socket_in(name), 9697)
        old.close()
        new.close()


def lines(process):
    """What it said, line for line, without time stamps."""
    return [line.split(' ', 2)[2] for line in process.log.splitlines()]


@pytest.mark.parametrize('anew, said', [(False, 'is gone'), (True, 'was made anew')])
def test_the_server_ends_with_its_namespace(folder, anew, said):
    pid_file = os.path.join(folder, 'router.pid')
    with namespace() as name:
        proxy = serving(name, folder, words=['--pid-file', pid_file])
        try:
            assert os.listdir(os.path.join(folder, 'status')) and os.path.exists(pid_file)
            ip('netns', 'delete', name)
            if anew:
                ip('netns', 'add', name)
            assert proxy.status() == 0
            assert lines(proxy) == ['INFO mdproxy.proxy: serving router ' + ROUTER,
                                    'WARNING mdproxy.watch: namespace %s %s: the proxy ends' % (name, said)]
            assert os.listdir(os.path.join(folder, 'status')) == []
        finally:
            proxy.kill()
            if not anew:
                ip('netns', 'add', name)


def rules_file(folder, text=None):
    path = os.path.join(folder, 'router.rules')
    with open(path, 'w') as out:
        out.write(text or Router('r').rules())
    return path


def waiting(netns, folder, *words):
    return Process(folder, 'proxy', '--router-id', ROUTER, '--netns', netns, '--wait', '--config-file',
                   configured(folder), *words)


def test_who_waits_says_so_once_and_serves_with_rules_when_the_namespace_is_there(folder):
    name = 'mdproxy-test-%d' % os.getpid()
    proxy = waiting(name, folder, '--rules', rules_file(folder))
    try:
        proxy.until('waiting for namespace')
        with made(name):
            proxy.until('serving router ' + ROUTER)
            assert not connects(socket_in(name), 9697)      # not redirected: a stranger
            assert '-A mdproxy-INPUT -p tcp -m tcp --dport 9697 -j DROP' in iptables_save(name)
            assert '-A PREROUTING -j mdproxy-PREROUTING' in iptables_save(name)
            assert lines(proxy) == ['WARNING mdproxy.opener: waiting for namespace ' + name,
                                    'INFO mdproxy.proxy: serving router ' + ROUTER]
            assert proxy.stop() == 0
    finally:
        proxy.kill()


@contextlib.contextmanager
def made(name):
    ip('netns', 'add', name)
    try:
        ip('-n', name, 'link', 'set', 'lo', 'up')
        yield
    finally:
        ip('netns', 'delete', name)


def test_who_waits_can_be_told_to_end(folder):
    proxy = waiting('mdproxy-test-nowhere', folder)
    said = proxy.until('waiting for namespace mdproxy-test-nowhere')
    assert proxy.stop() == 0
    assert proxy.log == said


def test_who_waits_does_so_for_the_address_too(netns, folder):
    proxy = waiting(netns, folder, '--listen', '169.254.169.254:80')
    try:
        proxy.until('WARNING mdproxy.opener: waiting for address 169.254.169.254 in namespace %s\n' % netns)
        ip('-n', netns, 'address', 'add', '169.254.169.254/16', 'dev', 'lo')
        proxy.until('serving router ' + ROUTER)
        assert proxy.log.count('waiting') == 1
        assert connects(socket_in(netns), 80, '169.254.169.254')
    finally:
        proxy.kill()


def test_who_waits_does_not_wait_for_a_port_that_is_taken(netns, folder):
    with contextlib.closing(namespaces.open_listener('0.0.0.0', 9697, netns)):
        proxy = waiting(netns, folder, '--rules', rules_file(folder))
        assert proxy.status() == 1
    assert proxy.log == ('mdproxy: namespace %s: cannot listen on 0.0.0.0 port 9697: Address already in use; '
                         'another proxy serves there\n' % netns)
    assert '-A PREROUTING -j mdproxy-PREROUTING' not in iptables_save(netns), 'guests are led to nobody'


@pytest.mark.parametrize('words', [[], ['--wait']])
def test_rules_that_cannot_be_read_are_refused_before_anything_is_done(netns, folder, words):
    path = rules_file(folder, '*filter\n-A INPUT -p tcp -j DROP\nCOMMIT\n')
    proxy = Process(folder, 'proxy', '--router-id', ROUTER, '--netns', netns, '--rules', path,
                    '--config-file', configured(folder), *words)
    assert proxy.status() == 1
    assert proxy.log.startswith('mdproxy: %s:2: ' % path) and proxy.log.count('\n') == 1
    assert not connects(socket_in(netns), 9697)


def test_a_namespace_that_comes_and_goes_is_served_whenever_it_is_there(folder):
    """What a job does: it starts again what has ended well."""
    with namespace() as name:
        for _ in range(3):
            proxy = waiting(name, folder, '--rules', rules_file(folder))
            try:
                proxy.until('serving router ' + ROUTER)
                assert '-A PREROUTING -j mdproxy-PREROUTING' in iptables_save(name)
                ip('netns', 'delete', name)
                ip('netns', 'add', name)
                assert proxy.status() == 0
            finally:
                proxy.kill()


def started_in(netns, folder, *words, **kwargs):
    """A proxy that is started as the l3 agent does it; with `command` what it is run through."""
    python = equipment._python()[0]
    argv = ['ip', 'netns', 'exec', netns] + kwargs.get('command', [])
    argv += [python, '-Es', os.path.join(equipment.ROOT, 'mdproxy'), 'proxy', '--router-id', ROUTER,
             '--config-file', configured(folder)]
    return Process(folder, argv=argv + list(words))


def test_started_inside_it_listens_there_and_lives_outside(netns, folder):
    proxy = started_in(netns, folder)
    try:
        proxy.until('serving router ' + ROUTER)
        assert connects(socket_in(netns), 9697) and not connects(socket.socket(), 9697)
        assert os.stat('/proc/%d/ns/net' % proxy.pid).st_ino == here()
        assert proxy.stop() == 0
    finally:
        proxy.kill()


@pytest.fixture
def remote(folder):
    """A listening socket in the host's namespace, and the words for a proxy whose agent it is."""
    path = os.path.join(folder, 'remote.ini')
    with contextlib.closing(socket.socket()) as agent:
        agent.bind(('127.0.0.1', 0))
        agent.listen(1)
        agent.settimeout(equipment.DEADLINE)
        with open(path, 'w') as out:
            out.write('[mdproxy]\nlink_secret = a secret\nagents = 127.0.0.1:%d\n' % agent.getsockname()[1])
        yield agent, ['--config-file', path]


def test_its_connections_leave_through_the_hosts_network(netns, folder, remote):
    agent, words = remote
    proxy = started_in(netns, folder, *words)
    try:
        proxy.until('serving router ' + ROUTER)
        guest = socket_in(netns)
        guest.connect(('127.0.0.1', 9697))
        guest.sendall(b'GET /path HTTP/1.0\r\n\r\n')
        connection = agent.accept()[0]
        connection.settimeout(equipment.DEADLINE)
        assert connection.recv(65536).startswith(b'GET /path HTTP/1.1\r\n')
        connection.close()
        guest.close()
    finally:
        proxy.kill()


# Root that may enter no namespace, as in a container with few rights.
_CONFINED = ['setpriv', '--bounding-set=-sys_admin']


def test_who_cannot_get_out_serves_with_an_agent_on_this_host(netns, folder):
    proxy = started_in(netns, folder, command=_CONFINED)
    try:
        proxy.until('serving router ' + ROUTER)
        assert 'INFO mdproxy.opener: the proxy stays in the namespace' in proxy.log
        assert connects(socket_in(netns), 9697)
        assert proxy.stop() == 0
    finally:
        proxy.kill()


def test_who_cannot_get_out_asks_no_agent_that_a_guest_could_play(netns, folder, remote):
    proxy = started_in(netns, folder, *remote[1], command=_CONFINED)
    assert proxy.status() == 1
    assert proxy.log.startswith('mdproxy: the host\'s network namespace cannot be')
    assert not connects(socket_in(netns), 9697)


def test_a_pid_file_names_the_server_and_keeps_a_second_one_out(netns, folder):
    path = os.path.join(folder, 'router.pid')
    words = ['--pid-file', path, '--listen', '127.0.0.1:9698']
    proxy = started_in(netns, folder, *words)
    try:
        proxy.until('serving router ' + ROUTER)
        with open(path) as found:
            assert int(found.read()) == proxy.pid
        second = started_in(netns, folder, *words)
        assert second.status() == 1
        assert second.log == 'mdproxy: already running: process %d of %s serves %s\n' % (
            proxy.pid, path, ROUTER)
        assert connects(socket_in(netns), 9698)
    finally:
        proxy.kill()
    third = started_in(netns, folder, *words)       # the file is root's folder's, so it is still there
    third.until('serving router ' + ROUTER)
    third.kill()


def test_a_server_without_its_status_socket_serves(netns, folder):
    open(os.path.join(folder, 'status'), 'w').close()
    proxy = started_in(netns, folder)
    try:
        proxy.until('serving router ' + ROUTER)
        assert proxy.log.count('WARNING') == 1
        assert 'WARNING mdproxy.opener: no status is told: ' in proxy.log
    finally:
        proxy.kill()


def test_threads_of_the_opener_stay_where_they_are(netns):
    """setns is for one thread; the others must not be taken along into a tenant's network."""
    seen, home, stop = set(), here(), threading.Event()

    def look():
        while not stop.is_set():
            seen.add(here())
    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(20):
            namespaces.open_listener('0.0.0.0', 9697, netns).close()
    finally:
        stop.set()
        thread.join()
    assert seen == set([home])


def test_the_opener_needs_root(netns, folder):
    python, path = equipment._python()
    process = subprocess.Popen(
        [python, '-m', 'mdproxy', 'proxy', '--router-id', ROUTER, '--netns', netns],
        cwd=equipment.ROOT, preexec_fn=equipment.as_user, stderr=subprocess.PIPE,
        env=dict(os.environ, PYTHONPATH=path))
    err = process.communicate()[1].decode('utf-8')
    assert process.returncode == 1
    assert err == 'mdproxy: namespace %s cannot be entered: Operation not permitted\n' % netns
