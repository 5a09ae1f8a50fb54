"""The command line: exit statuses, one line for every refusal, and what is not imported."""
import os
import socket
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ROUTER = '11111111-2222-3333-4444-555555555555'
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

from loopback import open_folder  # noqa: E402

from mdproxy import cli, config, opener  # noqa: E402


def mdproxy(*arguments, **environment):
    """(exit status, stdout, stderr) of the command, run as from a checkout."""
    process = subprocess.Popen([sys.executable, '-m', 'mdproxy'] + list(arguments), cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=dict(os.environ, **environment))
    out, err = process.communicate()
    return process.returncode, out.decode('utf-8'), err.decode('utf-8')


@pytest.fixture
def ini(tmpdir):
    """ini(text): path of a configuration file with this content."""
    def written(text):
        path = tmpdir.join('mdproxy.ini')
        path.write_binary(text if isinstance(text, bytes) else text.encode('utf-8'))
        return str(path)
    return written


@pytest.mark.parametrize('arguments, reason', [
    ([], ''),
    (['prxy'], 'prxy'),
    (['proxy'], '--router-id'),
    (['proxy', '--router-id', 'qrouter-1'], '"qrouter-1" is not a UUID'),
    (['proxy', '--router-id', ROUTER, '--network-id', ROUTER], 'not allowed with'),
    (['proxy', '--router-id', ROUTER, '--listen', '9697'], 'expected ADDR:PORT, got "9697"'),
    (['proxy', '--router-id', ROUTER, '--listen', 'localhost:9697'], 'expected ADDR:PORT'),
    (['proxy', '--router-id', ROUTER, '--set', 'max_body'], '--set max_body: expected NAME=VALUE'),
    (['proxy', '--router-id', ROUTER, '--set', 'no_such=1'], '--set no_such: expected NAME=VALUE'),
    (['proxy', '--router-id', ROUTER, '--set', 'max_body=much'], '--set max_body: expected a whole'),
    (['resolve', '--router-id', ROUTER, '10.0.0.256'], '"10.0.0.256" is not an IP address'),
    (['resolve', '--router-id', ROUTER], ''),
    (['resolve', '--router-id', ROUTER, '--mac', '01:00:5e:00:00:01', 'fe80::3'], 'not a MAC address'),
    (['resolve', '--router-id', ROUTER, '--mac', 'fa:16:3e:00:00:01', '10.0.0.3'], '--mac is for a link'),
    (['resolve', '--router-id', ROUTER, 'fe80::3%eth0'], '"fe80::3%eth0" is not an IP address'),
    (['rules', 'flush', 'qrouter-1'], 'flush'),
    (['rules', 'apply', 'qrouter-1'], 'expected NETNS FILE'),
    (['rules', 'apply', 'qrouter-1', 'a', 'qrouter-2', 'b'], 'expected NETNS FILE'),
    (['rules', 'check', 'qrouter-1', 'a', 'qrouter-2'], 'expected NETNS FILE [NETNS FILE ...]'),
    (['rules', 'remove', 'qrouter-1', 'a'], 'expected NETNS'),
    (['rules', 'remove', 'qrouter-1', 'qrouter-2', 'qrouter-3'], 'expected NETNS'),
    (['proxy', '--router-id', ROUTER, '--wait'], '--wait: expected --netns NAME as well'),
    (['proxy', '--router-id', ROUTER, '--rules', 'a'], '--rules: expected --netns NAME as well'),
    (['status', '--json', '--prometheus'], 'not allowed with'),
    (['status', '--write', 'a'], 'status --write: expected --prometheus as well'),
    (['probe', '--write', 'a', '--json'], 'probe --write: expected --prometheus as well'),
    (['probe', '--rules-folder', 'a', ROUTER], '--rules-folder: does not go with ROUTER'),
    (['agent', '--config-file', '/nonexistent/agent.ini'], '/nonexistent/agent.ini: cannot be read'),
    (['agent'], '(no --config-file): '),
])
def test_bad_usage_is_exit_2_and_one_line_that_says_why(arguments, reason):
    status, out, err = mdproxy(*arguments)
    assert (status, out) == (2, '')
    assert err.startswith('mdproxy: ') and err.count('\n') == 1
    assert reason in err


def test_bad_configuration_is_exit_2_and_names_file_option_and_what_was_expected(ini):
    path = ini('[mdproxy]\ncache_ttl = soon\n')
    status, out, err = mdproxy('agent', '--config-file', path)
    assert (status, out) == (2, '')
    assert err == ('mdproxy: %s:2: [mdproxy] cache_ttl: expected a number of seconds above 0, '
                   'got "soon"\n' % path)


def test_a_refusal_survives_what_the_terminal_cannot_show(ini):
    status, _, err = mdproxy('agent', '--config-file', ini(u'auth_strategy = k\xe4\n'), LC_ALL='C')
    assert status == 2
    assert 'expected one of keystone, noauth' in err and err.count('\n') == 1


def test_the_agent_refuses_an_empty_shared_secret_before_it_does_anything(ini, tmpdir):
    path = ini('auth_strategy = noauth\nmetadata_proxy_socket = %s/here/s\n'
               '[mdproxy]\nport_api_url = http://127.0.0.1:9\n' % tmpdir)
    status, _, err = mdproxy('agent', '--config-file', path)
    assert status == 2
    assert '[DEFAULT] metadata_proxy_shared_secret: expected a value' in err
    assert not tmpdir.join('here').check()


def test_noauth_needs_the_url_of_the_port_api_and_no_password(ini):
    status, _, err = mdproxy('resolve', '--config-file', ini('auth_strategy = noauth\n'),
                             '--router-id', ROUTER, '10.0.0.3')
    assert status == 2
    assert '[mdproxy] port_api_url: expected a value' in err


@pytest.mark.parametrize('command', ['proxy', 'agent'])
def test_a_secret_is_not_taken_from_a_command_line_that_everybody_can_see(command):
    which = ['--router-id', ROUTER] if command == 'proxy' else []
    status, _, err = mdproxy(command, '--set', 'link_secret=hush', *which)
    assert status == 2
    assert '--set link_secret: a secret belongs into a file' in err and 'hush' not in err


def test_set_wins_over_files(ini):
    path = ini('auth_strategy = noauth\n[mdproxy]\nport_api_url = http://127.0.0.1:9\nuser = nobody\n')
    status, _, err = mdproxy('resolve', '--config-file', path, '--set', 'auth_strategy=keystone',
                             '--router-id', ROUTER, '10.0.0.3')
    assert status == 2 and '[DEFAULT] auth_url: expected a value' in err


def test_version_and_help_are_exit_0():
    status, out, err = mdproxy('--version')
    assert status == 0 and (out + err).startswith('mdproxy 0.')      # 2.7 writes it to stderr
    assert 'COMMAND' in mdproxy('--help')[1]
    for command in ('proxy', 'agent', 'status', 'resolve', 'rules'):
        assert mdproxy(command, '--help')[0] == 0


def test_help_lists_every_option_with_its_meaning():
    status, out, _ = mdproxy('--help')
    assert status == 0
    for option in config.OPTIONS:
        assert ' %s ' % option.name in out and option.help in out


def test_a_status_without_anything_that_runs_says_so(tmpdir):
    pytest.importorskip('mdproxy.overview')
    for form in ([], ['--json']):
        status, out, err = mdproxy('status', '--folder', str(tmpdir), *form)
        assert (status, err) == (2, '')
    assert out == '[]\n'
    assert mdproxy('status', '--folder', str(tmpdir), '--prometheus')[0] == 0


def test_metrics_are_written_to_a_file_in_the_place_of_the_old_one(tmpdir):
    path = tmpdir.join('metrics', 'status.prom')
    path.write('old', ensure=True)
    with open_folder(0o700) as folder:
        left = socket.socket(socket.AF_UNIX)
        left.bind(os.path.join(folder, 'agent.sock'))
        left.close()
        assert mdproxy('status', '--folder', folder, '--prometheus', '--write', str(path)) == (0, '', '')
    assert 'mdproxy_up{process="agent"} 0\n' in path.read() and path.dirpath().listdir() == [path]


def test_a_probe_that_was_written_is_exit_0_whatever_it_found(tmpdir):
    path = tmpdir.join('probe.prom')
    assert mdproxy('probe', '--prometheus', '--write', str(path), ROUTER) == (0, '', '')
    assert 'mdproxy_probe_down{router="%s"} 1' % ROUTER in path.read()
    assert mdproxy('probe', '--prometheus', ROUTER)[0] == 2


def test_what_cannot_be_written_is_exit_1_and_one_line(tmpdir):
    path = str(tmpdir.join('nowhere', 'status.prom'))
    status, out, err = mdproxy('status', '--folder', str(tmpdir), '--prometheus', '--write', path)
    assert (status, out) == (1, '')
    assert err == 'mdproxy: %s cannot be written: No such file or directory\n' % path


def test_a_namespace_that_does_not_exist_is_exit_1_and_is_not_made():
    status, _, err = mdproxy('proxy', '--router-id', ROUTER, '--netns', 'qrouter-nowhere',
                             '--set', 'user=nobody')
    assert status == 1
    assert err == 'mdproxy: namespace qrouter-nowhere does not exist; is the router on this host?\n'
    assert not os.path.exists('/var/run/netns/qrouter-nowhere')


@pytest.mark.parametrize('words, naps', [(['--wait'], [opener.PAUSE]), ([], [])])
def test_a_job_that_fails_does_so_slowly(monkeypatch, words, naps):
    slept = []
    monkeypatch.setattr(cli.time, 'sleep', slept.append)
    assert cli.main(['proxy', '--router-id', ROUTER, '--netns', 'qrouter-nowhere', '--set', 'max_body=much']
                    + words) == 2
    assert slept == naps


def test_rules_of_many_are_checked_and_each_that_is_wrong_is_a_line(tmpdir):
    path = tmpdir.join('router.rules')
    path.write('*filter\n:mdproxy-INPUT - [0:0]\nCOMMIT\n')
    status, out, err = mdproxy('rules', 'check', 'qrouter-nowhere', str(path), 'qrouter-1', '/nonexistent')
    assert (status, err) == (1, '')
    assert out == ('qrouter-nowhere: namespace qrouter-nowhere does not exist; is the router on this host?\n'
                   'qrouter-1: /nonexistent: cannot be read: No such file or directory\n')


def test_what_cannot_be_had_leaves_nothing_behind(tmpdir):
    names = ('pid', 'log', 'status')
    pid, log, folder = (str(tmpdir.join(name)) for name in names)
    status, _, _ = mdproxy('proxy', '--router-id', ROUTER, '--netns', 'qrouter-nowhere', '--daemon',
                           '--pid-file', pid, '--log-file', log, '--set', 'status_folder=' + folder,
                           '--set', 'user=nobody')
    assert status == 1 and tmpdir.listdir() == []


@pytest.mark.parametrize('how', [['-m', 'mdproxy'], ['mdproxy'], ['-Es', os.path.join(ROOT, 'mdproxy')]])
def test_it_starts_from_a_checkout_and_by_path(how):
    process = subprocess.Popen([sys.executable] + how + ['rules', 'apply', 'x', '/nonexistent'],
                               cwd=ROOT, stderr=subprocess.PIPE)
    err = process.communicate()[1].decode('utf-8')
    assert process.returncode == 1
    assert err == 'mdproxy: /nonexistent: cannot be read: No such file or directory\n'


def test_started_by_path_no_part_of_the_package_is_a_module_of_its_own(tmpdir):
    """A top-level `config` or `trust` of somebody else must not become ours, nor ours theirs."""
    code = ('import runpy, sys\nsys.argv = ["mdproxy", "--version"]\n'
            'sys.path.insert(0, %r)\n'
            'try:\n    runpy.run_path(%r, run_name="__main__")\nexcept SystemExit:\n    pass\n'
            'assert "config" not in sys.modules and "trust" not in sys.modules\n'
            'assert %r not in sys.path\n' % (
                os.path.join(ROOT, 'mdproxy'), os.path.join(ROOT, 'mdproxy', '__main__.py'),
                os.path.join(ROOT, 'mdproxy')))
    assert subprocess.call([sys.executable, '-Es', '-c', code], cwd=str(tmpdir)) == 0


def test_the_commands_import_neither_requests_nor_pyroute2():
    code = ('import sys; from mdproxy import cli, proxy, agent; cli._parser()\n'
            'heavy = [name for name in sys.modules if name.split(".")[0] in ("requests", "pyroute2")]\n'
            'assert not heavy, heavy')
    assert subprocess.call([sys.executable, '-c', code], cwd=ROOT) == 0
