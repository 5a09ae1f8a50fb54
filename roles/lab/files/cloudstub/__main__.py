"""The command: `python3 -m cloudstub SERVICE --state FILE --listen ADDR:PORT --records DIR`.

Ready to answer when it has printed `SERVICE listens on ADDR:PORT` (the port in use where 0 was
asked for). Exit status 2 and one line on stderr when it cannot start, 0 after SIGTERM or SIGINT.
"""
import argparse
import signal
import sys

from .http import Server
from .keystone import Keystone
from .nova import ConfError, Metadata, Passwords, read_options
from .ports import Ports
from .records import Recorder
from .state import StateError, StateFile
from .tokens import Tokens


class Parser(argparse.ArgumentParser):
    """Bad usage is one line and exit status 2."""

    def error(self, message):
        self.exit(2, '%s: %s\n' % (self.prog, message))


def address(text):
    """(host, port) of `ADDR:PORT`, an IPv6 address in brackets or bare."""
    host, _, port = text.rpartition(':')
    if not host or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError('expected ADDR:PORT, not %r' % text)
    return host.strip('[]'), int(port)


def make_parser():
    """The command line."""
    parser = Parser(prog='cloudstub', description='the cloud\'s stand-in of the lab')
    services = parser.add_subparsers(dest='service', metavar='SERVICE', required=True)
    for name, text in (('keystone', 'the identity API'), ('quantum', 'the port API'),
                       ('nova', 'the metadata API')):
        service = services.add_parser(name, help=text)
        service.add_argument('--state', required=True, metavar='FILE', help='what is in the cloud')
        service.add_argument('--listen', required=True, metavar='ADDR:PORT', type=address)
        service.add_argument('--records', required=True, metavar='DIR',
                             help='where requests are recorded')
        if name == 'nova':
            service.add_argument('--nova-conf', required=True, metavar='FILE',
                                 help='read at start only')
    return parser


def make_app(options):
    """The service that `options` ask for; StateError or ConfError where its files cannot be
    used."""
    state = StateFile(options.state)
    if options.service == 'keystone':
        return Keystone(state, Tokens.beside(options.state))
    if options.service == 'quantum':
        return Ports(state, Tokens.beside(options.state))
    return Metadata(state, read_options(options.nova_conf), Passwords.beside(options.state))


def make_server(options):
    """A listening Server; StateError, ConfError, or OSError with the file or address it is
    about."""
    app = make_app(options)
    recorder = Recorder(options.records, options.service)
    try:
        return Server(options.listen, app, recorder)
    except OSError as error:
        error.filename = '%s:%d' % options.listen
        raise


def leave(number, frame):
    """End now. Connections are threads that end with the process."""
    sys.exit(0)


def main(arguments=None):
    """Serve until a signal; the exit status."""
    options = make_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    try:
        server = make_server(options)
    except (StateError, ConfError) as error:
        return fail(options, error)
    except OSError as error:
        return fail(options, '%s: %s' % (error.filename, error.strerror))
    print('%s listens on %s:%d' % (options.service, options.listen[0], server.port), flush=True)
    server.serve_forever()
    return 0


def fail(options, reason):
    """Say in one line why there is no service; the exit status."""
    print('cloudstub %s: %s' % (options.service, reason), file=sys.stderr)
    return 2


if __name__ == '__main__':
    sys.exit(main())
