"""mdproxy_rollback: what a run changed is put back byte for byte, and the jobs run from it."""
import os
import stat
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import ansible_module  # noqa: E402
from job_node import Node, runs  # noqa: E402
from loopback import connected  # noqa: E402

ansible_module.needs_ansible()

AGENT, PROXY, ALL = 'mdproxy-agent', 'mdproxy-proxy-1', 'mdproxy-proxies'


class Kept(Node):
    """A node that keeps its configuration, in runs named one, two and so on."""

    def __init__(self, tmpdir):
        super(Kept, self).__init__(tmpdir)
        self.kept = tmpdir.join('kept')
        self.current, self.previous = tmpdir.join('current'), tmpdir.join('previous')
        self.switch('1')
        self.begin('one')

    def begin(self, run):
        """Another run begins."""
        self.keep = dict(folder=str(self.kept), run=run, runs=3, paths=[
            str(self.etc), str(self.units.join('mdproxy-*'))], links=[str(self.current), str(self.previous)])
        for name in (AGENT, PROXY, ALL):
            self.words.setdefault(name, str(self.etc.join(name + '.ini')))

    def change(self, run='two', names=(AGENT,)):
        """A run that changes a secret."""
        self.begin(run)
        self.secret = 'another-' + run
        return self.converge(*names)

    def switch(self, release):
        if self.current.check(link=1):
            before = os.readlink(str(self.current))
            self.current.remove()
            if self.previous.check(link=1):
                self.previous.remove()
            os.symlink(before, str(self.previous))
        os.symlink('releases/' + release, str(self.current))

    def converge(self, *names, **arguments):
        secrets = dict((str(self.etc.join(name + '.ini')), 'secret = %s\n' % self.secret) for name in names)
        prune = [dict(name=name, files=[str(self.etc.join(name + '.ini')),
                                        str(self.units.join(name + '.service'))])
                 for name in (AGENT, PROXY, ALL) if name not in names]
        return self.run_with([self.job(name) for name in names], secrets=secrets, prune=prune,
                             keep=self.keep, **arguments)

    def roll_back(self, what='configuration', check=False, **arguments):
        arguments = dict(dict(service_manager='systemd', what=what, keep=self.keep, root=str(self.tmpdir),
                              job_folders=[str(self.units)], run_dir=str(self.tmpdir.join('marks'))),
                         **arguments)
        return ansible_module.run('mdproxy_rollback', arguments, path=self.bin, check=check)

    def state(self):
        """All that a rollback has to bring back."""
        owners = dict((path, (os.stat(path).st_uid, os.stat(path).st_gid)) for path in self.files())
        return self.files(), owners, os.readlink(str(self.current))

    def runs(self):
        return sorted(os.listdir(str(self.kept))) if self.kept.check() else []


@pytest.fixture
def node(tmpdir):
    made = Kept(tmpdir)
    yield made
    made.close()


def test_what_a_run_changed_comes_back_byte_for_byte(node):
    node.converge(AGENT, PROXY)
    before, pids = node.state(), node.pids()
    node.begin('two')
    node.secret = 'another'
    node.words[PROXY] += ' more'
    node.converge(AGENT, PROXY)
    assert node.state() != before
    result = node.roll_back()
    assert result['changed'] and result['before'] == 'two'
    assert node.state() == before
    assert result['restarted'] == [AGENT, PROXY]
    for name in (AGENT, PROXY):
        assert node.pids()[name + '.service'] != pids[name + '.service']
        connected(node.path_of(name)).close()
    with open('/proc/%d/cmdline' % node.pids()[PROXY + '.service']) as words:
        assert 'more' not in words.read()
    assert node.marks() == []


def test_only_jobs_that_run_from_what_differs_are_restarted(node):
    node.converge(AGENT, PROXY)
    node.begin('two')
    node.words[PROXY] += ' more'
    node.converge(AGENT, PROXY)
    pids = node.pids()
    assert node.roll_back()['restarted'] == [PROXY]
    assert node.pids()[AGENT + '.service'] == pids[AGENT + '.service']


def test_jobs_that_came_go_and_jobs_that_went_come(node):
    node.converge(AGENT, PROXY)
    before = node.state()
    node.begin('two')
    node.converge(AGENT, ALL)
    of_all = node.pids()[ALL + '.service']
    result = node.roll_back()
    assert result['removed'] == [ALL] and result['restarted'] == [PROXY]
    assert node.state() == before
    assert not runs(of_all) and runs(node.pids()[PROXY + '.service'])
    assert '"%s.service"' % ALL not in node.state_path.read().split('"enabled"')[1].split(']')[0]


def test_a_timer_goes_and_comes_with_its_file_and_what_it_starts_is_no_job(node):
    node.converge(AGENT)
    node.change()
    for suffix in ('service', 'timer'):
        node.units.join('mdproxy-probe.' + suffix).write('[Unit]\n')
    node.calls()
    undo = dict(node.keep, folder=str(node.tmpdir.join('undo')), run='back')
    result = node.roll_back(undo=undo)
    assert (result['removed'], result['restarted']) == ([], [AGENT])
    assert 'disable --now mdproxy-probe.timer' in node.calls()
    assert not node.units.join('mdproxy-probe.timer').check()
    node.roll_back('all', keep=undo, before='back')
    assert 'enable --now mdproxy-probe.timer' in node.calls()
    assert node.units.join('mdproxy-probe.timer').check()


def test_before_the_first_run_there_was_nothing(node):
    node.converge(AGENT, PROXY)
    pids = node.pids()
    assert node.roll_back()['removed'] == [AGENT, PROXY]
    assert node.files() == {}
    assert not any(runs(pid) for pid in pids.values())


def test_check_mode_says_what_would_be_and_shows_no_content(node):
    node.converge(AGENT)
    node.change()
    before, pids = node.state(), node.pids()
    result = node.roll_back(check=True)
    assert result['changed'] and result['restarted'] == [AGENT]
    assert str(node.etc.join(AGENT + '.ini')) in result['diff']['before']
    assert 'another' not in result.text and 'hunter2' not in result.text
    assert (node.state(), node.pids()) == (before, pids)


def test_the_release_alone(node):
    node.converge(AGENT)
    node.switch('2')
    node.begin('two')
    node.secret = 'another'
    node.release = '2'
    node.converge(AGENT)
    files = node.files()
    result = node.roll_back('releases')
    assert result['changed'] and result['release'] == '1' and result['restarted'] == [AGENT]
    assert node.files() == files and os.readlink(str(node.current)) == 'releases/1'
    assert not node.roll_back('releases')['changed']


def test_all_is_the_files_with_the_release_that_they_ran_with(node):
    node.converge(AGENT)
    before = node.state()
    node.begin('two')
    node.secret = 'another'
    node.converge(AGENT)       # keeps what there was with release 1
    node.switch('2')
    result = node.roll_back('all')
    assert result['release'] == '1' and node.state() == before


def test_configuration_leaves_the_release(node):
    node.converge(AGENT)
    node.change()
    node.switch('2')
    assert node.roll_back()['release'] == '2' and os.readlink(str(node.current)) == 'releases/2'


def test_a_run_that_changes_nothing_keeps_nothing(node):
    node.converge(AGENT)
    node.begin('two')
    node.converge(AGENT)
    node.secret = 'another'
    node.converge(AGENT, check=True)
    assert node.runs() == ['one']


def test_what_was_before_the_first_change_of_a_run_is_kept(node):
    node.converge(AGENT)
    before = node.state()
    node.begin('two')
    for secret in ('another', 'third'):
        node.secret = secret
        node.converge(AGENT)
    node.roll_back()
    assert node.state() == before


def test_an_earlier_run_can_be_named(node):
    node.converge(AGENT)
    before = node.state()
    for run in ('two', 'zwei'):
        node.begin(run)
        node.secret = run
        node.converge(AGENT)
    assert node.roll_back(before='two')['before'] == 'two'
    assert node.state() == before


def test_the_oldest_go(node):
    for run in ('1', '2', '3', '4'):
        node.begin(run)
        node.secret = run
        node.converge(AGENT)
    assert node.runs() == ['2', '3', '4']


def test_where_nothing_can_be_kept_nothing_is_changed(node):
    node.converge(AGENT)
    before = node.state()
    node.begin('two')
    node.secret = 'another'
    node.keep['folder'] = str(node.tmpdir.join('a-file').ensure().join('kept'))
    result = node.converge(AGENT)
    assert result['failed'] and 'cannot be kept as it is (Not a directory)' in result['msg']
    assert node.state() == before


def test_what_is_kept_is_for_root_alone(node):
    node.converge(AGENT)
    for folder, _, names in os.walk(str(node.kept)):
        for path in [folder] + [os.path.join(folder, name) for name in names]:
            assert not stat.S_IMODE(os.stat(path).st_mode) & 0o077, path


def test_what_there_was_is_kept_elsewhere_first(node):
    node.converge(AGENT)
    node.change()
    before = node.state()
    undo = dict(node.keep, folder=str(node.tmpdir.join('undo')), run='back')
    node.roll_back(undo=undo)
    assert node.state() != before
    node.roll_back('all', keep=undo, before='back')
    assert node.state() == before


def test_a_run_that_was_cut_short_is_made_good(node):
    node.converge(AGENT)
    before = node.state()
    node.change()
    node.etc.join(AGENT + '.ini').write('secret = hunter2\n')      # put back, and not yet restarted
    node.tmpdir.join('marks', AGENT).write('', ensure=True)
    node.roll_back(before='two')
    assert node.state() == before and node.marks() == []
    pids = node.pids()
    assert not node.roll_back(before='two')['changed'] and node.pids() == pids


@pytest.mark.parametrize('what, said', [
    ('configuration', 'no run has changed a configuration'), ('all', 'no run has changed a configuration'),
    ('releases', 'no release before the present one')])
def test_where_there_is_nothing_to_go_back_to_it_says_so(node, what, said):
    result = node.roll_back(what)
    assert not result['changed'] and said in result['nothing']


def test_a_run_of_which_nothing_is_kept_is_named_with_those_that_are(node):
    node.converge(AGENT)
    assert 'nothing is kept of three, only of one' in node.roll_back(before='three')['nothing']


def test_a_run_that_failed_and_was_put_back_is_not_the_last_that_changed_something(node):
    node.converge(AGENT)
    before = node.state()
    node.change()
    node.change('zwei')
    node.roll_back('all', before='zwei')
    assert node.roll_back()['before'] == 'two' and node.state() == before


def test_a_run_that_changed_the_release_alone_is_none_that_changed_the_configuration(node):
    node.converge(AGENT)
    before = node.state()
    node.change()
    node.begin('zwei')
    ansible_module.run('mdproxy_jobs', dict(     # a run that keeps, and changes nothing else that counts
        service_manager='systemd', release='', run_dir=str(node.tmpdir.join('marks')), keep=node.keep,
        prune=[dict(name='other', files=[str(node.tmpdir.join('other').ensure())])]), path=node.bin)
    node.switch('2')
    assert node.runs() == ['one', 'two', 'zwei']
    assert node.roll_back('all', check=True)['before'] == 'zwei'
    assert node.roll_back()['before'] == 'two'
    assert node.files() == before[0]


def test_what_was_gone_back_to_is_remembered_until_another_run_changes_something(node):
    node.converge(AGENT)
    for run in ('p', 'q'):
        node.begin(run)
        node.secret = run
        node.converge(AGENT)
    node.begin('r')
    undo = dict(node.keep, folder=str(node.tmpdir.join('undo')))
    first, second = node.roll_back(undo=undo), node.roll_back(undo=undo)
    assert (first['changed'], second['changed']) == (True, False)
    assert first['before'] == second['before'] == 'q'
    node.change('s')
    assert node.roll_back(undo=undo)['before'] == 's'


def test_a_release_that_is_gone_is_found_before_anything_is_changed(node):
    node.converge(AGENT)
    node.change()
    node.switch('2')
    node.tmpdir.join('releases', '1').remove()
    before = node.state()
    result = node.roll_back('all')
    assert result['failed'] and 'the release 1' in result['msg'] and node.state() == before


def test_a_job_that_does_not_run_with_it_is_named(node):
    node.words[AGENT] = str(node.etc.join(AGENT + '.ini')) + ' fail'
    node.etc.join(AGENT + '.ini').write('secret = hunter2\n', ensure=True)
    node.units.join(AGENT + '.service').write(node.job(AGENT)['files'][1]['content'])
    node.words[AGENT] = ''
    node.converge(AGENT)
    result = node.roll_back()
    assert result['failed'] and AGENT in result['msg'] and 'no agent today' in result['msg']
