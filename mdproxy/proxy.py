"""The proxy: what guests of one router (or network) ask goes to the agent, with who they are.

Rules kept:

- Who asks is known from the listening socket (router) and from the connection (address), never from
  what the guest says. The head for the agent is written by `trust`, not copied.
- The guest learns which hop failed, nothing about it. The log gets one line with router, guest and
  reason.
- Nothing heavy is imported: this process exists once for every router.
"""
import logging

from . import eventloop, server, trust, upstream

METADATA_HOST = b'169.254.169.254'

_FAILURES = {
    upstream.UNREACHABLE: (502, 'the metadata agent cannot be reached'),
    upstream.TIMEOUT: (504, 'the metadata agent did not answer in time'),
    upstream.BROKEN: (502, 'the metadata agent gave no valid answer'),
}
_IDLE = 30.0            # seconds a connection to the agent is kept without a request, at most

_log = logging.getLogger('mdproxy.proxy')


class Proxy(object):
    """Serves one trust.Identity: `serve` sockets, later `drain`."""

    def __init__(self, loop, identity, options):
        self._loop, self._identity, self._options = loop, identity, options
        self._requests = server.RequestLog(loop, _log)
        self._agent = upstream.Pool(loop, options.metadata_proxy_socket, options.connect_timeout,
                                    options.agent_timeout, min(_IDLE, options.idle_timeout / 2))
        self._heads = upstream.HeadCache(self._headers)
        self._server = None

    def serve(self, listeners):
        """Accept guests on listening sockets."""
        self._server = server.Server(self._loop, listeners, self.handle, self._log_failed,
                                     self._options)

    def drain(self, drained):
        """Stop accepting, answer what is under way, then call drained()."""
        self._server.drain(drained)

    def handle(self, exchange):
        """Send a guest's request to the agent and its answer back."""
        payload = self._heads.format(exchange.peer, exchange.request)
        self._agent.forward(exchange, payload, self._failed)

    def _headers(self, peer, request):
        return trust.agent_headers(self._identity, peer, self._options.header_family, request,
                                   METADATA_HOST)

    def _failed(self, exchange, failure):
        status, text = _FAILURES[failure.kind]
        if failure.started:
            self._log_failed(exchange.peer, 0, 'the answer was cut off', failure.detail)
        else:
            self._log_failed(exchange.peer, status, text, failure.detail)
            exchange.respond(status, text)

    def _log_failed(self, peer, status, text, detail=''):
        self._requests.failed('%s %s guest %s' % (self._identity.kind, self._identity.id, peer),
                              status, text, detail)


def run(identity, listeners, options):
    """Serve until SIGTERM or SIGINT; returns the exit status."""
    eventloop.raise_file_limit(2 * options.max_connections + 64)
    loop = eventloop.Loop()
    proxy = Proxy(loop, identity, options)
    proxy.serve(listeners)
    _log.info('serving %s %s', identity.kind, identity.id)
    return eventloop.run_until_terminated(loop, proxy.drain)
