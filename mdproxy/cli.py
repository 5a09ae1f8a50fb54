"""The commands: proxy, agent, status, probe, resolve, rules.

Exit status: 0 after a clean end, 1 when what was asked for could not be had, 2 for bad usage or
configuration with one line on standard error that names what is wrong. `status` and `probe` have their own.
"""
from __future__ import print_function

import argparse
import logging
import sys
import time

import mdproxy
from mdproxy import config, logs, opener, trust

DEFAULT_LISTEN = '0.0.0.0:9697'
_RULES_WORDS = {'apply': 'NETNS FILE', 'check': 'NETNS FILE [NETNS FILE ...]', 'remove': 'NETNS'}


def main(argv=None):
    """Run one command; `argv` without the program's name. Returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not getattr(arguments, 'run', None):
        parser.error('a command is needed: proxy, agent, status, probe, resolve or rules')
    status = opener.attempt('mdproxy', arguments.run, arguments)
    if status and (getattr(arguments, 'wait', False) or getattr(arguments, 'discover', False)):
        time.sleep(opener.PAUSE)        # for a job that is started again at once
    return status


class _Parser(argparse.ArgumentParser):
    """Bad usage is one line, and exit status 2."""

    def error(self, message):
        self.exit(logs.fail(2, '%s (%s --help tells more)' % (message, self.prog)))

    def format_help(self):
        # The table of options is put together when somebody wants to read it.
        text = argparse.ArgumentParser.format_help(self)
        if not self.epilog:
            return text
        return '%s\n\n%s\n' % (text.rstrip(), config.describe())


def _parser():
    parser = _Parser(prog='mdproxy',
                     description='The metadata service for tenants whose addresses overlap.',
                     epilog='Options of configuration files, and of --set:')
    parser.add_argument('--version', action='version', version='mdproxy ' + mdproxy.__version__)
    commands = parser.add_subparsers(metavar='COMMAND', dest='command')
    _add_proxy(commands.add_parser('proxy', help='serve the guests of one router or network, or of all'))
    _add_agent(commands.add_parser('agent', help='find the instance, sign its id, ask nova'))
    _add_status(commands.add_parser('status', help='tell how proxies and agent of this host are'))
    _add_probe(commands.add_parser(
        'probe', help='ask as a guest of each router would, and tell which hop is broken'))
    _add_resolve(commands.add_parser(
        'resolve', help='tell which instance an address belongs to, or why none'))
    _add_rules(commands.add_parser('rules', help='apply, check or remove routers\' iptables rules'))
    return parser


def _add_proxy(command):
    identity = _add_identity(command)
    identity.add_argument('--discover', action='store_true',
                          help='serve all qrouter- namespaces of this host, as they come and go')
    _add_sources(command)
    command.add_argument('--netns', metavar='NAME', help='namespace to listen in; needs root')
    command.add_argument('--listen', metavar='ADDR:PORT', type=_address,
                         default=_address(DEFAULT_LISTEN), help='default ' + DEFAULT_LISTEN)
    command.add_argument('--rules', metavar='FILE',
                         help='apply these to the namespace, in iptables-restore form')
    command.add_argument('--wait', action='store_true',
                         help='for jobs: wait until the namespace is there; fail no faster than that '
                              'once a second is enough')
    command.add_argument('--pid-file', metavar='FILE', help='gets the pid of the one that serves')
    command.add_argument('--daemon', action='store_true', help='return when the guests are served')
    command.add_argument('--log-file', metavar='FILE', help='instead of standard error')
    command.set_defaults(run=_proxy)


def _add_agent(command):
    _add_sources(command)
    command.add_argument('--log-file', metavar='FILE', help='instead of standard error')
    command.set_defaults(run=_agent)


def _add_status(command):
    form = command.add_mutually_exclusive_group()
    form.add_argument('--json', action='store_true', help='for programs')
    form.add_argument('--prometheus', action='store_true', help='all metrics of this host')
    _add_write(command)
    _add_folder(command)
    command.set_defaults(run=_status)


def _add_probe(command):
    form = command.add_mutually_exclusive_group()
    form.add_argument('--json', action='store_true', help='for programs')
    form.add_argument('--prometheus', action='store_true', help='as metrics')
    _add_write(command)
    _add_folder(command)
    command.add_argument('--rules-folder', metavar='DIR',
                         help='the routers that have a file ROUTER.rules in it, instead of all')
    command.add_argument('routers', nargs='*', type=_uuid, metavar='ROUTER',
                         help='id of a router of this host; default: all')
    command.set_defaults(run=_probe)


def _add_resolve(command):
    _add_identity(command)
    _add_sources(command)
    command.add_argument('--json', action='store_true', help='for programs')
    command.add_argument('--mac', type=_mac, metavar='MAC',
                         help='of the guest, as its neighbours know it; for a link-local address')
    command.add_argument('ip', type=_ip, metavar='IP', help='fixed IP or link-local address of the guest')
    command.set_defaults(run=_resolve)


def _add_rules(command):
    command.add_argument('action', choices=('apply', 'check', 'remove'))
    command.add_argument('words', nargs='+', metavar='NETNS [FILE]',
                         help='a namespace, but for `remove` its rules in iptables-restore form as well; '
                              '`check` takes any number of such pairs')
    command.set_defaults(run=_rules)


def _add_identity(command):
    identity = command.add_mutually_exclusive_group(required=True)
    identity.add_argument('--router-id', type=_uuid, metavar='ID')
    identity.add_argument('--network-id', type=_uuid, metavar='ID')
    return identity


def _add_folder(command):
    """Where the processes of this host tell of themselves; `_folder` gives it."""
    _add_sources(command)
    command.add_argument('--folder', metavar='DIR',
                         help='where the status sockets are; default: the option status_folder')


def _add_write(command):
    """Where metrics go; `_tell` brings them there."""
    command.add_argument('--write', metavar='FILE',
                         help='with --prometheus: into this file, in one step; exit status 0: it is written')


def _add_sources(command):
    command.add_argument('--config-file', action='append', default=[], metavar='FILE',
                         help='ini file; may be given several times, later ones win')
    command.add_argument('--set', action='append', default=[], metavar='NAME=VALUE',
                         help='an option (mdproxy --help) over that of the files; no secrets')


def _uuid(text):
    if not trust.is_uuid(text):
        raise argparse.ArgumentTypeError('"%s" is not a UUID' % text)
    return text.lower()


def _address(text):
    try:
        return config.parse_listen(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error))


def _ip(text):
    try:
        return trust.canonical_ip(text)
    except ValueError:
        raise argparse.ArgumentTypeError('"%s" is not an IP address' % text)


def _mac(text):
    if not trust.is_mac(text.lower()):
        raise argparse.ArgumentTypeError('"%s" is not a MAC address of a guest' % text)
    return text.lower()


def _identity(arguments):
    kind = 'router' if arguments.router_id else 'network'
    return trust.Identity(kind, arguments.router_id or arguments.network_id)


def _sources(arguments):
    return config.Sources((), tuple(arguments.config_file), tuple(arguments.set))


def _folder(arguments):
    return arguments.folder or _sources(arguments).load().status_folder


def _proxy(arguments):
    if arguments.discover:
        return _master(arguments)
    for option in ('rules', 'wait'):
        if getattr(arguments, option) and not arguments.netns:
            return logs.fail(2, 'proxy --%s: expected --netns NAME as well' % option)
    return opener.Proxy(_identity(arguments), arguments.listen, _sources(arguments),
                        arguments.netns, arguments.pid_file, arguments.daemon,
                        logs.Destination(arguments.log_file, None),
                        rules=arguments.rules, wait=arguments.wait).open()


def _master(arguments):
    # A log file would be written by root, and by workers who may not make another when it is rotated.
    for name in ('netns', 'wait', 'pid_file', 'daemon', 'log_file'):
        if getattr(arguments, name):
            raise config.ConfigError('--%s: does not go with --discover' % name.replace('_', '-'))
    return opener.master(_sources(arguments), arguments.listen, arguments.rules)


def _agent(arguments):
    return opener.agent(_sources(arguments), logs.Destination(arguments.log_file, None))


def _tell(arguments, text, status):
    """Metrics, to where they shall go. Returns the exit status: this one, unless they went into a file."""
    if not arguments.write:
        sys.stdout.write(str(text))
        return status
    from mdproxy import textfile
    try:
        textfile.write(arguments.write, str(text))
    except textfile.TextfileError as error:
        return logs.fail(1, error)
    return 0


def _expect_prometheus(arguments):
    if arguments.write and not arguments.prometheus:
        raise config.ConfigError('%s --write: expected --prometheus as well' % arguments.command)


def _status(arguments):
    from mdproxy import overview
    _expect_prometheus(arguments)
    folder = _folder(arguments)
    if arguments.prometheus:
        return _tell(arguments, overview.prometheus(folder), 0)
    entries = overview.collect(folder)
    if arguments.json:
        _print_json(entries)
    else:
        sys.stdout.write(overview.table(entries))
    return overview.exit_status(entries)


def _probe(arguments):
    from mdproxy import probe
    _expect_prometheus(arguments)
    if arguments.routers and arguments.rules_folder:
        raise config.ConfigError('probe --rules-folder: does not go with ROUTER')
    routers = arguments.routers or None
    if arguments.rules_folder:
        routers = probe.ruled(arguments.rules_folder)
    entries = probe.collect(routers, _folder(arguments))
    if arguments.prometheus:
        return _tell(arguments, probe.prometheus(entries), probe.exit_status(entries))
    if arguments.json:
        _print_json(entries)
    else:
        sys.stdout.write(str(probe.table(entries)))
    return probe.exit_status(entries)


def _resolve(arguments):
    from mdproxy import portapi
    if arguments.mac and not trust.is_link_local(arguments.ip):
        return logs.fail(2, 'resolve: --mac is for a link-local address (fe80::...), not for ' + arguments.ip)
    options = _sources(arguments).load('resolve')
    logs.configure(options.log_level)
    outcome = portapi.resolve(options, _identity(arguments), arguments.ip, arguments.mac)
    if arguments.json:
        _print_json(outcome)
    else:
        for name in sorted(outcome):
            print('%-12s %s' % (name, outcome[name]))
    return 0 if outcome['outcome'] == 'found' else 1


def _print_json(value):
    import json
    print(json.dumps(value, sort_keys=True))


def _rules(arguments):
    from mdproxy import rules
    logs.configure('info')
    action, words = arguments.action, arguments.words
    if len(words) % 2 != (action == 'remove') or action != 'check' and len(words) > 2:
        return logs.fail(2, 'rules %s: expected %s' % (action, _RULES_WORDS[action]))
    if action == 'check':
        wrong = rules.check(zip(words[::2], words[1::2]))
        for entry in wrong:
            print('%s: %s' % entry)
        return 1 if wrong else 0
    if action == 'remove':
        from mdproxy import linklocal
        removed = [rules.remove(words[0]), linklocal.remove(words[0])]
        done = 'removed' if any(removed) else 'were not there'
    else:
        done = 'applied' if rules.of_file(words[1]).apply(words[0]) else 'were as they should be'
    logging.getLogger('mdproxy.rules').info('namespace %s: rules %s', words[0], done)
    return 0
