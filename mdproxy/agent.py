"""The agent: finds the instance behind router and address, signs its id, asks nova.

Rules kept:

- Who asks is what the proxy says (trust.read_identity). Only proxies can say it: on the unix socket
  its file mode decides who may connect, over TCP (agent_listen) every request is signed (link).
- nova's answers pass byte for byte, errors included. What the agent answers itself: 404 no such
  instance, 403 not signed as it has to be, 503 the port API does not say, 502 nova is unreachable or
  gives no valid answer, 504 nova is too slow.

AgentCore is all of it but the sockets, so that a proxy can have it inside.
"""
import logging
import os

from . import (
    eventloop,
    link,
    namespaces,
    portapi,
    ports,
    server,
    service,
    status,
    trace,
    trust,
    unixsocket,
    upstream,
)

_FAILURES = {
    upstream.UNREACHABLE: (502, 'the metadata API cannot be reached'),
    upstream.TIMEOUT: (504, 'the metadata API did not answer in time'),
    upstream.BROKEN: (502, 'the metadata API gave no valid answer'),
}
_IDLE = 30.0            # seconds a connection to nova is kept without a request

_log = logging.getLogger('mdproxy.agent')


class AgentCore(object):
    """From (identity, guest address, exchange) to nova's answer, for the service.Service that has it.

    Raises ValueError when nova's host name cannot be resolved, or the options cannot work.
    """

    def __init__(self, owner, options):
        self._loop, self._requests = owner.loop, owner.requests
        self._nova = None
        self._api = portapi.PortApi(options)
        self._lookup = ports.PortLookup(owner.loop, self._api, options)
        self._ask_with(options)
        owner.watch(lambda: self._nova)
        owner.registry.read('counter', 'mdproxy_lookups_total',
                            'Guests looked up, by how that was done or failed.',
                            lambda: self._lookup.outcomes, 'outcome')
        owner.registry.read('gauge', 'mdproxy_token_age_seconds', 'Since the token was issued to us.',
                            self._lookup.token_age)

    def configure(self, options):
        """Use other options; what is known of ports stays. Raises ValueError, nothing changed then."""
        before, api = self._api, self._api.renewed(options)
        self._ask_with(options)
        self._api = api
        self._lookup.reconfigure(api, options)
        if api is not before:
            before.close()

    def describe(self):
        """What the status tells of it, a dict."""
        return {'endpoints': self._nova.health(), 'lookups': dict(self._lookup.outcomes),
                'token_age': self._lookup.token_age(), 'api': self._lookup.health()}

    def close(self):
        """End its threads."""
        self._lookup.close()

    def trace(self, identity, told):
        """Find out how the way to nova is for those behind a trust.Identity; told(dict) as of trace.Trace,
        with `endpoints` as `describe` has them."""
        signed = self._loop.now >= self._believed_until

        def done(found):
            if signed and found['nova']['status'] == 404:
                self._believed_until = self._loop.now + trace.BELIEVED
            told(dict(found, endpoints=self._nova.health()))
        headers = [(b'Host', self._host.encode('ascii'))]
        if signed:
            headers = self._headers((trace.INSTANCE, trace.NOBODY), trace.Trace.request)
        asked = trace.Trace(self._nova, headers, signed, done)
        self._lookup.find(identity, trace.NOBODY, None, asked.looked_up)

    def _ask_with(self, options):
        endpoints = nova_endpoints(options)
        nova = upstream.Upstream(self._loop, endpoints, options.connect_timeout,
                                 options.nova_timeout, _IDLE)
        if self._nova:
            self._nova.close()
        self._nova = nova
        self._secret = options.metadata_proxy_shared_secret
        self._believed_until = 0.0      # by nova, for all that trace knows
        self._host = _host_field(endpoints[0])
        self._heads = upstream.HeadCache(self._headers)

    def handle(self, identity, guest_ip, exchange, mac=None):
        """Answer an exchange for the guest at this address (native str; mac as in
        trust.agent_headers) behind a trust.Identity."""
        exchange.context = (identity, guest_ip)
        try:
            mac = trust.believed_mac(guest_ip, mac)
        except trust.TrustError as error:
            self._answer(exchange, error.status, 'no instance has this address', error.reason)
        else:
            self._lookup.find(identity, guest_ip, mac, self._looked_up, exchange)

    def _looked_up(self, outcome, exchange):
        """Ask nova, or say why not. Nobody above us would answer the guest after an error."""
        if exchange.gone:
            return
        try:
            if outcome.reason == ports.FOUND:
                payload = self._heads.format((outcome.instance, exchange.context[1]), exchange.request)
                self._nova.forward(exchange, payload, self._failed, self._refused)
            elif outcome.reason == ports.ERROR:
                self._answer(exchange, 503, 'the port API does not answer', outcome.detail,
                             server.RETRY_AFTER)
            else:
                self._answer(exchange, 404, 'no instance has this address', outcome.detail)
        except trust.TrustError as error:
            self._answer(exchange, error.status, 'no instance has this address', str(error))
        except Exception:
            _log.exception('error after a port lookup')
            self._answer(exchange, 500, 'internal error', '')

    def _headers(self, who, request):
        instance, guest_ip = who
        return trust.nova_headers(instance.device_id, instance.tenant_id, guest_ip,
                                  self._secret, request, self._host)

    def _refused(self, exchange, head):
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
        if guest_ip == trace.PROBE and status == 404:
            return          # which is what it wants to hear, from every router as often as it asks
        self._requests.failed(identity.guest(guest_ip), status, text, detail)


class Agent(service.Service):
    """Serves proxies: `serve` sockets, later `drain`. Raises ValueError as AgentCore."""

    fixed = service.Service.fixed + ('metadata_proxy_socket', 'metadata_proxy_socket_mode',
                                     'agent_listen')

    def __init__(self, loop, options):
        super(Agent, self).__init__(loop, 'agent', {}, options)
        self._core = AgentCore(self, options)
        self._link = self._new_link(options)
        self._own = None            # path and stat of our socket file

    def serve(self):
        """Accept proxies on the unix socket and, with agent_listen, those that sign over TCP.

        Raises SocketError or NamespaceError when an address cannot be had.
        """
        options = self.options
        remote = []
        if options.agent_listen:
            remote = [(namespaces.open_listener(*options.agent_listen), None)]
        local = unixsocket.listen(options.metadata_proxy_socket, options.metadata_proxy_socket_mode)
        self._own = options.metadata_proxy_socket, os.stat(options.metadata_proxy_socket)
        self.listen([(local, None)], self.handle, self._refused)
        if remote:
            self.listen(remote, self.handle_signed, self._refused)

    def configure(self, options):
        new_link = self._new_link(options)
        self._core.configure(options)
        self._link = new_link
        super(Agent, self).configure(options)

    def describe(self):
        return dict(super(Agent, self).describe(), **self._core.describe())

    def drain(self, drained, patient=False):
        """Stop accepting, answer what is under way, then call drained()."""
        if self._own:
            try:
                unixsocket.remove(*self._own)
            except OSError as error:
                _log.warning('%s is left over: %s', self._own[0], error.strerror)
        super(Agent, self).drain(drained, patient)

    def close(self):
        self._core.close()

    def trace(self, identity, told):
        self._core.trace(identity, told)

    def handle(self, exchange, signed_by=None):
        """Answer a proxy's request; only if it was signed, when there is a link.Link to check it."""
        request = exchange.request
        try:
            identity, guest_ip, mac = trust.read_identity(request.headers)
            if signed_by:
                signed_by.check(identity, guest_ip, request, mac)
        except trust.TrustError as error:
            self._refused(None, exchange.peer, error.status, 'bad identity headers', str(error))
            exchange.respond(error.status, 'bad identity headers')
        else:
            self._core.handle(identity, guest_ip, exchange, mac)

    def handle_signed(self, exchange):
        """Answer a request that came over TCP."""
        self.handle(exchange, self._link)

    def _new_link(self, options):
        if options.agent_listen or self.options.agent_listen:   # a listener stays until a restart
            return link.Link(options.link_secret, options.link_window)

    def _refused(self, _origin, peer, status, text, detail=''):
        self.requests.failed('proxy ' + (peer or 'on the unix socket'), status, text, detail)


def nova_endpoints(options):
    """The metadata APIs to ask, as of upstream.Upstream."""
    return options.nova_endpoints or ((options.nova_metadata_ip, options.nova_metadata_port),)


def run(sources):
    """Serve until SIGTERM or SIGINT; returns the exit status: 0, or 1 when the agent cannot start.

    sources: config.Sources. Raises ConfigError.
    """
    options = sources.load('agent')
    try:
        agent = Agent(eventloop.Loop(), options)
        agent.serve()
    except (ValueError, unixsocket.SocketError, namespaces.NamespaceError) as error:
        _log.critical('%s', error)
        return 1
    _log.info('serving')
    return service.run(agent, sources, status.socket_or_warning(options, 'agent', _log))


def _host_field(endpoint):
    """Value of the Host field for an endpoint."""
    if not isinstance(endpoint, tuple):
        return 'localhost'
    return '%s:%d' % ('[%s]' % endpoint[0] if ':' in endpoint[0] else endpoint[0], endpoint[1])
