"""tree_transaction: all files are replaced or none, wherever the process is killed or the disk fills."""
import errno
import json
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import ansible_module  # noqa: E402
from breaking import at_call, die, failing, killed, killed_at, snapshot  # noqa: E402

trees = ansible_module.utility('tree_transaction')
TIME = 1300000000 * 10 ** 9


class Files(object):
    """A folder of files, a change of all kinds for it, and a Transaction's folder."""

    def __init__(self, tmpdir):
        self.tree, self.state = tmpdir.mkdir('tree'), tmpdir.join('state')
        self.write('patched.py', b'old\n', 0o640)
        self.write('patched.pyc', b'old, compiled\n')
        self.write('removed.py', b'removed\n', 0o755)
        self.write('real', b'linked\n')
        self.write('old/only', b'only\n')
        os.symlink('real', self.path('link'))
        self.transaction = trees.Transaction(str(self.state))
        os.makedirs(str(self.state.join('backups')))
        self.before = snapshot(self.tree)

    def path(self, name):
        return str(self.tree.join(name))

    def write(self, name, content, mode=0o644):
        self.tree.join(name).write_binary(content, ensure=True)
        os.chmod(self.path(name), mode)
        os.utime(self.path(name), (1200000000, 1200000000))

    def state_for(self, content, mode=0o644):
        return dict(sha256=self.transaction.add(content), mode=mode, uid=os.getuid(), gid=os.getgid(),
                    mtime=TIME)

    def steps(self):
        folder = dict(folder=True, mode=0o755, uid=os.getuid(), gid=os.getgid())
        wanted = [('new', folder, None), ('new/deeper', folder, None),
                  ('new/deeper/x.py', self.state_for(b'new\n'), None),
                  ('new/deeper/x.pyc', self.state_for(b'new, compiled\n'), 'new/deeper/x.py'),
                  ('patched.py', self.state_for(b'patched\n', 0o640), None),
                  ('patched.pyc', self.state_for(b'patched, compiled\n'), 'patched.py'),
                  ('removed.py', None, None), ('link', None, None), ('old/only', None, None),
                  ('old', None, None)]
        steps = [trees.Step(self.path(name), state, source and self.path(source))
                 for name, state, source in wanted]
        return steps + [self.transaction.record(b'{"what": "is applied"}\n')]

    def run(self):
        self.transaction.run(self.steps())

    def interrupt(self):
        """Have a run killed when all is done but the journal's removal."""
        steps, unlink = self.steps(), os.unlink

        def run():
            os.unlink = lambda path: die() if path.endswith('journal.json') else unlink(path)
            self.transaction.run(steps)
        assert killed(run)

    def is_before(self):
        return snapshot(self.tree) == self.before and not self.state.join('state.json').check()

    def is_after(self):
        names = sorted(os.path.relpath(path, str(self.tree)) for path in snapshot(self.tree))
        return (names == ['new', 'new/deeper', 'new/deeper/x.py', 'new/deeper/x.pyc', 'patched.py',
                          'patched.pyc', 'real']
                and [self.tree.join(name).read_binary() for name in names if '.' in name] == [
                    b'new\n', b'new, compiled\n', b'patched\n', b'patched, compiled\n']
                and json.loads(self.state.join('state.json').read()) == {'what': 'is applied'})


@pytest.fixture
def files(tmpdir):
    return Files(tmpdir)


def test_all_steps_are_taken(files):
    files.run()
    assert files.is_after() and files.transaction.interrupted() is None
    assert os.stat(files.path('patched.py')).st_mode & 0o777 == 0o640
    assert os.stat(files.path('patched.py')).st_mtime == 1300000000
    assert os.stat(str(files.state.join('state.json'))).st_mode & 0o777 == 0o644


def test_backups_are_for_root_alone(files):
    files.run()
    assert set(entry.stat().mode & 0o777 for entry in files.state.join('backups').listdir()) == {0o600}


def test_a_kill_at_any_call_leaves_all_or_none_once_it_is_undone(tmpdir):
    undone = done = 0
    for number in range(1, 1000):
        files = Files(tmpdir.mkdir(str(number)))
        was_killed = killed_at(number, files.run)
        if files.transaction.interrupted() is not None:
            undone += 1
            files.transaction.undo()
            assert files.is_before(), number
        done += files.is_after()
        if not files.is_after():
            assert files.is_before(), number
            files.run()
        assert files.is_after(), number
        files.transaction.clean(set())
        assert os.listdir(str(files.state)) == ['state.json']
        if not was_killed:
            break
    # On both sides of the moment that counts: before it is undone, after it is done.
    assert undone > 30 and done == 2


def test_a_kill_while_it_is_undone_is_made_good_by_undoing_again(tmpdir):
    for number in range(1, 1000):
        files = Files(tmpdir.mkdir(str(number)))
        files.interrupt()
        was_killed = killed_at(number, files.transaction.undo)
        if files.transaction.interrupted() is not None:
            files.transaction.undo()
        assert files.is_before(), number
        if not was_killed:
            break
    assert number > 20


@pytest.mark.parametrize('error', [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize('ever_after', [False, True])
def test_an_error_at_any_call_is_undone_or_says_that_it_could_not_be(tmpdir, error, ever_after):
    undone = stuck = 0
    for number in range(1, 1000):
        files = Files(tmpdir.mkdir(str(number)))
        steps = files.steps()
        with at_call(number, failing(error), ever_after) as seen:
            try:
                files.transaction.run(steps)
            except trees.TransactionError as raised:
                said = str(raised)
            else:
                assert files.is_after()
                if number > len(seen):
                    break
                # Only the folder of the journal was not synced.
                assert seen[number - 2:number] == ['unlink', 'fsync']
                continue
        assert os.strerror(error) in said and (str(files.tree) in said or str(files.state) in said)
        if 'every file is as it was' in said:
            undone += 1
        else:
            assert 'The next run goes on with going back' in said
            stuck += 1
            files.transaction.undo()
        assert files.is_before() and files.transaction.interrupted() is None, number
    assert files.is_after() and undone > 5 and undone + stuck > 40 and bool(stuck) == ever_after


def test_what_would_be_undone_can_be_asked_before(files):
    files.interrupt()
    restored, left = files.transaction.interrupted()
    assert files.is_after() and left == []
    states = dict((name, restored[files.path(name)]) for name in ('new', 'new/deeper/x.pyc', 'old', 'link'))
    assert states['new'] is None and states['new/deeper/x.pyc'] is None
    assert states['old']['folder'] and states['link']['link'] == 'real'
    assert files.transaction.content(restored[files.path('patched.py')]['sha256']) == b'old\n'


def test_what_somebody_changed_since_is_left_and_so_is_what_was_made_from_it(files):
    files.interrupt()
    files.write('patched.py', b'upgraded\n')
    files.write('removed.py', b'upgraded, too\n')
    assert sorted(files.transaction.interrupted()[1]) == [files.path('patched.py'), files.path('removed.py')]
    files.transaction.undo()
    assert files.tree.join('patched.py').read() == 'upgraded\n'
    assert files.tree.join('patched.pyc').read() == 'patched, compiled\n'
    assert files.tree.join('removed.py').read() == 'upgraded, too\n'
    assert not files.tree.join('new').check() and files.tree.join('link').check(link=True)


def test_what_was_made_from_a_file_goes_back_with_it_whatever_it_holds(files):
    files.interrupt()
    files.write('new/deeper/x.pyc', b'by the interpreter\n')
    files.tree.join('patched.pyc').remove()
    files.transaction.undo()
    assert files.is_before()


def test_a_tree_that_was_removed_is_not_made_again(files):
    files.interrupt()
    files.tree.remove()
    files.transaction.undo()
    assert not files.tree.check() and files.transaction.interrupted() is None


def test_a_folder_that_others_use_stays(files):
    files.interrupt()
    files.write('new/theirs', b'x')
    files.transaction.undo()
    assert os.listdir(files.path('new')) == ['theirs']


def test_a_damaged_backup_is_never_put_into_the_tree(files):
    steps = files.steps()
    sha256 = [step.state['sha256'] for step in steps if step.path == files.path('patched.py')][0]
    files.state.join('backups', sha256).write('damaged')
    with pytest.raises(trees.TransactionError) as error:
        files.transaction.run(steps)
    assert sha256 in str(error.value) and 'is damaged' in str(error.value) and files.is_before()
    assert files.transaction.add(b'patched\n') == sha256
    assert files.transaction.content(sha256) == b'patched\n'


@pytest.mark.parametrize('damage', [b'', b'[{"path"', b'\xff'])
def test_a_damaged_journal_is_named(files, damage):
    files.interrupt()
    files.state.join('journal.json').write_binary(damage)
    with pytest.raises(trees.TransactionError) as error:
        files.transaction.undo()
    assert 'journal.json is damaged' in str(error.value)


def test_what_is_not_a_file_is_refused(files):
    os.mkfifo(files.path('fifo'))
    with pytest.raises(trees.TransactionError) as error:
        files.transaction.run([trees.Step(files.path('fifo'), None, None)])
    assert 'neither a file' in str(error.value) and 'as it was' in str(error.value)


def test_contents_that_nothing_needs_go_but_never_while_they_may_be_needed(files):
    files.interrupt()
    kept = os.listdir(str(files.state.join('backups')))
    files.transaction.clean(set())
    assert os.listdir(str(files.state.join('backups'))) == kept
    files.transaction.undo()
    files.transaction.clean(set(kept[:1]))
    assert os.listdir(str(files.state.join('backups'))) == kept[:1]
    files.transaction.clean(set())
    assert not files.state.check()


def test_two_processes_do_not_work_at_once(files):
    files.transaction.lock(make=True)

    def locked():
        with pytest.raises(trees.TransactionError) as error:
            trees.Transaction(str(files.state)).lock(make=True)
        assert 'another run is at work' in str(error.value)
        die()
    assert killed(locked)


def test_a_lock_makes_no_folder_unless_told_to(tmpdir):
    trees.Transaction(str(tmpdir.join('a', 'b'))).lock(make=False)
    assert tmpdir.listdir() == []
    trees.Transaction(str(tmpdir.join('a', 'b'))).lock(make=True)
    assert tmpdir.join('a', 'b', 'backups').check()


@pytest.mark.skipif(os.getuid() != 0, reason='needs root to give files away')
def test_owners_come_back(files):
    os.chown(files.path('patched.py'), 12, 34)
    os.lchown(files.path('link'), 56, 78)
    os.chown(files.path('old'), 90, 12)
    files.before = snapshot(files.tree)
    files.interrupt()
    files.transaction.undo()
    assert files.is_before()


def test_a_link_that_is_put_in_the_files_place_meanwhile_gives_nothing_away(files):
    """As whom the folder belongs to may do, while root writes there."""
    other = files.tree.dirpath().join('of-root')
    other.write('root alone')
    os.chmod(str(other), 0o600)
    before, fdopen = snapshot(str(other.dirpath())), os.fdopen

    def swap(descriptor, mode):
        path = os.readlink('/proc/self/fd/%d' % descriptor)
        if path.endswith('.patched-tree'):
            os.unlink(path)
            os.symlink(str(other), path)
        return fdopen(descriptor, mode)
    os.fdopen = swap
    try:
        files.run()
    finally:
        os.fdopen = fdopen
    assert snapshot(str(other.dirpath()))[str(other)] == before[str(other)]
