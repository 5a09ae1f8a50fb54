"""Upstream's command lines: quantum- or neutron-ns-metadata-proxy and -metadata-agent.

So that a patched l3 or dhcp agent can spawn our proxy, and a distribution's init script start our
agent, without a change to either. Kept from upstream, Folsom's backport to Kilo:

- Names with - or _, a value after = or as the next word, flags as --NAME or --noNAME.
- The proxy is a daemon unless told otherwise, and serves as --metadata_proxy_user. Older l3 agents
  do not say whom: then as [mdproxy] user, else as the owner of state_path, which is the l3 agent's
  own user and so the one that the agent's socket is open to. Never as root, whatever was said.
- The agent stays in the foreground. Started as root it serves as the proxy would.
- Configuration files are read as oslo.config does: those that are named, then those of --config-dir
  by name, else the default ones. For the proxy that is /etc/PROJECT/PROGRAM.conf alone, which is
  where our own options for it can be set (upstream's has not read PROJECT.conf since Grizzly). Home
  directories, where oslo.config looks first, are not for a service.

Every option of upstream's is either used or in a list with the reason why not; others are refused.
"""
import glob
import os
import pwd

from mdproxy import config, logs, opener, trust

# Of upstream's two programs beside the options of configuration files.
_VALUES = ('router-id', 'network-id', 'pid-file', 'metadata-port', 'metadata-proxy-user',
           'metadata-proxy-group', 'config-file', 'config-dir', 'log-file', 'log-dir',
           'syslog-log-facility')
_FLAGS = ('daemonize', 'debug', 'use-syslog')
_SYNONYMS = {'logfile': 'log-file', 'logdir': 'log-dir', 'd': 'debug', 'v': 'verbose'}
# Taken and left alone.
_UNUSED_VALUES = {
    'log-config': 'loggers of Python\'s by name; ours have other names',
    'log-config-append': 'the same, as it is called since Icehouse',
    'log-format': 'formats name attributes of upstream\'s own records',
    'log-date-format': 'the same',
}
_UNUSED_FLAGS = {
    'verbose': 'what it asks for is logged anyway',
    'metadata-proxy-watch-log': 'a renamed log file is noticed by whoever may open the new one',
    'watch-log-file': 'the same, as it is called since Liberty',
    'use-syslog-rfc-format': 'the C library decides how a line looks on its way to syslog',
}
_LISTS = ('config-file', 'config-dir')
_ETC = '/etc'


class UsageError(Exception):
    """A command line that upstream's would refuse, or that is not known; the message says why."""


def main(words):
    """Run as the program that the first word names, with the others; returns the exit status."""
    program, words = words[0], words[1:]
    run = _agent if program.endswith('-metadata-agent') else _proxy
    try:
        given = parse(words)
        if not set(given).isdisjoint(('help', 'version')):
            return _tell(program, given)
        return opener.attempt(program, run, program, given)
    except UsageError as error:
        return logs.fail(2, error, program)


def parse(words):
    """{name: value} of upstream's command line, names with -. Raises UsageError.

    A flag's value is a bool; that of what may be repeated, a tuple.
    """
    given, words = {}, list(words)
    while words:
        word = words.pop(0)
        if word[:1] != '-' or word in ('-', '--'):
            raise UsageError('unexpected argument "%s"' % word)
        spelled, equals, value = word.partition('=')
        name = spelled.lstrip('-').replace('_', '-')
        name = _SYNONYMS.get(name, name)
        flag = _flag(name)
        if flag:
            if equals:
                raise UsageError('option %s takes no value' % spelled)
            given[flag[0]] = flag[1]
            continue
        if not _is_known(name):
            raise UsageError('unknown option %s' % spelled)
        if not equals:
            if not words:
                raise UsageError('option %s: expected a value' % spelled)
            value = words.pop(0)
        given[name] = given.get(name, ()) + (value,) if name in _LISTS else value
    return given


def _flag(name):
    """(name, value) of a flag, else None."""
    for flag in _FLAGS + tuple(_UNUSED_FLAGS) + ('help', 'version', 'h'):
        if name in (flag, 'no' + flag):
            return {'h': 'help'}.get(flag, flag), name == flag


def _is_known(name):
    return name in _VALUES or name in _UNUSED_VALUES or name.replace('-', '_') in _upstreams()


def _upstreams():
    """Options of upstream's files; Folsom's cfg took all of them on the command line too."""
    return set(option.name for option in config.OPTIONS if option.section == config.UPSTREAM)


def _tell(program, given):
    from mdproxy import __version__
    print('%s of mdproxy %s' % (program, __version__))
    if 'help' in given:
        used = sorted(_VALUES + tuple(_upstreams()))
        unused = sorted(_UNUSED_VALUES) + sorted(_UNUSED_FLAGS)
        print('with a value: %s' % ' '.join('--' + name.replace('_', '-') for name in used))
        print('flags, with no before the name for the contrary: --%s' % ' --'.join(_FLAGS))
        print('taken and not used: --%s' % ' --'.join(unused))
    return 0


def _proxy(program, given):
    ids = [(kind, given[kind + '-id']) for kind in ('router', 'network') if given.get(kind + '-id')]
    if len(ids) != 1:
        raise UsageError('expected one of --router_id and --network_id')
    kind, text = ids[0]
    if not trust.is_uuid(text):
        raise UsageError('--%s_id: "%s" is not a UUID' % (kind, text))
    port = given.get('metadata-port', '9697')
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError('--metadata_port: expected a port number, got "%s"' % port)
    sources = _sources(program, given, ('%s.conf' % program,))
    return opener.Proxy(trust.Identity(kind, text.lower()), ('0.0.0.0', int(port)), sources, None,
                        given.get('pid-file'), given.get('daemonize', True), _log(program, given),
                        _unless_root(given.get('metadata-proxy-group'))).open()


def _agent(program, given):
    for name in ('router-id', 'network-id', 'pid-file', 'daemonize', 'metadata-port'):
        if name in given:
            raise UsageError('unknown option --' + name)
    project = _project(program)
    # The second is what the init scripts of distributions name; the third is oslo.config's.
    files = ('%s.conf' % project, 'metadata_agent.ini', '%s.conf' % program)
    return opener.agent(_sources(program, given, files), _log(program, given),
                        _unless_root(given.get('metadata-proxy-group')))


def _project(program):
    return program.split('-')[0]


def _sources(program, given, defaults):
    """config.Sources of a command line; `defaults` are names of files in the project's folder."""
    project = _project(program)
    paths = given.get('config-file', ())
    for folder in given.get('config-dir', ()):
        if not os.path.isdir(folder):
            raise UsageError('--config-dir %s: not a folder' % folder)
        paths += tuple(sorted(glob.glob(os.path.join(folder, '*.conf'))))
    if not set(given).intersection(_LISTS):
        found = (os.path.join(_ETC, project, name) for name in defaults)
        paths = tuple(path for path in found if os.path.exists(path))
    settings = ['%s=%s' % (name.replace('-', '_'), given[name]) for name in sorted(given)
                if name.replace('-', '_') in _upstreams()]
    if given.get('debug'):
        settings.append('log_level=debug')
    user = _unless_root(given.get('metadata-proxy-user'))
    if user:
        settings.append('user=' + user)
    ours = ('state_path=/var/lib/' + project, 'header_family=' + project)
    sources = config.Sources(ours, paths, tuple(settings))
    owner = None if user else _owner(sources.load().state_path)
    return sources._replace(defaults=ours + ('user=' + owner,)) if owner else sources


def _unless_root(name):
    """The user or group, unless it is root: a Kilo l3 agent that was told nothing says its own."""
    return None if name in (None, '', '0', 'root') else name


def _owner(folder):
    """Name of the user that the folder belongs to; None for root and when it is not there."""
    try:
        uid = os.stat(folder).st_uid
        return pwd.getpwuid(uid).pw_name if uid else None
    except (OSError, KeyError):
        return None


def _log(program, given):
    """logs.Destination as upstream understands --log-file, --log-dir and --use-syslog."""
    name, folder = given.get('log-file'), given.get('log-dir')
    if name or folder:
        return logs.Destination(os.path.join(folder or '', name or program + '.log'), None)
    if not given.get('use-syslog'):
        return logs.STDERR
    facility = given.get('syslog-log-facility', 'LOG_USER').lower()
    facility = facility[4:] if facility.startswith('log_') else facility
    if facility not in logs.FACILITIES:
        raise UsageError('--syslog-log-facility: expected one of ' +
                         ', '.join(name for name in logs.FACILITIES if name))
    return logs.Destination(None, facility)
