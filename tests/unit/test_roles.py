"""What every role promises: its variables are described, and described as they are."""
import glob
import os

import pytest

yaml = pytest.importorskip('yaml')

ROLES = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..', 'roles')
NAMES = sorted(os.path.basename(role) for role in glob.glob(os.path.join(ROLES, '*')))


def load(role, path):
    with open(os.path.join(ROLES, role, path)) as source:
        return yaml.safe_load(source)


def specified(role):
    """All options of all entry points; `main` wins where two have the same."""
    specs = load(role, 'meta/argument_specs.yml')['argument_specs']
    options = {}
    for name in sorted(specs, key=lambda name: name == 'main'):
        options.update(specs[name]['options'])
    return options


@pytest.mark.parametrize('role', NAMES)
def test_every_default_is_described_and_has_the_described_value(role):
    options = specified(role)
    for name, value in load(role, 'defaults/main.yml').items():
        assert name in options, '%s is not in meta/argument_specs.yml' % name
        if 'default' in options[name]:
            assert options[name]['default'] == value, name


@pytest.mark.parametrize('role', NAMES)
def test_every_described_default_is_there(role):
    defaults = load(role, 'defaults/main.yml')
    for name, option in specified(role).items():
        if name.startswith(role) and not option.get('required'):
            assert name in defaults, name


@pytest.mark.parametrize('role', NAMES)
def test_every_option_says_what_it_means(role):
    for name, option in specified(role).items():
        assert option.get('description') and option.get('type'), name


@pytest.mark.parametrize('role', NAMES)
def test_a_variable_of_one_role_is_not_defaulted_by_another(role):
    foreign = [name for name in load(role, 'defaults/main.yml') if not name.startswith(role)]
    assert foreign == []
