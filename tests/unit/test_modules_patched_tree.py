"""patched_tree: a series is in the installed tree whole or not at all, and comes out without a trace."""
import json
import os
import py_compile
import sys
import time

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import ansible_module  # noqa: E402
from breaking import die, killed, killed_at, snapshot  # noqa: E402
from patchmaker import Series, sha256  # noqa: E402

ansible_module.needs_ansible()

# Some bytes that are not UTF-8, as the base's files have them.
CODING = b'# -*- coding: latin-1 -*-\n# \xe9\n'
VERSION = CODING + b"NOVA_VERSION = ['2012', '2', '4']\nFINAL = True\n"


def numbered(name):
    return CODING + ''.join('%s_%d = %d\n' % (name, n, n) for n in range(1, 31)).encode('ascii')


HANDLER, BASE = numbered('handler'), numbered('base')
TREE = {'nova/__init__.py': b'', 'nova/version.py': VERSION, 'nova/api/__init__.py': b'',
        'nova/api/handler.py': HANDLER, 'nova/api/base.py': BASE, 'nova/api/old.py': b'old = 1\n',
        'nova/tests/test_handler.py': b'test = 1\n', 'bin/nova-api': b'#!/usr/bin/python\n',
        'setup.py': b'setup\n'}
FIVE = HANDLER.replace(b'handler_5 = 5\n', b'handler_5 = "five"\n')
BOTH = FIVE.replace(b'handler_20 = 20\n', b'handler_20 = "twenty"\n')
STEPS = [
    {'nova/api/handler.py': FIVE, 'nova/api/meta/__init__.py': b'', 'nova/api/meta/agent.py': b'draft = 1\n'},
    {'nova/api/handler.py': BOTH, 'nova/api/base.py': BASE + b'more = 1\n', 'nova/api/old.py': None,
     'nova/api/meta/agent.py': b'agent = 1\n', 'nova/api/passing.py': b'1\n', 'setup.py': b'setup, too\n',
     'nova/tests/test_handler.py': b'test = 2\n', 'bin/nova-meta': b'#!/usr/bin/python\nnew\n'},
    {'nova/api/passing.py': None}]
# What of it has a place on a node that has no tests.
CHANGED = ['bin/nova-meta', 'nova/api/base.py', 'nova/api/handler.py', 'nova/api/meta/__init__.py',
           'nova/api/meta/agent.py', 'nova/api/old.py']
NEWER = [dict(STEPS[0]), {'nova/api/handler.py': BOTH, 'nova/api/meta/__init__.py': None,
                          'nova/api/meta/agent.py': None}]
FIRST_HUNK = '0001-step.patch: nova/api/handler.py @@ -4,7 +4,7 @@'
SECOND_HUNK = '0002-step.patch: nova/api/handler.py @@ -19,7 +19,7 @@'


def series(*steps, **manifest):
    return Series(TREE, *(steps or STEPS), **manifest)


class Node(object):
    """A node with an installed nova: its package in lib, its commands in bin."""

    def __init__(self, tmpdir):
        self.tmpdir, self.root, self.state = tmpdir, tmpdir.join('lib'), tmpdir.join('state')
        self.bin, self.mark = tmpdir.join('bin'), tmpdir.join('restart')
        self.places = [dict(prefix='nova', to='nova'), dict(prefix='bin/', to=str(self.bin)),
                       dict(prefix='nova/tests', to='nova/tests', optional=True),
                       # Whole components count: this is the place of nothing.
                       dict(prefix='nova/api/han', to='/nonexistent'), dict(prefix='set', to='/nonexistent')]
        for path, content in TREE.items():
            if path != 'setup.py' and not path.startswith('nova/tests/'):
                self.write(path, content)
        for path in ('nova/__init__.py', 'nova/api/handler.py', 'nova/api/old.py'):
            self.compile(path)
        self.write('nova/api/handler.pyo', b'optimized\n')
        os.chmod(self.path('nova/api/handler.py'), 0o640)
        os.chmod(self.path('nova/api/handler.pyc'), 0o600)
        if not os.getuid():
            os.chown(self.path('nova/api/handler.py'), 12, 34)
            os.chown(self.path('nova/api/handler.pyc'), 56, 78)

    def path(self, path):
        return str((self.tmpdir if path.startswith('bin/') else self.root).join(*path.split('/')))

    def paths(self, *paths):
        return sorted(map(self.path, paths))

    def write(self, path, content):
        if not os.path.isdir(os.path.dirname(self.path(path))):
            os.makedirs(os.path.dirname(self.path(path)))
        with open(self.path(path), 'wb') as out:
            out.write(content)
        os.utime(self.path(path), (1300000000, 1300000000))

    def compile(self, path):
        py_compile.compile(self.path(path), self.path(path) + 'c', self.path(path), True)
        os.utime(self.path(path) + 'c', (1300000001, 1300000001))   # of which no Python loses a part

    def read(self, path):
        if not os.path.exists(self.path(path)):
            return None
        with open(self.path(path), 'rb') as source:
            return source.read()

    def arguments(self, state, applied=None, **arguments):
        arguments = dict(dict(
            project='nova', state=state, root=str(self.root), places=self.places, python=sys.executable,
            state_folder=str(self.state), mark=str(self.mark)), **arguments)
        return dict(arguments, series=applied.packed()) if applied else arguments

    def present(self, applied=None, check=False, **arguments):
        arguments = self.arguments('present', applied or series(), **arguments)
        return ansible_module.run('patched_tree', arguments, check=check)

    def absent(self, check=False, **more):
        return ansible_module.run('patched_tree', dict(self.arguments('absent'), **more), check=check)

    def inspect(self):
        return ansible_module.run('patched_tree', self.arguments('inspect'))

    def act(self, state, applied=None):
        """Something for a child to do and to be killed at."""
        return lambda: ansible_module.run_here('patched_tree', self.arguments(state, applied), self.tmpdir)

    def interrupt(self, state='present', applied=None):
        """Have a run killed when all is done but the journal's removal."""
        unlink = os.unlink

        def act():
            os.unlink = lambda path, **named: (
                die() if str(path).endswith('journal.json') else unlink(path, **named))
            self.act(state, applied or (series() if state == 'present' else None))()
        assert killed(act)

    def snapshot(self):
        return snapshot(self.root, self.bin)

    def everything(self):
        return snapshot(self.tmpdir)

    def has(self, applied):
        """Whether all files that have a place here are as the series makes them."""
        return all(self.read(path) == content for path, content in applied.after.items()
                   if path != 'setup.py' and not path.startswith('nova/tests/'))

    def is_compiled(self, path):
        """Whether the compiled file is the one that the interpreter would make of the source."""
        made = str(self.tmpdir.join('made.pyc'))
        py_compile.compile(self.path(path), made, self.path(path), True)
        with open(made, 'rb') as content:
            return self.read(path + 'c') == content.read()

    def record(self):
        return json.loads(self.state.join('nova', 'state.json').read())


@pytest.fixture
def node(tmpdir):
    return Node(tmpdir)


def refused(result, *words):
    """Whether a result is a failure that has these words in it."""
    assert result.get('failed') and not result['changed'], result
    assert [word for word in words if word not in result['msg']] == [], result['msg']
    return True


def unchanged(result):
    return not result.get('failed') and not result['changed']


# The way there and back

def test_a_series_is_applied_and_taken_back_without_a_trace(node):
    before = node.snapshot()
    result = node.present()
    assert result['changed'] and result['restart'] and node.has(series())
    assert result['series'] == '0123456789ab' and result['base'] == result['version'] == '2012.2.4'
    assert result['root'] == str(node.root) and result['files'] == node.paths(*CHANGED)
    assert result['left_out'] == ['nova/tests/test_handler.py', 'setup.py']
    result = node.absent()
    assert result['changed'] and result['restart'] and result['files'] == node.paths(*CHANGED)
    assert node.snapshot() == before and not node.state.join('nova').check()


def test_a_second_run_changes_nothing(node):
    node.present()
    node.mark.remove()
    for run in (node.present, node.inspect):
        before = node.everything()
        result = run()
        assert not result['changed'] and not result['restart'] and node.everything() == before
    assert node.present()['files'] == [] and node.present()['diff'] == []
    node.absent()
    node.mark.remove()
    before = node.everything()
    assert unchanged(node.absent()) and node.everything() == before


def test_check_mode_shows_what_would_be_and_touches_nothing(node):
    before = node.everything()
    foretold = node.present(check=True)
    assert foretold['changed'] and foretold['restart'] and node.everything() == before
    shown = dict((diff['after_header'], diff) for diff in foretold['diff'])
    assert sorted(shown) == node.paths(*CHANGED)
    assert 'handler_5 = 5\n' in shown[node.path('nova/api/handler.py')]['before']
    assert 'handler_5 = "five"\n' in shown[node.path('nova/api/handler.py')]['after']
    assert shown[node.path('nova/api/meta/agent.py')]['before'] == ''
    assert shown[node.path('nova/api/old.py')]['after'] == ''
    done = node.present()
    assert dict(done, invocation=0) == dict(foretold, invocation=0)
    before = node.everything()
    foretold = node.absent(check=True)
    assert foretold['changed'] and node.everything() == before
    assert dict(node.absent(), invocation=0) == dict(foretold, invocation=0)


def test_the_series_itself_is_not_in_what_is_logged(node):
    assert series().packed() not in node.present().text


def test_owner_and_mode_stay_and_new_files_get_those_of_their_folder(node):
    os.chmod(node.path('nova/api'), 0o750)
    if not os.getuid():
        os.chown(node.path('nova/api'), 90, 12)
    old = os.umask(0o077)
    try:
        applied = series()
        applied.manifest['files']['bin/nova-meta']['mode'] = '100755'
        node.present(applied)
    finally:
        os.umask(old)
    handler, folder = os.stat(node.path('nova/api/handler.py')), os.stat(node.path('nova/api'))
    assert handler.st_mode & 0o777 == 0o640
    assert os.getuid() or (handler.st_uid, handler.st_gid) == (12, 34)
    for path, mode in (('nova/api/meta', 0o755), ('nova/api/meta/agent.py', 0o644)):
        found = os.stat(node.path(path))
        assert found.st_mode & 0o777 == mode
        assert (found.st_uid, found.st_gid) == (folder.st_uid, folder.st_gid)
    assert os.stat(node.path('bin/nova-meta')).st_mode & 0o777 == 0o755
    assert os.stat(node.path('nova/api/meta/agent.pyc')).st_mode & 0o777 == 0o644
    assert node.state.join('nova').stat().mode & 0o777 == 0o755


def test_the_record_is_for_everybody_and_the_backups_are_not(node):
    node.present()
    assert os.stat(str(node.state.join('nova'))).st_mode & 0o777 == 0o755
    assert os.stat(str(node.state.join('nova', 'state.json'))).st_mode & 0o777 == 0o644
    backups = node.state.join('nova', 'backups').listdir()
    assert set(entry.stat().mode & 0o777 for entry in backups) == set([0o600])
    entry = node.record()['files'][node.path('nova/api/handler.py')]
    assert entry['before']['mode'] == 0o640 and entry['before']['mtime'] == 1300000000 * 10 ** 9
    assert (entry['before']['sha256'], entry['after']) == (sha256(HANDLER), sha256(BOTH))
    assert entry['before']['sha256'] in [backup.basename for backup in backups]


# Compiled files

def test_what_was_compiled_is_compiled_again_and_nothing_else(node):
    node.present()
    assert node.is_compiled('nova/api/handler.py')
    assert not os.path.exists(node.path('nova/api/handler.pyo'))
    assert not os.path.exists(node.path('nova/api/base.pyc'))
    assert not os.path.exists(node.path('nova/api/old.pyc'))
    found = os.stat(node.path('nova/api/handler.pyc'))
    assert found.st_mode & 0o777 == 0o600 and (os.getuid() or (found.st_uid, found.st_gid) == (56, 78))


def test_a_compiled_file_is_of_its_sources_time_whatever_the_clock_says(node):
    def act():
        time.time = lambda: 1400000000.9
        node.act('present', series())()
    assert not killed(act)
    assert os.stat(node.path('nova/api/handler.py')).st_mtime == 1400000000
    assert node.is_compiled('nova/api/handler.py')


def test_new_sources_are_compiled_where_their_neighbours_are(node):
    node.present()
    assert node.is_compiled('nova/api/meta/agent.py') and node.is_compiled('nova/api/meta/__init__.py')


def test_new_sources_are_not_compiled_where_nothing_is(node):
    for path in ('nova/api/handler.pyc', 'nova/api/old.pyc'):
        os.unlink(node.path(path))
    node.present()
    assert sorted(os.listdir(node.path('nova/api/meta'))) == ['__init__.py', 'agent.py']


def test_without_an_interpreter_what_was_compiled_from_other_sources_goes(node):
    before = node.snapshot()
    node.present(python='')
    assert not os.path.exists(node.path('nova/api/handler.pyc'))
    node.absent()
    assert node.snapshot() == before


@pytest.mark.parametrize('check', [True, False])
def test_a_series_that_does_not_compile_changes_nothing(node, check):
    before = node.snapshot()
    result = node.present(series({'nova/api/handler.py': b'def (:\n'}), check=check)
    assert refused(result, 'does not compile', node.path('nova/api/handler.py'), 'line 1')
    assert node.snapshot() == before and not node.mark.check() and not node.state.join('nova').check()


def test_a_change_that_fails_leaves_no_mark(node):
    before = node.snapshot()
    node.places.append(dict(prefix='bin/nova-meta', to=node.path('bin/nova-api') + '/no/folder'))
    assert refused(node.present(), 'bin/nova-api/no', 'Not a directory', 'every file is as it was')
    assert node.snapshot() == before and not node.mark.check() and not node.state.join('nova').check()
    assert not node.present()['restart']


def test_an_interpreter_that_is_not_there_changes_nothing(node):
    before = node.snapshot()
    assert refused(node.present(python='/nonexistent/python'), '/nonexistent/python', 'patched_tree_python')
    assert node.snapshot() == before and not node.mark.check()


# Links, as Ubuntu 12.04 has them: sources in one folder, links to them and compiled files in another

@pytest.fixture
def linked(node):
    shared = node.tmpdir.join('pyshared')
    for path in TREE:
        if path.endswith('.py') and os.path.exists(node.path(path)):
            real = str(shared.join(*path.split('/')))
            if not os.path.isdir(os.path.dirname(real)):
                os.makedirs(os.path.dirname(real))
            os.rename(node.path(path), real)
            os.symlink(os.path.relpath(real, os.path.dirname(node.path(path))), node.path(path))
    node.shared = shared
    return node


def test_a_link_stays_a_link_and_what_it_leads_to_is_patched(linked):
    before = snapshot(linked.root, linked.shared)
    linked.present()
    assert linked.has(series()) and os.path.islink(linked.path('nova/api/handler.py'))
    assert linked.shared.join('nova', 'api', 'handler.py').read_binary() == BOTH
    assert linked.is_compiled('nova/api/handler.py')
    assert not linked.shared.join('nova', 'api', 'handler.pyc').check()
    # What is new is no package's: it stands where it is looked for.
    assert not linked.shared.join('nova', 'api', 'meta').check()
    assert not os.path.lexists(linked.path('nova/api/old.py'))
    assert unchanged(linked.present())
    linked.absent()
    assert snapshot(linked.root, linked.shared) == before


def test_a_newer_series_may_have_again_what_an_older_one_removed(linked):
    before = snapshot(linked.root, linked.shared)
    linked.present()
    newer = series({'nova/api/old.py': b'old = 2\n'}, series='newer')
    linked.present(newer)
    assert linked.has(newer) and os.path.islink(linked.path('nova/api/old.py'))
    linked.absent()
    assert snapshot(linked.root, linked.shared) == before


def test_a_link_that_leads_nowhere_is_not_taken_for_a_missing_file(linked):
    os.symlink('nowhere', linked.path('bin/nova-meta'))
    assert refused(linked.present(), linked.path('bin/nova-meta') + ' exists already')


def test_a_copy_in_a_links_place_is_not_ours(linked):
    linked.present()
    os.unlink(linked.path('nova/api/handler.py'))
    linked.write('nova/api/handler.py', BOTH)
    result = linked.absent()
    assert result['overwritten'] == linked.paths('nova/api/handler.py')
    assert linked.read('nova/api/handler.py') == BOTH


def test_two_names_of_one_file_are_refused(node):
    os.unlink(node.path('nova/api/base.py'))
    os.symlink('handler.py', node.path('nova/api/base.py'))
    assert refused(node.present(), 'nova/api/base.py and nova/api/handler.py are one file')


def test_a_package_folder_that_is_a_link_is_one_and_the_same(node):
    os.rename(node.path('nova'), str(node.tmpdir.join('elsewhere')))
    os.symlink(str(node.tmpdir.join('elsewhere')), node.path('nova'))
    before = snapshot(node.tmpdir.join('elsewhere'))
    node.present()
    assert node.has(series()) and unchanged(node.present())
    node.absent()
    assert snapshot(node.tmpdir.join('elsewhere')) == before


# Trees that are not what the series was made for

def test_every_file_that_is_not_as_expected_is_named(node):
    before = node.snapshot()
    node.write('nova/api/handler.py', HANDLER.replace(b'handler_6 = 6', b'handler_6 = "six"'))
    node.write('nova/api/meta/agent.py', b'somebody = 1\n')
    os.unlink(node.path('nova/api/base.py'))
    changed = node.snapshot()
    result = node.present(allow_drift=True)
    assert refused(
        result, 'nova 2012.2.4', 'series 0123456789ab',
        '%s differs, and does not take %s;' % (node.path('nova/api/handler.py'), FIRST_HUNK),
        node.path('nova/api/meta/agent.py') + ' exists already',
        node.path('nova/api/base.py') + ' is missing')
    assert node.snapshot() == changed != before and not node.state.join('nova').check()


def test_a_file_that_takes_every_hunk_is_refused_with_the_way_to_allow_it(node):
    node.write('nova/api/handler.py', b'# more\n' + HANDLER)
    assert refused(node.present(), node.path('nova/api/handler.py') + ' differs, but takes every hunk',
                   'patched_tree_allow_drift: true')


def test_drift_is_taken_where_it_is_allowed_and_rolled_back_to(node):
    drifted = b'# more\n' + HANDLER
    node.write('nova/api/handler.py', drifted)
    node.write('nova/api/base.py', BASE.replace(b'base_2 = 2\n', b'base_2 = "two"\n'))
    before = node.snapshot()
    result = node.present(allow_drift=True)
    assert node.read('nova/api/handler.py') == b'# more\n' + BOTH
    assert result['drift'] == [
        node.path('nova/api/base.py') + ': differs from the base',
        '%s: %s applies at line 5' % (node.path('nova/api/handler.py'), FIRST_HUNK),
        '%s: %s applies at line 20' % (node.path('nova/api/handler.py'), SECOND_HUNK)]
    assert node.inspect()['drift'] == result['drift']
    # What was taken once needs no second permission.
    assert unchanged(node.present())
    assert refused(node.present(series(series='newer')), 'patched_tree_allow_drift')
    node.absent()
    assert node.snapshot() == before


def test_a_newer_series_that_drift_does_not_take_is_not_blamed_on_somebody(node):
    node.write('nova/api/handler.py', b'# more\n' + HANDLER)
    node.present(allow_drift=True)
    patched = node.snapshot()
    newer = dict(STEPS[0], **{'nova/api/handler.py': b'first = 1\n' + FIVE})
    result = node.present(series(newer, STEPS[1], STEPS[2], series='newer'), allow_drift=True)
    assert refused(result, 'differs, and does not take') and 'somebody' not in result['msg']
    assert node.snapshot() == patched


def test_drift_with_two_places_for_a_hunk_is_refused(node):
    node.write('nova/api/handler.py', b'# more\n' + HANDLER + HANDLER)
    assert refused(node.present(allow_drift=True), 'does not take', FIRST_HUNK, SECOND_HUNK)


def test_a_file_with_a_new_ones_content_is_taken_and_left_by_a_rollback(node):
    node.write('bin/nova-meta', b'#!/usr/bin/python\nnew\n')
    os.chmod(node.path('bin/nova-meta'), 0o755)
    before = node.snapshot()
    result = node.present()
    assert node.path('bin/nova-meta') not in result['files'] and node.has(series())
    node.present(series({'bin/nova-meta': b'#!/usr/bin/python\nnew\n'}, series='newer'))
    node.absent()
    assert node.snapshot() == before


def test_a_patched_tree_without_a_record_is_not_taken_for_pristine(node):
    node.present()
    node.state.remove()
    assert refused(node.present(), node.path('nova/api/handler.py') + ' is as the series makes it already',
                   'install the package again')


def test_backups_outlive_a_record_that_is_lost(node):
    node.present()
    kept = node.state.join('nova', 'backups')
    before = sorted(path.basename for path in kept.listdir())
    node.state.join('nova', 'state.json').remove()
    result = node.present()
    assert refused(result, 'no record says what it was')
    assert sorted(path.basename for path in kept.listdir()) == before
    assert 'no record of what they are of' in result['notes'][0]
    node.absent()
    assert sorted(path.basename for path in kept.listdir()) == before


def test_what_is_not_a_file_is_not_patched(node):
    os.unlink(node.path('nova/api/base.py'))
    os.mkdir(node.path('nova/api/base.py'))
    assert refused(node.present(), node.path('nova/api/base.py') + ' is not a file')


def test_a_series_for_another_version_is_refused_with_the_way_to_make_one(node):
    node.write('nova/version.py', VERSION.replace(b"'4'", b"'1'"))
    assert refused(node.present(), 'is 2012.2.1', 'made for 2012.2.4',
                   'playbooks/backport.yml -e folsom_base=2012.2.1')


@pytest.mark.parametrize('line, version', [
    (b"NOVA_VERSION = ['2012', '2', None]", '2012.2'), (b'NOVA_VERSION = ["2012", "2", "3"]', '2012.2.3')])
def test_the_version_is_read_and_not_run(node, line, version):
    node.write('nova/version.py', b'raise SystemExit\n' + line + b'\n')
    assert node.inspect()['version'] == version


def test_another_release_is_named_as_what_it_is_not(node):
    node.write('nova/version.py', b'import pbr\n')
    assert refused(node.present(), 'version.py does not say a version')


# Upgrades and newer series

def test_a_newer_series_is_applied_to_what_was_there_before_the_older_one(node):
    before = node.snapshot()
    node.present()
    result = node.present(series(*NEWER, series='newer'))
    assert result['changed'] and result['series'] == 'newer' and node.has(series(*NEWER))
    assert result['files'] == node.paths('bin/nova-meta', 'nova/api/base.py', 'nova/api/meta/__init__.py',
                                         'nova/api/meta/agent.py', 'nova/api/old.py')
    # What only the older one changed is as it was, and what it made is gone.
    for path in ('nova/api/base.py', 'nova/api/old.py', 'nova/api/old.pyc'):
        assert snapshot(node.path('nova/api'))[node.path(path)] == before[node.path(path)]
    assert not os.path.exists(node.path('nova/api/meta')) and not os.path.exists(node.path('bin/nova-meta'))
    assert node.is_compiled('nova/api/handler.py')
    assert unchanged(node.present(series(*NEWER, series='newer')))
    node.absent()
    assert node.snapshot() == before


def test_a_newer_series_with_the_same_files_changes_the_record_alone(node):
    node.present()
    node.mark.remove()
    before = node.snapshot()
    result = node.present(series(series='newer'))
    assert result['changed'] and not result['restart'] and result['files'] == []
    assert node.snapshot() == before and node.inspect()['series'] == 'newer'


def test_what_an_older_series_left_alone_goes_back_to_what_it_was(node):
    before = node.snapshot()
    node.present(series({'nova/api/handler.py': HANDLER}, series='older'))
    assert node.snapshot() == before
    node.present()
    node.absent()
    assert node.snapshot() == before


def upgrade(node):
    """Another version of the package over the patches, as a package manager does it."""
    tree = dict(TREE)
    tree['nova/version.py'] = VERSION.replace(b"'4'", b"'5'")
    tree['nova/api/handler.py'] = b'# upgraded\n' + HANDLER
    tree['nova/api/base.py'] = b'# upgraded\n' + BASE
    for path in ('nova/version.py', 'nova/api/handler.py', 'nova/api/base.py', 'nova/api/old.py'):
        node.write(path, tree[path])
    node.compile('nova/api/handler.py')
    return tree


def test_an_upgrade_over_the_patches_is_told(node):
    node.present()
    upgrade(node)
    result = node.inspect()
    assert result['tree_state'] == 'overwritten' and result['version'] == '2012.2.5'
    assert result['overwritten'] == node.paths('nova/api/base.py', 'nova/api/handler.py', 'nova/api/old.py')
    assert result['msg'] == (
        'A package upgrade has overwritten the patches: nova 2012.2.4 was patched, 2012.2.5 is installed now '
        '(3 of 6 files of series 0123456789ab).')
    result = node.present()
    assert refused(result, 'is 2012.2.5', 'made for 2012.2.4') and len(result['overwritten']) == 3


def test_a_series_for_the_upgraded_version_is_applied_to_the_upgrade(node):
    node.present()
    tree = upgrade(node)
    upgraded = node.snapshot()
    steps = dict(STEPS[1], **{'nova/api/handler.py': b'# upgraded\n' + BOTH,
                              'nova/api/base.py': b'# upgraded\n' + BASE + b'more = 1\n'})
    applied = Series(tree, dict(STEPS[0], **{'nova/api/handler.py': b'# upgraded\n' + FIVE}), steps, STEPS[2],
                     base='2012.2.5', series='upgraded')
    result = node.present(applied)
    assert node.has(applied) and len(result['overwritten']) == 3 and 'package upgrade' in result['msg']
    assert node.inspect()['tree_state'] == 'applied' and node.inspect()['overwritten'] == []
    node.absent()
    assert node.read('nova/api/handler.py') == tree['nova/api/handler.py']
    assert node.is_compiled('nova/api/handler.py')
    # New files of the older series were no package's, so no upgrade took them, and the rollback does.
    assert set(upgraded) - set(node.snapshot()) == set(node.paths(
        'bin/nova-meta', 'nova/api/meta', *['nova/api/meta/' + name for name in (
            '__init__.py', '__init__.pyc', 'agent.py', 'agent.pyc')]))


def test_the_same_version_installed_again_is_patched_again(node):
    node.present()
    node.write('nova/api/handler.py', HANDLER)
    result = node.present()
    assert result['files'] == node.paths('nova/api/handler.py') and node.has(series())
    assert result['overwritten'] == node.paths('nova/api/handler.py')
    assert 'The package was installed again, which has overwritten the patches' in result['msg']


def test_a_file_that_somebody_changed_after_the_patches_is_refused_and_said(node):
    node.present()
    node.write('nova/api/handler.py', b'# mine\n')
    result = node.present()
    assert refused(result, 'nova/api/handler.py was changed by somebody', 'install the package again')
    note, = result['notes']
    assert note == 'Somebody has changed 1 of 6 files of series 0123456789ab since it was applied.'


def test_a_rollback_leaves_what_is_not_ours_any_more(node):
    before = node.snapshot()
    node.present()
    node.write('nova/api/base.py', b'somebody = 1\n')
    node.write('nova/api/meta/theirs.py', b'theirs = 1\n')
    patched = node.snapshot()
    assert refused(node.absent(), 'nova/api/base.py', 'install the package again', 'keep_changed: true')
    assert node.snapshot() == patched
    result = node.absent(keep_changed=True)
    assert 'nova 2012.2.4 is a mixture now' in result['msg']
    assert node.read('nova/api/base.py') == b'somebody = 1\n'
    assert node.path('nova/api/base.py') + ' is not as series 0123456789ab left it' in result['msg']
    assert node.path('nova/api/meta') + ' was made for a series and stays' in result['msg']
    assert set(path for path, seen in node.snapshot().items() if seen != before.get(path)) == set(node.paths(
        'nova/api/base.py', 'nova/api/meta', 'nova/api/meta/theirs.py'))
    assert unchanged(node.absent())


def test_what_an_interpreter_compiled_goes_with_its_source(node):
    before = node.snapshot()
    node.present(python='')
    for path in ('nova/api/meta/agent.pyc', 'nova/api/meta/__init__.pyo', 'nova/api/handler.pyc'):
        node.write(path, b'by the interpreter')
    node.absent()
    assert node.snapshot() == before


def test_a_rollback_needs_no_package(node):
    node.present()
    node.root.remove()
    result = node.absent()
    assert result['changed'] and len(result['overwritten']) == 5 and not node.state.join('nova').check()
    assert not node.root.check()


# Runs that are cut short

@pytest.mark.parametrize('state', ['present', 'absent'])
def test_a_kill_at_any_call_is_made_good_by_the_next_run(tmpdir, state):
    interrupted = 0
    for number in range(1, 2000):
        node = Node(tmpdir.mkdir(str(number)))
        pristine = node.snapshot()
        if state == 'absent':
            assert not killed(node.act('present', series()))
            node.mark.remove()
        was_killed = killed_at(number, node.act(state, series()))
        touched = node.state.join('nova', 'journal.json').check()
        interrupted += touched
        assert node.mark.check() or not touched
        # The next run does the same, or the contrary.
        following = ['present', 'absent'][number % 2]
        assert not killed(node.act(following, series()))
        assert node.has(series()) if following == 'present' else node.snapshot() == pristine, number
        if not was_killed:
            break
        tmpdir.join(str(number)).remove()
    assert interrupted > 40


@pytest.mark.parametrize('state', ['present', 'absent'])
def test_an_interrupted_run_is_told_and_planned_upon_as_if_it_were_undone(node, state):
    pristine = node.snapshot()
    if state == 'absent':
        node.present()
    node.interrupt(state)
    before = node.everything()
    assert node.inspect()['tree_state'] == 'interrupted'
    foretold, back = node.present(check=True), node.absent(check=True)
    assert node.everything() == before
    for result in (foretold, back):
        assert result['changed'] and result['restart'] and 'An earlier run was cut short' in result['msg']
    assert bool(foretold['files']) == (state == 'present') and bool(back['files']) == (state == 'absent')
    done = node.present()
    assert node.has(series()) and dict(done, invocation=0) == dict(foretold, invocation=0)
    node.absent()
    assert node.snapshot() == pristine


def test_an_interrupted_run_is_undone_before_a_series_is_refused(node):
    pristine = node.snapshot()
    node.interrupt()
    node.mark.remove()
    result = node.present(series(base='2012.2.3'))
    assert result['failed'] and result['changed'] and result['restart'] and node.mark.check()
    assert result['notes'] and node.snapshot() == pristine


def test_what_was_upgraded_after_an_interrupted_run_is_not_undone(node):
    node.interrupt()
    tree = upgrade(node)
    result = node.absent()
    assert node.read('nova/api/handler.py') == tree['nova/api/handler.py']
    assert node.path('nova/api/handler.py') + ' was changed by somebody else since' in result['msg']
    assert not os.path.exists(node.path('nova/api/meta'))


def test_an_interrupted_run_that_cannot_be_undone_is_told(node):
    node.interrupt()
    for backup in node.state.join('nova', 'backups').listdir():
        backup.write('damaged')
    result = node.present()
    assert result['failed'] and 'cannot be taken back' in result['msg'] and 'is damaged' in result['msg']
    assert node.state.join('nova', 'journal.json').check()


def test_two_runs_at_once_are_refused(node):
    node.present()
    transaction = ansible_module.utility('tree_transaction').Transaction(str(node.state.join('nova')))
    transaction.lock(make=False)
    try:
        for run in (node.present, node.absent, node.inspect):
            assert 'another run is at work' in run()['msg']
    finally:
        os.close(transaction._lock)
    assert unchanged(node.present())


def test_a_restart_that_did_not_happen_is_remembered(node):
    assert node.present()['restart'] and node.present()['restart'] and node.inspect()['restart']
    node.mark.remove()
    assert not node.present()['restart']


# What is asked for

def test_the_package_is_looked_for(node):
    others = [str(node.tmpdir.join('nothing')), str(node.tmpdir.mkdir('empty'))]
    link = node.tmpdir.join('link')
    os.symlink(str(node.root), str(link))
    assert node.present(root='', search=others + [str(node.root), str(link)])['root'] == str(node.root)
    assert refused(node.present(root='', search=others), 'not in', others[1], 'patched_tree_root')
    assert refused(node.present(root=others[1]), 'not in ' + others[1], 'patched_tree_root')
    assert refused(node.present(root=''), 'patched_tree_root')
    node.tmpdir.join('second', 'nova', 'version.py').write(VERSION, 'wb', ensure=True)
    assert refused(node.present(root='', search=[str(node.root), str(node.tmpdir.join('second'))]),
                   'in more than one folder', str(node.root), 'patched_tree_root')


def test_what_is_installed_may_be_patched_where_the_tests_are(node):
    node.write('nova/tests/test_handler.py', b'test = 1\n')
    result = node.present()
    assert result['left_out'] == ['setup.py'] and node.read('nova/tests/test_handler.py') == b'test = 2\n'
    # When they are to be left out from now on, they go back.
    node.places[0] = dict(prefix='nova/api', to='nova/api')
    del node.places[2]
    result = node.present()
    assert result['files'] == node.paths('nova/tests/test_handler.py')
    assert node.read('nova/tests/test_handler.py') == b'test = 1\n'


@pytest.mark.parametrize('place', [
    dict(prefix='../nova', to='nova'), dict(prefix='/nova', to='nova'), dict(prefix='nova', to='../nova'),
    dict(prefix='nova', to='/usr/../etc'), dict(prefix='', to='nova')])
def test_a_place_outside_is_refused(node, place):
    before = node.snapshot()
    node.places.append(place)
    assert refused(node.present()) and node.snapshot() == before


@pytest.mark.parametrize('path', ['../x.py', '/etc/x.py', 'nova/../../x.py'])
def test_a_manifest_with_a_path_outside_is_refused(node, path):
    applied = series()
    applied.manifest['files'][path] = dict(before=None, after=None, mode='100644')
    assert refused(node.present(applied), 'not a path inside a tree')


def test_a_series_that_is_not_its_manifests_is_refused(node):
    before = node.snapshot()
    applied = series()
    applied.manifest['files']['nova/api/base.py']['after'] = '0' * 64
    assert refused(node.present(applied), 'series 0123456789ab is damaged', 'nova/api/base.py',
                   'playbooks/backport.yml -e folsom_base=2012.2.4')
    applied = series()
    del applied.manifest['files']['nova/api/base.py']
    assert refused(node.present(applied), 'nova/api/base.py is changed and not in the manifest')
    applied = series()
    applied.patches['0001-step.patch'] = applied.patches['0001-step.patch'][:-9]
    assert refused(node.present(applied), '0001-step.patch')
    assert node.snapshot() == before


def test_what_is_no_series_is_refused(node):
    for text in ('', 'x', 'eJwDAAAAAAE=', 'not base64'):
        result = ansible_module.run('patched_tree', node.arguments('present', series=text))
        assert refused(result, 'series')
    assert refused(node.present(series(project='quantum')), 'is for quantum, not for nova')


def test_a_damaged_record_is_named(node):
    node.present()
    before = node.snapshot()
    node.state.join('nova', 'state.json').write('{')
    for run in (node.present, node.absent, node.inspect):
        assert 'state.json is damaged' in run()['msg']
    assert node.snapshot() == before


def test_a_damaged_backup_stops_the_rollback_before_it_starts(node):
    node.present()
    before = node.snapshot()
    node.state.join('nova', 'backups', sha256(HANDLER)).write('damaged')
    result = node.absent()
    assert result['failed'] and sha256(HANDLER) in result['msg'] and node.snapshot() == before
