"""The roles' READMEs say what their argument_specs say."""
import io
import os
import subprocess
import sys

import pytest

yaml = pytest.importorskip('yaml')

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, 'tests'))

import role_readmes  # noqa: E402


@pytest.mark.parametrize('role', sorted(os.listdir(os.path.join(ROOT, 'roles'))))
def test_it_is_what_the_specs_make_of_it(role):
    assert os.path.exists(role_readmes.path(role)), 'roles/%s has no README.md: run `make readmes`' % role
    with io.open(role_readmes.path(role), encoding='utf-8') as source:
        assert source.read() == role_readmes.text(role), (
            'roles/%s/README.md is not up to date: run `make readmes`' % role)


@pytest.mark.parametrize('words, markdown', [
    ('C(a) or B(b), I(c)', '`a` or **b**, *c*'), ('a | b\n c', 'a \\| b c'), ('TCP(x)', 'TCP(x)'),
    ('a list of C({router_id: UUID})', 'a list of `{router_id: UUID}`')])
def test_ansibles_markup_becomes_markdown(words, markdown):
    assert role_readmes.markdown(words) == markdown


@pytest.mark.parametrize('role', role_readmes.names())
def test_every_variable_is_one_line_of_a_table(role):
    lines = role_readmes.text(role).split('\n')
    specs = os.path.join(role_readmes.ROLES, role, 'meta', 'argument_specs.yml')
    with io.open(specs, encoding='utf-8') as source:
        for entry_point in yaml.safe_load(source)['argument_specs'].values():
            for name in entry_point['options']:
                assert any(line.startswith('| `%s` |' % name) for line in lines), name
    for line in lines:
        if line.startswith('| `'):
            assert line.replace('\\|', '').count('|') in (3, 5), line


@pytest.mark.parametrize('role', role_readmes.names())
def test_the_example_is_a_play(role, tmpdir):
    pytest.importorskip('ansible')
    tmpdir.join('play.yml').write(role_readmes.example(role))
    process = subprocess.Popen(
        [os.path.join(os.path.dirname(sys.executable), 'ansible-playbook'), '--syntax-check',
         '-i', 'localhost,', 'play.yml'], cwd=str(tmpdir), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=dict(os.environ, ANSIBLE_ROLES_PATH=role_readmes.ROLES))
    out = process.communicate()[0].decode('utf-8')
    assert process.returncode == 0, out
