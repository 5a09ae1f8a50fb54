"""nova's stand-in: whom it believes, what it serves, which status each fault has."""
import sys

import pytest

if sys.version_info < (3, 9):
    pytest.skip('the stand-in runs on the lab\'s API host, which has 3.9', allow_module_level=True)

import base64
import hashlib
import hmac
import json
import os
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from test_cloudstub_server import GUEST_A, GUEST_B, USER_DATA, Lab, ask, command, state

FOLSOM = '[DEFAULT]\nservice_quantum_metadata_proxy = True\n' \
         'quantum_metadata_proxy_shared_secret = hush\n'
EC2_VERSIONS = b'1.0\n2007-01-19\n2007-03-01\n2007-08-29\n2007-10-10\n2007-12-15\n2008-02-01\n' \
               b'2008-09-01\n2009-04-04\nlatest'


def sign(instance_id, secret=b'hush'):
    """The signature that the agent makes."""
    return hmac.new(secret, instance_id.encode('latin-1'), hashlib.sha256).hexdigest()


def headers(uuid=GUEST_A, tenant='tenant-a', **changes):
    """What the agent sends; a change to None leaves the field out."""
    fields = {'X-Forwarded-For': '10.0.0.3', 'X-Instance-ID': uuid, 'X-Tenant-ID': tenant,
              'X-Instance-ID-Signature': sign(uuid)}
    fields.update((name.replace('_', '-'), value) for name, value in changes.items())
    return [(name, value) for name, value in fields.items() if value is not None]


class Nova(object):
    """A running metadata API and ways to ask it."""

    def __init__(self, folder, conf=FOLSOM, **changes):
        self.lab = Lab(folder, **changes)
        self.conf_path = os.path.join(self.lab.folder, 'nova.conf')
        self.write(conf)
        self.port = self.lab.start('nova', '--nova-conf', self.conf_path)

    def write(self, conf):
        """Replace nova.conf."""
        with open(self.conf_path, 'w') as file:
            file.write(conf)

    def get(self, target, fields=None, **more):
        """The answer to the first guest's agent unless other fields are given."""
        return ask(self.port, target, headers() if fields is None else fields, **more)

    def text(self, target, fields=None):
        """The body of a good answer."""
        answer = self.get(target, fields)
        assert answer.status == 200, answer
        return answer.body


@pytest.fixture
def nova(tmp_path):
    running = Nova(tmp_path)
    yield running
    running.lab.close()


# --- whom it believes

@pytest.mark.parametrize('fields, status, text', [
    (headers(), 200, b'i-0000000a'),
    (headers(GUEST_B, 'tenant-b'), 200, b'i-0000000b'),
    (headers(X_Instance_ID=None), 400, b'X-Instance-ID header is missing'),
    (headers(X_Tenant_ID=None), 400, b'X-Tenant-ID header is missing'),
    (headers(X_Instance_ID_Signature=None), 400, b'X-Instance-ID-Signature header is missing'),
    ([], 400, b'X-Instance-ID header is missing'),
    (headers(X_Instance_ID_Signature='0' * 64), 403, b'Invalid proxy request signature.'),
    (headers(X_Instance_ID_Signature=''), 403, b'Invalid proxy request signature.'),
    (headers(X_Instance_ID_Signature='\xe9'), 403, b'Invalid proxy request signature.'),
    (headers(X_Instance_ID_Signature=sign(GUEST_A, b'')), 403, b'Invalid proxy request signature.'),
    (headers(X_Instance_ID_Signature=sign(GUEST_A).upper()), 403, b'Invalid proxy'),
    (headers(X_Instance_ID=GUEST_B), 403, b'Invalid proxy request signature.'),
    (headers('no-such-instance'), 404, b'could not be found'),
    (headers(tenant='tenant-b'), 404, b'could not be found'),
    (headers(tenant=''), 404, b'could not be found'),
    (headers(X_Tenant_ID='tenant-b', X_Instance_ID_Signature='0'), 403, b'Invalid proxy'),
])
def test_what_the_agent_must_send(nova, fields, status, text):
    answer = nova.get('/latest/meta-data/instance-id', fields)
    assert answer.status == status and text in answer.body


@pytest.mark.parametrize('more, status', [
    ([('X-Instance-ID', GUEST_A)], 403), ([('x_instance_id', GUEST_B)], 403),
    ([('X-Tenant-ID', 'tenant-b')], 404), ([('X_Tenant_ID', 'tenant-b')], 404)])
def test_a_second_field_that_slipped_through_spoils_the_request(nova, more, status):
    assert nova.get('/latest/meta-data/instance-id', headers() + more).status == status


def test_an_underscore_is_a_dash_as_in_any_wsgi_service(nova):
    fields = headers(X_Tenant_ID=None) + [('x_tenant_id', 'tenant-a')]
    assert nova.get('/latest/meta-data/instance-id', fields).status == 200


def test_the_version_list_is_for_anybody(nova):
    assert nova.text('/', []) == EC2_VERSIONS
    assert nova.get('/latest', []).status == 400


def test_the_local_address_is_what_the_proxy_says(nova):
    path = '/latest/meta-data/local-ipv4'
    assert nova.text(path) == b'10.0.0.3'
    assert nova.text(path, headers(X_Forwarded_For='10.9.9.9')) == b'10.9.9.9'
    assert nova.text(path, headers(X_Forwarded_For=None)) == b'None'


def test_with_the_option_off_the_address_decides_and_headers_mean_nothing(tmp_path):
    nova = Nova(tmp_path, '[DEFAULT]\n')
    assert nova.get('/latest/meta-data/instance-id').status == 404
    nova.lab.close()


def test_with_the_option_off_a_guest_at_the_askers_address_is_found(tmp_path):
    data = state()
    data['routers'][0]['networks'][0].update(cidr='127.0.0.0/8', gateway_ip='127.0.0.254')
    data['instances'][0]['fixed_ip'] = '127.0.0.1'
    nova = Nova(tmp_path, '[DEFAULT]\n', **data)
    assert nova.text('/latest/meta-data/instance-id', []) == b'i-0000000a'
    fields = [('X-Forwarded-For', '10.0.0.3')]
    assert nova.text('/latest/meta-data/local-ipv4', fields) == b'127.0.0.1'
    nova.lab.close()


def test_with_the_option_off_forwarded_for_counts_only_when_nova_is_told_so(tmp_path):
    data = state()
    data['instances'][1]['fixed_ip'] = '10.0.0.4'
    nova = Nova(tmp_path, '[DEFAULT]\nuse_forwarded_for = true\n', **data)
    path = '/latest/meta-data/instance-id'
    assert nova.text(path, [('X-Forwarded-For', '10.0.0.4')]) == b'i-0000000b'
    assert nova.get(path, [('X-Forwarded-For', '10.0.0.9')]).status == 404
    nova.lab.write(state())     # now both guests have one address, which is what all this is about
    assert nova.get(path, [('X-Forwarded-For', '10.0.0.3')]).status == 500
    nova.lab.close()


def test_nova_conf_is_read_at_start_only(nova):
    nova.write(FOLSOM.replace('hush', 'other'))
    assert nova.get('/latest/meta-data/instance-id').status == 200
    nova.port = nova.lab.start('nova', '--nova-conf', nova.conf_path)
    assert nova.get('/latest/meta-data/instance-id').status == 403


@pytest.mark.parametrize('text, proxied, secret', [
    ('', False, ''),
    (FOLSOM, True, 'hush'),
    ('[neutron]\nservice_metadata_proxy=1\nmetadata_proxy_shared_secret=now\n', True, 'now'),
    ('[DEFAULT]\nservice_neutron_metadata_proxy: yes\nneutron_metadata_proxy_shared_secret: havana',
     True, 'havana'),
    (FOLSOM + '[neutron]\nservice_metadata_proxy=off\nmetadata_proxy_shared_secret=now\n',
     False, 'now'),
    (FOLSOM.replace('hush', '"a b%s"'), True, 'a b%s'),
    (FOLSOM + '# a comment\nSERVICE_QUANTUM_METADATA_PROXY=false\n', True, 'hush'),
    (FOLSOM + 'service_quantum_metadata_proxy=false\n', False, 'hush'),
    ('[neutron]\n' + FOLSOM.partition('\n')[2], False, ''),
])
def test_the_options_names_of_all_releases(tmp_path, text, proxied, secret):
    path = tmp_path / 'nova.conf'
    path.write_text(text)
    options = command.read_options(str(path))
    assert (options.proxied, options.secret) == (proxied, secret)


# --- the EC2 tree

@pytest.mark.parametrize('path, text', [
    ('/ec2', EC2_VERSIONS),
    ('/latest', b'meta-data/\nuser-data'),
    ('/latest/', b'meta-data/\nuser-data'),
    ('/ec2/latest/', b'meta-data/\nuser-data'),
    ('/latest/meta-data/', b'ami-id\nami-launch-index\nami-manifest-path\nblock-device-mapping/\n'
     b'hostname\ninstance-action\ninstance-id\ninstance-type\nlocal-hostname\nlocal-ipv4\nplacement/\n'
     b'public-hostname\npublic-ipv4\nreservation-id\nsecurity-groups'),
    ('/1.0/meta-data', b'ami-id\nami-launch-index\nami-manifest-path\nhostname\ninstance-id\n'
     b'local-ipv4\nreservation-id\nsecurity-groups'),
    ('/2009-04-04/meta-data/instance-id', b'i-0000000a'),
    ('/latest/meta-data/instance-id/', b'i-0000000a'),
    ('/latest//meta-data/x/../instance-id', b'i-0000000a'),
    ('/latest/meta-data/instance%2Did?q=1', b'i-0000000a'),
    ('/latest/meta-data/hostname', b'guest-a.novalocal'),
    ('/latest/meta-data/local-hostname', b'guest-a.novalocal'),
    ('/latest/meta-data/placement/', b'availability-zone'),
    ('/latest/meta-data/placement/availability-zone', b'nova'),
    ('/latest/meta-data/security-groups', b'default'),
    ('/latest/meta-data/public-ipv4', b''),
    ('/latest/user-data', USER_DATA),
    ('/1.0/user-data', USER_DATA),
])
def test_the_ec2_tree(nova, path, text):
    assert nova.text(path) == text


def test_public_keys_are_there_when_the_instance_has_one(tmp_path):
    data = state()
    data['instances'][0].update(key_name='mine', key_data='ssh-rsa AAAA mine')
    nova = Nova(tmp_path, **data)
    assert b'public-keys/' in nova.text('/latest/meta-data/').split(b'\n')
    assert nova.text('/latest/meta-data/public-keys/') == b'0=mine'
    assert nova.text('/latest/meta-data/public-keys/0/') == b'openssh-key'
    assert nova.text('/latest/meta-data/public-keys/0/openssh-key') == b'ssh-rsa AAAA mine'
    assert json.loads(nova.text('/openstack/latest/meta_data.json'))['public_keys'] == {
        'mine': 'ssh-rsa AAAA mine'}
    nova.lab.close()


@pytest.mark.parametrize('path', [
    '/nothing', '/latest/nothing', '/latest/meta-data/nothing', '/latest/meta-data/public-keys',
    '/latest/meta-data/instance-id/0', '/latest/meta-data/security-groups/default', '/2030-01-01/',
    '/1.0/meta-data/placement', '/openstack/latest/nothing', '/openstack/1.0', '/openstack/content',
    '/openstack/2012-08-10/password', '/openstack/latest/meta_data.json/uuid'])
def test_an_unknown_path_is_404(nova, path):
    assert nova.get(path).status == 404


def test_a_guest_without_user_data_has_none_and_no_name_for_it(nova):
    other = headers(GUEST_B, 'tenant-b')
    assert nova.get('/latest/user-data', other).status == 404
    assert nova.get('/openstack/latest/user_data', other).status == 404
    assert nova.text('/latest', other) == b'meta-data/'
    assert nova.text('/openstack/latest', other) == b'meta_data.json\npassword'


# --- the OpenStack tree

def test_the_openstack_tree(nova):
    assert nova.text('/openstack') == b'2012-08-10\n2013-04-04\nlatest'
    assert nova.text('/openstack/latest/') == b'meta_data.json\nuser_data\npassword'
    assert nova.text('/openstack/2012-08-10') == b'meta_data.json\nuser_data'
    assert nova.text('/openstack/latest/user_data') == USER_DATA


def test_meta_data_json_tells_who_the_guest_is(nova):
    data = json.loads(nova.text('/openstack/latest/meta_data.json'))
    assert len(base64.b64decode(data.pop('random_seed'))) == 512
    assert data == {'uuid': GUEST_A, 'name': 'Guest_a', 'hostname': 'guest-a.novalocal',
                    'launch_index': 0, 'availability_zone': 'nova'}
    assert 'random_seed' not in json.loads(nova.text('/openstack/2012-08-10/meta_data.json'))


def test_every_good_answer_calls_itself_html(nova):
    for path in ('/', '/latest/user-data', '/openstack/latest/meta_data.json'):
        assert nova.get(path).headers['Content-Type'] == 'text/html; charset=UTF-8'


@pytest.mark.parametrize('accept, kind, start', [
    ('*/*', 'text/html', b'<html>'), ('text/html', 'text/html', b'<html>'),
    ('text/plain', 'text/plain', b'404 Not Found\n\n'), (None, 'text/plain', b'404 Not Found\n\n')])
def test_an_error_is_html_for_those_who_accept_it(nova, accept, kind, start):
    answer = nova.get('/nothing', headers(Accept=accept))
    assert answer.headers['Content-Type'] == kind + '; charset=UTF-8'
    assert answer.body.startswith(start) and b'could not be found' in answer.body
    assert answer.reason == 'Not Found'


def test_head_is_get_without_the_body(nova):
    answer = nova.get('/latest/user-data', method='HEAD')
    assert (answer.status, answer.body) == (200, b'')
    assert int(answer.headers['Content-Length']) == len(USER_DATA)
    assert nova.get('/latest/nothing', method='HEAD').status == 404


# --- the password

PASSWORD = '/openstack/latest/password'


def test_a_password_is_posted_once_and_read_back(nova):
    secret = bytes(range(255))
    assert nova.text(PASSWORD) == b''
    answer = nova.get(PASSWORD, body=secret, method='POST')
    assert (answer.status, answer.body) == (200, b'')
    assert nova.text(PASSWORD) == secret
    answer = nova.get(PASSWORD, body=b'other', method='POST')
    assert (answer.status, answer.reason) == (409, 'Conflict')
    assert nova.text(PASSWORD) == secret
    assert nova.text(PASSWORD, headers(GUEST_B, 'tenant-b')) == b''


def test_a_password_outlives_a_restart(nova):
    nova.get(PASSWORD, body=b'kept', method='POST')
    nova.port = nova.lab.start('nova', '--nova-conf', nova.conf_path)
    assert nova.text(PASSWORD) == b'kept'
    assert os.stat(os.path.join(nova.lab.folder, 'passwords.json')).st_mode & 0o777 == 0o600


def test_a_password_too_large_is_400_and_not_kept(nova):
    answer = nova.get(PASSWORD, body=b'x' * 256, method='POST')
    assert answer.status == 400 and b'Request is too large.' in answer.body
    assert nova.text(PASSWORD) == b''


def test_the_limit_of_a_password_may_be_that_of_later_novas(tmp_path):
    nova = Nova(tmp_path, password_max=1020)
    assert nova.get(PASSWORD, body=b'x' * 1021, method='POST').status == 400
    assert nova.get(PASSWORD, body=b'x' * 1020, method='POST').status == 200
    nova.lab.close()


def test_an_empty_password_is_none(nova):
    assert nova.get(PASSWORD, body=b'', method='POST').status == 200
    assert nova.get(PASSWORD, body=b'now', method='POST').status == 200
    assert nova.text(PASSWORD) == b'now'


@pytest.mark.parametrize('method', ['PUT', 'DELETE', 'HEAD'])
def test_other_methods_on_the_password_are_400(nova, method):
    assert nova.get(PASSWORD, method=method).status == 400


def test_a_kept_password_is_never_replaced(tmp_path):
    passwords = command.Passwords(str(tmp_path / 'passwords.json'))
    assert passwords.put(GUEST_A, b'first') and not passwords.put(GUEST_A, b'second')
    assert passwords.get(GUEST_A) == b'first'


def test_of_many_posts_at_once_one_wins(nova):
    statuses = []

    def post(number):
        statuses.append(nova.get(PASSWORD, body=b'%d' % number, method='POST').status)

    threads = [threading.Thread(target=post, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(statuses) == [200] + [409] * 11


# --- the records

def test_what_the_agent_sent_is_on_record_also_when_refused(nova):
    nova.get('/latest/meta-data/', headers(X_Instance_ID_Signature='0'))
    nova.get(PASSWORD, body=b'\0x', method='POST')
    first, second = nova.lab.records('nova')
    assert first['status'] == 403
    assert [name for name, _ in first['headers']] == [
        'Host', 'X-Forwarded-For', 'X-Instance-ID', 'X-Tenant-ID', 'X-Instance-ID-Signature']
    assert (second['status'], base64.b64decode(second['body'])) == (200, b'\0x')
