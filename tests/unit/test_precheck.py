"""precheck says all that would stop a rollout, and what a run will mend, each with what to do."""
import os
import sys
import time

import ansible_module
import pytest

ansible_module.needs_ansible()
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, 'roles', 'precheck', 'filter_plugins'))

import precheck_findings  # noqa: E402

ROUTER = '11111111-2222-3333-4444-555555555555'
OTHER = '99999999-2222-3333-4444-555555555555'
SECRET = '(quantum_|neutron_)?metadata_proxy_shared_secret'


def router(**more):
    return dict(dict(router_id=ROUTER, error='', interfaces=['qr-1'], taken=[]), **more)


def findings(wanted=(), **host):
    """[(check, level, text)] of a host that is as usual but for this."""
    usual = dict(missing=[], namespaces='', ahead=0.4, secrets=[], routers=[router()],
                 folders=[dict(path='/opt/mdproxy', free=1 << 30, files=-1, error='')])
    wanted = dict(dict(window=60, digest='aaaa', others={'api1': 'aaaa', 'agent1': ''}, routers=[],
                       probed=[]),
                  **dict(wanted))
    found = precheck_findings.precheck_findings(dict(usual, **host), wanted)
    return [(one['check'], one['level'], one['text']) for one in found]


def test_a_host_that_is_as_it_should_be_has_none():
    assert findings() == []


@pytest.mark.parametrize('host, check, level, words', [
    (dict(missing=['iptables-save']), 'commands', 'stop', 'install iptables'),
    (dict(namespaces='Operation not permitted'), 'namespaces', 'stop', 'Operation not permitted'),
    (dict(folders=[dict(path='/opt', free=9 << 20, files=9999, error='')]), 'disk', 'stop', '/opt: 9 MB and'),
    (dict(folders=[dict(path='/opt', free=1 << 30, files=3, error='')]), 'disk', 'stop', '3 files are free'),
    (dict(folders=[dict(path='/opt', free=1 << 30, files=-1, error='Read-only file system')]),
     'disk', 'stop', '/opt: Read-only file system'),
    (dict(ahead=-31.0), 'clock', 'stop', "31 s behind the controller's clock"),
    (dict(secrets=[dict(path='/etc/nova/nova.conf', digest='bbbb')]), 'secret', 'warn',
     '/etc/nova/nova.conf has another'),
    (dict(routers=[router(error='Invalid argument')]), 'router', 'stop',
     'cannot be entered: Invalid argument'),
    (dict(routers=[router(taken=['nc -l 9697'])]), 'router', 'stop', 'taken by `nc -l 9697`'),
    (dict(routers=[router(interfaces=[])]), 'router', 'warn', 'no internal interface')])
def test_what_is_wrong_is_named_with_what_to_do(host, check, level, words):
    (found_check, found_level, text), = findings(**host)
    assert (found_check, found_level) == (check, level) and words in text


def test_who_is_not_served_already_is_named_and_stops_nobody():
    probed = [dict(router=ROUTER, outcome='down', hop='rule', detail='no redirect'),
              dict(router=OTHER, outcome='well', hop='', detail='')]
    (check, level, text), = findings(dict(probed=probed))
    assert (check, level) == ('served', 'warn')
    assert text.startswith('router %s is down already: rule: no redirect; ' % ROUTER)
    assert findings(dict(probed=probed, routers=[OTHER]))[0][0] == 'router'     # it has no namespace
    assert 'served' not in [one[0] for one in findings(dict(probed=probed, routers=[OTHER]))]


def test_a_clock_stops_only_where_proxies_and_agents_sign_for_each_other():
    assert findings(dict(window=0), ahead=45.0)[0][:2] == ('clock', 'warn')
    assert findings(dict(window=0), ahead=29.0) == []


def test_a_secret_that_is_another_one_for_another_host_stops():
    (check, level, text), = findings(dict(others={'api1': 'cccc', 'network1': 'aaaa'}))
    assert (check, level) == ('secret', 'stop') and 'aaaa' in text and 'api1 (cccc)' in text


def test_of_routers_those_that_the_node_should_serve_count():
    assert findings(dict(routers=[OTHER]), routers=[router(taken=['nc'])]) == [
        ('router', 'warn', OTHER + ' is to be served and has no namespace; its job will wait for it: is the '
                                   'l3 agent running?')]


def look(**arguments):
    result = ansible_module.run('precheck_host', dict(dict(asked=time.time()), **arguments))
    assert not result['changed']
    return result


def test_the_module_tells_what_is_there(tmpdir):
    result = look(commands=['sh', 'no-such-command'], folders=[str(tmpdir.join('not', 'yet'))])
    assert result['missing'] == ['no-such-command']
    assert 0 <= result['ahead'] < 60
    folder, = result['folders']
    assert folder['error'] == '' and folder['free'] > 0 and folder['path'].endswith('/not/yet')
    assert look(asked=time.time() - 3600)['ahead'] >= 3600


def test_a_secret_is_told_by_digest_alone_and_the_last_one_counts(tmpdir):
    conf = tmpdir.join('nova.conf')
    conf.write('[DEFAULT]\nquantum_metadata_proxy_shared_secret = first\n#metadata_proxy_shared_secret = no\n'
               '[neutron]\n  metadata_proxy_shared_secret=the real one \n')
    result = look(secrets=[dict(path=path, option=SECRET) for path in (str(conf), str(conf) + '.away')])
    digest = precheck_findings.precheck_digest('the real one')
    assert result['secrets'] == [dict(path=str(conf), digest=digest)] and len(digest) == 12
    assert 'the real one' not in result.text and 'first' not in result.text
    assert precheck_findings.precheck_digest('') == ''
