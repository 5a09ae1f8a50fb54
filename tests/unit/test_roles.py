"""What every role promises: its variables are described, and described as they are; and what the
roles write for mdproxy, mdproxy reads as it was meant."""
import glob
import hashlib
import json
import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

from mdproxy import config  # noqa: E402

yaml = pytest.importorskip('yaml')

ROLES = os.path.join(ROOT, 'roles')
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


SECRET = 'nova-and-the-agents'
CLOUD = dict(metadata_shared_secret=SECRET, metadata_agent_auth_url='http://keystone:5000/v3',
             metadata_agent_admin_password='the password', metadata_agent_nova_metadata_ip='nova',
             metadata_agent_options=dict(cache_ttl=5, log_level='debug'),
             router_proxy_options=dict(log_level='error'))
INVENTORY = dict(all=dict(vars=dict(CLOUD, ansible_connection='local'), children=dict(
    metadata_agents=dict(hosts=dict(
        agent1=dict(mdproxy_agent_address='192.0.2.11'), agent2=dict(ansible_host='agent2.example.com'),
        agent3=dict(mdproxy_agent_address='2001:db8::3', mdproxy_agent_port=8700))),
    network_nodes=dict(hosts=dict(network1={})))))


# Every template on every host with every location, in one run. Static imports bring the roles' variables.
PLAY = dict(
    hosts='agent1:network1', gather_facts=False,
    vars=dict(role_path=os.path.join(ROLES, 'router_proxy')),
    tasks=[dict(import_role=dict(name=name), when=False)
           for name in ('mdproxy', 'metadata_agent', 'router_proxy')] + [
        dict(template=dict(src='%s/{{ item[1] }}' % ROLES,
                          dest='{{ out }}/{{ inventory_hostname }}-{{ item[0] }}-{{ item[1] | basename }}'),
            vars=dict(mdproxy_agent_location='{{ item[0] }}'),
            loop="{{ ['local', 'remote', 'builtin'] | product(['metadata_agent/templates/agent.ini.j2', "
                 "'router_proxy/templates/proxy.ini.j2']) }}")])


@pytest.fixture(scope='module')
def read(tmpdir_factory):
    """read(location, template, host, command): (text, Options) of what a role writes on a host."""
    pytest.importorskip('ansible')
    folder = tmpdir_factory.mktemp('written')
    given = dict(out=str(folder), metadata_agent_resolved=dict(stdout='192.0.2.11 STREAM agent1'))
    folder.join('play.yml').write(json.dumps([PLAY]))
    folder.join('hosts.yml').write(json.dumps(INVENTORY))
    process = subprocess.Popen(
        [os.path.join(os.path.dirname(sys.executable), 'ansible-playbook'), '-i', 'hosts.yml', 'play.yml',
         '-e', json.dumps(given)], cwd=str(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=dict(os.environ, ANSIBLE_ROLES_PATH=ROLES, ANSIBLE_PYTHON_INTERPRETER=sys.executable))
    out = process.communicate()[0].decode('utf-8')
    assert process.returncode == 0, out

    def read(location, template, host, command):
        path = folder.join('-'.join((host, location, template)))
        return path.read(), config.Sources((), (str(path),), ()).load(command)
    return read


LINK = hashlib.sha256(('mdproxy link ' + SECRET).encode('ascii')).hexdigest()


def asks_the_cloud(options):
    """Whether these are the options of who asks API and nova."""
    return (options.metadata_proxy_shared_secret, options.auth_url, options.admin_password,
            options.nova_metadata_ip, options.cache_ttl) == (
                SECRET, 'http://keystone:5000/v3', 'the password', 'nova', 5.0)


@pytest.mark.parametrize('location, host, listen, link', [
    ('local', 'network1', '', ''), ('remote', 'agent1', ('192.0.2.11', 8772), LINK)])
def test_an_agent_is_told_the_cloud_and_where_to_listen(read, location, host, listen, link):
    _, options = read(location, 'agent.ini.j2', host, 'agent')
    assert asks_the_cloud(options) and options.log_level == 'debug'
    assert (options.agent_listen, options.link_secret) == (listen, link)


def test_a_proxy_asks_the_socket_of_its_node_and_knows_no_secret(read):
    text, options = read('local', 'proxy.ini.j2', 'network1', 'proxy')
    assert (options.agents, options.builtin_agent, options.link_secret) == ((), False, '')
    assert options.metadata_proxy_socket == '/run/mdproxy/metadata_proxy' and options.log_level == 'error'
    assert 'secret' not in text and 'password' not in text


def test_a_proxy_asks_every_agent_of_other_hosts_and_does_not_know_novas_secret(read):
    text, options = read('remote', 'proxy.ini.j2', 'network1', 'proxy')
    assert options.agents == (('192.0.2.11', 8772), ('agent2.example.com', 8772), ('2001:db8::3', 8700))
    assert options.link_secret == LINK and SECRET not in text and 'the password' not in text


def test_a_proxy_that_is_its_own_agent_is_told_all_that_an_agent_is(read):
    _, options = read('builtin', 'proxy.ini.j2', 'network1', 'proxy')
    assert options.builtin_agent and asks_the_cloud(options)
    assert (options.agents, options.log_level) == ((), 'error')     # a proxy's own option wins
