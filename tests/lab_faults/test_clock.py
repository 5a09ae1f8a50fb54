"""An agent's host whose clock is two minutes ahead, by libfaketime, as containers have the machine's clock.

The lab's agents run on the agent host meanwhile; afterwards on the network nodes again.
"""
import json

import pytest
from test_named import NODE, on, play, report

PRELOAD = '/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1'
UNIT = '''mkdir -p /etc/systemd/system/mdproxy-agent.service.d
cat >/etc/systemd/system/mdproxy-agent.service.d/clock.conf <<END
[Service]
Environment=LD_PRELOAD=%s FAKETIME=+120s
END
systemctl daemon-reload
systemctl restart mdproxy-agent
''' % PRELOAD
INTERPRETER = '''cat >/usr/local/bin/python3-ahead <<'END'
#!/bin/sh
LD_PRELOAD=%s FAKETIME=+120s exec /usr/bin/python3 "$@"
END
chmod 755 /usr/local/bin/python3-ahead
''' % PRELOAD
REMOTE = ['-e', 'mdproxy_agent_location=remote']


@pytest.fixture
def ahead(tmpdir):
    """Arguments with which Ansible, too, has the other clock on the agent's host."""
    status, said = play('../site', *REMOTE)
    assert status == 0, said
    overlay = tmpdir.join('clock.yml')
    overlay.write('all: {hosts: {agent1: {ansible_python_interpreter: /usr/local/bin/python3-ahead}}}\n')
    try:
        on('agent1', UNIT + INTERPRETER)
        yield REMOTE + ['-i', 'inventories/lab', '-i', str(overlay)]
    finally:
        on('agent1', 'rm -r /etc/systemd/system/mdproxy-agent.service.d /usr/local/bin/python3-ahead; '
                     'systemctl daemon-reload; systemctl restart mdproxy-agent')
        status, said = play('../site')
        assert status == 0, said


def test_it_is_named_with_what_to_do(ahead):
    entries = json.loads(on(NODE, 'mdproxy probe --json || true'))
    assert set((entry['outcome'], entry['hop']) for entry in entries) == set([('down', 'agent')]), entries

    status, said = play('verify', *ahead)
    troubles = [trouble for path in report('verify.json')['paths'] for trouble in path['troubles']]
    assert status == 2 and set(trouble['hop'] for trouble in troubles) == set(['agent']), said
    assert all('their clocks differ' in trouble['remedy'] for trouble in troubles)

    status, said = play('precheck', *ahead)
    found = [row for row in report('precheck.json') if row['check'] == 'clock']
    assert status == 2 and [(row['host'], row['level']) for row in found] == [('agent1', 'stop')], said
    assert "ahead of the controller's clock" in found[0]['text']
    print('\nprobe: %s: %s\nverify: %s\nprecheck: %s' % (
        entries[0]['hop'], entries[0]['detail'], troubles[0]['remedy'], found[0]['text']))
