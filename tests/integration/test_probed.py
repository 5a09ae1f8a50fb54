"""`mdproxy probe` on a real path that is broken hop by hop."""
import json
import os
import signal
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import equipment  # noqa: E402

equipment.requirements()

from equipment import Cloud, Router, ip, namespace, wait_until, working_folder  # noqa: E402


class Node(object):
    """Two routers with a guest each, proxies before one agent, and what the probe says of them."""

    def __init__(self, folder):
        self.red, self.blue = self.routers = [Router('r'), Router('b')]
        self.cloud = Cloud(folder, self.routers)
        self.status_folder = os.path.join(folder, 'run', 'status')
        self.proxies = {}

    def start(self):
        for router in self.routers:
            router.make()
        self.cloud.start()
        self.cloud.agent.stop()
        self.start_agent()
        for router in self.routers:
            self.proxies[router] = self.cloud.serve(router, 'status_folder=' + self.status_folder)

    def start_agent(self, *words):
        config = os.path.join(self.cloud.folder, 'agent.ini')
        self.cloud.agent = self.cloud.run('agent', '--config-file', config,
                                          '--set=status_folder=' + self.status_folder, *words)
        self.cloud.agent.until('serving')

    def stop(self):
        self.cloud.stop()
        for router in self.routers:
            router.remove()

    def end_service(self, number):
        """End a service of the stand-in: 0 is keystone, 1 quantum, 2 nova."""
        self.cloud.processes[number].stop()

    def begin(self, *words):
        """A probe under way, in a session of its own."""
        python, path = equipment._python()
        return subprocess.Popen(
            [python, '-m', 'mdproxy', 'probe', '--folder', self.status_folder] + list(words),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=equipment.ROOT, preexec_fn=os.setsid,
            env=dict(os.environ, PYTHONPATH=path))

    def probe(self, *words):
        """(exit status, what it printed)."""
        process = self.begin(*words)
        out, err = process.communicate()
        assert err == b'', err
        return process.returncode, out.decode('utf-8')

    def found(self, router):
        """(exit status, the entry) of one router."""
        status, out = self.probe('--json', router.id)
        entry, = json.loads(out)
        assert entry['router'] == router.id
        return status, entry

    def broken(self, router):
        """(hop, detail) of a router that is down."""
        status, entry = self.found(router)
        assert (status, entry['outcome']) == (2, 'down'), entry
        return entry['hop'], entry['detail']


@pytest.fixture
def node():
    with working_folder() as folder:
        made = Node(folder)
        try:
            made.start()
            yield made
        finally:
            made.stop()


def traces(router):
    """Interfaces of the router that are the probe's."""
    return [line for line in ip('-n', router.netns, '-o', 'link').splitlines() if 'qr-probe' in line]


def test_every_hop_of_a_path_that_is_well_has_a_time_and_nothing_is_left(node):
    for router in node.routers:
        status, entry = node.found(router)
        assert (status, entry['outcome'], entry['hop'], entry['detail']) == (0, 'well', '', '')
        assert entry['hops'].pop('rule') is None
        assert sorted(entry['hops']) == ['agent', 'listener', 'lookup', 'nova']
        assert all(0 < milliseconds < 5000 for milliseconds in entry['hops'].values())
        assert traces(router) == []
    assert 'WARNING' not in node.cloud.agent.log


def test_the_table_has_all_routers_those_with_trouble_first(node):
    node.proxies[node.blue].stop(signal.SIGKILL)
    status, out = node.probe(node.red.id, node.blue.id)
    heading, first, second = out.splitlines()
    assert status == 1
    assert heading.split() == ['ROUTER', 'RULE', 'LISTENER', 'AGENT', 'LOOKUP', 'NOVA', 'OUTCOME']
    assert first.startswith(node.blue.id) and 'down: listener: nobody listens on port 9697' in first
    assert second.startswith(node.red.id) and second.endswith('  well') and second.count(' ms') == 4


def test_a_rule_that_is_missing_is_named(node):
    ip('netns', 'exec', node.red.netns, 'iptables', '-t', 'nat', '-F', 'mdproxy-PREROUTING')
    assert node.broken(node.red) == ('rule', 'nothing leads guests to a proxy')


def test_a_job_that_is_stopped_takes_the_rules_along_and_is_named_itself(node):
    assert node.proxies[node.red].stop() == 0
    ip('netns', 'exec', node.red.netns, 'iptables', '-t', 'nat', '-F', 'mdproxy-PREROUTING')
    hop, detail = node.broken(node.red)
    assert hop == 'listener' and 'neither rule nor listener' in detail


def test_a_packet_filter_in_the_way_is_named(node):
    ip('netns', 'exec', node.red.netns, 'iptables', '-I', 'INPUT', '-p', 'tcp', '--dport', '9697',
       '-j', 'REJECT', '--reject-with', 'tcp-reset')
    hop, detail = node.broken(node.red)
    assert hop == 'rule' and 'port 9697 does not take what is led there' in detail


def test_a_shared_secret_that_differs_is_named(node):
    node.cloud.agent.stop()
    ini = os.path.join(node.cloud.folder, 'agent.ini')
    with open(ini) as found:
        text = found.read()
    with open(ini, 'w') as out:
        out.write(text.replace(equipment.SECRET, 'another secret'))
    node.start_agent()
    hop, detail = node.broken(node.red)
    assert hop == 'nova' and detail.startswith('403') and 'its shared secret is another one' in detail
    assert node.broken(node.blue) == (hop, detail)


def test_a_nova_that_believes_the_agent_has_no_more_than_one_line_of_it_in_its_log(node):
    for router in node.routers + node.routers:
        assert node.found(router)[1]['outcome'] == 'well'
    asked = [record['target'] for record in node.cloud.records('nova')]
    assert asked == ['/latest', '/', '/', '/']


def test_an_agent_that_is_gone_is_named(node):
    node.cloud.agent.stop()
    hop, detail = node.broken(node.red)
    assert hop == 'agent' and detail.startswith('502 the metadata agent cannot be reached')


def test_a_port_api_that_is_gone_is_named(node):
    node.end_service(1)
    hop, detail = node.broken(node.red)
    assert hop == 'lookup' and 'port API' in detail


def test_a_nova_that_is_gone_is_named(node):
    node.end_service(2)
    hop, detail = node.broken(node.red)
    assert hop == 'nova' and 'Connection refused' in detail


def test_a_nova_that_hangs_is_named(node):
    nova = node.cloud.processes[2]
    os.kill(nova.pid, signal.SIGSTOP)
    try:
        assert node.broken(node.red) == ('nova', 'no answer within 5 s')
    finally:
        os.kill(nova.pid, signal.SIGCONT)


def test_one_nova_of_two_that_is_gone_is_degraded(node):
    node.cloud.agent.stop()
    node.start_agent('--set=nova_endpoints=127.0.0.1:1, 127.0.0.1:%d' % node.cloud.nova_port)
    outcomes = [node.found(node.red) for _ in range(2)]
    status, entry = outcomes[-1]
    assert (status, entry['outcome'], entry['hop']) == (1, 'degraded', 'nova')
    assert entry['detail'].startswith('127.0.0.1 port 1: ') and 'nova' in entry['hops']


def test_an_agent_on_another_host_is_alive_when_it_answers(node):
    os.unlink(os.path.join(node.status_folder, 'agent.sock'))
    status, entry = node.found(node.red)
    assert (status, entry['outcome']) == (0, 'well') and 'on another host' in entry['detail']
    assert sorted(entry['hops']) == ['agent', 'listener', 'rule']


def test_a_router_without_guests_is_idle_and_one_that_is_not_there_is_down(node):
    with namespace('qrouter') as netns:
        status, out = node.probe('--json', netns[len('qrouter-'):])
        entry, = json.loads(out)
        assert (status, entry['outcome'], entry['hops']) == (0, 'idle', {})
    status, out = node.probe('--json', netns[len('qrouter-'):])
    entry, = json.loads(out)
    assert (status, entry['outcome'], entry['hop']) == (2, 'down', 'namespace')
    assert netns in entry['detail'] and 'does not exist' in entry['detail']


def test_a_probe_that_is_killed_leaves_nothing(node):
    os.kill(node.proxies[node.red].pid, signal.SIGSTOP)
    try:
        process = node.begin(node.red.id)
        wait_until(lambda: traces(node.red), 'the probe is there')
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        wait_until(lambda: not traces(node.red), 'it is gone')
    finally:
        os.kill(node.proxies[node.red].pid, signal.SIGCONT)
    assert node.found(node.red)[0] == 0
