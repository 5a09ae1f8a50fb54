"""The jobs under a real upstart, and the Ansible module that keeps them there.

Upstart runs here as what it is on a node: process 1, in process, mount and network namespaces of
its own (the name of its socket is fixed, so the network one keeps it apart from a node's own
upstart). It has an /etc/init and a /var/log/upstart of its own, laid over the machine's.
Routers' namespaces are made by the test and are seen inside. Needs root, and the programs `init`
and `initctl` of an upstart (1.5, as Ubuntu 12.04 has it, or later) on PATH or in the folder that
MDPROXY_UPSTART names.
"""
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'unit'))

import ansible_module  # noqa: E402

jinja2 = pytest.importorskip('jinja2')
pytest.importorskip('pyroute2')

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEADLINE = 15.0         # seconds after which a test that waits has failed
PACKAGES = ['pyroute2', 'requests', 'urllib3', 'idna', 'certifi',
            'charset_normalizer' if sys.version_info[0] > 2 else 'chardet']
USER, UID = 'mdproxy', 64997
LIFETIME = '300'        # seconds after which upstart is gone, whatever became of the tests
LAUNCHER = re.compile(r"_LAUNCHER = '''(.*?)'''", re.DOTALL)

# Run as process 1's first program; /proc is still the machine's, so it can say its pid out there.
# It lays folders of upstart's own over the machine's, seen by nothing but the processes here.
BOOT = r'''
set -e
read -r pid rest < /proc/self/stat
mount -t tmpfs tmpfs "$1/over"
for folder in /etc /var/log "$(readlink -f /sbin)"; do
    own="$1/over/$(basename "$folder")"
    mkdir "$own" "$own.work"
    mount -t overlay overlay -o "lowerdir=$folder,upperdir=$own,workdir=$own.work" "$folder"
done
mkdir -p /etc/init /var/log/upstart
rm -rf /etc/init/* /var/log/upstart/*
echo "$3" >> /etc/passwd
[ -e /sbin/initctl ] || ln -s "$2/initctl" /sbin/initctl
mount --bind "$1/kmsg" /dev/kmsg
echo "$pid" > "$1/pid.new"
mv "$1/pid.new" "$1/pid"
mount -t proc proc /proc
exec "$2/init" --confdir /etc/init --no-startup-event
'''


def wait_until(condition, seconds=DEADLINE):
    """The first true value of condition(); AssertionError when there is none in time."""
    end = time.time() + seconds
    while True:
        value = condition()
        if value or time.time() > end:
            assert value, 'waited %g s in vain' % seconds
            return value
        time.sleep(0.05)


def run(*argv):
    """(exit status, standard output and error) of a command."""
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    out = process.communicate()[0].decode('utf-8', 'replace')
    return process.returncode, out


def find_upstart():
    """The folder of upstart's programs, or skip."""
    if os.geteuid():
        pytest.skip('needs root, for process 1 and namespaces')
    folders = os.environ.get('MDPROXY_UPSTART') or os.environ['PATH']
    for folder in folders.split(os.pathsep):
        init, initctl = os.path.join(folder, 'init'), os.path.join(folder, 'initctl')
        if os.access(initctl, os.X_OK) and os.access(init, os.X_OK):
            if 'upstart' in run(init, '--version')[1]:
                return os.path.abspath(folder)
    pytest.skip('no upstart: init and initctl of one are not in ' + folders)


def find_python():
    """An interpreter that any user can run, as one under a home directory may not be."""
    for path in (sys.executable, '/usr/bin/python%d' % sys.version_info[0]):
        try:
            words = [path, '-Es', '-c', 'import threading']
            if subprocess.call(words, preexec_fn=become_user) == 0:
                return path
        except EnvironmentError:
            continue
    pytest.skip('no interpreter that an unprivileged user can run')


def become_user():
    os.setgroups([])
    os.setgid(UID)
    os.setuid(UID)


class Node(object):
    """A node that upstart runs, with a release of the checkout's mdproxy."""

    def __init__(self, folder, upstart):
        self.folder = folder
        self.root, self.release = folder + '/opt', folder + '/opt/releases/test'
        # Root in a container may lack CAP_SYS_RESOURCE, and then upstart refuses the whole job.
        self.may_raise_limits = run('sh', '-c', 'ulimit -n 65536')[0] == 0
        self._install()
        for name in ('over', 'etc', 'etc/routers'):
            os.mkdir(os.path.join(folder, name))
        for name, text in (('kmsg', ''), ('boot.sh', BOOT)):
            with open(os.path.join(folder, name), 'w') as out:
                out.write(text)
        environment = dict(os.environ, DBUS_SYSTEM_BUS_ADDRESS='unix:path=/nonexistent')
        self.process = subprocess.Popen(
            ['timeout', '--signal=KILL', LIFETIME, 'unshare', '--mount', '--propagation', 'slave',
             '--pid', '--net', '--fork', '--kill-child', 'sh', folder + '/boot.sh', folder, upstart,
             '%s:x:%d:%d::/:/bin/false' % (USER, UID, UID)],
            env=environment, stderr=open(os.devnull, 'w'))
        wait_until(lambda: os.path.exists(folder + '/pid') or self.process.poll() is not None)
        assert self.process.poll() is None, 'upstart did not start'
        with open(folder + '/pid') as pid:
            self.pid = int(pid.read())
        wait_until(lambda: self.initctl('version')[0] == 0)

    def _install(self):
        with open(os.path.join(ROOT, 'roles/mdproxy/library/mdproxy_release.py')) as module:
            launcher = LAUNCHER.search(module.read()).group(1)
        shutil.copytree(os.path.join(ROOT, 'mdproxy'), self.release + '/lib/mdproxy')
        for name in PACKAGES:
            package = pytest.importorskip(name)
            shutil.copytree(os.path.dirname(package.__file__), self.release + '/lib/' + name)
        os.mkdir(self.release + '/bin')
        with open(self.release + '/bin/mdproxy', 'w') as out:
            out.write(launcher % dict(python=find_python()))
        os.chmod(self.release + '/bin/mdproxy', 0o755)
        os.symlink('releases/test', self.root + '/current')

    def end(self):
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait()

    def run(self, *argv):
        """(exit status, output) of a command on the node."""
        return run('nsenter', '-t', str(self.pid), '-m', '-p', '-n', *argv)

    def initctl(self, *words):
        return self.run('timeout', '30', '/sbin/initctl', *words)

    def status(self, name):
        return self.initctl('status', name)[1].strip()

    def running(self, name):
        """The pid of the job's process as the node counts, or None."""
        match = re.search(r' start/running, process (\d+)', self.status(name))
        return match and match.group(1)

    def runs_release(self, pid):
        """True when the process is one of the release's and serves as the unprivileged user."""
        words = self.run('cat', '/proc/%s/cmdline' % pid)[1].split('\0')
        owner = self.run('stat', '-c', '%u', '/proc/%s' % pid)[1].strip()
        return any(word.startswith(self.release) for word in words) and owner == str(UID)

    def log(self, name):
        return self.run('cat', '/var/log/upstart/%s.log' % name)[1]

    def write(self, path, text):
        """Put a file in place as the Ansible module does: written beside it and renamed."""
        path = '/proc/%d/root%s' % (self.pid, path)
        folder, name = os.path.split(path)
        with io.open(folder + '/.new', 'w') as out:
            out.write(text)
        os.rename(folder + '/.new', path)

    def render(self, template, **values):
        variables = dict(
            mdproxy_root=self.root, mdproxy_user=USER, mdproxy_header_family='quantum',
            mdproxy_agent_location='local',
            mdproxy_agent_socket=self.folder + '/run/metadata_proxy',
            metadata_agent_config=self.folder + '/etc/agent.ini', metadata_shared_secret='s3cret',
            metadata_agent_nova_metadata_ip='127.0.0.1', metadata_agent_nova_metadata_port=8775,
            metadata_agent_auth_strategy='noauth', metadata_agent_options={},
            metadata_agent_port_api_url='http://127.0.0.1:9696',
            router_proxy_folder=self.folder + '/etc/routers', router_proxy_interface='qr-+',
            router_proxy_options={})
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader([
                os.path.join(ROOT, 'roles'), os.path.join(ROOT, 'roles', 'metadata_agent', 'templates')]),
            trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
        # Ansible's.
        environment.filters.update(dirname=os.path.dirname, combine=lambda one, other: dict(one, **other))
        text = environment.get_template(template).render(dict(variables, **values))
        return text if self.may_raise_limits else text.replace('limit nofile 65536 65536\n', '')


class Job(object):
    """A job of ours and its files."""

    def start(self):
        return self.node.initctl('start', self.name)

    def stop(self):
        return self.node.initctl('stop', self.name)

    def status(self):
        return self.node.status(self.name)

    def running(self):
        return self.node.running(self.name)

    def log(self):
        return self.node.log(self.name)

    def install(self, **values):
        for path, text in self.files(**values):
            self.node.write(path, text)
        self.node.initctl('reload-configuration')

    def uninstall(self):
        self.stop()
        self.node.run('rm', '-f', self.path, self.path[:-len('conf')] + 'override')
        self.node.initctl('reload-configuration')

    def kill(self):
        """Kill the running process with SIGKILL; its pid."""
        pid = self.running()
        assert self.node.run('kill', '-9', pid)[0] == 0
        return pid

    def respawned(self, before):
        """The pid of the process that runs after `before`, once it serves."""
        return wait_until(lambda: self.running() not in (None, before) and self.serves()
                          and self.running())


class Agent(Job):
    name, path = 'mdproxy-agent', '/etc/init/mdproxy-agent.conf'

    def __init__(self, node):
        self.node = node
        self.socket = node.folder + '/run/metadata_proxy'
        self.ready = dict(socket=self.socket)

    def files(self, **values):
        return [(path, self.node.render('metadata_agent/templates/agent.%s.j2' % kind, **values))
                for path, kind in ((self.node.folder + '/etc/agent.ini', 'ini'),
                                   (self.path, 'conf'))]

    def serves(self):
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            return probe.connect_ex(self.socket) == 0
        finally:
            probe.close()


class Proxy(Job):
    """A router's."""

    kind, netns = 'router', 'qrouter-%s'

    def __init__(self, node):
        self.node, self.id = node, str(uuid.uuid4())
        self.name, self.netns = 'mdproxy-proxy-' + self.id, self.netns % self.id
        self.path = '/etc/init/%s.conf' % self.name
        self.base = '%s/etc/routers/%s' % (node.folder, self.id)
        self.ready = dict(netns=self.netns, port=9697)

    def variables(self, port=9697):
        return dict(router_proxy_port=port, router_proxy_listen='0.0.0.0:%d' % port,
                    router_proxy_rules=self.base + '.rules')

    def files(self, **values):
        values = dict(self.variables(**values), router_proxy_id=self.id, router_proxy_kind=self.kind,
                      router_proxy_netns=self.netns)
        paths = [(self.base + '.ini', 'ini'), (values['router_proxy_rules'], 'rules'), (self.path, 'conf')]
        return [(path, self.node.render('router_proxy/templates/proxy.%s.j2' % kind, **values))
                for path, kind in paths if path]

    def make_namespace(self):
        assert run('ip', 'netns', 'add', self.netns)[0] == 0

    def delete_namespace(self):
        run('ip', 'netns', 'del', self.netns)

    def listens(self, port=9697):
        sockets = run('ip', 'netns', 'exec', self.netns, 'cat', '/proc/net/tcp')[1]
        return (':%04X 00000000:0000 0A' % port) in sockets

    def has_rules(self):
        saved = run('ip', 'netns', 'exec', self.netns, 'iptables-save')[1]
        return '-j REDIRECT --to-ports' in saved

    def serves(self):
        return self.listens() and self.has_rules()


class NetworkProxy(Proxy):
    """An isolated network's: no rules, on an address that the dhcp agent gives its namespace."""

    kind, netns = 'network', 'qdhcp-%s'

    def variables(self):
        return dict(router_proxy_listen='169.254.169.254:80', router_proxy_rules='')

    def make_address(self):
        for words in (['link', 'set', 'lo', 'up'], ['address', 'add', '169.254.169.254/16', 'dev', 'lo']):
            assert run('ip', '-n', self.netns, *words)[0] == 0

    def serves(self):
        return self.listens(80)


@pytest.fixture(scope='module')
def node():
    upstart = find_upstart()
    folder = tempfile.mkdtemp(prefix='mdproxy-')
    try:
        os.chmod(folder, 0o755)     # the user that serves reads the release and its configuration
        node = Node(folder, upstart)
        yield node
        node.end()
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def agent(node):
    job = Agent(node)
    job.install()
    yield job
    job.uninstall()


@pytest.fixture
def proxy(node):
    """A router's job; its namespace is there."""
    job = Proxy(node)
    job.make_namespace()
    job.install()
    yield job
    job.uninstall()
    job.delete_namespace()


@pytest.fixture
def early_proxy(node):
    """A router's job whose namespace the l3 agent has not made yet."""
    job = Proxy(node)
    job.install()
    yield job
    job.uninstall()
    job.delete_namespace()


@pytest.fixture
def early_network(node):
    """The same for a network."""
    job = NetworkProxy(node)
    job.install()
    yield job
    job.uninstall()
    job.delete_namespace()


def test_jobs_are_accepted_and_not_started_by_being_there(agent, proxy):
    assert agent.status() == 'mdproxy-agent stop/waiting'
    assert proxy.status() == proxy.name + ' stop/waiting'


def test_the_job_of_all_routers_is_accepted(node):
    path, base = '/etc/init/mdproxy-proxies.conf', node.folder + '/etc/proxies'
    node.write(path, node.render('router_proxy/templates/proxies.conf.j2', router_proxy_shared_base=base))
    node.initctl('reload-configuration')
    assert node.status('mdproxy-proxies') == 'mdproxy-proxies stop/waiting'
    node.run('rm', '-f', path)
    node.initctl('reload-configuration')


def test_agent_starts_and_stops(node, agent):
    assert agent.start()[0] == 0
    wait_until(agent.serves)
    assert node.runs_release(agent.running())
    assert agent.stop()[0] == 0
    assert agent.status() == 'mdproxy-agent stop/waiting'
    assert not agent.serves()


def test_agent_is_respawned_after_kill(agent):
    agent.start()
    wait_until(agent.serves)
    agent.respawned(agent.kill())


def test_proxy_starts_with_its_rules_and_takes_them_away_when_stopped(node, proxy):
    assert proxy.start()[0] == 0
    wait_until(proxy.serves)
    assert node.runs_release(proxy.running())
    assert proxy.stop()[0] == 0
    assert proxy.status() == proxy.name + ' stop/waiting'
    assert not proxy.listens() and not proxy.has_rules()


def test_proxy_is_respawned_after_kill_with_its_rules(proxy):
    proxy.start()
    wait_until(proxy.serves)
    proxy.respawned(proxy.kill())


def test_proxy_starts_when_its_namespace_appears(early_proxy):
    early_proxy.start()
    wait_until(lambda: waits(early_proxy))
    pid = early_proxy.running()
    early_proxy.make_namespace()
    wait_until(early_proxy.serves)
    assert early_proxy.running() == pid


def waits(proxy):
    return 'waiting for namespace ' + proxy.netns in proxy.log() and proxy.running()


def test_proxy_serves_again_when_its_namespace_was_made_anew(proxy):
    proxy.start()
    wait_until(proxy.serves)
    before = proxy.running()
    proxy.delete_namespace()
    proxy.make_namespace()
    proxy.respawned(before)
    assert proxy.log().count('namespace %s ' % proxy.netns) == 1


def test_proxy_without_namespace_says_so_once_and_goes_on_waiting(proxy):
    proxy.start()
    wait_until(proxy.serves)
    proxy.delete_namespace()
    pid, said = wait_until(lambda: waits(proxy)), proxy.log()
    time.sleep(3)           # in which nothing happens, as can only be seen by waiting
    assert (proxy.running(), proxy.log()) == (pid, said)
    assert said.count('namespace %s is gone' % proxy.netns) == 1 == said.count('waiting for')
    proxy.make_namespace()
    wait_until(proxy.serves)
    assert proxy.running() == pid


def test_proxy_of_a_network_needs_no_rules(node, early_network):
    early_network.start()
    wait_until(lambda: waits(early_network))
    early_network.make_namespace()
    early_network.make_address()
    wait_until(early_network.serves)
    assert node.runs_release(early_network.running())
    assert early_network.stop()[0] == 0


def test_failing_proxy_is_tried_again_about_once_a_second_and_for_ever(node, proxy):
    node.write(proxy.base + '.ini', u'[mdproxy]\nno_such_option = 1\n')
    begin = time.time()
    proxy.start()
    wait_until(lambda: proxy.log().count('no_such_option') >= 5)
    assert time.time() - begin > 3.5
    proxy.install()
    wait_until(proxy.serves)


def test_proxy_without_namespace_can_be_stopped(early_proxy):
    early_proxy.start()
    wait_until(lambda: waits(early_proxy))
    assert early_proxy.stop()[0] == 0
    assert early_proxy.status() == early_proxy.name + ' stop/waiting'


def test_failing_job_is_tried_again_about_once_a_second_and_for_ever(node, agent):
    node.write(node.folder + '/etc/agent.ini', u'[mdproxy]\nno_such_option = 1\n')
    begin = time.time()
    agent.start()
    wait_until(lambda: agent.log().count('no_such_option') >= 5)
    assert time.time() - begin > 3.5
    agent.install()
    wait_until(agent.serves)


def test_jobs_follow_the_runlevel(node, agent, proxy):
    node.initctl('emit', 'runlevel', 'RUNLEVEL=2', 'PREVLEVEL=N')
    wait_until(lambda: agent.serves() and proxy.serves())
    node.initctl('emit', 'runlevel', 'RUNLEVEL=0', 'PREVLEVEL=2')
    wait_until(lambda: 'stop/waiting' in agent.status() and 'stop/waiting' in proxy.status())
    assert not proxy.has_rules()


def test_changed_job_file_takes_effect_after_stop_and_start(proxy):
    proxy.start()
    wait_until(proxy.serves)
    proxy.install(port=9797)
    assert proxy.listens(9697)
    proxy.stop()
    proxy.start()
    wait_until(lambda: proxy.listens(9797))


class Module(object):
    """The Ansible module, run on the node as Ansible runs it."""

    def __init__(self, node, jobs):
        self.node, self.jobs = node, jobs

    def __call__(self, check_mode=False, wait=15, prune=(), **values):
        jobs = [dict(name=job.name, ready=job.ready,
                     files=[dict(path=path, content=text) for path, text in job.files(**values)])
                for job in self.jobs]
        arguments = dict(service_manager='upstart', release=self.node.release, jobs=jobs, wait=wait,
                         prune=list(prune), run_dir=self.node.folder + '/marks',
                         _ansible_check_mode=check_mode, _ansible_remote_tmp=self.node.folder)
        with open(self.node.folder + '/arguments.json', 'w') as out:
            json.dump(dict(ANSIBLE_MODULE_ARGS=arguments), out)
        out = self.node.run('sh', '-c', 'exec "$@" <"$0"', self.node.folder + '/arguments.json',
                            *ansible_module.command('mdproxy_jobs'))[1]
        return json.loads(out[out.index('{'):])

    def pids(self):
        return [job.running() for job in self.jobs]


@pytest.fixture
def module(node):
    pytest.importorskip('ansible.module_utils.basic')
    proxies = [Proxy(node), Proxy(node)]
    jobs = [Agent(node)] + proxies
    for proxy in proxies:
        proxy.make_namespace()
    yield Module(node, jobs)
    for job in jobs:
        job.uninstall()
    for proxy in proxies:
        proxy.delete_namespace()


def test_module_in_check_mode_says_what_it_would_do_and_does_nothing(module):
    outcome = module(check_mode=True)
    assert outcome['changed']
    assert sorted(outcome['restarted']) == sorted(job.name for job in module.jobs)
    assert module.node.run('ls', '/etc/init')[1] == ''


def test_module_starts_jobs_once(module):
    first = module()
    assert first['changed'] and set(first['restarted'].values()) == set(['not running'])
    assert all(job.serves() for job in module.jobs)
    pids = module.pids()
    second = module()
    assert not second['changed'] and second['restarted'] == {}
    assert not module(check_mode=True)['changed']
    assert module.pids() == pids


def test_module_restarts_the_job_whose_file_changed_and_no_other(module):
    module()
    agent, one, other = module.jobs
    kept = agent.running(), other.running()
    module.node.write(one.path, module.node.run('cat', one.path)[1] + u'# by hand\n')
    assert list(module()['restarted']) == [one.name]
    assert (agent.running(), other.running()) == kept


def test_module_restarts_with_the_changed_job_file(module):
    module()
    for job in module.jobs[1:]:
        job.ready['port'] = 9797
    assert len(module(port=9797)['restarted']) == 2
    assert all(job.listens(9797) for job in module.jobs[1:])


def test_module_starts_a_stopped_job(module):
    module()
    module.jobs[1].stop()
    assert module()['restarted'] == {module.jobs[1].name: 'not running'}
    assert module.jobs[1].serves()


def test_module_starts_at_boot_what_was_set_to_manual(module):
    module()
    pids = module.pids()
    override = '/etc/init/mdproxy-agent.override'
    module.node.write(override, u'nice 1\nmanual\n')
    module.node.initctl('reload-configuration')
    outcome = module()
    assert outcome['changed'] and outcome['restarted'] == {}
    assert module.node.run('cat', override)[1] == 'nice 1\n'
    assert not module()['changed'] and module.pids() == pids


def test_module_removes_a_job_that_should_not_be_there_with_all_its_files(module):
    gone = module.jobs[-1]
    prune = [dict(name='mdproxy-proxy-{item}', files=['/etc/init/mdproxy-proxy-{item}.conf'] + [
        '%s/etc/routers/{item}.%s' % (module.node.folder, kind) for kind in ('ini', 'rules')])]
    module(prune=prune)         # what other tests left is gone then
    module.node.write('/etc/init/%s.override' % gone.name, u'nice 1\n')
    module.jobs = module.jobs[:-1]
    pids = module.pids()
    assert module(check_mode=True, prune=prune)['removed'] == [gone.name] and gone.serves()
    assert module(prune=prune)['removed'] == [gone.name]
    assert 'Unknown job' in gone.status()
    assert not gone.listens() and not gone.has_rules()
    left = module.node.run('find', '/etc/init', module.node.folder + '/etc', '-name', '*%s*' % gone.id)[1]
    assert left == '' and module.pids() == pids
    assert not module(prune=prune)['changed']


def test_module_says_that_upstart_cannot_read_a_job_file(module):
    agent = module.jobs[0]
    files = agent.files
    agent.files = lambda **values: [(path, text.replace('respawn\n', 'respawns\n'))
                                    for path, text in files(**values)]
    outcome = module(wait=1)
    assert outcome['failed'] and 'Unknown job: ' + agent.name in outcome['msg']
    assert module.jobs[1].running()
    agent.files = files
    assert not module().get('failed')


def test_module_says_why_a_job_does_not_start(module):
    module.jobs[2].delete_namespace()
    outcome = module(wait=3)
    assert outcome['failed'] and module.jobs[2].name in outcome['msg']
    assert 'waiting for namespace ' + module.jobs[2].netns in outcome['msg']
    assert module.jobs[0].serves() and module.jobs[1].serves()
    module.jobs[2].make_namespace()
    assert not module().get('failed')
