"""nova-api-metadata as Folsom's nova behaves once it is patched for overlapping networks.

What it keeps of nova's nova/api/metadata:
- nova.conf is read at start and never again;
- `GET /` answers the list of versions to anybody (bug 1192774);
- behind the proxy (option on), headers are checked in the order instance id, signature, tenant:
  missing is 400 (bugs 1235450, 1408625), a wrong signature 403, an unknown instance or another's
  tenant 404;
- without it (option off) the asker's address decides: none has it 404, several have it 500;
- methods are not looked at but for the password, so a POST elsewhere is a GET;
- `local-ipv4` is what X-Forwarded-For said, not what the cloud knows (bug 1097524): so a proxy that
  sends a wrong one is seen; without the field it is the text None;
- every good answer is `text/html; charset=UTF-8`, whatever it is (bug 1243878);
- the trees are those of Folsom, with Grizzly's `2013-04-04` on the OpenStack side for the password.
On purpose different: a path below a value is 404 (nova fails), and there is no 15 s cache per
instance.
"""
import base64
import collections
import configparser
import hashlib
import hmac
import json
import os
import posixpath
import threading

from .http import Response, error_response

VERSIONS = ['1.0', '2007-01-19', '2007-03-01', '2007-08-29', '2007-10-10', '2007-12-15',
            '2008-02-01', '2008-09-01', '2009-04-04']
OPENSTACK_VERSIONS = ['2012-08-10', '2013-04-04']
_TRUE, _FALSE = ('1', 'yes', 'true', 'on'), ('0', 'no', 'false', 'off')
_TRY_AGAIN = 'An unknown error has occurred. Please try your request again.'
_NOT_FOUND = 'The resource could not be found.'
_BAD_REQUEST = ('The server could not comply with the request since\n'
                'it is either malformed or otherwise incorrect.\n')

Options = collections.namedtuple('Options', 'proxied secret use_forwarded_for dhcp_domain')


class ConfError(Exception):
    """A nova.conf that cannot be used; the message names file, option and what was expected."""


class Fault(Exception):
    """A request that nova refuses: status and explanation."""

    def __init__(self, status, explanation):
        super().__init__(explanation)
        self.status = status


def read_options(path):
    """The Options in the nova.conf at `path`. Today's names win over Havana's, those over
    Folsom's."""
    parser = configparser.RawConfigParser(strict=False, allow_no_value=True,
                                          default_section='(none)')
    parser.optionxform = str        # nova's option names are case-sensitive
    try:
        with open(path, encoding='utf-8') as file:
            parser.read_file(file)
    except OSError as error:
        raise ConfError('%s: %s' % (path, error.strerror)) from None
    except (configparser.Error, UnicodeDecodeError) as error:     # whose text may hold the secret
        where = getattr(error, 'lineno', '?')
        raise ConfError('%s: line %s: expected ini text' % (path, where)) from None

    def text(default, *places):
        for section, name in places:
            value = parser.get(section, name, fallback=None)
            if value is not None:
                quoted = len(value) > 1 and value[0] == value[-1] and value[0] in '"\''
                return value[1:-1] if quoted else value
        return default

    def flag(*places):
        word = text('false', *places).lower()
        if word not in _TRUE + _FALSE:
            raise ConfError('%s: %s: expected a boolean' % (path, places[0][1]))
        return word in _TRUE

    return Options(
        flag(('neutron', 'service_metadata_proxy'), ('DEFAULT', 'service_neutron_metadata_proxy'),
             ('DEFAULT', 'service_quantum_metadata_proxy')),
        text('', ('neutron', 'metadata_proxy_shared_secret'),
             ('DEFAULT', 'neutron_metadata_proxy_shared_secret'),
             ('DEFAULT', 'quantum_metadata_proxy_shared_secret')),
        flag(('DEFAULT', 'use_forwarded_for')), text('novalocal', ('DEFAULT', 'dhcp_domain')))


class Passwords:
    """What instances posted as their password, kept in the JSON file `path` as base64 by uuid."""

    def __init__(self, path):
        self.path = path
        self._lock = threading.Lock()

    @classmethod
    def beside(cls, state_path):
        """The passwords of the cloud that `state_path` describes."""
        return cls(os.path.join(os.path.dirname(os.path.abspath(state_path)), 'passwords.json'))

    def get(self, uuid):
        """The password in bytes; empty where none was posted."""
        with self._lock:
            return base64.b64decode(self._load().get(uuid, ''))

    def put(self, uuid, password):
        """Keep `password`; False where there is one already. An empty one counts as none, as in
        nova."""
        with self._lock:
            known = self._load()
            if known.get(uuid):
                return False
            known[uuid] = base64.b64encode(password).decode('ascii')
            draft = self.path + '.new'
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(fd, 'w') as file:
                json.dump(known, file)
            os.replace(draft, self.path)
            return True

    def _load(self):
        try:
            with open(self.path) as file:
                return json.load(file)
        except FileNotFoundError:
            return {}


class Metadata:
    """The metadata API over a StateFile, with the Options of nova.conf and the Passwords."""

    def __init__(self, state, options, passwords):
        self.state, self.options, self.passwords = state, options, passwords

    def __call__(self, request):
        if posixpath.normpath(request.path) == '/':
            return _good(_listing(VERSIONS + ['latest']))
        cloud = self.state.cloud
        try:
            find = self._by_headers if self.options.proxied else self._by_address
            instance, address = find(cloud, request)
            return self._lookup(cloud, instance, address, request)
        except Fault as fault:
            return error_response(request, fault.status, str(fault))
        except KeyError:
            return error_response(request, 404, _NOT_FOUND)

    def _by_headers(self, cloud, request):
        instance_id, tenant_id, signature = (
            request.header(name)
            for name in ('X-Instance-ID', 'X-Tenant-ID', 'X-Instance-ID-Signature'))
        for name, value in (('X-Instance-ID', instance_id), ('X-Instance-ID-Signature', signature),
                            ('X-Tenant-ID', tenant_id)):
            if value is None:
                raise Fault(400, '%s header is missing from request.' % name)
        expected = hmac.new(self.options.secret.encode('utf-8'), instance_id.encode('latin-1'),
                            hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected.encode(), signature.encode('latin-1')):
            raise Fault(403, 'Invalid proxy request signature.')
        instance = cloud.instances[instance_id]
        if instance['tenant_id'] != tenant_id:
            raise Fault(404, _NOT_FOUND)
        return instance, request.header('X-Forwarded-For')

    def _by_address(self, cloud, request):
        address = request.peer[0]
        if self.options.use_forwarded_for:
            address = request.header('X-Forwarded-For') or address
        found = [i for i in cloud.instances.values() if i['fixed_ip'] == address]
        if len(found) > 1:
            raise Fault(500, _TRY_AGAIN)
        if not found:
            raise Fault(404, _NOT_FOUND)
        return found[0], address

    def _lookup(self, cloud, instance, address, request):
        """The answer for the request's path; KeyError where there is nothing."""
        words = posixpath.normpath('/' + request.path).strip('/').split('/')
        if words[0] == 'openstack':
            return self._openstack(cloud, instance, words[1:], request)
        if words[0] == 'ec2':
            words = words[1:]
        if not words or words == ['']:
            return _good(_listing(VERSIONS + ['latest']))
        version = VERSIONS[-1] if words[0] == 'latest' else words[0]
        if version not in VERSIONS:
            raise KeyError(version)
        value = ec2_tree(instance, address, self._hostname(instance), version)
        for word in words[1:]:
            if not isinstance(value, dict):
                raise KeyError(word)
            value = value[word]
        return _good(_listing(value))

    def _openstack(self, cloud, instance, words, request):
        if not words:
            return _good(_listing(OPENSTACK_VERSIONS + ['latest']))
        version = OPENSTACK_VERSIONS[-1] if words[0] == 'latest' else words[0]
        if version not in OPENSTACK_VERSIONS:
            raise KeyError(version)
        grizzly = version == OPENSTACK_VERSIONS[-1]
        path, user_data = '/'.join(words[1:]), instance['user_data']
        if not path:
            return _good(_listing(['meta_data.json'] + ['user_data'] * (user_data is not None)
                                  + ['password'] * grizzly))
        if path == 'meta_data.json':
            data = openstack_metadata(instance, self._hostname(instance), grizzly)
            return _good(json.dumps(data))
        if path == 'user_data' and user_data is not None:
            return _good(user_data)
        if path == 'password' and grizzly:
            return self._password(cloud, instance, request)
        raise KeyError(path)

    def _password(self, cloud, instance, request):
        if request.method == 'GET':
            return _good(self.passwords.get(instance['uuid']))
        if request.method != 'POST':
            raise Fault(400, _BAD_REQUEST)
        conflict = Fault(409, 'There was a conflict when trying to complete your request.')
        if self.passwords.get(instance['uuid']):
            raise conflict
        if len(request.body) > cloud.password_max:
            raise Fault(400, 'Request is too large.')
        if not self.passwords.put(instance['uuid'], request.body):
            raise conflict          # another request was faster
        return _good(b'')

    def _hostname(self, instance):
        domain = self.options.dhcp_domain
        return '%s.%s' % (instance['hostname'], domain) if domain else instance['hostname']


class Keys(dict):
    """A folder that its parent's listing shows as `label`, without a slash: nova's way with public
    keys."""

    label = ''


def ec2_tree(instance, address, hostname, version):
    """What stands below /`version`/, as nested dicts (folders), lists (listed only), text and
    bytes."""
    def since(first):
        return VERSIONS.index(version) >= VERSIONS.index(first)

    data = {'ami-id': instance['image_id'], 'ami-launch-index': str(instance['launch_index']),
            'ami-manifest-path': 'FIXME', 'instance-id': instance['ec2_id'], 'hostname': hostname,
            'local-ipv4': str(address), 'reservation-id': instance['reservation_id'],
            'security-groups': instance['security_groups']}
    if instance['key_name']:
        key = Keys({'openssh-key': instance['key_data']})
        key.label = '0=' + instance['key_name']
        data['public-keys'] = {'0': key}
    if since('2007-01-19'):
        data.update({'local-hostname': hostname, 'public-hostname': hostname,
                     'public-ipv4': instance['public_ip']})
    if since('2007-08-29'):
        data['instance-type'] = instance['instance_type']
    if since('2007-12-15'):
        data['block-device-mapping'] = {'ami': 'vda', 'root': '/dev/vda'}
    if since('2008-02-01'):
        data['placement'] = {'availability-zone': instance['availability_zone']}
    if since('2008-09-01'):
        data['instance-action'] = 'none'
    tree = {'meta-data': data}
    if instance['user_data'] is not None:
        tree['user-data'] = instance['user_data']
    return tree


def openstack_metadata(instance, hostname, grizzly):
    """The content of meta_data.json; `grizzly` adds the random seed, new at every request."""
    data = {'uuid': instance['uuid'], 'name': instance['name'], 'hostname': hostname,
            'launch_index': instance['launch_index'],
            'availability_zone': instance['availability_zone']}
    if instance['metadata']:
        data['meta'] = instance['metadata']
    if instance['key_name']:
        data['public_keys'] = {instance['key_name']: instance['key_data']}
    if grizzly:
        data['random_seed'] = base64.b64encode(os.urandom(512)).decode('ascii')
    return data


def _listing(value):
    """A folder as its sorted names, folders in it with a slash; a list as lines; else the value."""
    if isinstance(value, dict):
        return '\n'.join(_name(key, value[key]) for key in sorted(value))
    return '\n'.join(value) if isinstance(value, list) else value


def _name(key, value):
    if isinstance(value, Keys):
        return value.label
    return key + '/' if isinstance(value, dict) else key


def _good(body):
    return Response(200, body, 'text/html; charset=UTF-8')
