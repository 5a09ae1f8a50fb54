"""The Quantum/Neutron API, for reading: ports, networks, subnets and routers, filtered as
in 2012.2.4.

The rules of its filters (quantum/api/v2/base.py, quantum/db/db_base_plugin_v2.py), traps included:
- values of one attribute are alternatives, different attributes must all match;
- an empty value is dropped, and an attribute without values left filters nothing: `network_id=`
  matches the ports of every tenant (LP 1348097 came of this);
- an attribute that the resource does not have filters nothing, nor does an unknown key in
  fixed_ips;
- `fixed_ips` is `ip_address=...` or `subnet_id=...`, both to be met by one and the same fixed IP;
- values are compared as text, so another spelling of an IPv6 address is another address. A MAC
  address too is in 2012.2.4 what whoever made the port wrote; neutron takes any spelling (its
  db_base_plugin_v2.py brings filter and column to lower case with colons).
`project_id`, which came later, is taken for `tenant_id`. An unscoped token sees an empty cloud.
"""
import re

from .http import error_response, json_response

_UUID = '-'.join('[0-9A-Fa-f]{%d}' % digits for digits in (8, 4, 4, 4, 12))
_PATH = re.compile(r'/v2\.0/(ports|networks|subnets|routers)(?:/(%s))?(?:\.json)?\Z' % _UUID)
_COMMON = ('id', 'name', 'tenant_id', 'admin_state_up', 'status')
_COLUMNS = {
    'ports': _COMMON + ('network_id', 'mac_address', 'device_id', 'device_owner'),
    'networks': _COMMON + ('shared',),
    'subnets': ('id', 'name', 'tenant_id', 'network_id', 'ip_version', 'cidr', 'gateway_ip',
                'enable_dhcp', 'shared'),
    'routers': _COMMON,
}
_BOOLEANS = ('admin_state_up', 'shared', 'enable_dhcp')
_BOOLEAN_WORDS = {'1': True, 'True': True, 'true': True, '0': False, 'False': False, 'false': False}
_NOT_FOUND = {'ports': 'Port %s could not be found on network None',
              'networks': 'Network %s could not be found',
              'subnets': 'Subnet %s could not be found',
              'routers': 'Router %s could not be found'}


class InvalidInput(Exception):
    """A filter's value that cannot be read."""


class Ports:
    """The port API over a StateFile, trusting Tokens."""

    def __init__(self, state, tokens):
        self.state, self.tokens = state, tokens

    def __call__(self, request):
        cloud, path = self.state.cloud, request.path
        if path in ('', '/'):
            return json_response(200, {'versions': [{
                'id': 'v2.0', 'status': 'CURRENT',
                'links': [{'rel': 'self', 'href': cloud.network_url + '/v2.0'}]}]})
        if path != '/v2.0' and not path.startswith('/v2.0/'):
            return error_response(request, 404, 'The resource could not be found.')
        tenant_id = self.tokens.check(request.header('X-Auth-Token') or '')
        if tenant_id is None:
            return error_response(request, 401, 'Authentication required', [
                ('WWW-Authenticate', "Keystone uri='%s'" % cloud.identity_url)])
        if path in ('/v2.0', '/v2.0/'):
            return json_response(200, _index(cloud))
        match = _PATH.match(path)
        if not match:
            return error_response(request, 404, 'The resource could not be found.')
        if request.method not in ('GET', 'HEAD'):
            return error_response(request, 405, 'The stand-in is for reading.',
                                  [('Allow', 'GET, HEAD')])
        rows = getattr(cloud, match[1]) if tenant_id else []
        return _answer(cloud.family, match[1], match[2], rows, request.query)


def _answer(family, collection, wanted_id, rows, query):
    fields = [value for name, value in query if name == 'fields' and value]
    if wanted_id:
        found = [row for row in rows if row['id'] == wanted_id]
        if not found:
            return _fault(family, 404, collection[:-1].title() + 'NotFound',
                          _NOT_FOUND[collection] % wanted_id)
        return json_response(200, {collection[:-1]: _view(found[0], fields)})
    try:
        tests = list(_tests(collection, query, family))
    except InvalidInput as error:
        return _fault(family, 400, 'InvalidInput', 'Invalid input for operation: %s.' % error)
    return json_response(200, {collection: [
        _view(row, fields) for row in rows if all(test(row) for test in tests)]})


def _fault(family, status, kind, message):
    """An error as each family words it: quantum the bare message, neutron with the exception's
    type."""
    if family == 'quantum':
        return json_response(status, {'QuantumError': message})
    return json_response(status, {'NeutronError': {'type': kind, 'message': message, 'detail': ''}})


def _view(row, fields):
    return {name: row[name] for name in row if name in fields} if fields else row


def _index(cloud):
    return {'resources': [{
        'name': name[:-1], 'collection': name,
        'links': [{'rel': 'self', 'href': '%s/v2.0/%s' % (cloud.network_url, name)}]}
        for name in _COLUMNS]}


def _tests(collection, query, family):
    """One function from row to bool per attribute that filters; InvalidInput for values out of
    form."""
    values = {}
    for name, value in query:
        if name != 'fields' and value:
            values.setdefault('tenant_id' if name == 'project_id' else name, []).append(value)
    for name, wanted in values.items():
        if collection == 'ports' and name == 'fixed_ips':
            yield _fixed_ip_test(wanted)
        elif name == 'mac_address' and collection == 'ports' and family == 'neutron':
            yield _mac_test(wanted)
        elif name in _COLUMNS[collection]:
            yield _column_test(name, [_boolean(v) for v in wanted] if name in _BOOLEANS else wanted)


def _column_test(name, wanted):
    if name in _BOOLEANS:
        return lambda row: row.get(name) in wanted
    return lambda row: row.get(name) is not None and str(row[name]) in wanted


def _mac_test(wanted):
    wanted = [_plain_mac(value) for value in wanted]
    return lambda row: (row.get('mac_address') or '').lower() in wanted


def _plain_mac(text):
    """A MAC address in lower case with colons, as neutron reads it; other text as it is."""
    digits = re.sub('[:.-]', '', text.lower())
    return ':'.join(re.findall('..', digits)) if re.match('[0-9a-f]{12}\\Z', digits) else text


def _boolean(text):
    if text not in _BOOLEAN_WORDS:
        raise InvalidInput("'%s' is not boolean" % text)
    return _BOOLEAN_WORDS[text]


def _fixed_ip_test(pairs):
    """The test for `fixed_ips`. The lone value `True` is what a command line without a value
    sent."""
    wanted = {}
    for pair in pairs if pairs != ['True'] else ():
        key, equals, value = (part.strip() for part in pair.partition('='))
        if not (equals and key):
            raise InvalidInput("'%s' is not of the form <key>=[value]" % pair)
        if key in ('ip_address', 'subnet_id'):
            wanted.setdefault(key, []).append(value)
    if not wanted:
        return lambda row: True
    return lambda row: any(all(fixed.get(key) in values for key, values in wanted.items())
                           for fixed in row.get('fixed_ips', ()))
