"""Faults that are made for real in the lab, and that `mdproxy probe`, verify, its report and precheck name.

Needs the lab (`make lab`), which is put back as it was. A clock that differs is in test_clock.py; a tree that
was changed by hand is the scenario `patch`'s.
"""
import html
import json
import os
import subprocess
import time

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LAB = os.environ.get('MDPROXY_LAB', 'lab')
REPORT = os.path.join(ROOT, 'build', 'report')
NODE = 'network1'
EDIT_STATE = '''python3 - <<'END'
import json, os
path = '/etc/cloudstub/state.json'
found = os.stat(path)
state = json.load(open(path))
guest = [one for one in state['instances'] if one['name'] == '%s'][0]
%s
json.dump(state, open(path + '.new', 'w'))
os.chown(path + '.new', found.st_uid, found.st_gid)
os.chmod(path + '.new', found.st_mode & 0o777)
os.rename(path + '.new', path)
END
systemctl restart quantum-server'''


def on(host, script):
    """Run a script as root on a host of the lab; what it printed."""
    process = subprocess.run(
        ['ssh', '-F', os.path.join(ROOT, 'build', 'lab', LAB, 'ssh_config'), host, 'sudo sh -eu'],
        input=script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    assert process.returncode == 0, '%s: %s' % (host, process.stdout)
    return process.stdout


def play(name, *words):
    """(exit status, output) of a playbook."""
    process = subprocess.run(['ansible-playbook', 'playbooks/%s.yml' % name] + list(words), cwd=ROOT,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    return process.returncode, process.stdout


def report(name):
    with open(os.path.join(REPORT, name)) as text:
        return json.load(text)


class Guest(object):
    """The guest of the router that is broken."""

    def __init__(self):
        paths = [path for path in report('verify.json')['paths'] if path['host'] == NODE and path['guests']]
        self.router, self.name = paths[0]['router_id'], paths[0]['guests'][0]['name']
        self.netns, self.job = 'qrouter-' + self.router, 'mdproxy-proxy-' + self.router


@pytest.fixture(scope='module')
def guest():
    status, said = play('verify')
    assert status == 0, said
    return Guest()


# What is done, what undoes it, and the hops that the probe and verify name; none where guests are served.
# Then what precheck says: check and level.
FAULTS = {
    'the secret differs': (
        (NODE, 'cd /etc/mdproxy; cp -p agent.ini /root/agent.ini; sed -i "s/^metadata_proxy_shared_secret.*/'
         'metadata_proxy_shared_secret = another/" agent.ini; systemctl restart mdproxy-agent'),
        (NODE, 'mv /root/agent.ini /etc/mdproxy/agent.ini; systemctl restart mdproxy-agent'),
        'nova', 'nova', ('secret', 'warn')),
    'nova is down': (
        ('api1', 'systemctl stop nova-api-metadata'), ('api1', 'systemctl start nova-api-metadata'),
        'nova', 'nova', ('agents', 'stop')),
    'the agent is down': (
        (NODE, 'systemctl stop mdproxy-agent'), (NODE, 'systemctl start mdproxy-agent'),
        'agent', 'agent', ('served', 'warn')),
    'the rule is missing': (
        (NODE, 'ip netns exec {netns} iptables -t nat -F mdproxy-PREROUTING'),
        (NODE, 'systemctl restart {job}'),
        'rule', 'rule', ('served', 'warn')),
    'the proxy is dead': (
        (NODE, 'systemctl stop {job}'), (NODE, 'systemctl start {job}'),
        'listener', 'proxy', ('served', 'warn')),
    # Its watcher is the process itself: stopped, it notices nothing.
    'the namespace was made anew and is not reopened': (
        (NODE, 'systemctl kill --signal=STOP {job}; ip netns delete {netns}; systemctl restart lab-routers; '
         'sleep 2'),
        (NODE, 'systemctl kill --signal=CONT {job}; sleep 3'),
        'listener', 'proxy', ('served', 'warn')),
    'the port lookup finds none': (
        ('api1', EDIT_STATE % ('{guest}', "guest['fixed_ip'] = '10.0.0.77'")),
        ('api1', EDIT_STATE % ('{guest}', "guest['fixed_ip'] = '10.0.0.3'")),
        None, 'port', None),
    'two ports match': (
        ('api1', EDIT_STATE % ('{guest}', "state['instances'].append(dict(guest, name='twin', "
                               "uuid=guest['uuid'][::-1], port_id=guest['port_id'][::-1]))")),
        ('api1', EDIT_STATE % ('{guest}', "state['instances'] = [one for one in state['instances'] "
                               "if one['name'] != 'twin']")),
        None, 'port', None),
    'the disk is full': (
        (NODE, 'mkdir -p /var/lib/mdproxy; mount -t tmpfs -o size=1m tmpfs /var/lib/mdproxy'),
        (NODE, 'umount /var/lib/mdproxy'),
        None, None, ('disk', 'stop'))}


@pytest.fixture
def broken(request, guest):
    """A fault, made and taken back; what names it."""
    made, undone, probed, verified, prechecked = FAULTS[request.param]
    words = (('{netns}', guest.netns), ('{job}', guest.job), ('{guest}', guest.name))

    def filled(text):
        for name, value in words:
            text = text.replace(name, value)
        return text
    try:
        on(made[0], filled(made[1]))
        time.sleep(0.5)
        yield probed, verified, prechecked
    finally:
        on(undone[0], filled(undone[1]))


@pytest.mark.parametrize('broken', sorted(FAULTS), indirect=True)
def test_it_is_named_with_what_to_do(broken, guest):
    probed, verified, prechecked = broken
    entry, = json.loads(on(NODE, 'mdproxy probe --json %s || true' % guest.router))
    assert entry['outcome'] == ('down' if probed else 'well') and entry['hop'] == (probed or ''), entry

    status, said = play('verify')
    path, = [path for path in report('verify.json')['paths'] if path['router_id'] == guest.router]
    if verified:
        assert status == 2 and path['troubles'], said
        assert set([verified, probed]).intersection(trouble['hop'] for trouble in path['troubles']), path
        with open(os.path.join(REPORT, 'index.html')) as page:
            text = html.unescape(page.read())
        assert guest.router in text
        for trouble in path['troubles']:
            assert max(trouble['remedy'].split('`'), key=len).strip() in ' '.join(text.split())
    else:
        assert status == 0 and path['outcome'] == 'well', said

    status, said = play('precheck')
    rows = [(row['check'], row['level'], row['text']) for row in report('precheck.json')
            if row['level'] in ('stop', 'warn')]
    if prechecked:
        assert prechecked in [row[:2] for row in rows], rows
        assert status == (2 if any(row[1] == 'stop' for row in rows) else 0), said
    print('\nprobe: %s: %s\nverify: %s\nprecheck: %s' % (
        entry['hop'] or 'well', entry['detail'], ['%(hop)s: %(detail)s -> %(remedy)s' % trouble
                                                  for trouble in path['troubles']], rows))
