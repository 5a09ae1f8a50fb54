"""The agent: finds the instance behind router and address, signs its id, asks nova.

Rules kept:

- Who asks is what the proxy says (trust.read_identity). Only proxies can say it: the unix socket's
  file mode decides who may connect.
- nova's answers pass byte for byte, errors included. What the agent answers itself: 404 no such
  instance, 503 the port API does not say, 502 nova is unreachable or gives no valid answer, 504
  nova is too slow.
- The socket appears under its name when it already listens, with its mode, in one step. A dead
  agent's socket file is replaced, a living agent's never.

AgentCore is all of it but the socket, so that a proxy can have it inside.
"""
import errno
import logging
import os
import socket

from . import eventloop, ports, server, trust, upstream

_FAILURES = {
    upstream.UNREACHABLE: (502, 'the metadata API cannot be reached'),
    upstream.TIMEOUT: (504, 'the metadata API did not answer in time'),
    upstream.BROKEN: (502, 'the metadata API gave no valid answer'),
}
_BACKLOG = 65535        # the kernel cuts it to net.core.somaxconn
_IDLE = 30.0            # seconds a connection to nova is kept without a request

_log = logging.getLogger('mdproxy.agent')


class StartError(Exception):
    """The agent cannot start; the message names the option and the reason."""


class AgentCore(object):
    """From (identity, guest address, exchange) to nova's answer. lookup: a ports.PortLookup.

    Raises ValueError when nova's host name cannot be resolved.
    """

    def __init__(self, loop, lookup, options):
        self._lookup, self._options = lookup, options
        self._requests = server.RequestLog(loop, _log)
        host, port = options.nova_metadata_ip, options.nova_metadata_port
        self._host = '%s:%d' % ('[%s]' % host if ':' in host else host, port)
        self._heads = upstream.HeadCache(self._headers)
        self._nova = upstream.Pool(loop, (host, port), options.connect_timeout,
                                   options.nova_timeout, _IDLE)

    def handle(self, identity, guest_ip, exchange):
        """Answer an exchange for the guest at this address (native str) behind a trust.Identity."""
        exchange.context = (identity, guest_ip)
        self._lookup.find(identity, guest_ip, self._looked_up, exchange)

    def _looked_up(self, outcome, exchange):
        if exchange.gone:
            return
        if outcome.reason == ports.FOUND:
            self._ask_nova(outcome.instance, exchange)
        elif outcome.reason == ports.ERROR:
            self._answer(exchange, 503, 'the port API does not answer', outcome.detail,
                         server.RETRY_AFTER)
        else:
            self._answer(exchange, 404, 'no instance has this address', outcome.detail)

    def _ask_nova(self, instance, exchange):
        try:
            payload = self._heads.format((instance, exchange.context[1]), exchange.request)
        except trust.TrustError as error:
            self._answer(exchange, error.status, 'no instance has this address', str(error))
        else:
            self._nova.forward(exchange, payload, self._failed, self._answered)

    def _headers(self, who, request):
        instance, guest_ip = who
        return trust.nova_headers(instance.device_id, instance.tenant_id, guest_ip,
                                  self._options.metadata_proxy_shared_secret, request, self._host)

    def _answered(self, exchange, head):
        if head.status == 403:
            self._log_failed(exchange, 403, 'nova refused the signature', 'shared secrets differ')

    def _failed(self, exchange, failure):
        status, text = _FAILURES[failure.kind]
        if failure.started:
            self._log_failed(exchange, 0, 'the answer was cut off', failure.detail)
        else:
            self._answer(exchange, status, text, failure.detail)

    def _answer(self, exchange, status, text, detail, headers=()):
        self._log_failed(exchange, status, text, detail)
        exchange.respond(status, text, headers)

    def _log_failed(self, exchange, status, text, detail):
        identity, guest_ip = exchange.context
        self._requests.failed('%s %s guest %s' % (identity.kind, identity.id, guest_ip), status,
                              text, detail)


class Agent(object):
    """Serves proxies: `serve` sockets, later `drain`."""

    def __init__(self, loop, lookup, options):
        self._loop, self._options = loop, options
        self._core = AgentCore(loop, lookup, options)
        self._requests = server.RequestLog(loop, _log)
        self._server = None

    def serve(self, listeners):
        """Accept proxies on listening sockets."""
        self._server = server.Server(self._loop, listeners, self.handle, self._log_failed,
                                     self._options)

    def drain(self, drained):
        """Stop accepting, answer what is under way, then call drained()."""
        self._server.drain(drained)

    def handle(self, exchange):
        """Answer a proxy's request."""
        try:
            identity, guest_ip = trust.read_identity(exchange.request.headers)
        except trust.TrustError as error:
            self._log_failed(exchange.peer, error.status, 'bad identity headers', str(error))
            exchange.respond(error.status, 'bad identity headers')
        else:
            self._core.handle(identity, guest_ip, exchange)

    def _log_failed(self, peer, status, text, detail=''):
        self._requests.failed('proxy ' + (peer or 'on the unix socket'), status, text, detail)


def open_socket(path, mode):
    """A listening unix socket at `path` with a file mode (int). Raises StartError when it cannot be
    had, or when an agent listens there already."""
    if _is_alive(path):
        raise StartError('metadata_proxy_socket %s: another agent listens there' % path)
    new = '%s.%d' % (path, os.getpid())
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove(new)
        umask = os.umask(0o777 & ~mode)     # bind makes the file with 0777 less this, at once
        try:
            listener.bind(new)
        finally:
            os.umask(umask)
        listener.listen(_BACKLOG)
        os.rename(new, path)
    except (IOError, OSError) as error:
        listener.close()
        raise StartError('metadata_proxy_socket %s: %s' % (path, error.strerror or error))
    return listener


def run(options, listeners=None):
    """Serve until SIGTERM or SIGINT; returns the exit status: 0, or 1 when the agent cannot start.

    listeners: sockets that listen already; without them the one of options.metadata_proxy_socket.
    """
    eventloop.raise_file_limit(2 * options.max_connections + 64)
    own = None
    try:
        lookup_api = ports.PortApi(options)
        loop = eventloop.Loop()
        lookup = ports.PortLookup(loop, lookup_api, options)
        agent = Agent(loop, lookup, options)
        if listeners is None:
            listeners = [open_socket(options.metadata_proxy_socket,
                                     options.metadata_proxy_socket_mode)]
            own = os.stat(options.metadata_proxy_socket)
    except (StartError, ValueError) as error:
        _log.critical('%s', error)
        return 1

    def drain(drained):
        _remove(options.metadata_proxy_socket, own)
        agent.drain(drained)

    agent.serve(listeners)
    _log.info('serving')
    try:
        return eventloop.run_until_terminated(loop, drain)
    finally:
        lookup.close()


def _is_alive(path):
    """Whether somebody listens at this path."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.setblocking(False)
    try:
        probe.connect(path)
    except (IOError, OSError) as error:
        # EAGAIN: it listens, and its backlog is full.
        return error.errno == errno.EAGAIN
    finally:
        probe.close()
    return True


def _remove(path, only=None):
    """Remove a socket file if it is there; with `only` (a stat) if it is still that one, and not
    that of an agent that has taken our place."""
    try:
        found = os.stat(path)
        if only is None or os.path.samestat(found, only):
            os.unlink(path)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
