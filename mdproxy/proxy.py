"""The proxy: what guests of routers (or networks) ask goes to an agent, with who they are.

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
    """Serves routers: `serve` their sockets, later `drain`. labels and several: as of service.Service.

    Raises ValueError when the name of an agent, or with builtin_agent of nova, cannot be resolved.
    """

    def __init__(self, loop, labels, options, several=False):
        super(Proxy, self).__init__(loop, 'proxy', labels, options, several)
        self._builtin = None
        if options.builtin_agent:
            from . import agent
            self._builtin = agent.AgentCore(self, options)
            self.trace = self._builtin.trace
        else:
            self._agents = Agents(loop, self.requests, options)
            self.watch(lambda: self._agents.upstream)

    def serve(self, listeners, neighbours=()):
        """Accept guests on (listening socket, trust.Identity of those who are behind it) each.

        neighbours: (trust.Identity, socket of neighbours.open_socket) of routers that have guests of IPv6.
        """
        handler = self._ask_builtin if self._builtin else self._ask_agents
        mac_of = None
        if neighbours:
            from .neighbours import Neighbours
            tables = dict((identity, Neighbours(sock)) for identity, sock in neighbours)

            def mac_of(identity, peer, scope):
                known = trust.is_link_local(peer) and tables.get(identity)
                return known.mac(peer, scope) if known else None
        self.listen(listeners, handler, self._refused, limited=True, mac_of=mac_of)

    def configure(self, options):
        if options.builtin_agent != self.options.builtin_agent:
            raise ValueError('builtin_agent has changed; that takes a restart')
        if self._builtin:
            self._builtin.configure(options)
        else:
            agents = Agents(self.loop, self.requests, options)
            self._agents.upstream.close()
            self._agents = agents
        super(Proxy, self).configure(options)

    def describe(self):
        if self._builtin:
            own = self._builtin.describe()
        else:
            own = {'endpoints': self._agents.upstream.health()}
        return dict(super(Proxy, self).describe(), **own)

    def close(self):
        if self._builtin:
            self._builtin.close()

    def _ask_agents(self, exchange):
        self._agents.ask(exchange)

    def _ask_builtin(self, exchange):
        self._builtin.handle(exchange.origin, exchange.peer, exchange, exchange.mac)

    def _refused(self, identity, peer, status, text):
        self.requests.failed(identity.guest(peer), status, text)


class Agents(object):
    """The agents that a proxy asks, under one set of options."""

    def __init__(self, loop, requests, options):
        self._requests = requests
        self._family = options.header_family
        self._link = None
        if options.link_secret:
            from .link import Link
            self._link = Link(options.link_secret, options.link_window)
        self._heads = upstream.HeadCache(self._headers)
        self.upstream = upstream.Upstream(
            loop, agents(options), options.connect_timeout, options.agent_timeout,
            min(_IDLE, options.idle_timeout / 2))

    def ask(self, exchange):
        """Send a guest's request to an agent and its answer back."""
        request, who = exchange.request, (exchange.origin, exchange.peer, exchange.mac)
        signed = ()
        if self._link:
            signed = self._link.headers(exchange.origin, exchange.peer, request, exchange.mac)
        self.upstream.forward(exchange, self._heads.format(who, request, signed), self._failed)

    def _headers(self, who, request):
        identity, peer, mac = who
        return trust.agent_headers(identity, peer, self._family, request, METADATA_HOST, mac)

    def _failed(self, exchange, failure):
        who = exchange.origin.guest(exchange.peer)
        if failure.started:
            self._requests.failed(who, 0, 'the answer was cut off', failure.detail)
        else:
            status, text = _FAILURES[failure.kind]
            self._requests.failed(who, status, text, failure.detail)
            exchange.respond(status, text)


def agents(options):
    """The agents to ask, as of upstream.Upstream."""
    return options.agents or (options.metadata_proxy_socket,)


def run(identity, listeners, sources, status_listener=None, serving=None, table=None):
    """Serve one router until SIGTERM or SIGINT; returns the exit status.

    identity: a trust.Identity. listeners: sockets that listen. sources: config.Sources. serving(proxy)
    is called when nothing can fail any more. table: a socket of neighbours.open_socket, for guests of
    IPv6. Raises ConfigError, and ValueError as Proxy.
    """
    proxy = Proxy(eventloop.Loop(), {identity.kind: identity.id}, sources.load('proxy'))
    proxy.serve([(listener, identity) for listener in listeners], [(identity, table)] if table else ())
    if serving:
        serving(proxy)
    _log.info('serving %s %s', identity.kind, identity.id)
    return service.run(proxy, sources, status_listener)
