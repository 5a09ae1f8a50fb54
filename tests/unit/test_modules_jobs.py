"""mdproxy_jobs: files, marks, restarts and what is said of them.

The service manager is a stand-in (job_node.py). Real upstart: tests/integration.
"""
import json
import os
import stat
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import ansible_module  # noqa: E402
from job_node import SERVER, Node, runs  # noqa: E402
from loopback import connected  # noqa: E402

ansible_module.needs_ansible()

ONE, OTHER, THIRD = ['%d0000000-0000-4000-8000-00000000000a' % n for n in (1, 2, 3)]


@pytest.fixture
def node(tmpdir):
    made = Node(tmpdir)
    yield made
    made.close()


def test_the_first_run_writes_enables_starts_and_waits_until_they_answer(node):
    result = node.run()
    assert result['changed']
    assert result['restarted'] == {'agent': 'not running', 'proxy': 'not running'}
    for name in ('agent', 'proxy'):
        connected(node.path_of(name)).close()
        assert node.files()[str(node.etc.join(name + '.ini'))] == ('[DEFAULT]\nsecret = hunter2\n', 0o640)
        assert node.files()[str(node.units.join(name + '.service'))][1] == 0o644
    assert json.loads(node.state_path.read())['enabled'] == ['agent.service', 'proxy.service']
    assert node.marks() == []


def test_the_second_run_changes_nothing_and_asks_once_for_all(node):
    node.run()
    pids, files = node.pids(), node.files()
    node.calls()
    result = node.run()
    assert not result['changed'] and result['restarted'] == {}
    assert result['diff'] == dict(before='', after='')
    assert (node.pids(), node.files()) == (pids, files)
    assert [call.split()[0] for call in node.calls()] == ['show']


def test_check_mode_writes_nothing_and_says_what_it_would_do(node):
    result = node.run(check=True)
    assert result['changed'] and sorted(result['restarted']) == ['agent', 'proxy']
    assert 'ExecStart=' in result['diff']['after'] and 'job agent: started at boot' in result['diff']['after']
    assert node.files() == {} and node.pids() == {} and node.marks() == []
    assert [call.split()[0] for call in node.calls()] == ['show']


def test_check_mode_of_a_change_names_the_one_job_and_leaves_it_running(node):
    node.run()
    pids, files = node.pids(), node.files()
    node.words['proxy'] = 'more'
    result = node.run(check=True)
    assert result['restarted'] == {'proxy': 'its files changed'}
    assert (node.pids(), node.files(), node.marks()) == (pids, files, [])


def test_only_the_job_whose_files_changed_is_restarted(node):
    node.run()
    pids = node.pids()
    node.words['proxy'] = 'more'
    result = node.run()
    assert result['restarted'] == {'proxy': 'its files changed'}
    assert node.pids()['agent.service'] == pids['agent.service']
    with open('/proc/%d/cmdline' % node.pids()['proxy.service']) as cmdline:
        assert 'more' in cmdline.read(), 'it runs the unit as it was before'


def test_a_job_that_died_is_started_alone(node):
    node.run()
    pids = node.pids()
    node.kill('agent')
    assert node.run()['restarted'] == {'agent': 'not running'}
    assert node.pids()['proxy.service'] == pids['proxy.service']


def test_a_job_of_another_release_is_restarted(node):
    node.run()
    node.release = '2'
    units = dict((name, node.job(name)) for name in ('agent', 'proxy'))
    for name in units:      # the unit names `current`, as on a node: only the process tells the release
        node.units.join(name + '.service').write(units[name]['files'][1]['content'])
    state = json.loads(node.state_path.read())
    state['loaded'] = {}
    node.state_path.write(json.dumps(state))
    assert node.run()['restarted'] == {'agent': 'runs another release', 'proxy': 'runs another release'}
    assert node.run()['restarted'] == {}


def test_a_release_is_known_by_where_it_really_is(node):
    node.run()
    os.symlink(str(node.tmpdir.join('releases')), str(node.tmpdir.join('link')))
    result = ansible_module.run('mdproxy_jobs', dict(
        service_manager='systemd', jobs=[dict(node.job('agent'), files=[])],
        release=str(node.tmpdir.join('link', '1')), run_dir=str(node.tmpdir.join('marks'))), path=node.bin)
    assert result['restarted'] == {}


def test_a_job_whose_check_fails_is_restarted_with_the_reason(node):
    node.run()
    node.checks['proxy'] = ['sh', '-c', 'echo one; echo rules differ >&2; exit 1']
    assert node.run()['restarted'] == {'proxy': 'rules differ'}
    node.checks['proxy'] = ['true']
    assert not node.run()['changed']


def test_a_job_that_can_hands_over_to_the_next_release_instead_of_being_restarted(node):
    node.run('agent')
    before, _ = node.pids(), node.calls()
    node.release = '2'
    job = dict(node.job('agent'), hand_over='USR2')
    secrets = {str(node.etc.join('agent.ini')): '[DEFAULT]\nsecret = hunter2\n'}
    assert node.run_with([job], secrets=secrets)['restarted'] == {'agent': 'its files changed'}
    calls = node.calls()
    assert 'kill --kill-who=main --signal=USR2 agent.service' in calls
    assert not any(call.startswith('restart') for call in calls)
    assert node.pids() != before and not node.marks()
    node.kill('agent')
    node.run_with([job], secrets=secrets)
    assert 'restart agent.service' in node.calls()


def test_a_run_cut_short_after_it_wrote_the_files_is_made_good_by_the_next(node):
    """The files are as they should be and the old process runs: only the mark tells."""
    node.run()
    pids = node.pids()
    node.words['proxy'] = 'more'
    node.tmpdir.join('marks', 'proxy').write('')
    node.units.join('proxy.service').write(node.job('proxy')['files'][1]['content'])
    result = node.run()
    assert result['restarted'] == {'proxy': 'its files changed'}
    assert node.pids()['agent.service'] == pids['agent.service']
    with open('/proc/%d/cmdline' % node.pids()['proxy.service']) as cmdline:
        assert 'more' in cmdline.read(), 'it runs the unit as it was before'
    assert node.marks() == [] and not node.run()['changed']


def test_a_job_that_does_not_come_up_fails_the_run_with_its_log_and_is_tried_again(node):
    node.words['agent'] = 'fail'
    result = node.run('agent', wait=1)
    assert result['failed']
    assert result['msg'].startswith('job agent was started and does not answer after 1 s; '
                                    'see `journalctl -u agent`')
    assert 'no agent today' in result['msg']
    assert node.marks() == ['agent']
    node.words['agent'] = ''
    assert node.run('agent')['restarted'] == {'agent': 'not running'}
    assert node.marks() == []


def test_a_job_that_somebody_disabled_is_enabled_without_a_restart(node):
    node.run()
    pids = node.pids()
    state = json.loads(node.state_path.read())
    node.state_path.write(json.dumps(dict(state, enabled=['agent.service'])))
    result = node.run()
    assert result['changed'] and result['restarted'] == {}
    assert result['diff']['before'] == 'job proxy: not started at boot\n'
    assert node.pids() == pids


def test_a_mode_that_somebody_changed_is_put_back_without_a_restart(node):
    node.run()
    ini = str(node.etc.join('agent.ini'))
    os.chmod(ini, 0o666)
    assert node.run(check=True)['changed'] and stat.S_IMODE(os.stat(ini).st_mode) == 0o666
    result = node.run()
    assert result['changed'] and result['restarted'] == {}
    assert stat.S_IMODE(os.stat(ini).st_mode) == 0o640


@pytest.mark.parametrize('check', [True, False])
def test_a_secret_is_in_no_diff_no_log_and_no_result(node, check):
    first = node.run(check=check)
    node.run()
    node.secret = 'hunter3'
    second = node.run(check=check)
    assert second['changed'] and second['restarted'] == {'agent': 'its files changed',
                                                         'proxy': 'its files changed'}
    assert second['diff']['before'] != second['diff']['after']
    for result in (first, second):
        assert 'hunter' not in result.text
        assert str(node.etc.join('agent.ini')) in result['diff']['after']


def test_a_file_without_content_is_named(node):
    jobs = [node.job('agent')]
    result = ansible_module.run('mdproxy_jobs', dict(
        service_manager='systemd', jobs=jobs, release='/nowhere', run_dir=str(node.tmpdir.join('marks'))),
        path=node.bin)
    assert result['failed'] and result['msg'].startswith(str(node.etc.join('agent.ini')))
    assert node.files() == {}


def test_the_user_that_serves_reaches_its_files_whatever_umask_root_has(node):
    old = os.umask(0o077)
    try:
        node.run('agent')
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(str(node.etc)).st_mode) == 0o755


def test_a_job_that_runs_and_does_not_answer_is_restarted(node):
    node.run()
    os.unlink(node.path_of('agent'))
    pids = node.pids()
    assert node.run()['restarted'] == {'agent': 'does not answer'}
    assert node.pids()['proxy.service'] == pids['proxy.service']
    connected(node.path_of('agent')).close()


def test_one_job_that_does_not_come_up_costs_the_others_nothing(node):
    """What answers has no mark left, so that the next run lets it run."""
    node.words['agent'] = 'fail'
    assert node.run(wait=1)['failed']
    assert node.marks() == ['agent']
    pids = node.pids()
    node.words['agent'] = ''
    assert sorted(node.run()['restarted']) == ['agent']
    assert node.pids()['proxy.service'] == pids['proxy.service']


def test_all_jobs_that_do_not_come_up_are_named(node):
    node.words['agent'] = node.words['proxy'] = 'fail'
    assert node.run(wait=1)['msg'].startswith('job agent, proxy was started and does not answer')


def test_an_entry_with_items_stands_for_a_job_of_each(node):
    result = node.run_with([node.routers(ONE, OTHER)])
    assert sorted(result['restarted']) == ['proxy-' + ONE, 'proxy-' + OTHER]
    assert result['counts'] == dict(jobs=2, written=4, started=2, removed=0)
    for item in (ONE, OTHER):
        connected(node.path_of('proxy-' + item)).close()
        assert node.files()[str(node.etc.join('proxy-%s.ini' % item))][0] == 'for = %s {other}\n' % item
    assert 'for = ' not in result.text, 'a secret is shown'
    node.calls()
    assert not node.run_with([node.routers(ONE, OTHER)])['changed']
    assert [call.split()[0] for call in node.calls()] == ['show']


def test_an_entry_without_items_keeps_its_braces(node):
    job = node.job('agent')
    job['files'][0].update(content='{item}\n')
    node.run_with([job])
    assert node.files()[str(node.etc.join('agent.ini'))][0] == '{item}\n'


def test_an_entry_with_no_items_is_no_job(node):
    assert not node.run_with([node.routers()])['changed']
    assert node.calls() == [], 'it is asked about nothing'


def checking(node, script):
    """An entry of two routers whose check is a script that gets all their arguments."""
    node.tmpdir.join('check').write('echo "$@" >>%s\n%s' % (node.tmpdir.join('checked'), script))
    return node.routers(ONE, OTHER, check=['sh', str(node.tmpdir.join('check'))],
                        check_arguments=['ns-{item}', '{item}.rules'])


def test_one_check_is_run_for_all_and_the_one_that_it_names_is_restarted(node):
    node.run_with([node.routers(ONE, OTHER)])
    entry = checking(node, 'echo "ns-%s: rules differ: in nat"; exit 1' % OTHER)
    assert node.run_with([entry])['restarted'] == {'proxy-' + OTHER: 'rules differ: in nat'}
    assert node.tmpdir.join('checked').read() == 'ns-{0} {0}.rules ns-{1} {1}.rules\n'.format(ONE, OTHER)


def test_only_jobs_that_seem_well_are_checked(node):
    node.run_with([node.routers(ONE, OTHER)])
    node.kill('proxy-' + ONE)
    node.run_with([checking(node, '')])
    assert node.tmpdir.join('checked').read() == 'ns-{0} {0}.rules\n'.format(OTHER)


def test_a_check_that_names_no_job_of_many_fails_the_run_and_restarts_none(node):
    node.run_with([node.routers(ONE, OTHER)])
    pids = node.pids()
    result = node.run_with([checking(node, 'echo no iptables here >&2; exit 1')])
    assert result['failed'] and result['msg'].endswith('names no job: no iptables here')
    assert node.pids() == pids


@pytest.mark.parametrize('check', [True, False])
def test_a_job_that_should_not_be_there_goes_with_all_its_files(node, check):
    node.run_with([node.routers(ONE, OTHER)])
    before, pids, state = node.files(), node.pids(), node.state_path.read()
    node.tmpdir.join('marks', 'proxy-' + OTHER).write('')
    result = node.run_with([node.routers(ONE)], prune=[node.prune()], check=check)
    assert result['changed'] and result['removed'] == ['proxy-' + OTHER] and result['restarted'] == {}
    assert result['counts']['removed'] == 1
    assert 'job proxy-%s: there' % OTHER in result['diff']['before']
    assert str(node.etc.join('proxy-%s.ini' % OTHER)) in result['diff']['before']
    assert result['diff']['after'] == ''
    if check:
        assert (node.files(), node.state_path.read()) == (before, state)
        assert runs(pids['proxy-%s.service' % OTHER])
        return
    assert sorted(node.files()) == sorted(path for path in before if ONE in path)
    assert not runs(pids['proxy-%s.service' % OTHER]) and runs(pids['proxy-%s.service' % ONE])
    assert json.loads(node.state_path.read())['enabled'] == ['proxy-%s.service' % ONE]
    assert node.marks() == []
    assert not node.run_with([node.routers(ONE)], prune=[node.prune()])['changed']


def test_a_job_goes_whose_files_somebody_removed_already(node):
    node.run_with([node.routers(ONE, OTHER)])
    for path in node.prune()['files']:
        os.unlink(path.replace('{item}', OTHER))
    pid = node.pids()['proxy-%s.service' % OTHER]
    assert node.run_with([node.routers(ONE)], prune=[node.prune()])['removed'] == ['proxy-' + OTHER]
    assert not runs(pid)
    assert not node.run_with([node.routers(ONE)], prune=[node.prune()])['changed']


def test_what_a_removal_that_was_cut_short_left_goes_too(node):
    node.run_with([node.routers(ONE, OTHER)])
    node.etc.join('proxy-%s.ini' % THIRD).write('')
    assert node.run_with([node.routers(ONE, OTHER)], prune=[node.prune()])['removed'] == ['proxy-' + THIRD]
    assert not any(THIRD in path for path in node.files())


def test_what_is_not_named_after_a_router_stays(node):
    node.run('proxy-of-mine')
    assert not node.run_with([], prune=[node.prune()])['changed']


def test_a_job_of_one_name_goes_when_it_is_not_wanted(node):
    node.run_with([node.routers(ONE)])
    shared = dict(node.job('shared'), files=[node.job('shared')['files'][1]])
    prunes = [node.prune(), dict(name='shared', files=[str(node.units.join('shared.service'))])]
    assert node.run_with([shared], prune=prunes)['removed'] == ['proxy-' + ONE]
    assert not node.run_with([shared], prune=prunes)['changed']
    assert node.run_with([node.routers(ONE)], prune=prunes)['removed'] == ['shared']


def test_what_is_removed_has_stopped_before_anything_starts(node):
    node.run_with([node.routers(ONE)])
    node.calls()
    node.run_with([node.job('shared')], prune=[node.prune()], secrets={str(node.etc.join('shared.ini')): ''})
    calls = [call.split()[0] for call in node.calls()]
    assert calls.index('stop') < calls.index('restart')


def test_a_job_that_does_not_stop_fails_the_run_and_keeps_its_files(node):
    node.run_with([node.routers(ONE)])
    state, files = json.loads(node.state_path.read()), node.files()
    node.state_path.write(json.dumps(dict(state, stubborn=['proxy-%s.service' % ONE])))
    result = node.run_with([], prune=[node.prune()])
    assert result['failed'] and result['msg'].startswith('job proxy-%s does not stop' % ONE)
    assert node.files() == files


STRAYS = ['serve', 'router={item}']


@pytest.mark.parametrize('check', [True, False])
def test_another_server_of_the_same_router_is_ended_and_the_job_takes_over(node, check):
    stray = node.spawn('serve', 'router=' + ONE, 'listen-fd=3')
    others = [node.spawn('serve', 'router=' + OTHER), node.spawn('resolve', 'router=' + ONE)]
    result = node.run_with([node.routers(ONE, strays=STRAYS)], check=check)
    assert result['restarted'] == {'proxy-' + ONE: 'another proxy served it'}
    assert 'another proxy served it' in result['diff']['before']
    assert (stray.poll() is None) == check
    assert [other.poll() for other in others] == [None, None]


@pytest.mark.parametrize('check', [True, False])
def test_a_job_that_is_about_to_go_is_not_in_the_way_of_another(node, check):
    program = node.tmpdir.join('releases', '1', 'mdproxy')
    program.write(SERVER.replace('sys.argv[1]', 'sys.argv[2]'))
    old = node.job('proxy-' + ONE)
    old['files'] = [dict(old['files'][1], content='[Service]\nExecStart=%s %s serve %s\n' % (
        sys.executable, program, node.path_of('proxy-' + ONE)))]
    node.run_with([old])
    result = node.run_with([dict(node.job('shared'), strays=['serve'])], prune=[node.prune()], check=check,
                           secrets={str(node.etc.join('shared.ini')): ''})
    assert result['removed'] == ['proxy-' + ONE] and result['restarted'] == {'shared': 'not running'}


def test_a_job_that_runs_is_restarted_when_it_was_not_alone(node):
    node.run_with([node.routers(ONE, OTHER, strays=STRAYS)])
    stray = node.spawn('serve', 'router=' + ONE)
    assert node.run_with([node.routers(ONE, OTHER, strays=STRAYS)])['restarted'] == {
        'proxy-' + ONE: 'another proxy served it'}
    assert stray.poll() is not None
    assert not node.run_with([node.routers(ONE, OTHER, strays=STRAYS)])['changed']


def test_what_a_removed_job_left_behind_is_ended(node):
    worker, other = node.spawn('proxy', '--discover'), node.spawn('proxy', '--router-id')
    prune = [dict(name='shared', strays=['proxy', '--discover'])]
    assert node.run_with([], prune=prune)['removed'] == ['shared']
    assert worker.poll() is not None and other.poll() is None
    assert not node.run_with([], prune=prune)['changed']


def test_listeners_that_others_should_start_are_waited_for_and_those_missing_are_named(node):
    listeners = [dict(netns='no-{item}', port=9697, items=[ONE, OTHER])]
    result = node.run_with([], listeners=listeners, wait=0)
    assert not result['changed'] and result['silent'] == ['no-' + ONE, 'no-' + OTHER]
    assert node.run_with([], listeners=listeners, check=True)['silent'] == []


def test_of_many_that_do_not_come_up_a_few_are_named(node):
    ids = ['%08d-0000-4000-8000-00000000000a' % number for number in range(12)]
    node.words['proxy-{item}'] = 'fail'
    result = node.run_with([node.routers(*ids)], wait=0)
    assert 'proxy-%s and 2 more was started' % ids[9] in result['msg'] and ids[10] not in result['msg']


def test_what_a_file_held_as_a_secret_is_in_no_diff_when_it_holds_none_any_more(node):
    node.run('agent')
    ini, unit = node.job('agent')['files']
    result = node.run_with([dict(node.job('agent'), files=[dict(ini, content='open', mode='0644'), unit])])
    assert result['changed'] and 'hunter' not in result.text
    assert 'open' in result['diff']['after']
