"""What router_proxy_probe_interval leaves on a node with cron: one job, metrics as long as it is there, and
nothing after it. With systemd: molecule's scenario rerun."""
import json
import os
import re
import subprocess
import sys

import pytest

pytest.importorskip('ansible')

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ROLES = os.path.join(ROOT, 'roles')
ROUTER = '11111111-2222-3333-4444-555555555555'
TASKS = [dict(import_role=dict(name=name), when=False) for name in ('mdproxy', 'router_proxy')] + [
    dict(debug=dict(msg='{{ router_proxy_probe_when }}'), loop='{{ intervals | default([]) }}',
         vars=dict(router_proxy_probe_interval='{{ item }}'), register='told'),
    dict(copy=dict(dest='{{ out }}', content="{{ told.results | map(attribute='msg') | to_json }}"),
         when='intervals is defined'),
    dict(import_role=dict(name='router_proxy', tasks_from='probe'), when='intervals is not defined')]


def play(tmpdir, **variables):
    """The tasks, run here as on a node with upstart; returns how many have changed something."""
    tmpdir.join('play.yml').write(json.dumps([dict(
        hosts='localhost', connection='local', gather_facts=False, tasks=TASKS)]))
    given = dict(ansible_facts=dict(service_mgr='upstart'), out=str(tmpdir.join('out')),
                 mdproxy_root=str(tmpdir), router_proxy_probe_lock=str(tmpdir.join('lock')),
                 router_proxy_all=dict(router=[ROUTER], network=[]), router_proxy_unwanted=[],
                 router_proxy_keep=False, router_proxy_probe_folder=str(tmpdir.join('metrics')),
                 router_proxy_probe_jobs=dict(
                     systemd=[], upstart=[str(tmpdir.join('cron', 'mdproxy-probe'))]))
    given.update(variables)
    process = subprocess.Popen(
        [os.path.join(os.path.dirname(sys.executable), 'ansible-playbook'), '-i', 'localhost,', 'play.yml',
         '-e', json.dumps(given)] + ['--check'] * given.pop('check', False),
        cwd=str(tmpdir), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=dict(os.environ, ANSIBLE_ROLES_PATH=ROLES, ANSIBLE_PYTHON_INTERPRETER=sys.executable))
    out = process.communicate()[0].decode('utf-8')
    assert process.returncode == 0, out
    return int(re.search(r'changed=(\d+)', out).group(1))


@pytest.fixture
def node(tmpdir):
    """tmpdir as a node whose mdproxy notes its words in the file that it is told to write."""
    tmpdir.join('cron').mkdir()
    program = tmpdir.join('current', 'bin', 'mdproxy')
    program.write('#!/bin/sh\nfor last; do :; done\necho "$@" >"$last"\n', ensure=True)
    program.chmod(0o755)
    return tmpdir


def run_as_cron(node, path):
    """Run what the file says, which has to be one line of cron's; returns when that would be."""
    line, = [line for line in path.read().splitlines() if not re.match(r'#|\w+=', line)]
    when, command = line.split(' root ')
    subprocess.check_call(['sh', '-c', command.replace('logger -t mdproxy-probe', 'cat')], cwd=str(node))
    return when


def test_cron_is_told_and_forgets_again(node):
    job, metrics = node.join('cron', 'mdproxy-probe'), node.join('metrics')
    assert play(node, router_proxy_probe_interval=120, check=True) > 0
    assert job.dirpath().listdir() == [] and not metrics.check()
    assert play(node, router_proxy_probe_interval=120) > 0
    assert run_as_cron(node, job) == '*/2 * * * *'
    assert metrics.join('mdproxy.prom').read().startswith('status --prometheus')
    assert metrics.join('mdproxy_probe.prom').read().startswith('probe --prometheus')
    assert play(node, router_proxy_probe_interval=120) == 0

    moved = node.join('moved')
    assert play(node, router_proxy_probe_interval=60, router_proxy_probe_folder=str(moved)) > 0
    assert run_as_cron(node, job) == '* * * * *'
    assert metrics.listdir() == [] and len(moved.listdir()) == 2

    # Of a run that was cut short when cron was told no more, the next one finds what is left.
    job.write(job.read().replace('\n* ', '\n# * '))
    assert play(node) > 0
    assert job.dirpath().listdir() == [] and moved.listdir() == []
    assert play(node) == 0


def test_one_that_is_under_way_leaves_nothing_behind(node):
    job, metrics = node.join('cron', 'mdproxy-probe'), node.join('metrics')
    play(node, router_proxy_probe_interval=60)
    node.join('current', 'bin', 'mdproxy').write(
        '#!/bin/sh\nfor last; do :; done\ntouch %s; while grep -q "^[*]" %s; do sleep .1; done; sleep 1\n'
        'echo late >"$last"\n' % (node.join('began'), job))
    command = job.read().splitlines()[-1].split(' root ')[1].replace('logger -t mdproxy-probe', 'cat')
    running = subprocess.Popen(['sh', '-c', command])
    while not node.join('began').check():
        assert running.poll() is None
    subprocess.check_call(['sh', '-c', command])        # the next one does not wait for it
    assert running.poll() is None
    play(node)
    assert running.wait() == 0 and metrics.listdir() == []


@pytest.mark.parametrize('variables, there', [
    (dict(router_proxy_all=dict(router=[], network=[])), False),
    (dict(router_proxy_all=dict(router=[], network=[]), router_proxy_unwanted=[ROUTER],
          router_proxy_keep=True), True),
    (dict(router_proxy_all=dict(router=[], network=[]), mdproxy_mode='shared'), True)])
def test_it_is_there_as_long_as_the_jobs_are(node, variables, there):
    if not there:
        play(node, router_proxy_probe_interval=60)
    play(node, router_proxy_probe_interval=60, **variables)
    assert node.join('cron', 'mdproxy-probe').check() == there


def test_a_node_with_a_list_probes_those_that_have_a_job(node):
    job = node.join('cron', 'mdproxy-probe')
    play(node, router_proxy_probe_interval=60, mdproxy_routers=[dict(router_id=ROUTER)])
    assert ' --rules-folder /etc/mdproxy/routers ' in job.read()
    play(node, router_proxy_probe_interval=60)
    assert '--rules-folder' not in job.read()


def test_what_cron_cannot_say_is_known(node):
    play(node, intervals=[60, 120, 300, 1800, 3600, 0, -60, 30, 59, 90, 420, 5400, 7200])
    assert json.loads(node.join('out').read()) == [
        '* * * * *', '*/2 * * * *', '*/5 * * * *', '*/30 * * * *', '0 * * * *'] + [''] * 8
