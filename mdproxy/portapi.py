"""Who owns an address: asks the Quantum/Neutron API which port has a fixed IP, or for a link-local
address which has its MAC address, behind a router or on a network.

Rules kept:

- A port counts only when it is on one of the router's own networks, has exactly this fixed IP (or
  this MAC address), and is not Quantum's own (router, DHCP). The API's filters only make the answer
  shorter; what counts is decided here, because a filter that is empty or unknown matches everything
  (bug 1348097). No networks: not found.
- One port is an answer. None and several are not, and are told apart.
- A tenant writes device_id itself. What is not a plain id never gets further, into a header say.
- The token is kept until shortly before it expires or until it is refused. It, and the networks of
  a router, are got by one thread for all that need them; when that fails, it failed for all.
- No wait without a limit, no answer without a limit in size, no redirect followed (it would get the
  token).

Theory of operation: all of it blocks, and is for threads (ports.PortLookup) and the command line.
`requests` is imported when a PortApi is made, not before (21-27 MB).
"""
import calendar
import collections
import functools
import importlib
import json
import logging
import re
import socket
import threading
import time

from . import trust
from .eventloop import monotonic
from .ports import CACHE_SIZE, ERROR, FOUND, MANY, NONE, Instance, Outcome

# With DVR and with HA the interfaces of a router have other owners.
ROUTER_INTERFACES = ('network:router_interface', 'network:router_interface_distributed',
                     'network:ha_router_replicated_interface')
_OPTIONS = ('auth_strategy', 'auth_url', 'auth_region', 'auth_ca_cert', 'admin_tenant_name', 'admin_user',
            'admin_password', 'admin_domain', 'endpoint_type', 'port_api_url', 'api_timeout',
            'cache_ttl')
_ANSWER_SIZE = 32 << 20     # bytes
_PIECE = 16384              # bytes read between two looks at the clock
_PAGES = 200
_RENEW_BEFORE = 30.0        # seconds before a token expires, if it lives ten times as long
_FIELDS = ('id', 'device_id', 'device_owner', 'network_id', 'tenant_id', 'project_id', 'fixed_ips',
           'mac_address')
_PLAIN_ID = re.compile(r'[0-9A-Za-z._-]{1,255}\Z')
_TIME = re.compile(r'(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)')

_log = logging.getLogger('mdproxy.portapi')

# What a token gives: endpoint of the port API; got_at and stale_at by `monotonic`.
Access = collections.namedtuple('Access', 'token endpoint got_at stale_at')

# On which a router has interfaces.
Networks = collections.namedtuple('Networks', 'stale_at ids')

# By what a port is known: for messages; for the API; has(port) decides.
Sought = collections.namedtuple('Sought', 'what query has')


class ApiError(Exception):
    """Keystone or the port API did not give an answer that can be used. status: HTTP's, or None.
    silent: there was no answer at all."""

    def __init__(self, message, status=None, silent=False):
        super(ApiError, self).__init__(message)
        self.status, self.silent = status, silent


class Shared(object):
    """What one thread gets for all that need it at the same time.

    fetch() gets it, or raises ApiError; then whoever has waited for that gets the same error, and
    does not try in turn. value: the last that was got, or None.
    """

    def __init__(self, fetch):
        self._fetch, self._lock = fetch, threading.Lock()
        self._failed_at, self._failure = -1.0, None
        self.value = None

    def get(self, is_good):
        """The value that is there if is_good(value), else a new one."""
        value, asked_at = self.value, monotonic()
        if value is not None and is_good(value):
            return value
        with self._lock:
            if self.value is not None and is_good(self.value):
                return self.value
            if self._failed_at >= asked_at:
                raise self._failure
            try:
                self.value = self._fetch()
            except ApiError as error:
                self._failed_at, self._failure = monotonic(), error
                raise
            return self.value

    def drop(self, value):
        """Have another value got, if this is still the present one."""
        with self._lock:
            if self.value is value:
                self.value = None


class JsonClient(object):
    """JSON over HTTP within limits of time and size; a session for each thread.

    The time limit is for each silence and for the whole body, looked at after every _PIECE. An API
    that sends single bytes can hold a thread for longer; who waits for the lookup is told in time
    anyway.
    """

    def __init__(self, options):
        self._requests = importlib.import_module('requests')
        self._timeout = options.api_timeout
        self._verify = options.auth_ca_cert or True
        self._local, self._sessions = threading.local(), []

    def close(self):
        """Close the connections. A call that is under way ends as it would."""
        for session in self._sessions:
            session.close()

    def call(self, method, url, **kwargs):
        """(headers, decoded body) of a 2xx answer; all else is an ApiError that names the URL."""
        deadline = monotonic() + self._timeout
        errors = self._requests.exceptions
        try:
            response = self._session().request(
                method, url, timeout=self._timeout, allow_redirects=False, stream=True, **kwargs)
            try:
                body = self._body(response, url, deadline)
            finally:
                response.close()
        except errors.Timeout:
            raise ApiError('%s: no answer within %g s' % (url, self._timeout), silent=True)
        except errors.SSLError as error:
            raise ApiError('%s: TLS failed: %.200s' % (url, error))
        except errors.RequestException as error:
            raise ApiError('%s: cannot be reached (%s)' % (url, type(error).__name__),
                           silent=isinstance(error, errors.ConnectionError))
        if not 200 <= response.status_code < 300:
            raise ApiError('%s: answered %d' % (url, response.status_code), response.status_code)
        try:
            return response.headers, json.loads(body.decode('utf-8'))
        except (ValueError, RuntimeError):      # the latter: nested too deeply
            raise ApiError('%s: the answer is not JSON' % url)

    def _session(self):
        if not hasattr(self._local, 'session'):
            session = self._local.session = self._requests.Session()
            session.trust_env = False       # no proxy, no .netrc of the user we happen to run as
            session.verify = self._verify
            session.headers['Accept'] = 'application/json'
            self._sessions.append(session)
        return self._local.session

    def _body(self, response, url, deadline):
        body = bytearray()      # one block, which the allocator can give back
        for piece in response.iter_content(_PIECE):
            body += piece
            if len(body) > _ANSWER_SIZE:
                raise ApiError('%s: the answer is larger than %d bytes' % (url, _ANSWER_SIZE))
            if monotonic() > deadline:
                raise ApiError('%s: no complete answer within %g s' % (url, self._timeout),
                               silent=True)
        return body


class Keystone(object):
    """Password authentication, v2.0 or v3 by the form of auth_url; with neither suffix v2.0 is
    tried first, then v3. `access()` may be called from several threads."""

    def __init__(self, client, options):
        self._client, self._options = client, options
        self._access = Shared(self._authenticate)
        url = options.auth_url.rstrip('/')
        if url.endswith('/v3'):
            self._ways = [(self._v3, url)]
        elif url.endswith('/v2.0'):
            self._ways = [(self._v2, url)]
        else:
            self._ways = [(self._v2, url + '/v2.0'), (self._v3, url + '/v3')]

    def access(self):
        """The present Access, renewed when it is stale; raises ApiError."""
        return self._access.get(lambda access: monotonic() < access.stale_at)

    def refused(self, access):
        """The port API refused this token: the next `access()` gets another."""
        self._access.drop(access)

    def token_age(self):
        """Seconds since the present token was got; None without one. Never blocks."""
        access = self._access.value
        return None if access is None else monotonic() - access.got_at

    def _authenticate(self):
        while True:
            way, url = self._ways[0]
            try:
                return way(url)
            except ApiError as error:
                # No such version here. 300: Keystone's list of those it has.
                if error.status not in (300, 404, 410) or len(self._ways) == 1:
                    raise
                del self._ways[0]

    def _v2(self, url):
        options = self._options
        _, answer = self._client.call('POST', url + '/tokens', json={'auth': {
            'tenantName': options.admin_tenant_name,
            'passwordCredentials': {'username': options.admin_user,
                                    'password': options.admin_password}}})
        try:
            token = answer['access']['token']
            catalog = answer['access'].get('serviceCatalog') or ()
            urls = [(endpoint.get('region'), endpoint.get(options.endpoint_type))
                    for service in catalog if service.get('type') == 'network'
                    for endpoint in service.get('endpoints') or ()]
            return self._found(_native(token['id']), token.get('issued_at'), token.get('expires'),
                               urls)
        except (AttributeError, KeyError, TypeError):
            raise ApiError('%s/tokens: the answer holds no token' % url)

    def _v3(self, url):
        options = self._options
        domain = {'name': options.admin_domain}
        headers, answer = self._client.call('POST', url + '/auth/tokens', json={'auth': {
            'identity': {'methods': ['password'], 'password': {'user': {
                'name': options.admin_user, 'domain': domain, 'password': options.admin_password}}},
            'scope': {'project': {'name': options.admin_tenant_name, 'domain': domain}}}})
        interface = options.endpoint_type.replace('URL', '')
        try:
            token = answer['token']
            urls = [(endpoint.get('region') or endpoint.get('region_id'), endpoint.get('url'))
                    for service in token.get('catalog') or () if service.get('type') == 'network'
                    for endpoint in service.get('endpoints') or ()
                    if endpoint.get('interface') == interface]
            return self._found(_native(headers['X-Subject-Token']), token.get('issued_at'),
                               token.get('expires_at'), urls)
        except (AttributeError, KeyError, TypeError):
            raise ApiError('%s/auth/tokens: the answer holds no token' % url)

    def _found(self, token, issued, expires, urls):
        region, endpoint = self._options.auth_region, self._options.port_api_url
        if not endpoint:
            endpoints = [url for where, url in urls if url and (not region or where == region)]
            if not endpoints:
                raise ApiError('the catalog has no %s of type network%s'
                               % (self._options.endpoint_type, region and ' in region ' + region))
            endpoint = _native(endpoints[0])
        now = monotonic()
        return Access(token, endpoint, now, now + _lifetime(issued, expires))


class PortApi(object):
    """The port API, blocking; may be used from several threads. Raises ValueError for options that
    cannot work."""

    def __init__(self, options):
        self._settings = _settings(options)
        self._client = JsonClient(options)
        self._keystone = None
        self._networks = {}         # router -> Shared Networks
        self._networks_ttl = options.cache_ttl
        if options.auth_strategy == 'noauth':
            if not options.port_api_url:
                raise ValueError('auth_strategy is noauth, so port_api_url is needed')
            self._static = Access(None, options.port_api_url, 0.0, float('inf'))
        elif not options.auth_url:
            raise ValueError('auth_strategy is keystone, so auth_url is needed')
        else:
            self._keystone = Keystone(self._client, options)

    def renewed(self, options):
        """A PortApi for other options: this one, with its token, when they say nothing else of it."""
        return self if _settings(options) == self._settings else PortApi(options)

    def close(self):
        """Close its connections; what is under way ends as it would."""
        self._client.close()

    def resolve(self, identity, ip, mac=None):
        """Outcome of asking for the fixed IP (native str), or for the MAC address if there is one
        (trust.believed_mac), behind a trust.Identity. Never raises."""
        try:
            return self._resolve(identity, ip, mac)
        except ApiError as error:
            return Outcome(ERROR, None, str(error), error.silent)
        except Exception as error:
            _log.exception('error in a port lookup')
            return Outcome(ERROR, None, 'internal error (%s)' % type(error).__name__)

    def token_age(self):
        """Seconds since the present token was got; None without one. Never blocks."""
        return self._keystone and self._keystone.token_age()

    def _resolve(self, identity, ip, mac):
        sought = _mac_address(mac) if mac else _fixed_ip(ip)
        ports = self._ports(sought.query)
        if identity.kind == 'network':
            return _choose(ports, frozenset((identity.id,)), sought, 'the network')
        networks = self._networks_of(identity.id)
        known = networks.value
        # Known networks are enough to find a port, not to miss it: one may have been added.
        for is_good in (lambda value: monotonic() < value.stale_at,
                        lambda value: value is not known):
            outcome = _choose(ports, networks.get(is_good).ids, sought, 'the router')
            if outcome.reason == FOUND:
                break
        return outcome

    def _networks_of(self, router):
        """The Shared Networks of a router."""
        shared = self._networks.get(router)
        if shared is None:
            if len(self._networks) >= CACHE_SIZE:
                self._networks.clear()
            shared = self._networks.setdefault(
                router, Shared(functools.partial(self._ask_networks, router)))
        return shared

    def _ask_networks(self, router):
        stale_at = monotonic() + self._networks_ttl
        query = [('device_id', router)] + [('device_owner', owner) for owner in ROUTER_INTERFACES]
        return Networks(stale_at, frozenset(
            port['network_id'] for port in self._ports(query)
            if port.get('device_id') == router and port.get('device_owner') in ROUTER_INTERFACES))

    def _ports(self, query):
        """All ports that the API gives for a query, as it gives them."""
        query = query + [('fields', field) for field in _FIELDS]
        ports = []
        for _ in range(_PAGES):
            answer = self._get('/ports', query)
            try:
                ports.extend(port for port in answer['ports'] if port['network_id'])
                links = [link['href'] for link in answer.get('ports_links') or ()
                         if link.get('rel') == 'next']
            except (AttributeError, KeyError, TypeError):
                raise ApiError('the port API answered something else than a list of ports')
            if not links:
                return ports
            query = links[0].partition('?')[2]      # only what to ask; where to ask is ours to know
        raise ApiError('the port API has more than %d pages of ports for one address' % _PAGES)

    def _get(self, path, query):
        for attempt in (1, 2):
            access = self._keystone.access() if self._keystone else self._static
            base = access.endpoint.rstrip('/')
            if not base.endswith('/v2.0'):
                base += '/v2.0'
            headers = {'X-Auth-Token': access.token} if access.token else {}
            try:
                return self._client.call('GET', base + path, params=query, headers=headers)[1]
            except ApiError as error:
                if error.status != 401 or self._keystone is None or attempt == 2:
                    raise
                self._keystone.refused(access)


def _settings(options):
    """Values of all options that a PortApi depends on."""
    return [getattr(options, name) for name in _OPTIONS]


def resolve(options, identity, ip, mac=None):
    """What `mdproxy resolve` shows, a dict: outcome (FOUND, NONE, MANY, ERROR), port, instance,
    tenant, reason; what is not known is ''. mac: with a link-local address, what its neighbours say.
    Blocks as long as the API does. Raises ValueError as PortApi."""
    api = PortApi(options)
    try:
        outcome = api.resolve(identity, ip, trust.believed_mac(ip, mac))
    except trust.TrustError as error:
        outcome = Outcome(NONE, None, error.reason)
    instance = outcome.instance or Instance('', '', '')
    return {'outcome': outcome.reason, 'port': instance.port_id, 'instance': instance.device_id,
            'tenant': instance.tenant_id, 'reason': outcome.detail}


def _fixed_ip(ip):
    wanted = _packed(ip)
    return Sought('this address', [('fixed_ips', 'ip_address=' + ip)],
                  lambda port: any(_packed(fixed.get('ip_address')) == wanted
                                   for fixed in port.get('fixed_ips') or ()))


def _mac_address(mac):
    # An API may give it as whoever made the port has spelled it.
    return Sought('MAC address ' + mac, [('mac_address', mac)],
                  lambda port: (port.get('mac_address') or '').lower() == mac)


def _choose(ports, networks, sought, where):
    """The Outcome for the ports that the API named."""
    if not networks:
        return Outcome(NONE, None, '%s has no networks' % where)
    matching = dict((port.get('id'), port) for port in ports
                    if port['network_id'] in networks
                    and not (port.get('device_owner') or '').startswith('network:')
                    and sought.has(port))
    if len(matching) > 1:
        names = ', '.join(sorted(_native(name) for name in matching)[:5])
        return Outcome(MANY, None, '%d ports have %s: %s' % (len(matching), sought.what, names))
    if not matching:
        return Outcome(NONE, None, 'no port of an instance has %s on %s' % (sought.what, where))
    port = list(matching.values())[0]
    instance = Instance(_native(port.get('device_id')),
                        _native(port.get('tenant_id') or port.get('project_id')),
                        _native(port.get('id')))
    for name, value in instance._asdict().items():
        if not _PLAIN_ID.match(value):
            return Outcome(NONE, None, 'port %.40r has no usable %s' % (instance.port_id, name))
    return Outcome(FOUND, instance, '')


def _packed(ip):
    """An address in a form that compares; None for what is none."""
    if ip:
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                return socket.inet_pton(family, ip)
            except (socket.error, TypeError, ValueError):
                pass
    return None


def _native(text):
    """JSON's text as str: on 2.7 it is unicode, which must not get near headers."""
    if text is None:
        return ''
    return text if isinstance(text, str) else text.encode('utf-8')


def _lifetime(issued, expires):
    """Seconds for which to use a token. Both times are the server's, so our clock may be wrong:
    when only one is known and in our past, the clocks differ, and the API will say when it expired."""
    end, begin = _timestamp(expires), _timestamp(issued)
    if end is None:
        return float('inf')
    seconds = end - (time.time() if begin is None else begin)
    if seconds <= 0:
        return float('inf')
    return seconds - min(_RENEW_BEFORE, seconds / 10.0)


def _timestamp(text):
    match = _TIME.match(text or '')
    return calendar.timegm(tuple(int(part) for part in match.groups())) if match else None
