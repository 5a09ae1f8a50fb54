"""The drop-ins as an l3 agent and an init script start them, look at them, and end them."""
import os
import signal
import socket
import subprocess
import sys
import uuid

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import equipment  # noqa: E402

equipment.requirements()

from equipment import USER, Process, is_open, namespace, wait_until, working_folder  # noqa: E402

UID = 65534


class State(object):
    """A state_path of the serving user, as the l3 agent has it, and what it starts there."""

    def __init__(self, folder, netns):
        self.folder, self.netns, self.router = folder, netns, str(uuid.uuid4())
        self.path = self._folder('state')
        self.pid_file = os.path.join(self._folder('state', 'external'), self.router + '.pid')
        self.logs = self._folder('logs')
        self.made = []

    def _folder(self, *names):
        path = os.path.join(self.folder, *names)
        os.mkdir(path)
        os.chown(path, UID, UID)
        return path

    def spawn(self, *words, **kwargs):
        """(exit status, stdout, stderr) of the command of Grizzly's l3 agent, and more words.

        It returns when nobody has the pipes open any more, as the l3 agent does.
        """
        program = kwargs.get('program', 'quantum-ns-metadata-proxy')
        argv = ['ip', 'netns', 'exec', self.netns] + command(program, *(
            '--pid_file=' + self.pid_file, '--router_id=' + self.router, '--state_path=' + self.path,
            '--metadata_port=9697') + words)
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, cwd=self.folder)
        out, err = process.communicate()
        if self.pid():
            self.made.append(self.pid())
        return process.returncode, out.decode(), err.decode()

    def pid(self):
        """What the l3 agent reads, or None."""
        try:
            with open(self.pid_file) as found:
                return int(found.read())
        except (IOError, ValueError):
            return None

    def active(self):
        """Whether the l3 agent holds it for alive."""
        return self.pid() is not None and self.router in cmdline(self.pid())

    def end(self):
        for pid in set(self.made):
            if self.router in cmdline(pid):
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: not cmdline(pid), 'end of process %d' % pid)


def command(program, *words):
    """A drop-in's command line, as its launcher has it; the agent may find requests elsewhere."""
    how = ['-m', 'mdproxy']
    if program.endswith('-proxy'):
        how = ['-Es', os.path.join(equipment.ROOT, 'mdproxy')]
    return [equipment._python()[0]] + how + ['drop-in', program] + list(words)


def cmdline(pid):
    """Command line of a process, empty for one that is gone."""
    try:
        with open('/proc/%d/cmdline' % pid) as found:
            return found.read()
    except IOError:
        return ''


@pytest.fixture
def state():
    with working_folder() as folder, namespace('qrouter') as netns:
        made = State(folder, netns)
        try:
            yield made
        finally:
            made.end()


def answers(state, port=9697):
    """Whether a guest is answered; no agent is there, so it is the proxy's own answer."""
    return equipment.ask(state.netns, b'GET / HTTP/1.0\r\n\r\n', '127.0.0.1', port).split()[1] == b'502'


def test_the_l3_agent_finds_it_serving_when_the_command_returns(state):
    status, out, err = state.spawn()
    assert (status, out) == (0, '')
    assert state.active() and 'python' in cmdline(state.pid())
    assert answers(state)


def test_it_is_a_daemon_of_the_state_paths_owner_in_the_hosts_namespace(state):
    state.spawn()
    proc = '/proc/%d/' % state.pid()
    with open(proc + 'status') as found:
        status = dict(line.split(':', 1) for line in found.read().splitlines())
    assert set(status['Uid'].split() + status['Gid'].split()) == set([str(UID)])
    assert status['Groups'].split() == [] and int(status['CapEff'], 16) == int(status['CapPrm'], 16) == 0
    assert os.stat(proc + 'ns/net').st_ino == os.stat('/proc/self/ns/net').st_ino
    assert os.readlink(proc + 'cwd') == '/'
    assert [os.readlink(proc + 'fd/' + number) for number in '012'] == ['/dev/null'] * 3
    with open(proc + 'stat') as found:
        fields = found.read().rpartition(')')[2].split()
    assert fields[3] not in (str(state.pid()), str(os.getsid(0))) and fields[4] == '0'    # no terminal


def test_a_second_start_is_refused_and_changes_nothing(state):
    state.spawn()
    before = state.pid(), os.stat(state.pid_file)
    status, out, err = state.spawn()
    assert (status, out) == (1, '')
    assert err == 'quantum-ns-metadata-proxy: already running: process %d of %s serves %s\n' % (
        state.pid(), state.pid_file, state.router)
    assert (state.pid(), os.stat(state.pid_file)) == before
    assert answers(state)


def test_after_kill_9_the_next_start_takes_over(state):
    state.spawn()
    first = state.pid()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not state.active(), 'end of the first')
    assert state.pid() == first
    assert state.spawn()[0] == 0
    assert state.active() and state.pid() != first and answers(state)


def test_a_pid_that_was_given_to_another_process_keeps_nobody_out(state):
    with open(state.pid_file, 'w') as out:
        out.write(str(os.getpid()))
    assert state.spawn()[0] == 0
    assert state.active() and answers(state)


def test_sigterm_ends_it_and_its_pid_file(state):
    state.spawn()
    pid = state.pid()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not cmdline(pid), 'end of the process')
    assert not os.path.exists(state.pid_file)
    assert not is_open(state.netns, '127.0.0.1', 9697)


@pytest.mark.parametrize('anew', [False, True])
def test_it_ends_with_its_namespace_so_that_the_agent_spawns_another(state, anew):
    state.router = state.netns[len('qrouter-'):]
    path = os.path.join(state.logs, 'log')
    assert state.spawn('--log-file=' + path)[0] == 0
    pid = state.pid()
    equipment.ip('netns', 'delete', state.netns)
    if anew:
        equipment.ip('netns', 'add', state.netns)
    wait_until(lambda: not cmdline(pid), 'end of the process')
    assert not os.path.exists(state.pid_file)
    with open(path) as log:
        assert log.read().count('namespace %s ' % state.netns) == 1
    if not anew:
        equipment.ip('netns', 'add', state.netns)
    equipment.ip('-n', state.netns, 'link', 'set', 'lo', 'up')
    assert state.spawn()[0] == 0
    assert state.active() and answers(state)


def test_a_namespace_of_another_name_is_not_watched(state):
    """Only an agent's own names are ones that it makes anew."""
    assert state.spawn()[0] == 0
    assert 'netns=' not in cmdline(state.pid())


def test_a_port_that_is_taken_is_said_to_the_caller(state):
    with equipment.contextlib.closing(equipment.socket_in(state.netns)) as taken:
        taken.bind(('0.0.0.0', 9697))
        taken.listen(1)
        status, _, err = state.spawn()
    assert status == 1 and 'cannot listen on 0.0.0.0 port 9697' in err and err.count('\n') == 1
    assert os.listdir(os.path.dirname(state.pid_file)) == []


def test_what_only_the_server_can_find_out_is_said_to_the_caller_too(state):
    path = os.path.join(state.folder, 'secret.conf')
    with open(path, 'w') as out:
        out.write('[mdproxy]\nmax_body = 1000\n')
    os.chmod(path, 0o600)
    status, _, err = state.spawn('--config-file', path, '--metadata_port=9698')
    assert status == 2 and err.endswith('mdproxy: %s: cannot be read: Permission denied\n' % path)
    assert os.listdir(os.path.dirname(state.pid_file)) == []
    assert not is_open(state.netns, '127.0.0.1', 9698)


def test_kilos_user_and_group_are_those_that_serve(state):
    status, _, err = state.spawn(
        '--metadata_proxy_socket=/nonexistent/s', '--metadata_proxy_user=64321',
        '--metadata_proxy_group=64322', '--nometadata_proxy_watch_log', program='neutron-ns-metadata-proxy')
    assert status == 0, err
    with open('/proc/%d/status' % state.pid()) as found:
        lines = found.read().splitlines()
    assert ['Uid:'] + ['64321'] * 4 in [line.split() for line in lines]
    assert ['Gid:'] + ['64322'] * 4 in [line.split() for line in lines]
    assert answers(state)


def test_root_does_not_serve(state):
    os.chown(state.path, 0, 0)
    status, _, err = state.spawn('--config-file', os.devnull, '--metadata_proxy_user=0')
    # Then the user that roles make; here it may be there or not.
    assert status == 0 or (status, err) == (
        1, 'quantum-ns-metadata-proxy: user mdproxy does not exist; create it or set [mdproxy] user\n')
    if status == 0:
        assert os.stat('/proc/%d' % state.pid()).st_uid != 0


def test_it_logs_where_upstreams_does_and_follows_logrotate(state):
    name = 'quantum-ns-metadata-proxy%s.log' % state.router
    assert state.spawn('--log-file=' + name, '--log-dir=' + state.logs)[0] == 0
    path = os.path.join(state.logs, name)

    def lines():
        with open(path) as log:
            return log.read()
    answers(state)
    wait_until(lambda: '502' in lines(), 'the line of the request')
    assert 'INFO mdproxy.proxy: serving router ' + state.router in lines()
    assert lines()[:4].isdigit()        # a year: nobody else puts a time stamp there
    assert os.stat(path).st_uid == UID
    os.rename(path, path + '.1')
    os.kill(state.pid(), signal.SIGHUP)
    wait_until(lambda: os.path.exists(path) and 'read again' in lines(), 'a line in the new file')
    assert os.readlink('/proc/%d/fd/2' % state.pid()) == path


def test_in_the_foreground_it_is_the_process_that_was_started(state):
    argv = ['ip', 'netns', 'exec', state.netns] + command(
        'quantum-ns-metadata-proxy', '--nodaemonize', '--router_id', state.router, '--state_path', state.path,
        '--pid_file', state.pid_file)
    proxy = Process(state.folder, argv=argv)
    try:
        proxy.until('serving router ' + state.router)
        assert state.pid() == proxy.pid and answers(state)
        assert proxy.stop() == 0 and not os.path.exists(state.pid_file)
    finally:
        proxy.kill()


def test_bad_usage_is_exit_2_before_anything_is_done(state):
    status, out, err = state.spawn('--no-such-option')
    assert (status, out) == (2, '')
    assert err == 'quantum-ns-metadata-proxy: unknown option --no-such-option\n'
    assert not os.path.exists(state.pid_file) and not is_open(state.netns, '127.0.0.1', 9697)


def agent_file(state, user=''):
    path = os.path.join(state.folder, 'metadata_agent.ini')
    with open(path, 'w') as out:
        out.write('[DEFAULT]\nauth_strategy = noauth\nmetadata_proxy_shared_secret = hush\n'
                  'state_path = %s\ndebug = True\n[mdproxy]\nport_api_url = http://127.0.0.1:9\n%s\n'
                  % (state.path, user))
    return path


@pytest.mark.parametrize('program', ['quantum-metadata-agent', 'neutron-metadata-agent'])
def test_the_agent_serves_in_the_foreground_what_upstreams_file_says(state, program):
    agent = Process(state.folder, argv=command(
        program, '--config-file=' + agent_file(state), '--log-file=' + state.logs + '/agent.log',
        '--verbose'))
    path = os.path.join(state.path, 'metadata_proxy')
    try:
        wait_until(lambda: os.path.exists(path) or agent.ended() is not None, 'the socket: ' + agent.log)
        assert agent.ended() is None, agent.log
        assert os.stat(path).st_uid == UID == os.stat('/proc/%d' % agent.pid).st_uid
        # A proxy of the same owner reaches it; the port API does not answer.
        assert state.spawn()[0] == 0
        answer = equipment.ask(state.netns, b'GET / HTTP/1.0\r\n\r\n', '127.0.0.1', 9697)
        assert answer.split()[1] == b'503'
        assert agent.stop() == 0
        with open(state.logs + '/agent.log') as log:
            assert 'INFO mdproxy.agent: serving' in log.read()
    finally:
        agent.kill()


def test_the_agent_stays_who_it_was_started_as(state):
    agent = Process(state.folder, argv=['setpriv', '--reuid=%d' % UID, '--regid=%d' % UID, '--clear-groups']
                    + command('quantum-metadata-agent', '--config-file', agent_file(state, 'user = bin')))
    try:
        agent.until('INFO mdproxy.agent: serving')
        assert os.stat('/proc/%d' % agent.pid).st_uid == UID
        probe = socket.socket(socket.AF_UNIX)
        probe.connect(os.path.join(state.path, 'metadata_proxy'))
        probe.close()
    finally:
        agent.kill()


def test_the_agent_needs_its_secret(state):
    agent = Process(state.folder, argv=command('quantum-metadata-agent', '--state_path', state.path))
    assert agent.status() == 2
    assert 'metadata_proxy_shared_secret: expected a value' in agent.log and agent.log.count('\n') == 1


def test_the_whole_path_with_both_drop_ins():
    """Guest, l3 agent's proxy, init script's agent, nova: the guest gets its own instance id."""
    with working_folder() as folder:
        router = equipment.Router('d')
        cloud = equipment.Cloud(folder, [router])
        state = State(folder, router.netns)
        state.router = router.id
        try:
            router.make()
            cloud.start()
            assert cloud.agent.stop() == 0
            agent = cloud.run(argv=command(
                'quantum-metadata-agent', '--config-file', os.path.join(folder, 'agent.ini'),
                '--metadata_proxy_socket=' + os.path.join(state.path, 'metadata_proxy')))
            agent.until('INFO mdproxy.agent: serving')
            rules = cloud._write('rules', router.rules())
            assert cloud.run('rules', 'apply', router.netns, rules).status() == 0
            status, _, err = state.spawn()
            assert status == 0, err
            assert equipment.get(router.guest, b'/latest/meta-data/instance-id') == (
                200, router.ec2_id.encode())
        finally:
            state.end()
            cloud.stop()
            router.remove()


assert USER == 'nobody'         # whose number UID is
