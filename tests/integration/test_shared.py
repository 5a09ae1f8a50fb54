"""One process for all routers: namespaces that come and go, workers and masters that end.

The master serves every qrouter- namespace that it finds, so the tests have a folder of their own.
"""
import contextlib
import json
import os
import pwd
import signal
import socket
import sys
import threading
import time
import uuid

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import equipment  # noqa: E402

equipment.requirements()

from equipment import (  # noqa: E402
    METADATA,
    METADATA6,
    USER,
    Cloud,
    Router,
    ask6,
    get,
    ip,
    iptables_save,
    is_open,
    isolated_network,
    private_folder_of_namespaces,
    socket_in,
    wait_until,
    working_folder,
)

sys.path.insert(0, equipment.ROOT)

from mdproxy import linklocal  # noqa: E402

INSTANCE_ID = b'/latest/meta-data/instance-id'
GUESTS_PORT = 9697
REQUEST = b'GET ' + INSTANCE_ID + b' HTTP/1.1\r\nHost: m\r\n\r\n'
REQUEST6 = REQUEST.replace(b'\r\n\r\n', b'\r\nConnection: close\r\n\r\n')


class Master(object):
    """The master for a cloud's routers. settings: NAME=VALUE of options."""

    def __init__(self, cloud, *settings, **kwargs):
        self.cloud = cloud
        self.status_folder = os.path.join(cloud.folder, 'run', 'status')
        self.process = cloud.run(
            'proxy', '--discover', '--config-file', cloud.folder + '/proxies.ini',
            *['--set=' + setting for setting in settings], **kwargs)

    def serving(self):
        """Wait until its workers serve all that there is, and no others are about to; itself."""
        def steady():
            told = self.tell()
            return (len(told.get('workers', ())) == 2 and not told['changing']
                    and not told['namespaces']['starting'])
        wait_until(steady, 'workers: ' + self.process.log)
        return self

    def tell(self, name='master'):
        """What its status, or a worker's, says; empty while it has none."""
        return self._ask(name)

    def workers(self):
        """{slot: pid} of those who serve."""
        return self.tell().get('workers', {})

    def troubles(self):
        return self.tell().get('troubles', {})

    def _ask(self, name):
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect('%s/%s.sock' % (self.status_folder, name))
            sock.sendall(b'GET /status HTTP/1.0\r\n\r\n')
            answer = b''
            for piece in iter(lambda: sock.recv(65536), b''):
                answer += piece
        except (IOError, OSError):
            return {}
        finally:
            sock.close()
        return json.loads(answer.partition(b'\r\n\r\n')[2].decode('utf-8') or '{}')


class Load(object):
    """Guests that ask again and again on kept connections, until `stop`."""

    def __init__(self, *routers):
        self.answers, self.failures, self._going = 0, [], True
        self._threads = [threading.Thread(target=self._ask, args=(router, close))
                         for router in routers for close in (False, False, True)]
        for thread in self._threads:
            thread.start()

    def _ask(self, router, close):
        expected = router.ec2_id.encode()
        sock = None
        while self._going:
            try:
                if sock is None:
                    sock = socket_in(router.guest)
                    sock.settimeout(5.0)
                    sock.connect((METADATA, 80))
                sock.sendall(REQUEST)
                head, body = self._answer(sock)
                if not head.startswith(b'HTTP/1.1 200 ') or body != expected:
                    self.failures.append((head, body))
                self.answers += 1
                if close or b'\r\nConnection: close' in head:
                    sock.close()
                    sock = None
            except (IOError, OSError, ValueError) as error:
                self.failures.append(repr(error))
                if sock is not None:
                    sock.close()
                sock = None
        if sock is not None:
            sock.close()

    @staticmethod
    def _answer(sock):
        data = b''
        while b'\r\n\r\n' not in data:
            piece = sock.recv(65536)
            if not piece:
                raise ValueError('closed after %r' % data)
            data += piece
        head, _, body = data.partition(b'\r\n\r\n')
        length = int(head.lower().partition(b'content-length:')[2].split()[0])
        while len(body) < length:
            body += sock.recv(65536)
        return head, body

    def stop(self):
        self._going = False
        for thread in self._threads:
            thread.join()


@pytest.fixture(scope='module')
def cloud():
    """The cloud of two routers of two tenants at the same addresses; neither router is made yet."""
    with private_folder_of_namespaces(), working_folder() as folder:
        made = Cloud(folder, [Router('r'), Router('b')])
        with open(folder + '/proxies.ini', 'w') as out:
            out.write('[DEFAULT]\nmetadata_proxy_socket = %s\n[mdproxy]\nuser = %s\nworkers = 2\n'
                      'status_folder = %s/run/status\nlock_file = %s/lock\n'
                      % (made.socket, USER, folder, folder))
        try:
            made.start()
            yield made
        finally:
            made.stop()


@pytest.fixture
def site(cloud):
    """The cloud with both routers made; they and every master of the test go afterwards."""
    before = list(cloud.processes)
    try:
        for router in cloud.routers:
            router.make()
        yield cloud
    finally:
        for process in cloud.processes[len(before):]:
            process.stop()
        del cloud.processes[len(before):]
        for router in cloud.routers:
            router.remove()


@contextlib.contextmanager
def other_configuration(site, change):
    """The masters' configuration as change(text) makes it, for a while."""
    path = site.folder + '/proxies.ini'
    with open(path) as ini:
        text = ini.read()
    try:
        with open(path, 'w') as ini:
            ini.write(change(text))
        yield
    finally:
        with open(path, 'w') as ini:
            ini.write(text)


def answer(router):
    """What a router's guest is told its instance id is, or None."""
    try:
        status, body = get(router.guest, INSTANCE_ID)
    except (IOError, OSError, AssertionError):
        return None
    return body if status == 200 else None


def is_served(router):
    return answer(router) == router.ec2_id.encode()


def until_served(*routers):
    for router in routers:
        wait_until(lambda router=router: is_open(router.guest, METADATA, 80) and is_served(router),
                   'service for ' + router.id)


def until_others_serve(master, before):
    """Wait until a whole generation of workers serves, none of these pids."""
    def others():
        now = set(master.workers().values())
        return len(now) == 2 and not now & before
    wait_until(others, 'new workers')


def is_running(pid):
    try:
        with open('/proc/%d/stat' % pid) as found:
            return found.read().rpartition(')')[2].split()[0] != 'Z'
    except IOError:
        return False


def test_guests_of_every_router_get_their_own_instance(site):
    Master(site)
    until_served(*site.routers)
    red, blue = site.routers
    assert red.fixed_ip == blue.fixed_ip and red.ec2_id != blue.ec2_id
    for router in site.routers:
        assert 'mdproxy-PREROUTING' in '\n'.join(iptables_save(router.netns))
        assert not is_open(router.guest, router.gateway, GUESTS_PORT)
        assert not is_open(router.outside, router.external_ip, GUESTS_PORT)


def test_only_the_master_is_root(site):
    master = Master(site).serving()
    until_served(*site.routers)
    uid = pwd.getpwnam(USER).pw_uid
    for pid in master.workers().values():
        with open('/proc/%d/status' % pid) as status:
            fields = dict(line.rstrip('\n').split(':\t', 1) for line in status)
        assert fields['Uid'].split() == [str(uid)] * 4
        assert int(fields['CapEff'], 16) == int(fields['CapPrm'], 16) == 0
        assert fields['NoNewPrivs'] == '1' and fields['Groups'].strip() == ''


def test_a_router_that_comes_is_served_and_one_that_goes_is_let_go(site):
    red, blue = site.routers
    blue.lose()
    master = Master(site)
    until_served(red)
    blue.make()
    until_served(blue)
    red.lose()
    # The other end of its link goes only with the namespace itself, which a socket would keep.
    wait_until(lambda: 'eth0' not in ip('-n', red.guest, 'link'), 'end of the namespace')
    assert is_served(blue)
    assert master.tell()['namespaces'] == {'served': 1, 'starting': 0, 'waiting': 0, 'failing': 0}
    assert master.process.log.count('qrouter-%s is gone' % red.id) == 1


def test_a_namespace_made_anew_under_its_name_is_served_anew(site):
    red = site.routers[0]
    Master(site)
    for _ in range(3):
        until_served(red)
        red.lose()
        red.make()
    until_served(*site.routers)


def test_workers_are_replaced_without_losing_a_request(site):
    master = Master(site).serving()
    until_served(*site.routers)
    load = Load(*site.routers)
    try:
        for _ in range(20):
            before, enough = set(master.workers().values()), load.answers + 100
            os.kill(master.process.pid, signal.SIGHUP)
            until_others_serve(master, before)
            wait_until(lambda enough=enough: load.answers >= enough, 'answers')
    finally:
        load.stop()
    assert load.failures == []
    assert load.answers > 2000


def test_a_killed_worker_is_replaced(site):
    master = Master(site).serving()
    until_served(*site.routers)
    before = master.workers()
    for slot in before:
        os.kill(before[slot], signal.SIGKILL)
        wait_until(lambda slot=slot: master.workers().get(slot) not in (None, before[slot]), 'another worker')
        until_served(*site.routers)
    assert master.process.log.count('was killed by signal 9; another takes its place') == 2


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGUSR2])
def test_a_dead_master_takes_nothing_with_it(site, number):
    first = Master(site).serving()
    until_served(*site.routers)
    orphans = list(first.workers().values())
    load = Load(*site.routers)
    try:
        status = first.process.stop(number)
        enough = load.answers + 100
        wait_until(lambda: load.answers > enough, 'answers without a master')
        second = Master(site).serving()
        wait_until(lambda: not any(map(is_running, orphans)), 'end of the first one\'s workers')
        enough = load.answers + 100
        wait_until(lambda: load.answers > enough, 'answers of the second one\'s workers')
    finally:
        load.stop()
    assert load.failures == []
    assert status == (0 if number == signal.SIGUSR2 else -number)
    assert len(second.workers()) == 2 and second.troubles() == {}


def test_there_is_one_master(site):
    Master(site).serving()
    second = Master(site).process
    assert second.status() == 1
    assert 'already running: another proxy --discover holds' in second.log
    until_served(*site.routers)


def test_one_bad_namespace_stops_no_other_and_is_tried_again(site):
    red, blue = site.routers
    nowhere = 'qrouter-' + str(uuid.uuid4())
    open('/run/netns/' + nowhere, 'w').close()
    taken = socket_in(red.netns)
    taken.bind(('0.0.0.0', GUESTS_PORT))
    taken.listen(1)
    try:
        master = Master(site)
        until_served(blue)
        wait_until(lambda: len(master.troubles()) == 2, 'troubles')
        assert master.troubles()[nowhere] == 'no namespace is mounted there'
        assert 'cannot listen on 0.0.0.0 port 9697' in master.troubles()[red.netns]
        assert master.tell()['namespaces'] == {'served': 1, 'starting': 0, 'waiting': 0, 'failing': 2}
    finally:
        taken.close()
        os.unlink('/run/netns/' + nowhere)
    until_served(red)
    wait_until(lambda: master.troubles() == {}, 'end of the troubles')
    assert master.process.log.count('no namespace is mounted there') == 1


def test_a_name_that_is_no_routers_is_left_alone(site):
    with equipment.namespace('qrouter-copy') as other:
        Master(site)
        until_served(*site.routers)
        assert not any('mdproxy' in line for line in iptables_save(other))
        assert not is_open(other, '127.0.0.1', GUESTS_PORT)


def test_rules_that_are_lost_are_put_back(site):
    red = site.routers[0]
    master = Master(site, 'rules_interval=1')
    until_served(red)
    for table in ('nat', 'filter'):
        ip('netns', 'exec', red.netns, 'iptables', '-t', table, '-F')
    wait_until(lambda: is_open(red.guest, METADATA, 80) and is_served(red), 'rules')
    assert not is_open(red.outside, red.external_ip, GUESTS_PORT)
    assert 'rules were not as they should be, and are again' in master.process.until('and are again')


def test_without_iptables_it_says_so_for_every_router_and_goes_on(site):
    programs = os.path.join(site.folder, 'programs')
    if not os.path.isdir(programs):
        os.mkdir(programs)
    master = Master(site, environment={'PATH': programs})
    wait_until(lambda: len(master.troubles()) == 2, 'troubles')
    assert set(master.troubles().values()) == set(['iptables-save cannot be run: No such file or directory'])
    for name in ('iptables-save', 'iptables-restore', 'unshare', 'sh'):
        found = [os.path.join(folder, name) for folder in os.environ['PATH'].split(os.pathsep)
                 if os.path.exists(os.path.join(folder, name))]
        os.symlink(found[0], os.path.join(programs, name))
    until_served(*site.routers)


def test_a_configuration_that_cannot_be_used_changes_nothing(site):
    master = Master(site).serving()
    until_served(*site.routers)
    before = master.workers()
    with other_configuration(site, lambda text: text + 'idle_timeout = soon\n'):
        os.kill(master.process.pid, signal.SIGHUP)
        master.process.until('the configuration stays as it was')
        assert master.workers() == before


@pytest.mark.parametrize('setting', ['status_folder=', 'status_folder=/dev/null/status'])
def test_without_a_status_it_serves_and_ends_all_the_same(site, setting):
    master = Master(site, setting)
    until_served(*site.routers)
    assert master.process.stop() == 0


def test_an_agent_whose_name_means_nothing_is_refused_at_the_start(site):
    master = Master(site, 'agents=agent.invalid:1', 'link_secret=x')
    assert master.process.status() == 2         # a secret belongs into a file
    path = site.folder + '/remote.ini'
    with open(path, 'w') as ini:
        ini.write('[mdproxy]\nagents = agent.invalid:1\nlink_secret = x\nuser = %s\nlock_file = %s/lock\n'
                  % (USER, site.folder))
    refused = site.run('proxy', '--discover', '--config-file', path)
    assert refused.status() == 2
    assert 'mdproxy: host agent.invalid cannot be resolved: ' in refused.log


def test_an_agent_whose_name_means_nothing_any_more_changes_nothing(site):
    master = Master(site).serving()
    until_served(*site.routers)
    before = master.workers()
    with other_configuration(site, lambda text: text + 'agents = agent.invalid:1\nlink_secret = x\n'):
        os.kill(master.process.pid, signal.SIGHUP)
        assert 'host agent.invalid cannot be resolved' in master.process.until('the configuration stays')
        assert master.workers() == before and is_served(site.routers[0])


def test_options_are_read_again_and_those_that_take_a_restart_stay_as_they_are(site):
    master = Master(site).serving()
    until_served(*site.routers)
    with other_configuration(site, lambda text: text.replace('workers = 2', 'workers = 1').replace(
            'user = ' + USER, 'user = daemon') + 'rules_interval = 0\n'):
        os.kill(master.process.pid, signal.SIGHUP)
        wait_until(lambda: list(master.workers()) == ['0'], 'one worker')
    for name in ('user', 'rules_interval'):
        assert '%s has changed; that takes a restart' % name in master.process.log
    with open('/proc/%d/status' % master.workers()['0']) as status:
        assert '\nUid:\t%d\t' % pwd.getpwnam(USER).pw_uid in status.read()
    wait_until(lambda: sorted(os.listdir(master.status_folder)) == ['master.sock', 'worker-0.sock'],
               'no status of a second worker')
    until_served(*site.routers)
    assert 'Traceback' not in master.process.log


def test_what_was_counted_stays_counted_when_workers_change(site):
    def answers():
        told = [master.tell(name) for name in ('master', 'worker-0', 'worker-1')]
        return sum(one.get('requests', {}).get('200', 0) for one in told)
    master = Master(site).serving()
    until_served(*site.routers)
    before = answers()
    assert before >= 2
    pids = set(master.workers().values())
    os.kill(master.process.pid, signal.SIGHUP)
    until_others_serve(master, pids)
    wait_until(lambda: answers() == before, 'the counts of those who have ended')


def slowed(folder, name, seconds):
    """A folder to be put before PATH, with a program that takes so long before it does what it does."""
    programs = os.path.join(folder, 'slow-' + name)
    if not os.path.isdir(programs):
        os.mkdir(programs)
    found = [os.path.join(one, name) for one in os.environ['PATH'].split(os.pathsep)
             if os.path.exists(os.path.join(one, name))]
    path = os.path.join(programs, name)
    with open(path, 'w') as out:
        out.write('#!/bin/sh\nsleep %g\nexec %s "$@"\n' % (seconds, found[0]))
    os.chmod(path, 0o755)
    return programs + os.pathsep + os.environ['PATH']


def test_a_stop_while_rules_are_being_applied_leaves_none(site):
    master = Master(site, environment={'PATH': slowed(site.folder, 'iptables-restore', 1.0)})
    wait_until(lambda: master.tell().get('namespaces', {}).get('starting') == 2, 'start')
    assert master.process.stop() == 0
    for router in site.routers:
        assert not any('mdproxy' in line for line in iptables_save(router.netns))


def test_a_namespace_made_anew_while_its_rules_are_applied_never_listens_without_them(site):
    red = site.routers[0]
    master = Master(site, environment={'PATH': slowed(site.folder, 'iptables-restore', 1.0)})
    wait_until(lambda: master.tell().get('namespaces', {}).get('starting') == 2, 'start')
    red.lose()
    red.make()
    wait_until(lambda: is_open(red.netns, red.gateway, GUESTS_PORT)
               or any('mdproxy' in line for line in iptables_save(red.netns)), 'rules or a listener')
    assert any('mdproxy-INPUT' in line for line in iptables_save(red.netns))
    until_served(*site.routers)


def test_the_end_leaves_nothing(site):
    master = Master(site).serving()
    until_served(*site.routers)
    started = time.time()
    workers = list(master.workers().values())
    assert master.process.stop() == 0
    assert time.time() - started < equipment.DEADLINE
    for router in site.routers:
        assert not any('mdproxy' in line for line in iptables_save(router.netns))
        assert not is_open(router.netns, '127.0.0.1', GUESTS_PORT)
    assert not any(map(is_running, workers))
    assert os.listdir(master.status_folder) == []


def test_guests_of_an_isolated_network_are_served_when_that_is_wanted(site):
    red = site.routers[0]
    with isolated_network(red) as (server, guest):
        master = Master(site).serving()
        until_served(red)
        assert not is_open(guest, METADATA, 80)
        assert master.process.stop() == 0
        Master(site, 'isolated_networks=true')
        wait_until(lambda: is_open(guest, METADATA, 80), 'service')
        assert get(guest, INSTANCE_ID) == (200, red.ec2_id.encode())
        assert not any('mdproxy' in line for line in iptables_save(server))
        until_served(red)


@pytest.mark.skipif(not linklocal.available(), reason='needs a kernel with the nat table of IPv6')
def test_an_interface_that_is_plugged_later_is_served_over_ipv6_too(site):
    red = site.routers[0]
    Master(site, 'ipv6=true')
    until_served(red)
    ip('-n', red.netns, 'link', 'add', 'qr-late', 'type', 'veth', 'peer', 'name', 'late')
    wait_until(lambda: METADATA6 in ip('-n', red.netns, '-6', 'address', 'show', 'dev', 'qr-late'),
               'the address')


def is_answered(router, answer):
    return answer is not None and answer.endswith(b'\r\n\r\n' + router.ec2_id.encode())


@pytest.mark.skipif(not linklocal.available(), reason='needs a kernel with the nat table of IPv6')
def test_guests_of_ipv6_are_known_by_their_mac_address(site):
    for number, router in enumerate(site.routers):
        router.guest_has_mac(equipment.MAC % number)
    master = Master(site, 'ipv6=true')
    until_served(*site.routers)
    for router in site.routers:
        wait_until(lambda router=router: is_answered(router, ask6(router.guest, REQUEST6)),
                   'service over IPv6')
        assert ask6(router.outside, REQUEST6) is None
    assert master.process.stop() == 0
    for router in site.routers:
        assert METADATA6 not in ip('-n', router.netns, '-6', 'address')
        assert 'mdproxy' not in ip('netns', 'exec', router.netns, 'ip6tables-save')
