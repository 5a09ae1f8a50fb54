"""Upstream's command lines: what they mean to us, what is left alone, what is refused."""
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from mdproxy import config, dropin, logs, opener  # noqa: E402

ROUTER = '11111111-2222-3333-4444-555555555555'
NETWORK = '99999999-2222-3333-4444-555555555555'
PROXY, AGENT = 'quantum-ns-metadata-proxy', 'quantum-metadata-agent'


class Started(object):
    """What a drop-in would have started, instead of `opener.Proxy` and `opener.agent`."""

    def __init__(self):
        self.proxy, self.agent = None, None

    def __call__(self, program, *words):
        """Run the drop-in; its exit status."""
        return dropin.main([program] + list(words))

    def options(self):
        """Options of what was started."""
        return (self.proxy[2] if self.proxy else self.agent[0]).load()


@pytest.fixture
def run(monkeypatch, tmpdir):
    started = Started()

    class Proxy(object):
        def __init__(self, *arguments):
            started.proxy = arguments

        def open(self):
            return 0

    def agent(*arguments):
        started.agent = arguments
        return 0
    monkeypatch.setattr(opener, 'Proxy', Proxy)
    monkeypatch.setattr(opener, 'agent', agent)
    monkeypatch.setattr(dropin, '_ETC', str(tmpdir.join('etc')))
    return started


def test_grizzlys_l3_agent_spawns_a_daemon_for_its_router(run):
    assert run(PROXY, '--pid_file=/var/lib/quantum/external/pids/%s.pid' % ROUTER, '--router_id=' + ROUTER,
               '--state_path=/var/lib/quantum', '--metadata_port=9797', '--debug', '--verbose',
               '--log-file=quantum-ns-metadata-proxy%s.log' % ROUTER, '--log-dir=/var/log/quantum') == 0
    identity, listen, sources, netns, pid_file, daemonize, log, group = run.proxy
    assert (identity, listen, netns) == (('router', ROUTER), ('0.0.0.0', 9797), None)
    assert (pid_file, daemonize) == ('/var/lib/quantum/external/pids/%s.pid' % ROUTER, True)
    assert log == ('/var/log/quantum/quantum-ns-metadata-proxy%s.log' % ROUTER, None)
    options = sources.load('proxy')
    assert options.metadata_proxy_socket == '/var/lib/quantum/metadata_proxy'
    assert (options.header_family, options.log_level) == ('quantum', 'debug')


def test_kilos_l3_agent_says_as_whom_to_serve(run):
    assert run('neutron-ns-metadata-proxy', '--pid_file=/p/%s.pid' % ROUTER,
               '--metadata_proxy_socket=/run/neutron/metadata', '--router_id=' + ROUTER,
               '--state_path=/var/lib/neutron', '--metadata_port=9697', '--metadata_proxy_user=12345',
               '--metadata_proxy_group=123', '--nometadata_proxy_watch_log', '--use-syslog',
               '--syslog-log-facility=LOG_LOCAL0') == 0
    _, _, sources, _, _, _, log, group = run.proxy
    assert log == (None, 'local0') and group == '123'
    options = sources.load('proxy')
    assert (options.user, options.header_family) == ('12345', 'neutron')
    assert options.metadata_proxy_socket == '/run/neutron/metadata'


def test_the_dhcp_agent_spawns_one_for_its_network(run):
    assert run(PROXY, '--network_id=' + NETWORK.upper()) == 0
    assert run.proxy[0] == ('network', NETWORK)
    assert run.proxy[1] == ('0.0.0.0', 9697) and run.proxy[5] is True


@pytest.mark.parametrize('words', [
    ['--router_id=' + ROUTER, '--metadata_port=1234'], ['--router-id', ROUTER, '--metadata-port', '1234'],
    ['--router_id', ROUTER, '--metadata-port=1234', '--network_id='],
    ['--metadata_port=1', '--metadata_port=1234', '--router_id=' + ROUTER]])
def test_an_option_is_written_as_upstream_lets_one_write_it(run, words):
    assert run(PROXY, *words) == 0
    assert run.proxy[0].id == ROUTER and run.proxy[1][1] == 1234


@pytest.mark.parametrize('words, daemonize', [
    ([], True), (['--nodaemonize'], False), (['--daemonize'], True),
    (['--nodaemonize', '--daemonize'], True)])
def test_it_is_a_daemon_unless_told_otherwise(run, words, daemonize):
    assert run(PROXY, '--router_id', ROUTER, *words) == 0
    assert run.proxy[5] is daemonize


@pytest.mark.parametrize('words, reason', [
    ([], 'expected one of --router_id and --network_id'),
    (['--router_id='], 'expected one of --router_id and --network_id'),
    (['--router_id=' + ROUTER, '--network_id=' + NETWORK], 'expected one of --router_id and --network_id'),
    (['--router_id=1'], '--router_id: "1" is not a UUID'),
    (['--network_id=' + NETWORK[1:]], '--network_id: "%s" is not a UUID' % NETWORK[1:]),
    (['--router_id'], 'option --router_id: expected a value'),
    (['--router_id=' + ROUTER, '--metadata_port=0'], '--metadata_port: expected a port number, got "0"'),
    (['--router_id=' + ROUTER, '--metadata_port=x'], '--metadata_port: expected a port number, got "x"'),
    (['--router_id=' + ROUTER, '--no_such_option=1'], 'unknown option --no_such_option'),
    (['--router_id=' + ROUTER, '--daemonise'], 'unknown option --daemonise'),
    (['--router_id=' + ROUTER, '--daemonize=False'], 'option --daemonize takes no value'),
    (['--router_id=' + ROUTER, '--norouter_id'], 'unknown option --norouter_id'),
    (['--router_id=' + ROUTER, '--max_body=1'], 'unknown option --max_body'),
    (['--router_id=' + ROUTER, 'start'], 'unexpected argument "start"'),
    (['--router_id=' + ROUTER, '--'], 'unexpected argument "--"'),
    (['--router_id=' + ROUTER, '--use-syslog', '--syslog-log-facility=LOG_NO'],
     '--syslog-log-facility: expected one of kern, '),
    (['--router_id=' + ROUTER, '--config-dir=/nonexistent'], '--config-dir /nonexistent: not a folder'),
    (['--router_id=' + ROUTER, '--config-file=/nonexistent'], '/nonexistent: cannot be read'),
    (['--router_id=' + ROUTER, '--metadata_proxy_shared_secret=x'], 'a secret belongs into a file')])
def test_bad_usage_is_exit_2_and_one_line_that_names_it(run, capsys, words, reason):
    assert run(PROXY, *words) == 2
    err = capsys.readouterr()[1]
    assert err.startswith(PROXY + ': ') and reason in err and err.count('\n') == 1
    assert run.proxy is None


@pytest.mark.parametrize('word', [
    '--router_id=' + ROUTER, '--pid_file=x', '--daemonize', '--metadata_port=1'])
def test_the_agent_does_not_know_what_is_the_proxys(run, capsys, word):
    assert run(AGENT, word) == 2
    assert 'unknown option' in capsys.readouterr()[1]


def test_what_we_have_no_use_for_is_taken_and_every_such_option_has_its_reason(run):
    for names, value in ((dropin._UNUSED_VALUES, '=x'), (dropin._UNUSED_FLAGS, '')):
        for name, reason in names.items():
            assert reason
            for spelled in set((name, name.replace('-', '_'))):
                assert run(PROXY, '--router_id=' + ROUTER, '--%s%s' % (spelled, value)) == 0
                assert value or run(PROXY, '--router_id=' + ROUTER, '--no' + spelled) == 0


@pytest.mark.parametrize('words, log', [
    ([], (None, None)), (['--log-file=/a/b'], ('/a/b', None)),
    (['--logfile', 'b', '--logdir', '/a'], ('/a/b', None)),
    (['--log_dir=/a'], ('/a/%s.log' % PROXY, None)), (['--log-dir=/a', '--log-file=/c/d'], ('/c/d', None)),
    (['--use-syslog'], (None, 'user')), (['--use-syslog', '--log-dir=/a'], ('/a/%s.log' % PROXY, None)),
    (['--nouse-syslog'], (None, None)), (['--syslog-log-facility=LOG_DAEMON'], (None, None)),
    (['--use_syslog', '--syslog_log_facility=daemon'], (None, 'daemon'))])
def test_logs_go_where_upstreams_would(run, words, log):
    assert run(PROXY, '--router_id=' + ROUTER, *words) == 0
    assert run.proxy[6] == logs.Destination(*log)
    assert run(AGENT, *[word.replace(PROXY, AGENT) for word in words]) == 0


@pytest.mark.parametrize('words, level', [
    ([], 'info'), (['--verbose'], 'info'), (['-v'], 'info'), (['-d'], 'debug'), (['--debug'], 'debug'),
    (['--debug', '--nodebug'], 'info')])
def test_debug_is_our_log_level(run, words, level):
    assert run(PROXY, '--router_id=' + ROUTER, *words) == 0
    assert run.options().log_level == level


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason='needs root')


@pytest.fixture
def owned(tmpdir):
    """owned(uid): a state_path that belongs to this user."""
    def made(uid):
        folder = tmpdir.mkdir('state-%d' % uid)
        os.chown(str(folder), uid, uid)
        return '--state_path=%s' % folder
    return made


@needs_root
def test_who_serves_is_said_or_configured_or_owns_the_state_path(run, owned, tmpdir):
    path = tmpdir.join('conf')
    path.write('[mdproxy]\nuser = bin\n')
    state, configured = owned(65534), '--config-file=%s' % path
    for words, user in (([state], 'nobody'), ([state, configured], 'bin'),
                        ([state, configured, '--metadata_proxy_user=sys'], 'sys'),
                        ([state, '--metadata_proxy_user=65534'], '65534'),
                        (['--metadata_proxy_user=sys'], 'sys')):
        assert run(PROXY, '--router_id=' + ROUTER, *words) == 0
        assert run.options().user == user
    assert run(AGENT, state) == 0 and run.agent[0].load().user == 'nobody'


@needs_root
@pytest.mark.parametrize('words', [['--metadata_proxy_user=0', '--metadata_proxy_group=0'],
                                   ['--metadata_proxy_user=root', '--metadata_proxy_group=root'],
                                   ['--metadata_proxy_user=']])
def test_root_is_never_the_one_who_serves(run, owned, words):
    assert run(PROXY, '--router_id=' + ROUTER, owned(65534), *words) == 0
    assert run.options().user == 'nobody' and run.proxy[7] is None
    assert run(PROXY, '--router_id=' + ROUTER, owned(0), *words) == 0
    assert run.options().user == 'mdproxy'


def test_the_state_path_of_a_file_counts_too(run, tmpdir):
    path = tmpdir.join('quantum.conf')
    path.write('[DEFAULT]\nstate_path = /elsewhere\ncore_plugin = upstream.s\n')
    assert run(PROXY, '--router_id=' + ROUTER, '--config-file', str(path)) == 0
    assert run.options().metadata_proxy_socket == '/elsewhere/metadata_proxy'
    assert run(PROXY, '--router_id=' + ROUTER, '--config-file', str(path), '--state_path=/there') == 0
    assert run.options().metadata_proxy_socket == '/there/metadata_proxy'


def paths(run, program, *words):
    words += ('--router_id=' + ROUTER,) if program.endswith('proxy') else ()
    assert run(program, *words) == 0
    sources = run.proxy[2] if program.endswith('proxy') else run.agent[0]
    return [os.path.basename(path) for path in sources.paths]


def test_default_files_are_those_that_exist(run, tmpdir):
    etc = tmpdir.mkdir('etc').mkdir('quantum')
    assert paths(run, AGENT) == paths(run, PROXY) == []
    for name in ('quantum.conf', 'metadata_agent.ini', AGENT + '.conf', PROXY + '.conf', 'l3_agent.ini'):
        etc.join(name).write('[DEFAULT]\n')
    assert paths(run, AGENT) == ['quantum.conf', 'metadata_agent.ini', AGENT + '.conf']
    # Since Grizzly upstream's proxy has read no PROJECT.conf.
    assert paths(run, PROXY) == [PROXY + '.conf']
    assert paths(run, 'neutron-metadata-agent') == []


def test_files_that_are_named_come_in_order_and_replace_the_default_ones(run, tmpdir):
    tmpdir.mkdir('etc').mkdir('quantum').join('quantum.conf').write('[DEFAULT]\n')
    folder = tmpdir.mkdir('conf.d')
    for name in ('20-b.conf', '10-a.conf', 'readme'):
        folder.join(name).write('[DEFAULT]\n')
    for name in ('x', 'y'):
        tmpdir.join(name).write('[DEFAULT]\n')
    named = ['--config-file=%s' % tmpdir.join('y'), '--config-file', str(tmpdir.join('x'))]
    assert paths(run, AGENT, *named) == ['y', 'x']
    assert paths(run, AGENT, '--config-dir', str(folder), *named) == ['y', 'x', '10-a.conf', '20-b.conf']
    assert paths(run, PROXY, '--config-dir=%s' % folder) == ['10-a.conf', '20-b.conf']


def test_folsoms_agent_takes_the_options_of_its_files_on_the_command_line(run):
    assert run(AGENT, '--nova_metadata_ip=192.0.2.1', '--nova-metadata-port', '8776') == 0
    options = run.options()
    assert (options.nova_metadata_ip, options.nova_metadata_port) == ('192.0.2.1', 8776)


@pytest.mark.parametrize('program, word', [(PROXY, '--help'), (PROXY, '-h'), (AGENT, '--help')])
def test_help_names_every_option(run, capsys, program, word):
    assert run(program, word) == 0
    out = capsys.readouterr()[0]
    for name in dropin._VALUES + dropin._FLAGS + tuple(dropin._UNUSED_VALUES):
        assert '--' + name in out.replace('_', '-')
    assert run(program, '--version') == 0
    assert capsys.readouterr()[0].startswith(program + ' of mdproxy 0.')


def test_no_option_is_both_used_and_unused():
    names = dropin._VALUES + dropin._FLAGS + tuple(dropin._UNUSED_VALUES) + tuple(dropin._UNUSED_FLAGS)
    names += tuple(option.name.replace('_', '-') for option in config.OPTIONS)
    assert len(names) == len(set(names))
