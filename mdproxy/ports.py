"""Who owns an address: asks the Quantum/Neutron API which port has a fixed IP behind a router or on
a network.

Rules kept:

- A port counts only when it is on one of the router's own networks, has exactly this fixed IP, and
  is not Quantum's own (router, DHCP). The API's filters only make the answer shorter; what counts
  is decided here, because a filter that is empty or unknown matches everything (bug 1348097). No
  networks: not found.
- One port is an answer. None and several are not, and are told apart.
- A tenant writes device_id itself. What is not a plain id never gets further, into a header say.
- The token is kept until shortly before it expires or until it is refused, and renewed by one
  thread for all.
- No wait without a limit, no answer without a limit in size, no redirect followed (it would get the
  token).

Theory of operation: PortApi blocks, and is for threads and the command line. PortLookup is the
loop's side: a cache, one lookup under way for each key whoever waits for it, a few daemon threads
that are started with the first lookup. `requests` is imported when a PortApi is made, not before
(21-27 MB).
"""
import calendar
import collections
import importlib
import json
import logging
import re
import socket
import threading
import time

from .eventloop import monotonic

try:
    import queue
except ImportError:         # 2.7
    import Queue as queue

FOUND, NONE, MANY, ERROR = 'found', 'none', 'many', 'error'
# With DVR and with HA the interfaces of a router have other owners.
ROUTER_INTERFACES = ('network:router_interface', 'network:router_interface_distributed',
                     'network:ha_router_replicated_interface')
ERROR_TTL = 1.0             # seconds until an API that failed is asked again
CACHE_SIZE = 16384          # entries
_PENDING = 16384            # lookups that wait for a thread
_FAREWELL = 0.5             # seconds that threads have to end
_PATIENCE = 3               # times api_timeout: how long anybody waits for a lookup
_ANSWER_SIZE = 32 << 20     # bytes
_PIECE = 16384              # bytes read between two looks at the clock
_PAGES = 200
_RENEW_BEFORE = 30.0        # seconds before a token expires, if it lives ten times as long
_FIELDS = ('id', 'device_id', 'device_owner', 'network_id', 'tenant_id', 'project_id', 'fixed_ips')
_PLAIN_ID = re.compile(r'[0-9A-Za-z._-]{1,255}\Z')
_TIME = re.compile(r'(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)')

_log = logging.getLogger('mdproxy.ports')

# What nova is told; native strings that are plain ids.
Instance = collections.namedtuple('Instance', 'device_id tenant_id port_id')
# reason: FOUND, NONE, MANY or ERROR. instance: with FOUND. detail: why not, for log and operator.
Outcome = collections.namedtuple('Outcome', 'reason instance detail')
# What a token gives: endpoint of the port API; stale_at by `monotonic`.
Access = collections.namedtuple('Access', 'token endpoint stale_at')


class ApiError(Exception):
    """Keystone or the port API did not give an answer that can be used. status: HTTP's, or None."""

    def __init__(self, message, status=None):
        super(ApiError, self).__init__(message)
        self.status = status


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
        self._local = threading.local()

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
            raise ApiError('%s: no answer within %g s' % (url, self._timeout))
        except errors.SSLError as error:
            raise ApiError('%s: TLS failed: %.200s' % (url, error))
        except errors.RequestException as error:
            raise ApiError('%s: cannot be reached (%s)' % (url, type(error).__name__))
        if not 200 <= response.status_code < 300:
            raise ApiError('%s: answered %d' % (url, response.status_code), response.status_code)
        try:
            return response.headers, json.loads(body.decode('utf-8'))
        except ValueError:
            raise ApiError('%s: the answer is not JSON' % url)

    def _session(self):
        if not hasattr(self._local, 'session'):
            session = self._local.session = self._requests.Session()
            session.trust_env = False       # no proxy, no .netrc of the user we happen to run as
            session.verify = self._verify
            session.headers['Accept'] = 'application/json'
        return self._local.session

    def _body(self, response, url, deadline):
        pieces, size = [], 0
        for piece in response.iter_content(_PIECE):
            pieces.append(piece)
            size += len(piece)
            if size > _ANSWER_SIZE:
                raise ApiError('%s: the answer is larger than %d bytes' % (url, _ANSWER_SIZE))
            if monotonic() > deadline:
                raise ApiError('%s: no complete answer within %g s' % (url, self._timeout))
        return b''.join(pieces)


class Keystone(object):
    """Password authentication, v2.0 or v3 by the form of auth_url; with neither suffix v2.0 is
    tried first, then v3. `access()` may be called from several threads."""

    def __init__(self, client, options):
        self._client, self._options = client, options
        self._lock = threading.Lock()
        self._access = None
        self._failed_at, self._failure = -1.0, None
        url = options.auth_url.rstrip('/')
        if url.endswith('/v3'):
            self._ways = [(self._v3, url)]
        elif url.endswith('/v2.0'):
            self._ways = [(self._v2, url)]
        else:
            self._ways = [(self._v2, url + '/v2.0'), (self._v3, url + '/v3')]

    def access(self):
        """The present Access, renewed when it is stale; raises ApiError."""
        asked_at = monotonic()
        with self._lock:
            if self._access is not None and monotonic() < self._access.stale_at:
                return self._access
            if self._failed_at >= asked_at:     # it failed for the thread that we waited for
                raise self._failure
            try:
                self._access = self._authenticate()
            except ApiError as error:
                self._failed_at, self._failure = monotonic(), error
                raise
            return self._access

    def refused(self, access):
        """The port API refused this token: the next `access()` gets another."""
        with self._lock:
            if self._access is access:
                self._access = None

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
        return Access(token, endpoint, monotonic() + _lifetime(issued, expires))


class PortApi(object):
    """The port API, blocking; may be used from several threads. Raises ValueError for options that
    cannot work."""

    def __init__(self, options):
        self._client = JsonClient(options)
        self._keystone = None
        self._networks = {}         # router -> (time until which it is believed, network ids)
        self._networks_ttl = options.cache_ttl
        if options.auth_strategy == 'noauth':
            if not options.port_api_url:
                raise ValueError('auth_strategy is noauth, so port_api_url is needed')
            self._static = Access(None, options.port_api_url, float('inf'))
        elif not options.auth_url:
            raise ValueError('auth_strategy is keystone, so auth_url is needed')
        else:
            self._keystone = Keystone(self._client, options)

    def resolve(self, identity, ip):
        """Outcome of asking for the fixed IP (native str) behind a trust.Identity. Never raises."""
        try:
            return self._resolve(identity, ip)
        except ApiError as error:
            return Outcome(ERROR, None, str(error))
        except Exception as error:
            _log.exception('error in a port lookup')
            return Outcome(ERROR, None, 'internal error (%s)' % type(error).__name__)

    def _resolve(self, identity, ip):
        ports = self._ports([('fixed_ips', 'ip_address=' + ip)])
        if identity.kind == 'network':
            return _choose(ports, frozenset((identity.id,)), ip, 'the network')
        believed, networks = self._networks.get(identity.id, (0, ()))
        if believed > monotonic():
            outcome = _choose(ports, networks, ip, 'the router')
            if outcome.reason == FOUND:
                return outcome
        return _choose(ports, self._networks_of(identity.id), ip, 'the router')

    def _networks_of(self, router):
        """Ids of the networks that a router has an interface on."""
        query = [('device_id', router)] + [('device_owner', owner) for owner in ROUTER_INTERFACES]
        networks = frozenset(port['network_id'] for port in self._ports(query)
                             if port.get('device_id') == router
                             and port.get('device_owner') in ROUTER_INTERFACES)
        if len(self._networks) >= CACHE_SIZE:
            self._networks.clear()
        self._networks[router] = (monotonic() + self._networks_ttl, networks)
        return networks

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


class PortLookup(object):
    """What the loop asks. api: a PortApi. What is FOUND is believed for options.cache_ttl, NONE and
    MANY for options.negative_cache_ttl, ERROR for ERROR_TTL."""

    def __init__(self, loop, api, options):
        self._loop, self._api = loop, api
        self._ttl = {FOUND: options.cache_ttl, NONE: options.negative_cache_ttl,
                     MANY: options.negative_cache_ttl, ERROR: ERROR_TTL}
        self._patience = options.api_timeout * _PATIENCE
        self._cache = collections.OrderedDict()     # key -> (outcome, believed until)
        self._waiting = {}      # key of a lookup under way -> [(callback, args)]
        self._jobs = queue.Queue(_PENDING)
        self._threads, self._threads_allowed = [], options.api_threads

    def find(self, identity, ip, callback, *args):
        """callback(outcome, *args): at once when the answer is known, else later on the loop."""
        key = (identity, ip)
        entry = self._cache.get(key)
        if entry is not None and entry[1] > self._loop.now:
            callback(entry[0], *args)
        elif key in self._waiting:
            self._waiting[key].append((callback, args))
        else:
            self._begin(key, callback, args)

    def close(self):
        """End the threads. One that waits for the API is not waited for; it is a daemon."""
        self._jobs.put(None)
        end = monotonic() + _FAREWELL
        for thread in self._threads:        # else 2.7 takes the modules away under their feet
            thread.join(max(0, end - monotonic()))

    def _begin(self, key, callback, args):
        try:
            self._jobs.put_nowait(key)
        except queue.Full:
            callback(Outcome(ERROR, None, 'too many lookups wait for the port API'), *args)
            return
        self._waiting[key] = [(callback, args)]
        self._loop.call_later(self._patience, self._late, key, self._waiting[key])
        if len(self._threads) < self._threads_allowed:
            thread = threading.Thread(target=self._work, name='port-lookup')
            thread.daemon = True
            thread.start()
            self._threads.append(thread)

    def _work(self):
        while True:
            key = self._jobs.get()
            if key is None:
                self._jobs.put(None)        # for the next thread
                return
            self._loop.call_soon_threadsafe(self._arrived, key, self._api.resolve(*key))

    def _arrived(self, key, outcome):
        self._believe(key, outcome)
        self._answer(self._waiting.pop(key), outcome)

    def _believe(self, key, outcome):
        self._cache.pop(key, None)          # so that the oldest answer stays the first
        if len(self._cache) >= CACHE_SIZE:
            self._cache.popitem(last=False)
        self._cache[key] = (outcome, self._loop.now + self._ttl[outcome.reason])

    def _late(self, key, waiters):
        """Nobody waits longer; the lookup goes on, and who asks later may still get its answer."""
        if self._waiting.get(key) is waiters:
            late, waiters[:] = waiters[:], []
            self._loop.call_later(self._patience, self._late, key, waiters)
            self._answer(late, Outcome(ERROR, None, 'no answer within %g s' % self._patience))

    @staticmethod
    def _answer(waiters, outcome):
        for callback, args in waiters:
            try:
                callback(outcome, *args)
            except Exception:
                _log.exception('error after a port lookup')


def resolve(options, identity, ip):
    """What `mdproxy resolve` shows, a dict: outcome (FOUND, NONE, MANY, ERROR), port, instance,
    tenant, reason; what is not known is ''. Blocks as long as the API does. Raises ValueError as
    PortApi."""
    outcome = PortApi(options).resolve(identity, ip)
    instance = outcome.instance or Instance('', '', '')
    return {'outcome': outcome.reason, 'port': instance.port_id, 'instance': instance.device_id,
            'tenant': instance.tenant_id, 'reason': outcome.detail}


def _choose(ports, networks, ip, where):
    """The Outcome for the ports that the API named."""
    if not networks:
        return Outcome(NONE, None, '%s has no networks' % where)
    wanted = _packed(ip)
    matching = dict((port.get('id'), port) for port in ports
                    if port['network_id'] in networks
                    and not (port.get('device_owner') or '').startswith('network:')
                    and any(_packed(fixed.get('ip_address')) == wanted
                            for fixed in port.get('fixed_ips') or ()))
    if len(matching) > 1:
        names = ', '.join(sorted(_native(name) for name in matching)[:5])
        return Outcome(MANY, None, '%d ports have this address: %s' % (len(matching), names))
    if not matching:
        return Outcome(NONE, None, 'no port of an instance has this address on %s' % where)
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
    """Seconds for which to use a token. Both times are the server's, so our clock may be wrong.
    only one is known and in our past, the clocks differ: the API will say when it expired."""
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
