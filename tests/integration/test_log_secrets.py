"""No secret and no token is in what agent and proxies say, at level debug, whatever fails."""
import contextlib
import os
import signal
import socket
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import equipment  # noqa: E402

equipment.requirements()

from equipment import SECRET, USER, Cloud, Router, get, wait_until, working_folder  # noqa: E402

PASSWORD, LINK, OTHER = 'the password', 'the-links-own-secret', 'another-one-that-is-secret'


def free_port():
    with contextlib.closing(socket.socket()) as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


class Debugged(Cloud):
    """A cloud whose agent and proxies say all that they can. The red router's proxy asks the agent over the
    unix socket, the blue one's over the network."""

    def __init__(self, folder):
        Cloud.__init__(self, folder, [Router('r'), Router('b')])
        self.red, self.blue = self.routers
        self.port = free_port()

    def start(self):
        for router in self.routers:
            router.make()
        Cloud.start(self)
        self.agent.stop()
        self.ini = os.path.join(self.folder, 'agent.ini')
        with open(self.ini) as plain:
            self.plain = plain.read() + ('agent_listen = 127.0.0.1:%d\nlink_secret = %s\nlog_level = debug\n'
                                         % (self.port, LINK))
        self.start_agent()
        self.serve(self.red, 'log_level=debug')
        config = self._write('blue.ini', '[mdproxy]\nuser = %s\nagents = 127.0.0.1:%d\nlink_secret = %s\n'
                             'log_level = debug\n' % (USER, self.port, LINK))
        rules = self._write('blue.rules', self.blue.rules())
        self.blues = self.run('proxy', '--router-id', self.blue.id, '--netns', self.blue.netns,
                              '--rules', rules, '--config-file', config)
        self.blues.until('serving')

    def start_agent(self, **replaced):
        """With these texts in the place of others in its configuration."""
        text = self.plain
        for old, new in replaced.pop('texts', ()):
            assert old in text
            text = text.replace(old, new)
        self._write('agent.ini', text)
        self.agent = self.run('agent', '--config-file', self.ini)
        self.agent.until('serving')

    def statuses(self):
        """What the two guests are told, as a set."""
        return set(get(router.guest, b'/latest/meta-data/instance-id')[0] for router in self.routers)

    def close(self):
        self.stop()
        for router in self.routers:
            router.remove()

    def secrets(self):
        """All that was secret: what the configuration has, tokens, signatures."""
        found = set([SECRET, PASSWORD, LINK, OTHER])
        for service in ('keystone', 'quantum', 'nova'):
            for record in self.records(service):
                found.update(value for name, value in record['headers']
                             if name.lower() in ('x-auth-token', 'x-instance-id-signature'))
        return found

    def said(self):
        """What all of mdproxy's processes said, by their pids."""
        return dict((process.pid, process.log) for process in self.processes[3:])


@pytest.fixture
def cloud():
    with working_folder() as folder:
        made = Debugged(folder)
        try:
            made.start()
            yield made
        finally:
            made.close()


def find_none(cloud):
    secrets = cloud.secrets()
    assert len(secrets) > 5, 'no token and no signature was seen'
    for pid, log in cloud.said().items():
        for secret in secrets:
            assert secret not in log, 'process %d: %s' % (pid, log)


def test_none_when_all_is_well(cloud):
    assert cloud.statuses() == set([200])
    assert any('DEBUG' in log or 'serving' in log for log in cloud.said().values())
    find_none(cloud)


@pytest.mark.parametrize('texts, statuses', [
    ([('admin_password = ' + PASSWORD, 'admin_password = ' + OTHER)], [502, 503, 500]),   # Keystone says 401
    ([('= ' + SECRET, '= ' + OTHER)], [403]),                                        # nova says 403
    ([('link_secret = ' + LINK, 'link_secret = ' + OTHER)], [200, 403])])            # the agent refuses
def test_none_when_one_of_them_is_wrong(cloud, texts, statuses):
    assert cloud.statuses() == set([200])
    cloud.agent.stop()
    cloud.start_agent(texts=texts)
    assert cloud.statuses() <= set(statuses)
    find_none(cloud)


@pytest.mark.parametrize('number', [0, 1, 2])
def test_none_when_keystone_the_port_api_or_nova_is_gone(cloud, number):
    assert cloud.statuses() == set([200])
    cloud.processes[number].stop()
    cloud.agent.stop()
    cloud.start_agent()
    assert 200 not in cloud.statuses()
    assert 'ERROR' in cloud.agent.log or 'WARNING' in cloud.agent.log, cloud.agent.log
    find_none(cloud)


@pytest.mark.parametrize('text, line', [
    ('metadata_proxy_shared_secret = ' + SECRET, 'metadata_proxy_shared_secret ' + SECRET),     # no sign
    ('metadata_proxy_shared_secret = ' + SECRET, '[' + SECRET),
    ('link_secret = ' + LINK, 'link_secret = ' + LINK + '\n lost = ' + OTHER),
    ('log_level = debug', 'log_level = debug\n' + OTHER),
    ('admin_password = ' + PASSWORD, 'admin_password = ' + OTHER)])
def test_none_when_a_configuration_that_is_read_again_makes_no_sense(cloud, text, line):
    assert cloud.statuses() == set([200])
    assert text in cloud.plain
    cloud._write('agent.ini', cloud.plain.replace(text, line))
    said = len(cloud.agent.log)
    os.kill(cloud.agent.pid, signal.SIGHUP)
    wait_until(lambda: len(cloud.agent.log) > said, 'a word of the configuration')
    find_none(cloud)
    again = cloud.run('agent', '--config-file', cloud.ini)      # as its next start would have it
    wait_until(lambda: again.ended() is not None or 'serving' in again.log, 'an end or a beginning')
    find_none(cloud)
