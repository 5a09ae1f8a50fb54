"""The proxy: what guests of one router (or network) ask goes to an agent, with who they are.

Rules kept:

- Who asks is known from the listening socket (router) and from the connection (address), never from
  what the guest says. The head for the agent is written by `trust`, not copied.
- The guest learns which hop failed, nothing about it. The log gets one line with router, guest and
  reason.
- Nothing heavy is imported: this process exists once for every router. Only one that is its own
  agent (builtin_agent) has the agent's needs.
"""
import logging

from . import eventloop, service, trust, upstream

METADATA_HOST = b'169.254.169.254'

_FAILURES = {
    upstream.UNREACHABLE: (502, 'the metadata agent cannot be reached'),
    upstream.TIMEOUT: (504, 'the metadata agent did not answer in time'),
    upstream.BROKEN: (502, 'the metadata agent gave no valid answer'),
}
_IDLE = 30.0            # seconds a connection to an agent is kept without a request, at most

_log = logging.getLogger('mdproxy.proxy')


class Proxy(service.Service):
    """Serves one trust.Identity: `serve` sockets, later `drain`.

    Raises ValueError when the name of an agent, or with builtin_agent of nova, cannot be resolved.
    """

    def __init__(self, loop, identity, options):
        super(Proxy, self).__init__(loop, 'proxy', {identity.kind: identity.id}, options)
        self._identity = identity
        self._builtin = None
        if options.builtin_agent:
            from . import agent
            self._builtin = agent.AgentCore(self, options)
        else:
            self._agents = Agents(loop, identity, self.requests, options)
            self.watch(lambda: self._agents.upstream)

    def serve(self, listeners):
        """Accept guests on listening sockets."""
        handler = self._ask_builtin if self._builtin else self._ask_agents
        self.listen(listeners, handler, self._refused, limited=True)

    def configure(self, options):
        if options.builtin_agent != self.options.builtin_agent:
            raise ValueError('builtin_agent has changed; that takes a restart')
        if self._builtin:
            self._builtin.configure(options)
        else:
            agents = Agents(self.loop, self._identity, self.requests, options)
            self._agents.upstream.close()
            self._agents = agents
        super(Proxy, self).configure(options)

    def describe(self):
        own = {self._identity.kind: self._identity.id}
        if self._builtin:
            return dict(self._builtin.describe(), **own)
        return dict(own, endpoints=self._agents.upstream.health())

    def close(self):
        if self._builtin:
            self._builtin.close()

    def _ask_agents(self, exchange):
        self._agents.ask(exchange)

    def _ask_builtin(self, exchange):
        self._builtin.handle(self._identity, exchange.peer, exchange)

    def _refused(self, peer, status, text):
        self.requests.failed(self._identity.guest(peer), status, text)


class Agents(object):
    """The agents that a proxy asks, under one set of options."""

    def __init__(self, loop, identity, requests, options):
        self._identity, self._requests = identity, requests
        self._family = options.header_family
        self._link = None
        if options.link_secret:
            from .link import Link
            self._link = Link(options.link_secret, options.link_window)
        self._heads = upstream.HeadCache(self._headers)
        self.upstream = upstream.Upstream(
            loop, options.agents or (options.metadata_proxy_socket,), options.connect_timeout,
            options.agent_timeout, min(_IDLE, options.idle_timeout / 2))

    def ask(self, exchange):
        """Send a guest's request to an agent and its answer back."""
        request, peer = exchange.request, exchange.peer
        signed = self._link.headers(self._identity, peer, request) if self._link else ()
        self.upstream.forward(exchange, self._heads.format(peer, request, signed), self._failed)

    def _headers(self, peer, request):
        return trust.agent_headers(self._identity, peer, self._family, request, METADATA_HOST)

    def _failed(self, exchange, failure):
        who = self._identity.guest(exchange.peer)
        if failure.started:
            self._requests.failed(who, 0, 'the answer was cut off', failure.detail)
        else:
            status, text = _FAILURES[failure.kind]
            self._requests.failed(who, status, text, failure.detail)
            exchange.respond(status, text)


def run(identity, listeners, sources, status_listener=None, serving=None):
    """Serve until SIGTERM or SIGINT; returns the exit status.

    identity: a trust.Identity. listeners: sockets that listen. sources: config.Sources. serving(proxy)
    is called when nothing can fail any more. Raises ConfigError, and ValueError as Proxy.
    """
    proxy = Proxy(eventloop.Loop(), identity, sources.load('proxy'))
    proxy.serve(listeners)
    if serving:
        serving(proxy)
    _log.info('serving %s %s', identity.kind, identity.id)
    return service.run(proxy, sources, status_listener)
