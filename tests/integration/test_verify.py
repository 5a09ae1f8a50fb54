"""verify_guests names the hop that is broken, on a real path that is broken at that hop."""
import os
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(1, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'unit'))

import ansible_module  # noqa: E402
import equipment  # noqa: E402

ansible_module.needs_ansible()
equipment.requirements()

from equipment import Cloud, Router, working_folder  # noqa: E402


class Path(object):
    """One router, served, and what verify_guests says of its guest."""

    def __init__(self, folder):
        self.router = Router('r')
        self.cloud = Cloud(folder, [self.router])
        self.launcher = os.path.join(folder, 'mdproxy')

    def make(self):
        python, path = equipment._python()
        with open(self.launcher, 'w') as out:
            out.write('#!/bin/sh\nPYTHONPATH=%s exec %s %s "$@"\n'
                      % (path, python, os.path.join(equipment.ROOT, 'mdproxy')))
        os.chmod(self.launcher, 0o755)
        self.router.make()
        self.cloud.start()
        self.proxy = self.cloud.serve(self.router)

    def verify(self, timeout=3, agents=None, **guest):
        router = self.router
        guest = dict(dict(name=router.id, fixed_ip=router.fixed_ip, ec2_id=router.ec2_id,
                          user_data_base64=equipment.base64.b64encode(router.user_data).decode()), **guest)
        result = ansible_module.run('verify_guests', dict(
            guests=[dict(router_id=router.id, guest=guest, resolved=self.resolve())], timeout=timeout,
            agents=[self.cloud.socket] if agents is None else agents))
        assert not result['changed']
        return result['guests'][0]

    def resolve(self):
        """What `mdproxy resolve` says of the guest's address, as the role asks it."""
        process = subprocess.Popen(
            [self.launcher, 'resolve', '--json', '--router-id=' + self.router.id, '--config-file='
             + os.path.join(self.cloud.folder, 'agent.ini'), self.router.fixed_ip], stdout=subprocess.PIPE)
        return process.communicate()[0].decode('utf-8')


@pytest.fixture
def path():
    with working_folder() as folder:
        made = Path(folder)
        try:
            made.make()
            yield made
        finally:
            made.cloud.stop()
            made.router.remove()


def test_a_guest_that_gets_its_own_metadata_is_told_with_its_time(path):
    row = path.verify()
    assert (row['hop'], row['detail']) == ('', '')
    assert (row['instance_id'], row['ec2_id']) == (path.router.instance, path.router.ec2_id)
    assert 0 <= row['milliseconds'] < 3000
    assert path.verify(ec2_id='i-other')['hop'] == 'data'
    assert path.verify(user_data_base64='eA==')['hop'] == 'data'


def test_a_guest_without_user_data_is_well(path):
    with open(path.cloud.state) as found:
        state = equipment.json.load(found)
    del state['instances'][0]['user_data_base64']
    path.cloud._write('state.json', equipment.json.dumps(state))
    assert path.verify(user_data_base64='')['hop'] == ''


def test_a_rule_that_is_missing_is_named(path):
    equipment.ip('netns', 'exec', path.router.netns, 'iptables', '-t', 'nat', '-F', 'mdproxy-PREROUTING')
    row = path.verify(timeout=1)
    assert row['hop'] == 'rule' and row['detail'].startswith('no redirect rule in ' + path.router.netns)


def test_a_proxy_that_is_gone_is_named(path):
    assert path.proxy.stop() == 0
    row = path.verify(timeout=1)
    assert row['hop'] == 'proxy' and 'nobody listens on port 9697' in row['detail']


def test_a_job_that_is_stopped_takes_the_rules_along_and_is_named_itself(path):
    assert path.proxy.stop() == 0
    equipment.ip('netns', 'exec', path.router.netns, 'iptables', '-t', 'nat', '-F', 'mdproxy-PREROUTING')
    row = path.verify(timeout=1)
    assert row['hop'] == 'proxy' and 'does mdproxy-proxy-%s run' % path.router.id in row['detail']


def test_an_agent_that_is_gone_is_named(path):
    assert path.cloud.agent.stop() == 0
    row = path.verify()
    assert row['hop'] == 'agent' and path.cloud.socket in row['detail'] and 'told 502' in row['detail']


def test_agents_of_other_hosts_are_named_when_all_are_gone(path):
    assert path.cloud.agent.stop() == 0
    taken = equipment.socket.socket()
    taken.bind(('127.0.0.1', 0))        # and nobody listens
    gone = '127.0.0.1:%d' % taken.getsockname()[1]
    row = path.verify(agents=[gone, '[::1]:1'])
    assert row['hop'] == 'agent' and gone + ': ' in row['detail'] and '[::1]:1: ' in row['detail']
    taken.listen(1)
    assert path.verify(agents=['[::1]:1', gone])['hop'] == 'nova'
    taken.close()


def test_a_proxy_that_is_its_own_agent_has_no_agent_to_look_for(path):
    assert path.cloud.agent.stop() == 0
    assert path.verify(agents=[])['hop'] == 'nova'


def test_an_address_that_nobody_has_is_named(path):
    with open(path.cloud.state) as found:
        state = equipment.json.load(found)
    state['instances'] = []
    path.cloud._write('state.json', equipment.json.dumps(state))
    row = path.verify()
    assert row['hop'] == 'port' and 'no port' in row['detail']


def test_a_guest_that_is_not_there_is_named(path):
    row = path.verify(name='nobody')
    assert row['hop'] == 'guest' and 'guest-nobody' in row['detail']


def test_a_guest_that_does_not_get_as_far_as_the_proxy_is_named(path):
    """As when Folsom's BridgeInterfaceDriver has given the gateway another MAC."""
    router = path.router
    equipment.ip('-n', router.guest, 'neigh', 'replace', router.gateway, 'lladdr', '02:00:00:00:00:99',
                 'dev', 'eth0', 'nud', 'permanent')
    row = path.verify(timeout=1)
    assert row['hop'] == 'guest' and 'cannot connect' in row['detail'] and router.netns in row['detail']


def test_a_nova_that_refuses_is_named(path):
    nova = [process for process in path.cloud.processes if 'nova listens' in process.log][0]
    assert nova.stop() == 0
    row = path.verify()
    assert row['hop'] == 'nova' and 'told 502' in row['detail']
