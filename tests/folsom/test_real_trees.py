"""The series on the real Folsom trees: NOVA_SOURCE and QUANTUM_SOURCE are clones of nova and neutron.

FOLSOM_PYTHON is a Python 2.7 with nose and what the trees import; what runs their code is skipped
without it. What reaches the proxy's port is tried in real namespaces, as root.
"""
import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

HERE = os.path.dirname(os.path.abspath(__file__))
TESTS = os.path.dirname(HERE)
sys.path[:0] = [HERE, os.path.join(TESTS, 'unit'), os.path.join(TESTS, 'integration')]

import ansible_module  # noqa: E402
from real_trees import BASES, PYTHON, ROOT, SOURCES, make, tree  # noqa: E402

runs_the_trees = pytest.mark.skipif(not PYTHON, reason='FOLSOM_PYTHON names no Python 2.7 for the trees')


@pytest.fixture(scope='module')
def series(tmp_path_factory):
    """The folder of the series for all bases, each made once."""
    folder = str(tmp_path_factory.mktemp('series'))
    for base in BASES:
        make(folder, base)
    return folder


def contents(folder):
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), 'rb') as source:
                found[os.path.relpath(os.path.join(parent, name), folder)] = source.read()
    return found


def manifest(folder, base, project):
    with open(os.path.join(folder, base, project, 'manifest.json')) as source:
        return json.load(source)


@pytest.mark.parametrize('base', BASES)
def test_the_series_is_made_and_again_with_the_same_bytes(series, base, tmp_path):
    again = str(tmp_path / 'again')
    out = make(again, base)
    assert 'COMMIT' in out and 'OUTCOME' in out
    assert contents(os.path.join(again, base)) == contents(os.path.join(series, base))
    for project in SOURCES:
        outcomes = [patch['outcome'] for patch in manifest(series, base, project)['patches']]
        assert set(outcomes) == set(['clean', 'resolved', 'ours'])


@runs_the_trees
@pytest.mark.parametrize('base', BASES)
@pytest.mark.parametrize('project, least', [
    ('nova', {'nova.tests.test_metadata': 22, 'nova.tests.test_utils': 52}),
    ('quantum', {'test_l3_agent.py': 14, 'test_metadata_agent.py': 25, 'test_metadata_namespace_proxy.py': 15,
                 'test_linux_daemon.py': 17, 'test_linux_external_process.py': 16}),
])
def test_the_trees_own_tests_pass(series, base, project, least):
    counts = manifest(series, base, project)['checks']['tests']
    assert sorted(counts) == sorted(least)
    for module, number in least.items():
        assert counts[module]['tests'] >= number, module
        assert counts[module]['failures'] == counts[module]['errors'] == 0


def probe(folder, name):
    out = subprocess.check_output([PYTHON, os.path.join(HERE, 'probes.py'), name], cwd=folder,
                                  env=dict(os.environ, PYTHONDONTWRITEBYTECODE='1'))
    return json.loads(out)


@runs_the_trees
@pytest.mark.parametrize('project, name, feature, whole', [
    ('nova', 'another_tenant', {'status': 200, 'leaked': True}, {'status': 404, 'leaked': False}),
    ('nova', 'timing', {'status': 403, 'leaked': False, 'compared': 1},
     {'status': 403, 'leaked': False, 'compared': 0}),
    ('quantum', 'no_interfaces', {'status': 200, 'leaked': True}, {'status': 404, 'leaked': False}),
])
@pytest.mark.parametrize('base', [BASES[0], BASES[-1]])
def test_the_series_closes_what_the_feature_alone_leaves_open(
        series, base, project, name, feature, whole, tmp_path):
    assert probe(tree(series, base, project, 1, str(tmp_path / 'feature')), name) == feature
    assert probe(tree(series, base, project, None, str(tmp_path / 'whole')), name) == whole


@runs_the_trees
@pytest.mark.skipif(os.geteuid() != 0, reason='needs root for namespaces')
@pytest.mark.parametrize('patches, open_to', [(1, ['guest', 'outside']), (None, [])])
def test_the_proxys_port_is_open_to_what_was_redirected_alone(series, patches, open_to, tmp_path):
    import equipment
    rules = probe(tree(series, '2012.2.4', 'quantum', patches, str(tmp_path / 'tree')), 'rules')
    router = equipment.Router('r')
    router.make()
    try:
        for table, entries in rules.items():
            for chain, rule in entries:
                equipment.ip('netns', 'exec', router.netns, 'iptables', '-t', table, '-A', chain,
                             *rule.split())
        listener = equipment.socket_in(router.netns)
        listener.bind(('0.0.0.0', 9697))
        listener.listen(5)
        assert equipment.is_open(router.guest, equipment.METADATA, 80)
        found = [name for name, netns, host in (
            ('guest', router.guest, router.gateway), ('outside', router.outside, router.external_ip))
            if equipment.is_open(netns, host, 9697)]
        assert found == open_to
        listener.close()
    finally:
        router.remove()


def places(project):
    """Where the role says that files are installed, with its folder of commands below the root."""
    with open(os.path.join(ROOT, 'roles', 'patched_tree', 'vars', 'main.yml')) as source:
        entries = yaml.safe_load(source)['patched_tree_places'][project]
    return [dict(entry, to=entry['to'].replace('{{ patched_tree_bin }}', 'bin')) for entry in entries]


def listing(folder):
    """Everything there is to know of a tree: {path: (mode, owner, time, content or link)}"""
    found = {}
    for parent, folders, names in os.walk(folder):
        for name in folders + names:
            path = os.path.join(parent, name)
            entry = os.lstat(path)
            what = os.readlink(path) if os.path.islink(path) else None
            if what is None and os.path.isfile(path):
                with open(path, 'rb') as source:
                    what = source.read()
            # A folder's time is when something in it was made or removed.
            when = entry.st_mtime_ns if os.path.isfile(path) else None
            found[path] = entry.st_mode, entry.st_uid, entry.st_gid, when, what
    return found


@pytest.mark.parametrize('base', BASES)
@pytest.mark.parametrize('project', sorted(SOURCES))
@pytest.mark.parametrize('layout', ['source', 'ubuntu'])
def test_applied_to_an_installed_tree_and_taken_back(series, base, project, layout, tmp_path):
    clone = tree(series, base, project, None, str(tmp_path / 'clone'))
    subprocess.check_call(['git', '-C', clone, 'checkout', '--quiet', 'refs/tags/' + base])
    root = str(tmp_path / 'root')
    os.mkdir(root)
    if layout == 'source':
        for name in (project, 'bin'):
            shutil.copytree(os.path.join(clone, name), os.path.join(root, name))
    else:       # without tests, and each file a link to where it really is
        shared = str(tmp_path / 'pyshared')
        shutil.copytree(os.path.join(clone, project), os.path.join(shared, project),
                        ignore=shutil.ignore_patterns('tests'))
        for parent, _, names in os.walk(os.path.join(shared, project)):
            folder = os.path.join(root, os.path.relpath(parent, shared))
            os.makedirs(folder)
            for name in names:
                os.symlink(os.path.join(parent, name), os.path.join(folder, name))
        os.mkdir(os.path.join(root, 'bin'))
    if PYTHON:
        subprocess.call([PYTHON, '-m', 'compileall', '-q', root], stdout=subprocess.DEVNULL)
    before = listing(str(tmp_path))
    arguments = dict(project=project, root=root, state_folder=str(tmp_path / 'state'), mark='')
    sys.path.insert(0, os.path.join(ROOT, 'roles', 'patched_tree', 'lookup_plugins'))
    import patch_series
    folder = os.path.join(series, base, project)
    packed = patch_series.pack(folder, folder)
    present = dict(arguments, state='present', series=packed, places=places(project), python=PYTHON or '')
    result = ansible_module.run('patched_tree', present)
    assert result['changed'], result
    for path, entry in manifest(series, base, project)['files'].items():
        installed = os.path.join(root, path)
        if path.startswith(('etc/', 'setup.py')) or (layout == 'ubuntu' and '/tests/' in path):
            assert path in result['left_out']
            continue
        with open(installed, 'rb') as source:
            assert hashlib.sha256(source.read()).hexdigest() == entry['after']
    assert not ansible_module.run('patched_tree', present)['changed']
    assert ansible_module.run('patched_tree', dict(arguments, state='absent'))['changed']
    after = listing(str(tmp_path))
    assert {path for path in set(before) | set(after) if before.get(path) != after.get(path)} <= {
        str(tmp_path / 'state')}
