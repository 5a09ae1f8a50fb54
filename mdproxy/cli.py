"""The commands: proxy, agent, resolve, rules.

Exit status: 0 after a clean end, 1 when what was asked for could not be had, 2 for bad usage or
configuration with one line on standard error that names what is wrong.
"""
from __future__ import print_function, unicode_literals

import argparse
import json
import logging
import os
import sys

import mdproxy
from mdproxy import config, namespaces, privileges, rules, trust

DEFAULT_LISTEN = '0.0.0.0:9697'


def main(argv=None):
    """Run one command; `argv` without the program's name. Returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not getattr(arguments, 'run', None):
        parser.error('a command is needed: proxy, agent, resolve or rules')
    try:
        options = config.load(arguments.config_file)
        _log_to_stderr(options.log_level)
        return arguments.run(arguments, options)
    except config.ConfigError as error:
        return _fail(2, error)
    except (namespaces.NamespaceError, privileges.PrivilegeError, rules.RulesError) as error:
        return _fail(1, error)


class _Parser(argparse.ArgumentParser):
    """Bad usage is one line, and exit status 2."""

    def error(self, message):
        self.exit(_fail(2, '%s (%s --help tells more)' % (message, self.prog)))


def _parser():
    parser = _Parser(
        prog='mdproxy', description='The metadata service for tenants whose addresses overlap.',
        epilog='Options of the configuration files:\n\n' + config.describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--version', action='version', version='mdproxy ' + mdproxy.__version__)
    commands = parser.add_subparsers(metavar='COMMAND', dest='command')
    _command(commands, 'proxy', _proxy, 'serve the guests of one router or network')
    _command(commands, 'agent', _agent, 'find the instance, sign its id, ask nova')
    _command(commands, 'resolve', _resolve, 'tell which instance an address belongs to, or why none')
    rules_parser = commands.add_parser('rules', help='apply or remove a router\'s iptables rules')
    rules_parser.add_argument('action', choices=('apply', 'check', 'remove'))
    rules_parser.add_argument('netns', metavar='NETNS')
    rules_parser.add_argument('file', nargs='?', metavar='FILE',
                              help='rules in iptables-restore form (apply, check)')
    rules_parser.set_defaults(run=_rules, config_file=[])
    return parser


def _command(commands, name, run, help):
    command = commands.add_parser(name, help=help)
    command.add_argument('--config-file', action='append', default=[], metavar='FILE',
                         help='ini file; may be given several times, later ones win')
    command.set_defaults(run=run)
    if name == 'agent':
        return
    identity = command.add_mutually_exclusive_group(required=True)
    identity.add_argument('--router-id', type=_uuid, metavar='ID')
    identity.add_argument('--network-id', type=_uuid, metavar='ID')
    if name == 'resolve':
        command.add_argument('--json', action='store_true', help='for programs')
        command.add_argument('ip', type=_ip, metavar='IP', help='fixed IP of the guest')
        return
    command.add_argument('--netns', metavar='NAME', help='namespace to listen in; needs root')
    command.add_argument('--listen', metavar='ADDR:PORT', type=_address,
                         default=_address(DEFAULT_LISTEN), help='default ' + DEFAULT_LISTEN)
    command.add_argument('--listen-fd', type=int, help=argparse.SUPPRESS)


def _uuid(text):
    if not trust.is_uuid(text):
        raise argparse.ArgumentTypeError('"%s" is not a UUID' % text)
    return text.lower()


def _address(text):
    try:
        return namespaces.parse_listen(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error))


def _ip(text):
    try:
        return trust.canonical_ip(text)
    except ValueError:
        raise argparse.ArgumentTypeError('"%s" is not an IP address' % text)


def _identity(arguments):
    kind = 'router' if arguments.router_id else 'network'
    return trust.Identity(kind, str(arguments.router_id or arguments.network_id))


def _proxy(arguments, options):
    if arguments.listen_fd is None:
        return _open_and_exec(arguments, options)
    from mdproxy import proxy
    listener = namespaces.inherited_listener(arguments.listen_fd)
    return proxy.run(_identity(arguments), [listener], options)


def _open_and_exec(arguments, options):
    listener = namespaces.open_listener(*arguments.listen, netns=arguments.netns)
    privileges.become(options.user)
    identity = _identity(arguments)
    # -E and -s: neither the caller's environment nor a home directory may choose what is imported.
    argv = [sys.executable, '-Es', os.path.dirname(os.path.abspath(__file__)), 'proxy',
            '--%s-id' % identity.kind, identity.id]
    for path in arguments.config_file:
        argv += ['--config-file', path]
    namespaces.exec_server(listener, [str(word) for word in argv])


def _agent(arguments, options):
    from mdproxy import agent
    config.require(options, _credentials(options) + ('metadata_proxy_shared_secret',),
                   arguments.config_file)
    privileges.make_folder(os.path.dirname(options.metadata_proxy_socket), options.user)
    privileges.become(options.user)
    return agent.run(options)


def _resolve(arguments, options):
    from mdproxy import ports
    config.require(options, _credentials(options), arguments.config_file)
    outcome = ports.resolve(options, _identity(arguments), arguments.ip)
    if arguments.json:
        print(json.dumps(outcome, sort_keys=True))
    else:
        for name in sorted(outcome):
            print('%-12s %s' % (name, outcome[name]))
    return 0 if outcome['outcome'] == 'found' else 1


def _credentials(options):
    if options.auth_strategy == 'noauth':
        return ('port_api_url',)
    return ('auth_url', 'admin_tenant_name', 'admin_user', 'admin_password')


def _rules(arguments, options):
    if arguments.action == 'remove':
        done = 'removed' if rules.remove(arguments.netns) else 'were not there'
    elif not arguments.file:
        return _fail(2, 'rules %s: expected the FILE with the rules' % arguments.action)
    elif arguments.action == 'apply':
        done = 'applied' if rules.apply(arguments.netns, arguments.file) else 'were as they should be'
    elif rules.differs(arguments.netns, arguments.file):
        return _fail(1, 'namespace %s: rules differ from %s' % (arguments.netns, arguments.file))
    else:
        done = 'are as they should be'
    logging.getLogger('mdproxy.rules').info('namespace %s: rules %s', arguments.netns, done)
    return 0


def _log_to_stderr(level):
    # No time stamp: journald and syslog have their own.
    logging.basicConfig(stream=sys.stderr, level=getattr(logging, level.upper()),
                        format='%(levelname)s %(name)s: %(message)s')
    for noisy in ('urllib3', 'requests'):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # 0.5.19 warns at every start that parts of it are missing; it sets its own level when imported.
    logging.getLogger('pyroute2').propagate = False


def _fail(status, reason):
    line = 'mdproxy: %s' % reason
    # 2.7 would fail at a value that its idea of the terminal's encoding does not hold.
    print(line if isinstance(line, str) else line.encode('utf-8'), file=sys.stderr)
    return status
