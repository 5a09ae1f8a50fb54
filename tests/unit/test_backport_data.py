"""The series as data: whole, readable as a table, and told in docs/folsom-backport.md as it is."""
import os
import re

import pytest

yaml = pytest.importorskip('yaml')

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ROLE = os.path.join(ROOT, 'roles', 'backport')


def read(*path):
    with open(os.path.join(*path)) as source:
        return source.read()


def entries(project):
    return yaml.safe_load(read(ROLE, 'vars', project + '.yml'))['backport_series']


@pytest.mark.parametrize('project', ['nova', 'quantum'])
def test_every_commit_is_named_in_full_and_once(project):
    commits = [entry['commit'] for entry in entries(project) if 'commit' in entry]
    commits += sum((entry.get('replaces', []) for entry in entries(project)), [])
    assert commits and all(re.match('[0-9a-f]{40}$', commit) for commit in commits)
    assert len(set(commits)) == len(commits)


@pytest.mark.parametrize('project', ['nova', 'quantum'])
def test_every_entry_says_what_it_fixes_and_why(project):
    for entry in entries(project):
        assert entry['fixes'] and entry['why'], entry


@pytest.mark.parametrize('project', ['nova', 'quantum'])
def test_every_patch_of_ours_is_there_and_in_use(project):
    used = [entry['patch'] for entry in entries(project) if 'patch' in entry]
    assert sorted(used) == sorted(os.listdir(os.path.join(ROLE, 'files', project)))


@pytest.mark.parametrize('project', ['nova', 'quantum'])
def test_no_edit_leaves_open_how_often_it_matches(project):
    for entry in entries(project):
        for resolution in entry.get('resolve', []):
            assert set(resolution) <= set(['file', 'take', 'edits', 'bases'])
            for edit in resolution.get('edits', []):
                assert sorted(edit) == ['find', 'times', 'with'] and edit['times'] > 0


@pytest.mark.parametrize('project', ['nova', 'quantum'])
def test_the_docs_tell_every_entry_and_what_it_stands_for(project):
    docs = read(ROOT, 'docs', 'folsom-backport.md')
    for entry in entries(project):
        told = [entry['commit']] if 'commit' in entry else entry.get('replaces', [])
        for commit in told:
            assert commit[:10] in docs, commit
        for fixed in entry['fixes']:
            numbers = re.findall(r'CVE-\d+-\d+|\b\d{6,7}\b', fixed)
            assert all(number in docs for number in numbers), fixed
        if 'patch' in entry and told:
            assert '`%s`' % entry['patch'] in docs, entry['patch']
