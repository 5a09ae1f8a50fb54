"""Keystone: version discovery and tokens, v2.0 as Folsom and v3 as Grizzly answer.

One user, the admin of the state file, and one tenant; a scope is that tenant or none, and an
unscoped token comes with an empty catalog. Refusals have Keystone's shape, `{"error": {code, title,
message}}`, with 'Not Authorized' as title and reason of 401 (Folsom's exception.py). v3 knows the
domain id `default`, name `Default`.
"""
import json
import time

from .http import json_response
from .state import made_id

_TITLES = {400: 'Bad Request', 401: 'Not Authorized', 404: 'Not Found'}
_UNAUTHORIZED = 'The request you have made requires authentication.'
_MALFORMED = ('Expecting to find %s in %s. The server could not comply with the request since it '
              'is either malformed or otherwise incorrect. The client is assumed to be in error.')
_DOMAIN = {'id': 'default', 'name': 'Default'}
_JSON = 'application/vnd.openstack.identity-%s+json'


class Refused(Exception):
    """A request that Keystone refuses: the status and the message of the answer."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class Keystone:
    """The identity API over a StateFile, issuing from Tokens."""

    def __init__(self, state, tokens):
        self.state, self.tokens = state, tokens

    def __call__(self, request):
        cloud, path = self.state.cloud, request.path.rstrip('/')
        base = 'http://' + request.header('Host') if request.header('Host') else cloud.identity_url
        read = request.method in ('GET', 'HEAD')
        try:
            if read and path == '':
                versions = [_version('v2.0', base), _version('v3', base)]
                return _reply(300, {'versions': {'values': versions}})
            if read and path in ('/v2.0', '/v3'):
                return _reply(200, {'version': _version(path[1:], base)})
            if request.method == 'POST' and path == '/v2.0/tokens':
                return self._token_v2(cloud, request)
            if request.method == 'POST' and path == '/v3/auth/tokens':
                return self._token_v3(cloud, request)
            raise Refused(404, 'The resource could not be found.')
        except Refused as error:
            title = _TITLES[error.status]
            return _reply(error.status, {'error': {
                'code': error.status, 'title': title, 'message': str(error)}}, reason=title)

    def _token_v2(self, cloud, request):
        auth = _object(_body(request), 'auth', 'request body')
        given = _object(auth, 'passwordCredentials', 'auth')
        _check_user(cloud, given.get('username'), given.get('userId'), given.get('password'))
        scoped = _check_tenant(cloud, auth.get('tenantName'), auth.get('tenantId'))
        token, expiry = self.tokens.issue(cloud.token_lifetime, cloud.tenant_id if scoped else '')
        entry = {'id': token, 'expires': _time(expiry, '')}
        if scoped:
            entry['tenant'] = {'id': cloud.tenant_id, 'name': cloud.tenant, 'description': None,
                               'enabled': True}
        roles = [{'name': 'admin'}] if scoped else []
        user = {'id': cloud.user_id, 'name': cloud.user, 'username': cloud.user, 'roles': roles,
                'roles_links': []}
        ids = [made_id('role', 'admin')] if scoped else []
        return _reply(200, {'access': {
            'token': entry, 'user': user, 'metadata': {'is_admin': 0, 'roles': ids},
            'serviceCatalog': _catalog_v2(cloud) if scoped else []}})

    def _token_v3(self, cloud, request):
        auth = _object(_body(request), 'auth', 'request body')
        identity = _object(auth, 'identity', 'auth')
        if identity.get('methods') != ['password']:
            raise Refused(401, 'Attempted to authenticate with an unsupported method.')
        user = _object(_object(identity, 'password', 'identity'), 'user', 'password')
        _check_domain(user, 'user')
        _check_user(cloud, user.get('name'), user.get('id'), user.get('password'))
        scoped = 'scope' in auth
        if scoped:
            project = _object(_object(auth, 'scope', 'auth'), 'project', 'scope')
            _check_domain(project, 'project')
            _check_tenant(cloud, project.get('name'), project.get('id'))
        token, expiry = self.tokens.issue(cloud.token_lifetime, cloud.tenant_id if scoped else '')
        entry = {'methods': ['password'], 'extras': {}, 'issued_at': _time(time.time(), '.%06d'),
                 'expires_at': _time(expiry, '.%06d'),
                 'user': {'id': cloud.user_id, 'name': cloud.user, 'domain': _DOMAIN}}
        if scoped:
            entry['project'] = {'id': cloud.tenant_id, 'name': cloud.tenant, 'domain': _DOMAIN}
            entry['roles'] = [{'id': made_id('role', 'admin'), 'name': 'admin'}]
            entry['catalog'] = _catalog_v3(cloud)
        return _reply(201, {'token': entry}, [('X-Subject-Token', token)])


def _reply(status, data, headers=(), reason=None):
    return json_response(status, data, [('Vary', 'X-Auth-Token')] + list(headers), reason)


def _body(request):
    """The body's JSON object. Keystone takes a missing Content-Type for JSON."""
    kind = (request.header('Content-Type') or '').partition(';')[0].strip()
    if kind not in ('', 'application/json'):
        raise Refused(400, _MALFORMED % ('application/json', 'Content-Type header'))
    try:
        data = json.loads(request.body)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise Refused(400, _MALFORMED % ('valid JSON', 'request body'))
    return data


def _object(data, name, where):
    if not isinstance(data.get(name), dict):
        raise Refused(400, _MALFORMED % (name, where))
    return data[name]


def _check_user(cloud, name, user_id, password):
    if not (name == cloud.user or (name is None and user_id == cloud.user_id)):
        raise Refused(401, _UNAUTHORIZED)
    if password != cloud.password:
        raise Refused(401, 'Invalid user / password')


def _check_tenant(cloud, name, tenant_id):
    """Whether a tenant is asked for at all; Refused where it is not the user's."""
    if not name and not tenant_id:
        return False
    if not (name == cloud.tenant or (not name and tenant_id == cloud.tenant_id)):
        raise Refused(401, _UNAUTHORIZED)
    return True


def _check_domain(entry, what):
    """In v3 a name means something only within its domain."""
    if entry.get('name') is None:
        if entry.get('id') is None:
            raise Refused(400, _MALFORMED % ('id or name', what))
        return
    domain = _object(entry, 'domain', what)
    if domain.get('id') != 'default' and domain.get('name') != 'Default':
        raise Refused(401, _UNAUTHORIZED)


def _time(seconds, fraction):
    """ISO 8601 in UTC. v2.0 cuts the fraction off, so a token is never shown to live longer than it
    does."""
    text = time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))
    return text + (fraction % (seconds % 1 * 1000000) if fraction else '') + 'Z'


def _version(name, base):
    return {'id': 'v3.0' if name == 'v3' else name, 'status': 'stable',
            'updated': '2013-03-06T00:00:00Z',
            'links': [{'rel': 'self', 'href': '%s/%s/' % (base, name)}],
            'media-types': [{'base': 'application/json', 'type': _JSON % name}]}


def _services(cloud):
    """What the catalog lists: (type, name, URL per version of the identity API)."""
    return (('network', cloud.family, cloud.network_url, cloud.network_url),
            ('identity', 'keystone', cloud.identity_url + '/v2.0', cloud.identity_url + '/v3'))


def _catalog_v2(cloud):
    return [{'type': kind, 'name': name, 'endpoints_links': [], 'endpoints': [{
        'id': made_id('endpoint', kind), 'region': cloud.region,
        'publicURL': url, 'internalURL': url, 'adminURL': url}]}
            for kind, name, url, _ in _services(cloud)]


def _catalog_v3(cloud):
    return [{'type': kind, 'name': name, 'id': made_id('service', kind), 'endpoints': [
        {'id': made_id('endpoint', kind, interface), 'interface': interface, 'url': url,
         'region': cloud.region, 'region_id': cloud.region}
        for interface in ('public', 'internal', 'admin')]}
            for kind, name, _, url in _services(cloud)]
