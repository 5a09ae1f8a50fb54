"""Every option in one typed table; parsing, defaults, `--help` and error messages follow from it.

Files are ini. `[DEFAULT]` holds the options that upstream's metadata_agent.ini has, under upstream's
names, so that such a file is read as it is: what it holds beyond our table is upstream's business and
is passed over. `[mdproxy]` holds ours, and there an unknown name is an error. Later files win.

The reader is our own because the standard one differs between Python 2 and 3 just where a secret
would suffer: inline comments, `%` interpolation and the leaking of [DEFAULT] into every section.
As upstream's reader does, it takes one pair of quotes off a value.
"""
from __future__ import unicode_literals

import io
import re
import socket
from collections import namedtuple

UPSTREAM = 'DEFAULT'
OURS = 'mdproxy'
_TEXT = type('')        # on 2.7 unicode, which must not get near a header or a signature


class ConfigError(Exception):
    """A configuration that cannot be used; the message names file, option and what was expected."""


class Option(object):
    """One row of the table.

    kind names how the text is read: text, secret, path, flag, integer (above 0), limit (integer or 0
    for none), port, seconds (above 0), span (seconds or 0 for none), mode (of a socket), address
    (of our own, ('10.0.0.1', 8775) or ''), endpoints (to ask: a tuple of (host, port) and of unix
    sockets' paths), or a tuple of the allowed words. `old` are upstream's other names for the same
    thing. Text is always a native str.
    """

    def __init__(self, name, kind, default, help, section=OURS, old=()):
        self.name, self.kind, self.help = name, kind, help
        self.default = _native(default) if isinstance(default, _TEXT) else default
        self.section, self.old = section, old


def _native(text):
    return text if isinstance(text, str) else text.encode('utf-8')


def _upstream(name, kind, default, help, old=()):
    return Option(name, kind, default, help, UPSTREAM, old)


OPTIONS = (
    _upstream('state_path', 'path', '/var/lib/mdproxy', 'folder that $state_path stands for'),
    _upstream('metadata_proxy_socket', 'path', '$state_path/metadata_proxy',
              'unix socket between proxies and agent'),
    _upstream('metadata_proxy_socket_mode', 'mode', 0o660,
              'file mode of that socket; also upstream\'s words user, group, all, deduce'),
    _upstream('nova_metadata_ip', 'text', '127.0.0.1', 'host of the metadata API',
              old=('nova_metadata_host',)),
    _upstream('nova_metadata_port', 'port', 8775, 'port of the metadata API'),
    _upstream('nova_metadata_protocol', ('http',), 'http',
              'spoken with the metadata API; what cannot be had is refused, not passed over'),
    _upstream('metadata_proxy_shared_secret', 'secret', '',
              'signs instance ids; the same in nova.conf; the agent refuses to start without it'),
    _upstream('auth_strategy', ('keystone', 'noauth'), 'keystone',
              'how the port API wants to be asked'),
    _upstream('auth_url', 'text', '', 'Keystone, http(s)://HOST:PORT/v2.0 or /v3'),
    _upstream('auth_region', 'text', '', 'region of the port API in the catalog; empty: the first'),
    _upstream('auth_ca_cert', 'path', '', 'CA file that https answers are checked against',
              old=('auth_ca_file',)),
    _upstream('admin_tenant_name', 'text', '', 'tenant (project) of the agent\'s user'),
    _upstream('admin_user', 'text', '', 'the agent\'s user'),
    _upstream('admin_password', 'secret', '', 'the agent\'s password'),
    _upstream('endpoint_type', ('publicURL', 'internalURL', 'adminURL'), 'publicURL',
              'which endpoint of the catalog is the port API'),
    Option('admin_domain', 'text', 'Default', 'Keystone v3 domain of user and tenant'),
    Option('port_api_url', 'text', '', 'port API, instead of the one in the catalog'),
    Option('header_family', ('quantum', 'neutron'), 'quantum',
           'names of the headers from proxy to agent'),
    Option('agents', 'endpoints', (), 'agents to ask in turn, instead of the unix socket'),
    Option('builtin_agent', 'flag', False, 'the proxy is its own agent; needs the agent\'s options'),
    Option('nova_endpoints', 'endpoints', (),
           'metadata APIs to ask in turn, instead of nova_metadata_ip and port'),
    Option('agent_listen', 'address', '', 'where the agent serves proxies of other machines too'),
    Option('link_secret', 'secret', '', 'signs what proxies ask agents over TCP; needed for that'),
    Option('link_window', 'seconds', 60.0, 'a signed request is refused when it is older or newer'),
    Option('user', 'text', 'mdproxy', 'user that serves; a proxy started as root becomes it'),
    Option('api_timeout', 'seconds', 10.0, 'longest wait for one answer of Keystone or port API'),
    Option('api_threads', 'integer', 4, 'port lookups under way at once'),
    Option('cache_ttl', 'seconds', 10.0, 'how long a port that was found is believed'),
    Option('negative_cache_ttl', 'seconds', 2.0, 'how long a port that was not found is missing'),
    Option('stale_ttl', 'span', 300.0,
           'how long a port is believed while the port API is down; 0: not at all'),
    Option('connect_timeout', 'seconds', 2.0, 'longest wait for a connection to agent or nova'),
    Option('nova_timeout', 'seconds', 30.0, 'longest wait of the agent for nova'),
    Option('agent_timeout', 'seconds', 60.0, 'longest wait of a proxy for the agent'),
    Option('idle_timeout', 'seconds', 75.0, 'a kept-alive connection without a request is closed'),
    Option('head_timeout', 'seconds', 10.0, 'longest time a request\'s head may take to arrive'),
    Option('body_timeout', 'seconds', 30.0, 'longest time a request\'s body may take to arrive'),
    Option('write_timeout', 'seconds', 30.0, 'a peer that reads nothing for so long is dropped'),
    Option('drain_timeout', 'seconds', 10.0, 'at SIGTERM requests under way have so long to end'),
    Option('max_connections', 'integer', 10000, 'open connections of one process'),
    Option('max_connections_per_guest', 'limit', 2000, 'open connections of one address; 0: any'),
    Option('max_body', 'integer', 65536, 'largest request body, bytes'),
    Option('rate_limit', 'limit', 0, 'requests per second of one address, then 429; 0: any'),
    Option('rate_burst', 'integer', 50, 'requests of one address at once before that'),
    Option('ipv6', 'flag', False, 'guests of routers reach fe80::a9fe:a9fe too'),
    Option('isolated_networks', 'flag', False,
           'proxy --discover also serves the networks of qdhcp- namespaces'),
    Option('workers', 'limit', 0, 'processes of proxy --discover that serve; 0: one per core, at most 8'),
    Option('rules_interval', 'span', 60.0,
           'proxy --discover looks at the rules of each router so often; 0: only once'),
    Option('lock_file', 'path', '/run/mdproxy-proxies.lock',
           'held by the one proxy --discover of this host'),
    Option('status_folder', 'path', '/run/mdproxy/status',
           'where a process has its status socket; empty: none'),
    Option('status_listen', 'address', '', 'also tell metrics and status there; never a guest\'s way'),
    Option('log_level', ('debug', 'info', 'warning', 'error'), 'info', 'how much is logged'),
)

_BY_NAME = dict((name, option) for option in OPTIONS for name in (option.name,) + option.old)
# Of neutron since 2015. We serve proxies of our own user, for which `deduce` is what we do anyway.
_MODES = {'user': 0o644, 'group': 0o664, 'all': 0o666, 'deduce': 0o660}
_EXPECTED = {'integer': 'a whole number above 0', 'limit': 'a whole number, 0 for none',
             'port': 'a port number', 'flag': 'true or false',
             'seconds': 'a number of seconds above 0', 'span': 'a number of seconds, 0 for none',
             'mode': 'an octal file mode such as 0660, user, group, all or deduce',
             'address': 'ADDR:PORT with one address of this host, IPv6 as [ADDR]:PORT',
             'endpoints': 'HOST:PORT, [IPV6]:PORT or /PATH, several parted by commas'}
_FLAGS = {'true': True, 'yes': True, 'on': True, '1': True,
          'false': False, 'no': False, 'off': False, '0': False}
_WHOLE = re.compile(r'[0-9]{1,9}\Z')
_NUMBER = re.compile(r'[0-9]{1,9}(\.[0-9]+)?\Z')
_MODE = re.compile(r'0?[0-7]{3}\Z')
_HOST_PORT = re.compile(r'(?:\[([0-9A-Fa-f:.]+)\]|([0-9A-Za-z._-]+)):([0-9]{1,5})\Z')
_SECTION = re.compile(r'\[([^\[\]]+)\]\s*$')
_ENTRY = re.compile(r'([A-Za-z0-9_.\-]+)\s*[=:]\s*(.*)$')


class Options(object):
    """The values of all options as attributes; what no file set has its default."""

    def __init__(self, values):
        self.__dict__.update((option.name, option.default) for option in OPTIONS)
        self.__dict__.update(values)
        for option in OPTIONS:
            if option.kind == 'path':
                self.__dict__[option.name] = self._expanded(option.name)

    def _expanded(self, name):
        return re.sub(r'\$\{?state_path\}?', lambda _: self.state_path, getattr(self, name))

    def __repr__(self):
        shown = ('%s=%s' % (option.name, '***' if option.kind == 'secret'
                            else getattr(self, option.name)) for option in OPTIONS)
        return 'Options(%s)' % ', '.join(shown)


def read_ini(path):
    """Yield (line number, section, name, value) of an ini file; a continued value is joined by a space.

    Raises ConfigError for a file that cannot be read and for a line that is neither.
    """
    try:
        with io.open(path, encoding='utf-8') as lines:
            text = lines.read()
    except (IOError, OSError, UnicodeDecodeError) as error:
        raise ConfigError('%s: cannot be read: %s' % (path, getattr(error, 'strerror', error)))
    section, entry = UPSTREAM, None
    # Not splitlines(), which also parts a value at characters such as U+0085.
    for number, line in enumerate(text.split('\n'), 1):
        if line.lstrip()[:1] in ('#', ';'):
            continue
        if line.strip() and line[0].isspace() and entry:
            entry[3] = (entry[3] + ' ' + line.strip()).strip()
            continue
        if entry:
            yield entry
            entry = None
        if not line.strip():
            continue
        header, pair = _SECTION.match(line), _ENTRY.match(line)
        if header:
            section = header.group(1)
        elif pair:
            entry = [number, section, pair.group(1), pair.group(2).strip()]
        else:
            raise ConfigError('%s:%d: expected [section] or name = value' % (path, number))
    if entry:
        yield entry


class Sources(namedtuple('Sources', 'defaults paths settings')):
    """Where options come from, later ones win: 'NAME=VALUE' texts, ini files, 'NAME=VALUE' texts.

    defaults: of a drop-in, which has upstream's and not ours. settings: of the command line.
    """

    __slots__ = ()

    def load(self, command=None):
        """Read everything and return Options; raises ConfigError. May be called again (SIGHUP).

        command: 'proxy', 'agent' or 'resolve', whose needs have to be there.
        """
        values = dict(_setting(text, 'default') for text in self.defaults)
        for path in self.paths:
            values.update(_of_file(path))
        values.update(_setting(text, '--set') for text in self.settings)
        options = Options(values)
        _require(options, _needed(options, command), self.paths)
        return options


def _setting(text, origin):
    """(name, value) of 'NAME=VALUE'."""
    name, equals, value = text.partition('=')
    option = _BY_NAME.get(name)
    where = '%s %s' % (origin, name)
    if option is None or not equals:
        raise ConfigError('%s: expected NAME=VALUE; `mdproxy --help` lists the names' % where)
    if option.kind == 'secret':
        raise ConfigError('%s: a secret belongs into a file; every user can see command lines' % where)
    return option.name, _typed(option, value, where)


def _of_file(path):
    """Yield (name, value) of every option that a file sets."""
    for number, section, name, text in read_ini(path):
        option = _BY_NAME.get(name)
        if section not in (UPSTREAM, OURS) or (section == UPSTREAM and option is None):
            continue
        where = '%s:%d: [%s] %s' % (path, number, section, name)
        if option is None:
            raise ConfigError('%s: unknown option; `mdproxy --help` lists the known ones' % where)
        if option.section != section:
            raise ConfigError('%s: expected in section [%s]' % (where, option.section))
        yield option.name, _typed(option, _unquoted(text), where)


def _unquoted(text):
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in '"\''
    return text[1:-1] if quoted else text


def _typed(option, text, where):
    kind = option.kind
    if kind in ('text', 'path', 'secret'):
        return _native(text)
    value = _READERS['words' if isinstance(kind, tuple) else kind](text, kind)
    if value is None:
        expected = 'one of ' + ', '.join(kind) if isinstance(kind, tuple) else _EXPECTED[kind]
        raise ConfigError('%s: expected %s, got "%s"' % (where, expected, text))
    return value


# Each gives the value of a text, or None when it is not of that kind.

def _integer(text, kind):
    value = int(text) if _WHOLE.match(text) else -1
    if value > 0 or (value == 0 and kind == 'limit'):
        return value if kind != 'port' or value < 65536 else None


def _seconds(text, kind):
    value = float(text) if _NUMBER.match(text) else -1
    if value > 0 or (value == 0 and kind == 'span'):
        return value


def _mode(text, _kind):
    return _MODES.get(text, int(text, 8) if _MODE.match(text) else None)


def _flag(text, _kind):
    return _FLAGS.get(text.lower())


def _word(text, kind):
    for word in kind:
        if text.lower() == word.lower():
            return _native(word)


def _host_port(text):
    match = _HOST_PORT.match(text)
    if match and 0 < int(match.group(3)) < 65536:
        return _native(match.group(1) or match.group(2)), int(match.group(3))


def parse_listen(text):
    """('0.0.0.0', 9697) of 'ADDR:PORT', IPv6 as '[::]:9697'; raises ValueError."""
    host, _, port = text.rpartition(':')
    bracketed = host[:1] == '[' and host[-1:] == ']'
    host = host[1:-1] if bracketed else host
    try:
        # Not a name: nobody is asked what it means, least of all from inside a tenant's network.
        socket.inet_pton(socket.AF_INET6 if bracketed else socket.AF_INET, host)
        if _WHOLE.match(port) and 0 < int(port) < 65536:
            return _native(host), int(port)
    except (ValueError, socket.error):
        pass
    raise ValueError('expected ADDR:PORT, got "%s"' % text)


def _address(text, _kind):
    """Not all addresses at once: one of them may lead to guests (LP 1745618)."""
    if not text:
        return str()
    try:
        found = parse_listen(text)
    except ValueError:
        return None
    family = socket.AF_INET6 if ':' in found[0] else socket.AF_INET
    return found if socket.inet_pton(family, found[0]).strip(b'\0') else None


def _endpoints(text, _kind):
    words = [word.strip() for word in text.split(',')] if text else []
    found = tuple(_native(word) if word[:1] == '/' else _host_port(word) for word in words)
    return None if None in found else found


_READERS = {'integer': _integer, 'limit': _integer, 'port': _integer, 'seconds': _seconds,
            'span': _seconds, 'mode': _mode, 'flag': _flag, 'words': _word, 'address': _address,
            'endpoints': _endpoints}


def _needed(options, command):
    """Names of the options that a command cannot do without."""
    names = ()
    if command == 'proxy' and any(isinstance(endpoint, tuple) for endpoint in options.agents):
        names += ('link_secret',)
    if command == 'agent' and options.agent_listen:
        names += ('link_secret',)
    agent = command == 'agent' or command == 'proxy' and options.builtin_agent
    if agent:
        names += ('metadata_proxy_shared_secret',)
    if not agent and command != 'resolve':
        return names
    if options.auth_strategy == 'noauth':
        return names + ('port_api_url',)
    return names + ('auth_url', 'admin_tenant_name', 'admin_user', 'admin_password')


def _require(options, names, paths):
    for name in names:
        if getattr(options, name) in ('', None):
            option = _BY_NAME[name]
            raise ConfigError('%s: [%s] %s: expected a value (%s), found none'
                              % (', '.join(paths) or '(no --config-file)', option.section, name,
                                 option.help))


def describe():
    """The table as text for `--help`: section, name, default and meaning of every option."""
    lines = []
    for section in (UPSTREAM, OURS):
        lines.append('[%s]' % section)
        for option in OPTIONS:
            if option.section == section:
                lines.append('  %-28s %s (default: %s)' % (option.name, option.help,
                                                           _shown(option)))
    return '\n'.join(lines)


def _shown(option):
    if option.default in ('', ()):
        return 'none'
    if option.kind == 'flag':
        return str(option.default).lower()
    return '%04o' % option.default if option.kind == 'mode' else option.default
