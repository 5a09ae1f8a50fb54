"""folsom_series: from commits, data and our own patches to a checked series, or to one clear error."""
import copy
import json
import os
import shutil
import subprocess
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), 'folsom')]

import ansible_module  # noqa: E402

ansible_module.needs_ansible()
if shutil.which('git') is None:
    pytest.skip('there is no git', allow_module_level=True)

import small_trees  # noqa: E402

HANDLER = 'nova/api/metadata/handler.py'


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """The folder with small trees and their data, and the trees."""
    folder = str(tmp_path_factory.mktemp('world') / 'trees')
    trees, series = small_trees.make(folder)
    return folder, trees, series


class Making(object):
    """Runs the module on the small nova, unless told otherwise."""

    def __init__(self, world, dest):
        self.folder, self.trees, series = world
        self.series, self.dest = copy.deepcopy(series), str(dest)

    def run(self, project='nova', check=False, **arguments):
        given = dict(project=project, source=os.path.join(self.folder, project), base='2012.2.4',
                     series=self.series[project], dest=self.dest,
                     patches=os.path.join(self.folder, 'second', 'files', project))
        return ansible_module.run('folsom_series', dict(given, **arguments), check=check)

    def refused(self, **arguments):
        """What the module says when it refuses; nothing may have been written."""
        before = snapshot(self.dest)
        result = self.run(**arguments)
        assert result.get('failed'), result
        written = [name for name in snapshot(self.dest) if not name.startswith('git/')]
        assert written == [name for name in before if not name.startswith('git/')]
        return result['msg']

    def output(self, project='nova', base='2012.2.4'):
        return snapshot(os.path.join(self.dest, base, project))

    def manifest(self, project='nova'):
        return json.loads(self.output(project)['manifest.json'])


@pytest.fixture
def making(world, tmp_path):
    return Making(world, tmp_path / 'build')


def snapshot(folder):
    """{name below the folder: bytes}"""
    found = {}
    for parent, _, names in os.walk(str(folder)):
        for name in names:
            path = os.path.join(parent, name)
            with open(path, 'rb') as source:
                found[os.path.relpath(path, str(folder))] = source.read()
    return found


def git(folder, *words):
    return subprocess.check_output(('git', '-C', folder) + words, env=small_trees.ENVIRONMENT).decode()


def test_a_series_is_one_patch_for_each_entry_and_says_what_became_of_it(making):
    result = making.run()
    assert result['changed']
    manifest = making.manifest()
    assert manifest == result['manifest']
    assert [patch['outcome'] for patch in manifest['patches']] == ['resolved', 'clean', 'ours', 'resolved']
    assert [patch['subject'] for patch in manifest['patches']] == [
        'Answer an instance by its id', 'Know the tenant', 'Say who asks', 'Test it']
    assert manifest['patches'][0]['change_id'] == 'I0123456789abcdef0123456789abcdef01234567'
    assert manifest['patches'][1]['fixes'] == ['CVE-2013-0000']
    assert sorted(making.output()) == sorted(
        [patch['file'] for patch in manifest['patches']] + ['manifest.json'])
    text = making.output()[manifest['patches'][0]['file']].decode()
    assert 'From: "A. Author" <author@example.com>' in text
    assert '(cherry picked from commit %s)' % manifest['patches'][0]['commit'] in text


def test_while_it_runs_it_leaves_word_of_how_far_it_is(making, tmp_path, monkeypatch):
    def noted():
        note, = tmp_path.joinpath('notes').iterdir()
        text = note.read_text()
        note.unlink()
        return text
    tmp_path.joinpath('notes').mkdir()
    monkeypatch.setenv('MDPROXY_PROGRESS', str(tmp_path / 'notes'))
    making.run()
    assert noted() == '4 patches made, checking them'
    making.series['nova'][1]['commit'] = making.series['nova'][0]['commit']
    making.refused()
    assert noted() == '2 of 4 patches, ' + making.series['nova'][0]['commit']
    making.refused(source=str(tmp_path / 'nowhere'))
    assert noted() == 'reading ' + str(tmp_path / 'nowhere')


def test_the_patches_applied_by_git_give_the_recorded_files(making, tmp_path):
    for project in ('nova', 'quantum'):
        making.run(project=project)
        manifest = making.manifest(project)
        tree = str(tmp_path / project)
        source = os.path.join(making.folder, project)
        git(making.folder, 'clone', '--quiet', '--branch', '2012.2.4', source, tree)
        before = snapshot(tree)
        for patch in manifest['patches']:
            git(tree, 'apply', os.path.join(making.dest, '2012.2.4', project, patch['file']))
        after = snapshot(tree)
        changed = [name for name in set(before) | set(after)
                   if before.get(name) != after.get(name) and not name.startswith('.git/')]
        assert sorted(changed) == sorted(manifest['files'])
        digest = ansible_module.imported('folsom_series')['digest']
        for path, entry in manifest['files'].items():
            assert (digest(before.get(path)), digest(after.get(path))) == (entry['before'], entry['after'])
        assert git(tree, 'rev-parse', 'HEAD^{tree}').strip() == manifest['base_tree']


def test_a_clean_pick_is_what_git_cherry_pick_makes(making, tmp_path):
    making.series['nova'] = making.series['nova'][:1]
    making.run()
    store, tree = os.path.join(making.dest, 'git', '2012.2.4', 'nova.git'), str(tmp_path / 'tree')
    git(making.folder, 'clone', '--quiet', '--branch', 'mdproxy/2012.2.4', store, tree)
    fix = small_trees.nova(str(tmp_path / 'again'))[1][1]['commit']
    git(tree, 'fetch', '--quiet', os.path.join(making.folder, 'nova'), 'later')
    git(tree, 'cherry-pick', fix)
    picked = git(tree, 'rev-parse', 'HEAD^{tree}')
    making.series['nova'].append({'commit': fix, 'fixes': ['x'], 'why': 'x'})
    assert making.run()['manifest']['head_tree'] == picked.strip()


def test_new_files_modes_and_a_later_layout_arrive_where_folsom_has_them(making):
    making.run(project='quantum')
    files = making.manifest('quantum')['files']
    assert files['bin/quantum-ns-metadata-proxy']['mode'] == '100755'
    assert files['bin/quantum-ns-metadata-proxy']['before'] is None
    assert 'quantum/agent/daemon.py' in files and not any(name.startswith('neutron') for name in files)


def test_twice_gives_the_same_bytes_and_no_change(making, tmp_path):
    making.run()
    first = making.output()
    again = making.run()
    assert not again['changed'] and making.output() == first
    other = Making((making.folder, making.trees, making.series), tmp_path / 'elsewhere')
    other.run()
    assert other.output() == first


def test_the_operators_git_configuration_does_not_matter(making, tmp_path, monkeypatch):
    making.run()
    first = making.output()
    config = tmp_path / 'gitconfig'
    config.write_text(u'[core]\nautocrlf = true\n[diff]\nnoprefix = true\nalgorithm = patience\ncontext = 9\n'
                      u'[format]\nsignOff = true\n[user]\nname = Somebody\n[commit]\ngpgSign = true\n')
    monkeypatch.setenv('GIT_CONFIG_GLOBAL', str(config))
    monkeypatch.setenv('GIT_AUTHOR_NAME', 'Somebody')
    assert not making.run()['changed'] and making.output() == first


def test_the_operators_clone_is_only_read(making):
    source = os.path.join(making.folder, 'nova')
    before = snapshot(source)
    making.run()
    making.run(check=True)
    assert snapshot(source) == before


def test_check_mode_says_what_would_come_and_writes_nothing(making):
    result = making.run(check=True)
    assert result['changed'] and '0001-Answer-an-instance-by-its-id.patch' in result['diff']['after']
    assert snapshot(making.dest) == {}
    making.run()
    before = snapshot(making.dest)
    assert not making.run(check=True)['changed']
    assert snapshot(making.dest) == before


def test_a_url_is_fetched_once_and_then_needed_no_more(making, tmp_path):
    moved = str(tmp_path / 'moved')
    shutil.copytree(os.path.join(making.folder, 'nova'), moved)
    url = 'file://' + moved
    assert making.run(source=url, check=True)['manifest'] is None
    first = making.run(source=url)
    shutil.rmtree(moved)
    again = making.run(source=url)
    assert again['manifest'] == first['manifest'] and not again['changed']
    other = Making((making.folder, making.trees, making.series), tmp_path / 'elsewhere')
    assert other.run()['manifest'] == first['manifest']


def test_what_a_run_left_that_was_cut_short_is_made_good(making):
    making.run()
    first = making.output()
    folder = os.path.join(making.dest, '2012.2.4')
    os.makedirs(os.path.join(making.dest, '.partial-x', 'junk'))
    shutil.rmtree(os.path.join(folder, 'nova'))
    shutil.rmtree(os.path.join(making.dest, 'git', '2012.2.4', 'nova.git', 'objects'))
    assert making.run()['changed']
    assert making.output() == first and sorted(os.listdir(making.dest)) == ['2012.2.4', 'git']


@pytest.mark.parametrize('base, said', [
    ('2013.1', 'folsom_base 2013.1 is not a Folsom release'),
    ('2012.2.3', 'has no tag 2012.2.3 (folsom_base); of Folsom it has 2012.2, 2012.2.1, 2012.2.4'),
])
def test_a_base_that_is_not_there_is_named(making, base, said):
    assert said in making.refused(base=base)


def test_a_clone_of_something_else_is_named(making):
    said = making.refused(source=os.path.join(making.folder, 'quantum'))
    assert 'has no nova/version.py at 2012.2.4: it is a clone of something else' in said


def test_what_is_no_clone_is_named(making, tmp_path):
    assert 'nova_source %s cannot be read' % tmp_path in making.refused(source=str(tmp_path))
    assert 'cannot be read' in making.refused(source='https://host.invalid/nova')


def test_a_clone_without_the_commits_is_told_what_it_lacks(making, tmp_path):
    shallow = str(tmp_path / 'shallow')
    git(making.folder, 'clone', '--quiet', '--depth', '1', '--branch', '2012.2.4',
        'file://' + os.path.join(making.folder, 'nova'), shallow)
    said = making.refused(source=shallow)
    for entry in making.series['nova']:
        assert not entry.get('commit') or entry['commit'][:10] in said
    assert '--unshallow' in said


def test_a_clone_that_ends_at_a_commit_is_told_so(making, tmp_path):
    shallow, fix = str(tmp_path / 'shallow'), making.series['nova'][1]['commit']
    git(making.folder, 'init', '--quiet', shallow)
    source = 'file://' + os.path.join(making.folder, 'nova')
    git(shallow, 'fetch', '--quiet', '--depth', '3', source, 'later')
    git(shallow, 'fetch', '--quiet', '--depth', '1', source, 'refs/tags/2012.2.4:refs/tags/2012.2.4')
    assert git(shallow, 'cat-file', '-t', fix) == 'commit\n'
    assert fix[:10] in making.refused(source=shallow)


def test_paths_are_relative_to_where_the_playbook_was_called(making):
    first = making.run()
    again = making.run(source='nova', dest=os.path.relpath(making.dest, making.folder),
                       called_from=making.folder)
    assert not again['changed'] and again['folder'] != first['folder']
    assert os.path.samefile(again['folder'], first['folder'])


def test_a_password_in_a_url_is_not_shown(making):
    said = making.refused(source='https://me:hunter2@host.invalid/nova')
    assert 'https://host.invalid/nova cannot be read' in said and 'hunter2' not in said


def test_a_refused_run_leaves_the_branch_of_the_last_good_series(making):
    making.run()
    store = os.path.join(making.dest, 'git', '2012.2.4', 'nova.git')
    head = git(store, 'rev-parse', 'mdproxy/2012.2.4')
    making.series['nova'][0]['resolve'][0]['edits'][1]['times'] = 3
    making.refused()
    assert git(store, 'rev-parse', 'mdproxy/2012.2.4') == head


def test_a_mode_that_the_commit_does_not_change_stays_folsoms(making, tmp_path):
    tree = small_trees.Repository(str(tmp_path / 'tree'))
    tree.commit('nova', files={'bin/nova': 'one\n', 'nova/version.py': 'x\n'})
    git(tree.folder, 'tag', '2012.2.4')
    os.chmod(os.path.join(tree.folder, 'bin', 'nova'), 0o644)
    tree.commit('no command any more')
    content = tree.commit('two', edits=[('bin/nova', 'one', 'two')])
    making.series['nova'] = [{'commit': content, 'fixes': [], 'why': 'x'}]
    manifest = making.run(source=tree.folder)['manifest']
    assert manifest['files']['bin/nova']['mode'] == '100755'


@pytest.mark.parametrize('text', [u'no patch\n', u'From: a <a@b>\n\ntext\n---\ndiff\n',
                                  u'Date: Mon, 05 Nov 2012 12:00:00 +0000\nSubject: x\n\n\n---\ndiff\n'])
def test_what_is_no_patch_of_ours_is_named(making, tmp_path, text):
    (tmp_path / 'log.patch').write_text(text)
    assert 'log.patch: cannot be read as a patch' in making.refused(patches=str(tmp_path))
    (tmp_path / 'log.patch').unlink()
    assert 'log.patch: cannot be read as a patch' in making.refused(patches=str(tmp_path))


def test_a_patch_that_git_made_is_taken_as_ours(making, tmp_path):
    making.run()
    made = making.output()['0003-Say-who-asks.patch'].decode().split('\n', 1)[1]
    (tmp_path / 'log.patch').write_text(made)
    assert making.run(patches=str(tmp_path))['manifest']['patches'][2]['subject'] == 'Say who asks'


def test_a_conflict_that_no_data_resolves_is_shown(making):
    del making.series['nova'][0]['resolve']
    said = making.refused()
    commit = making.series['nova'][0]['commit'][:10]
    assert 'commit %s: %s: 1 conflict where `take` resolves 0' % (commit, HANDLER) in said
    assert 'FLAGS = flags.FLAGS' in said and 'CONF.register' in said


def test_an_edit_that_fits_another_number_of_places_is_shown(making):
    making.series['nova'][0]['resolve'][0]['edits'][1]['times'] = 3
    said = making.refused()
    assert '2 places where an edit counts on 3' in said and 'FLAGS.' not in said and 'CONF.proxy' in said


def test_data_for_a_file_that_the_commit_does_not_change_is_an_error(making):
    making.series['nova'][1]['resolve'] = [{'file': 'nova/nothing.py', 'take': ['ours']}]
    assert 'names nova/nothing.py, which this commit does not change' in making.refused()
    making.series['nova'][1] = dict(making.series['nova'][1], resolve=[], leave_out=['nova/left.py'])
    assert 'names nova/left.py, which this commit does not change' in making.refused()


def test_data_for_another_base_is_left_aside(making):
    making.series['nova'][1]['resolve'] = [{'file': 'nova/nothing.py', 'take': ['ours'], 'bases': ['2012.2']}]
    assert making.run()['changed']


def test_a_change_to_a_file_that_folsom_does_not_have_is_an_error_that_names_it(making):
    making.series['quantum'][2]['paths'] = {'neutron/agent/': 'quantum/elsewhere/'}
    said = making.refused(project='quantum')
    assert 'quantum/elsewhere/metadata/agent.py is not in the series so far' in said


def test_a_patch_of_ours_that_does_not_fit_is_named(making, tmp_path):
    for name, text in small_trees.PATCHES.items():
        path = tmp_path / os.path.basename(name)
        path.write_text(small_trees.textwrap.dedent(text).lstrip('\n').replace('def answer', 'def answers'))
    assert 'log.patch: git apply' in making.refused(patches=str(tmp_path))


def test_what_does_not_parse_as_python_2_is_named(making):
    edits = making.series['nova'][0]['resolve'][0]['edits']
    edits.append({'find': 'FLAGS = ', 'with': 'FLAGS = = ', 'times': 1})
    said = making.refused()
    assert 'not Python 2.7: %s' % HANDLER in said


def test_a_command_is_python_by_its_first_line(making, tmp_path):
    making.series['quantum'][0]['resolve'].append({'file': 'bin/quantum-ns-metadata-proxy', 'edits': [
        {'find': 'python\n', 'with': 'python\ndef (:\n', 'times': 1}]})
    assert 'not Python 2.7: bin/quantum-ns-metadata-proxy' in making.refused(project='quantum')


def test_an_entry_that_changes_nothing_is_an_error(making):
    making.series['nova'].append(making.series['nova'][1])
    assert 'changes nothing on this base' in making.refused()


def test_an_interpreter_that_is_not_python_27_is_named(making):
    assert 'cannot be run as Python 2.7' in making.refused(python27=sys.executable)
    assert 'cannot be run as Python 2.7' in making.refused(python27='/nowhere/python2.7')


# Stands in for nosetests, which no Python 3 has: it writes the report that nose writes.
NOSE = '''#!%s
import sys
words = dict(zip(sys.argv[3:], sys.argv[4:]))
if 'compile(' in sys.argv[2 if sys.argv[1] == '-c' else 3]:
    print('{}')
    sys.exit()
open('ran', 'a').close()
failures = %d
with open(words['--xunit-file'], 'w') as out:
    out.write('<testsuite tests="5" errors="0" failures="%%d" skip="1"/>' %% failures)
print('FAIL: test_something')
sys.exit(bool(failures))
'''


def nose(tmp_path, failures):
    path = tmp_path / 'python2.7'
    path.write_text(NOSE % (sys.executable, failures))
    path.chmod(0o755)
    return str(path)


def test_the_trees_own_tests_are_counted(making, tmp_path):
    result = making.run(test_python=nose(tmp_path, 0), tests=['nova.tests.test_metadata'])
    assert result['manifest']['checks'] == {'syntax': 'compiled', 'sources': 2, 'tests': {
        'nova.tests.test_metadata': {'tests': 5, 'failures': 0, 'errors': 0, 'skipped': 1}}}
    assert not making.run(test_python=nose(tmp_path, 1), tests=['nova.tests.test_metadata'])['changed'], \
        'those of the same series are not run again'


def test_a_series_that_fails_the_trees_own_tests_is_not_written(making, tmp_path):
    said = making.refused(test_python=nose(tmp_path, 2), tests=['nova.tests.test_metadata'])
    assert 'nova.tests.test_metadata fails with the series (5 tests, 2 failures, 0 errors)' in said
    assert 'FAIL: test_something' in said
