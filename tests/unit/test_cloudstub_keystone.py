"""Keystone's stand-in: discovery, tokens in both versions, refusals in Keystone's own shape."""
import sys

import pytest

if sys.version_info < (3, 9):
    pytest.skip('the stand-in runs on the lab\'s API host, which has 3.9', allow_module_level=True)

import calendar
import json
import os
import re
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from test_cloudstub_server import Lab, ask, command


class Login(object):
    """A running Keystone and ways to ask it."""

    def __init__(self, lab):
        self.lab, self.port = lab, lab.start('keystone')
        self.tokens = command.Tokens.beside(lab.state_path)

    def post(self, target, data, headers=(('Content-Type', 'application/json'),)):
        """The answer and its JSON."""
        body = data if isinstance(data, bytes) else json.dumps(data).encode('ascii')
        answer = ask(self.port, target, headers, body, 'POST')
        return answer, json.loads(answer.body)

    def v2(self, password='pass', user='quantum', **scope):
        """A v2.0 login."""
        auth = dict({'passwordCredentials': {'username': user, 'password': password}}, **scope)
        return self.post('/v2.0/tokens', {'auth': auth})

    def v3(self, password='pass', domain='Default', project='service', **user):
        """A v3 login, scoped to `project` unless that is None."""
        user = dict({'name': 'quantum', 'domain': {'name': domain}, 'password': password}, **user)
        auth = {'identity': {'methods': ['password'], 'password': {'user': user}}}
        if project:
            auth['scope'] = {'project': {'name': project, 'domain': {'id': 'default'}}}
        return self.post('/v3/auth/tokens', {'auth': auth})


@pytest.fixture
def login(tmp_path):
    lab = Lab(tmp_path, token_lifetime=90)
    yield Login(lab)
    lab.close()


def seconds(text):
    """Seconds since the epoch of one of Keystone's times."""
    return calendar.timegm(time.strptime(re.sub(r'\.\d{6}Z$', 'Z', text), '%Y-%m-%dT%H:%M:%SZ'))


def test_a_v2_login_gives_a_token_its_end_and_the_catalog(login):
    before = time.time()
    answer, data = login.v2(tenantName='service')
    access = data['access']
    assert answer.status == 200 and answer.headers['Vary'] == 'X-Auth-Token'
    assert re.match(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$', access['token']['expires'])
    assert before + 88 < seconds(access['token']['expires']) <= time.time() + 90
    assert access['token']['tenant']['name'] == 'service'
    assert login.tokens.check(access['token']['id']) == access['token']['tenant']['id']
    assert access['user']['name'] == 'quantum' and access['user']['roles'] == [{'name': 'admin'}]
    network, = (s for s in access['serviceCatalog'] if s['type'] == 'network')
    endpoint, = network['endpoints']
    assert network['name'] == 'quantum' and endpoint['region'] == 'lab'
    for url in ('publicURL', 'internalURL', 'adminURL'):
        assert endpoint[url] == 'http://api1:9696'


def test_a_v3_login_gives_the_same_in_its_own_shape(login):
    before = time.time()
    answer, data = login.v3()
    token = data['token']
    assert answer.status == 201
    assert login.tokens.check(answer.headers['X-Subject-Token']) == token['project']['id']
    assert re.match(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$', token['expires_at'])
    assert before + 88 < seconds(token['expires_at']) <= time.time() + 90
    assert seconds(token['issued_at']) <= time.time()
    assert token['methods'] == ['password'] and token['project']['name'] == 'service'
    network, = (s for s in token['catalog'] if s['type'] == 'network')
    assert sorted((e['interface'], e['url'], e['region']) for e in network['endpoints']) == [
        (kind, 'http://api1:9696', 'lab') for kind in ('admin', 'internal', 'public')]


def test_both_versions_know_one_user_and_one_tenant(login):
    access, token = login.v2(tenantName='service')[1]['access'], login.v3()[1]['token']
    assert access['user']['id'] == token['user']['id']
    assert access['token']['tenant']['id'] == token['project']['id']
    ids = login.v2(tenantId=token['project']['id'])[1]['access']
    assert ids['token']['tenant']['name'] == 'service'


def test_without_a_scope_there_is_no_catalog(login):
    access = login.v2()[1]['access']
    assert access['serviceCatalog'] == [] and 'tenant' not in access['token']
    answer, data = login.v3(project=None)
    assert 'catalog' not in data['token'] and login.tokens.check(
        answer.headers['X-Subject-Token']) == ''


@pytest.mark.parametrize('version, case, message', [
    ('v2', {'password': 'wrong', 'tenantName': 'service'}, 'Invalid user / password'),
    ('v2', {'password': None, 'tenantName': 'service'}, 'Invalid user / password'),
    ('v2', {'user': 'nobody', 'tenantName': 'service'}, 'requires authentication'),
    ('v2', {'tenantName': 'other'}, 'requires authentication'),
    ('v2', {'tenantId': 'other'}, 'requires authentication'),
    ('v3', {'password': 'wrong'}, 'Invalid user / password'),
    ('v3', {'name': 'nobody'}, 'requires authentication'),
    ('v3', {'domain': 'other'}, 'requires authentication'),
    ('v3', {'project': 'other'}, 'requires authentication'),
])
def test_wrong_credentials_are_401_in_keystones_shape(login, version, case, message):
    answer, data = getattr(login, version)(**case)
    assert (answer.status, answer.reason) == (401, 'Not Authorized')
    assert data['error']['code'] == 401 and data['error']['title'] == 'Not Authorized'
    assert message in data['error']['message']
    assert 'X-Subject-Token' not in answer.headers


@pytest.mark.parametrize('target, body', [
    ('/v2.0/tokens', b'{'),
    ('/v2.0/tokens', b'[]'),
    ('/v2.0/tokens', b'\xff'),
    ('/v2.0/tokens', b''),
    ('/v2.0/tokens', b'[' * 100000),
    ('/v2.0/tokens', b'{"auth": 1}'),
    ('/v2.0/tokens', b'{"auth": {}}'),
    ('/v3/auth/tokens', b'{"auth": {}}'),
    ('/v3/auth/tokens',
     b'{"auth": {"identity": {"methods": ["password"], "password": {"user": {}}}}}'),
])
def test_a_body_that_is_no_login_is_400(login, target, body):
    answer, data = login.post(target, body)
    assert answer.status == 400 and data['error']['title'] == 'Bad Request'
    assert data['error']['message'].startswith('Expecting to find ')


def test_another_content_type_is_400_and_none_is_taken_for_json(login):
    body = {'auth': {'passwordCredentials': {'username': 'quantum', 'password': 'pass'}}}
    assert login.post('/v2.0/tokens', body, ())[0].status == 200
    assert login.post('/v2.0/tokens', body, [('Content-Type', 'text/plain')])[0].status == 400


def test_versions_can_be_discovered(login):
    answer = ask(login.port, '/')
    versions = json.loads(answer.body)['versions']['values']
    assert (answer.status, answer.reason) == (300, 'Multiple Choices')
    assert [v['id'] for v in versions] == ['v2.0', 'v3.0']
    for version in versions:
        link = version['links'][0]['href']
        target = link[link.index('/', len('http://')):]
        assert json.loads(ask(login.port, target).body)['version'] == version
    assert ask(login.port, '/v2.0').status == ask(login.port, '/v3').status == 200


@pytest.mark.parametrize('method, target', [
    ('GET', '/v4'), ('GET', '/v2.0/tokens'), ('POST', '/v2.0'), ('DELETE', '/v2.0/tokens')])
def test_an_unknown_path_is_404(login, method, target):
    answer = ask(login.port, target, method=method)
    assert answer.status == 404 and json.loads(answer.body)['error']['title'] == 'Not Found'


def test_the_key_and_a_login_are_for_their_owner_alone(login):
    login.v2()
    assert os.stat(login.tokens.path).st_mode & 0o777 == 0o600
    assert sorted(os.listdir(login.lab.folder)) == ['records', 'state.json', 'token.key']


def test_a_token_ends_when_it_says(login, monkeypatch):
    token, expiry = login.tokens.issue(90, 't')
    monkeypatch.setattr(time, 'time', lambda: expiry - 0.001)
    assert login.tokens.check(token) == 't'
    monkeypatch.setattr(time, 'time', lambda: expiry)
    assert login.tokens.check(token) is None


def test_a_token_is_nothing_without_its_key(login):
    token, _ = login.tokens.issue(90, 't')
    os.unlink(login.tokens.path)
    assert login.tokens.check(token) is None
    other, _ = login.tokens.issue(90, 't')
    assert login.tokens.check(token) is None and login.tokens.check(other) == 't'


def test_no_change_of_a_token_goes_unnoticed(login):
    token, _ = login.tokens.issue(90, 't')
    for position in range(len(token)):
        for other in ('0', '1', 'f', '.', '\xff'):
            changed = token[:position] + other + token[position + 1:]
            assert changed == token or login.tokens.check(changed) is None
    for broken in ('', '.', '...', 'x', token[:-1], token + '0'):
        assert login.tokens.check(broken) is None
