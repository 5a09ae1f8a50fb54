# -*- coding: utf-8 -*-
"""Configuration: what the table promises of files, values, errors and defaults."""
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from mdproxy import config  # noqa: E402

# As neutron's documentation has it, with more than we know of.
UPSTREAM_INI = b"""\
[DEFAULT]
# Show debugging output in log (sets DEBUG log level output)
# debug = True

# The Neutron user information for accessing the Neutron API.
auth_url = http://localhost:5000/v2.0
auth_region = RegionOne
auth_insecure = False
admin_tenant_name = %SERVICE_TENANT_NAME%
admin_user = %SERVICE_USER%
admin_password = %SERVICE_PASSWORD%
nova_metadata_ip = 127.0.0.1
nova_metadata_port = 8775
metadata_proxy_shared_secret =
metadata_proxy_socket = $state_path/metadata_proxy
metadata_proxy_socket_mode = deduce
metadata_workers = 4
state_path = /var/lib/quantum

[AGENT]
log_agent_heartbeats = False
user = someone
"""


@pytest.fixture
def load(tmpdir):
    """load(text, ...): Options of files with these contents, bytes."""
    def loaded(*contents):
        paths = []
        for number, content in enumerate(contents):
            path = tmpdir.join('%d.ini' % number)
            path.write_binary(content)
            paths.append(str(path))
        return config.Sources((), tuple(paths), ()).load()
    return loaded


@pytest.fixture
def error(load):
    """error(text): the message of what load(text) refuses."""
    def refused(content):
        with pytest.raises(config.ConfigError) as caught:
            load(content)
        return u'%s' % caught.value
    return refused


def test_without_a_file_everything_has_its_default():
    options = config.Sources((), (), ()).load()
    for option in config.OPTIONS:
        if option.kind != 'path':
            assert getattr(options, option.name) == option.default
    assert options.metadata_proxy_socket == '/var/lib/mdproxy/metadata_proxy'
    assert options.metadata_proxy_shared_secret == ''


def test_upstreams_own_file_is_read_as_it_is(load):
    options = load(UPSTREAM_INI)
    assert options.metadata_proxy_socket == '/var/lib/quantum/metadata_proxy'
    assert options.admin_password == '%SERVICE_PASSWORD%'
    assert options.metadata_proxy_socket_mode == 0o660
    assert options.user == 'mdproxy'


@pytest.mark.parametrize('line, name, value', [
    (b'nova_metadata_host = nova.example', 'nova_metadata_ip', 'nova.example'),
    (b'nova_metadata_port: 8080', 'nova_metadata_port', 8080),
    (b'metadata_proxy_socket_mode = 0600', 'metadata_proxy_socket_mode', 0o600),
    (b'metadata_proxy_socket_mode = 666', 'metadata_proxy_socket_mode', 0o666),
    (b'metadata_proxy_socket_mode = group', 'metadata_proxy_socket_mode', 0o664),
    (b'auth_strategy = NoAuth', 'auth_strategy', 'noauth'),
    (b'endpoint_type = internalurl', 'endpoint_type', 'internalURL'),
    (b'[mdproxy]\napi_timeout = 2.5', 'api_timeout', 2.5),
    (b'[mdproxy]\ncache_ttl = 30', 'cache_ttl', 30.0),
    (b'[mdproxy]\nmax_body = 1', 'max_body', 1),
    (b'[mdproxy]\nstale_ttl = 0', 'stale_ttl', 0.0),
    (b'[mdproxy]\nrate_limit = 0', 'rate_limit', 0),
    (b'[mdproxy]\nrate_limit = 20', 'rate_limit', 20),
    (b'[mdproxy]\nbuiltin_agent = Yes', 'builtin_agent', True),
    (b'[mdproxy]\nagent_listen = 10.0.0.1:8775', 'agent_listen', ('10.0.0.1', 8775)),
    (b'[mdproxy]\nstatus_listen = [fd00::1]:9100', 'status_listen', ('fd00::1', 9100)),
    (b'[mdproxy]\nstatus_listen =', 'status_listen', ''),
    (b'[mdproxy]\nagents = agent1:8775, [fd00::2]:80,/run/a', 'agents',
     (('agent1', 8775), ('fd00::2', 80), '/run/a')),
    (b'[mdproxy]\nnova_endpoints =', 'nova_endpoints', ()),
    (b'auth_url=http://[::1]:5000/v3?a=b', 'auth_url', 'http://[::1]:5000/v3?a=b'),
])
def test_a_value_has_the_type_of_its_option(load, line, name, value):
    assert getattr(load(line + b'\n'), name) == value
    assert type(getattr(load(line + b'\n'), name)) is type(value)


@pytest.mark.parametrize('written, secret', [
    (b'a # b ; c', 'a # b ; c'),
    (b'100%(name)s%', '100%(name)s%'),
    (b'a = b : c', 'a = b : c'),
    (b'  spaces around  ', 'spaces around'),
    (b'"in quotes "', 'in quotes '),
    (b"'in quotes'", 'in quotes'),
    (b'"one', '"one'),
    (b'"', '"'),
    (b'one\x0ctwo\x1cthree', 'one\x0ctwo\x1cthree'),
])
def test_a_secret_arrives_as_it_was_written(load, written, secret):
    options = load(b'metadata_proxy_shared_secret = ' + written + b'\r\nadmin_user = q\r\n')
    assert options.metadata_proxy_shared_secret == secret
    assert options.admin_user == 'q'


def test_a_secret_beyond_ascii_is_a_native_string_of_the_same_bytes(load):
    secret = load(u'admin_password = gehe\x85\u2028\xefm\n'.encode('utf-8')).admin_password
    assert type(secret) is str
    assert (secret if str is bytes else secret.encode('utf-8')) == u'gehe\x85\u2028\xefm'.encode('utf-8')


def test_every_text_is_a_native_string(load):
    options = load(b'state_path = /srv\n')
    for option in config.OPTIONS:
        if option.kind in ('text', 'path', 'secret') or isinstance(option.kind, tuple):
            assert type(getattr(options, option.name)) is str, option.name


def test_a_value_goes_on_in_indented_lines_up_to_a_blank_one(load, error):
    assert load(b'auth_region = a\n  b\n# no part of it\n\tc\nadmin_user = d\n').auth_region == 'a b c'
    assert ':3: expected [section] or name = value' in error(b'auth_region = a\n\n  b\n')


def test_the_last_file_and_the_last_line_win(load):
    options = load(b'admin_user = a\nadmin_user = b\nauth_region = x\n', b'admin_user = c\n')
    assert (options.admin_user, options.auth_region) == ('c', 'x')


def test_state_path_is_expanded_whichever_file_sets_it(load):
    first = b'metadata_proxy_socket = ${state_path}/s\nauth_ca_cert = $state_path/ca\n'
    options = load(first, b'state_path = /a\\1b\n')
    assert options.metadata_proxy_socket == '/a\\1b/s'
    assert options.auth_ca_cert == '/a\\1b/ca'


@pytest.mark.parametrize('content, place, expected', [
    (b'[mdproxy]\nmax_bdy = 1\n', ':2: [mdproxy] max_bdy', 'unknown option'),
    (b'[DEFAULT]\n\ncache_ttl = 5\n', ':3: [DEFAULT] cache_ttl', 'expected in section [mdproxy]'),
    (b'[mdproxy]\nadmin_user = q\n', ':2: [mdproxy] admin_user', 'expected in section [DEFAULT]'),
    (b'nova_metadata_port = 0\n', 'nova_metadata_port', 'a port number, got "0"'),
    (b'nova_metadata_port = 65536\n', 'nova_metadata_port', 'a port number'),
    (b'nova_metadata_port = -1\n', 'nova_metadata_port', 'a port number'),
    (b'[mdproxy]\napi_threads = 0\n', 'api_threads', 'a whole number above 0'),
    (b'[mdproxy]\nmax_body = 1_0\n', 'max_body', 'a whole number above 0, got "1_0"'),
    (b'[mdproxy]\nmax_body =\n', 'max_body', 'a whole number above 0, got ""'),
    (b'[mdproxy]\nmax_body = \xd9\xa1\n', 'max_body', 'a whole number above 0'),
    (b'[mdproxy]\nidle_timeout = nan\n', 'idle_timeout', 'a number of seconds above 0'),
    (b'[mdproxy]\nidle_timeout = inf\n', 'idle_timeout', 'a number of seconds above 0'),
    (b'[mdproxy]\nidle_timeout = 0.0\n', 'idle_timeout', 'a number of seconds above 0'),
    (b'[mdproxy]\nheader_family = nova\n', 'header_family', 'one of quantum, neutron, got "nova"'),
    (b'metadata_proxy_socket_mode = 0999\n', 'metadata_proxy_socket_mode', 'octal file mode'),
    (b'metadata_proxy_socket_mode = 01777\n', 'metadata_proxy_socket_mode', 'octal file mode'),
    (b'[mdproxy]\nstale_ttl = -1\n', 'stale_ttl', 'a number of seconds, 0 for none'),
    (b'[mdproxy]\nrate_limit = 1.5\n', 'rate_limit', 'a whole number, 0 for none'),
    (b'[mdproxy]\nbuiltin_agent = maybe\n', 'builtin_agent', 'true or false, got "maybe"'),
    (b'[mdproxy]\nstatus_listen = 0.0.0.0:80\n', 'status_listen', 'one address of this host'),
    (b'[mdproxy]\nstatus_listen = [::]:80\n', 'status_listen', 'one address of this host'),
    (b'[mdproxy]\nagent_listen = host:80\n', 'agent_listen', 'one address of this host'),
    (b'[mdproxy]\nagent_listen = 10.0.0.1\n', 'agent_listen', 'ADDR:PORT'),
    (b'[mdproxy]\nagents = a:1,\n', 'agents', 'HOST:PORT, [IPV6]:PORT or /PATH'),
    (b'[mdproxy]\nagents = a:65536\n', 'agents', 'HOST:PORT'),
    (b'[mdproxy]\nagents = http://a:1\n', 'agents', 'HOST:PORT'),
    (b'admin_user q\n', ':1', 'expected [section] or name = value'),
    (b'\xff\xfe\n', '', 'cannot be read'),
])
def test_a_refusal_names_file_line_option_and_what_was_expected(error, content, place, expected):
    message = error(content)
    assert '0.ini' + place in message if place.startswith(':') else place in message
    assert expected in message
    assert '\n' not in message


def test_the_command_line_wins_over_files_and_files_over_a_drop_ins_defaults(tmpdir):
    path = tmpdir.join('a.ini')
    path.write('admin_user = file\nadmin_tenant_name = file\n')
    options = config.Sources(('admin_user=d', 'auth_region=d', 'state_path=/srv'), (str(path),),
                             ('admin_tenant_name=line', 'cache_ttl=5')).load()
    assert (options.admin_user, options.auth_region) == ('file', 'd')
    assert (options.admin_tenant_name, options.cache_ttl) == ('line', 5.0)
    assert options.metadata_proxy_socket == '/srv/metadata_proxy'


@pytest.mark.parametrize('setting, expected', [
    ('max_bdy=1', '--set max_bdy: expected NAME=VALUE'),
    ('max_body', '--set max_body: expected NAME=VALUE'),
    ('max_body=x', '--set max_body: expected a whole number above 0, got "x"'),
    ('link_secret=x', '--set link_secret: a secret belongs into a file'),
])
def test_a_setting_that_cannot_be_used_is_refused(setting, expected):
    with pytest.raises(config.ConfigError) as caught:
        config.Sources((), (), (setting,)).load()
    assert str(caught.value).startswith(expected)


def test_a_file_that_is_not_there_is_named(tmpdir):
    with pytest.raises(config.ConfigError) as caught:
        config.Sources((), (str(tmpdir.join('missing.ini')),), ()).load()
    assert str(caught.value) == '%s: cannot be read: No such file or directory' % tmpdir.join('missing.ini')


COMPLETE = ('[DEFAULT]\nauth_url = http://k/v3\nadmin_tenant_name = t\nadmin_user = u\n'
            'admin_password = p\nmetadata_proxy_shared_secret = s\n[mdproxy]\nlink_secret = l\n')


@pytest.mark.parametrize('command, more, needed', [
    ('agent', '', ['auth_url', 'admin_password', 'metadata_proxy_shared_secret']),
    ('agent', 'agent_listen = 10.0.0.1:80\n', ['link_secret']),
    ('proxy', 'builtin_agent = true\n', ['admin_user', 'metadata_proxy_shared_secret']),
    ('proxy', 'agents = agent1:80\n', ['link_secret']),
    ('resolve', '', ['admin_tenant_name', 'auth_url']),
])
def test_what_a_command_needs_is_asked_for_by_name(tmpdir, command, more, needed):
    path = tmpdir.join('a.ini')
    sources = config.Sources((), (str(path),), ())
    path.write(COMPLETE + more)
    sources.load(command)
    for name in needed:
        path.write((COMPLETE + more).replace('\n%s = ' % name, '\n%s =\n# ' % name))
        with pytest.raises(config.ConfigError) as caught:
            sources.load(command)
        section = '[mdproxy]' if name == 'link_secret' else '[DEFAULT]'
        assert str(caught.value).startswith('%s: %s %s: expected a value' % (path, section, name))
        sources.load()


@pytest.mark.parametrize('command, content', [
    ('proxy', ''), ('proxy', '[mdproxy]\nagents = /run/a, /run/b\n'),
    ('resolve', 'auth_strategy = noauth\n[mdproxy]\nport_api_url = http://a\n')])
def test_nothing_is_asked_for_without_need(tmpdir, command, content):
    path = tmpdir.join('a.ini')
    path.write(content)
    config.Sources((), (str(path),), ()).load(command)


def test_without_a_url_or_a_keystone_ports_cannot_be_asked(tmpdir):
    path = tmpdir.join('a.ini')
    path.write('auth_strategy = noauth\n')
    with pytest.raises(config.ConfigError) as caught:
        config.Sources((), (str(path),), ()).load('resolve')
    assert '[mdproxy] port_api_url: expected a value' in str(caught.value)


def test_secrets_are_not_in_the_text_of_options(load):
    options = load(b'admin_password = hunter2\nmetadata_proxy_shared_secret = hunter3\nadmin_user = q\n')
    assert 'hunter' not in repr(options)
    assert 'admin_user=q' in repr(options)


def test_help_names_every_option_with_its_default():
    text = config.describe()
    for option in config.OPTIONS:
        assert '  %s ' % option.name in text
    assert '(default: 0660)' in text
    order = [text.index(word) for word in ('[DEFAULT]', 'auth_url', '[mdproxy]', 'cache_ttl')]
    assert order == sorted(order)


def test_names_of_options_are_told_once():
    names = [name for option in config.OPTIONS for name in (option.name,) + option.old]
    assert len(names) == len(set(names))


@pytest.mark.parametrize('text, address', [
    ('0.0.0.0:9697', ('0.0.0.0', 9697)), ('169.254.169.254:80', ('169.254.169.254', 80)),
    ('[::]:9697', ('::', 9697)), ('[fe80::1]:65535', ('fe80::1', 65535))])
def test_an_address_and_a_port_are_understood(text, address):
    assert config.parse_listen(text) == address


@pytest.mark.parametrize('text', [
    '', ':', '9697', ':9697', '0.0.0.0', '0.0.0.0:', '0.0.0.0:0', '0.0.0.0:65536', '0.0.0.0:-1',
    '0.0.0.0:9x', '0.0.0.0: 9697', '::1:9697', '[]:9697', '[::1:9697', '[10.0.0.1]:9697',
    'localhost:9697', '10.0.0:9697', '10.0.0.256:9697'])
def test_anything_else_is_refused_without_asking_what_a_name_means(text):
    with pytest.raises(ValueError) as caught:
        config.parse_listen(text)
    assert str(caught.value).startswith('expected ADDR:PORT')
