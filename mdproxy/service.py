"""What proxy and agent have in common: servers, counters, log lines, status, SIGHUP and SIGTERM."""
import collections
import logging
import signal

from . import config, eventloop, metrics, namespaces, server, status, trust

# Seconds; a guest's own patience ends at 5 s (cloud-init's reader for OpenStack) or 50 s (EC2).
_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_log = logging.getLogger('mdproxy.service')


class Service(object):
    """A process that serves. role: a label of its metrics. labels: more of them. several: it serves
    several routers, and counts their requests apart.

    Subclasses say in `fixed` which options only a restart changes, in `command` which options have to be
    there (as of config.Sources.load) when it is not the role that says it, and extend `configure`,
    `describe` and `close`.
    """

    command = None
    fixed = ('user', 'status_folder', 'status_listen')
    trace = None            # as AgentCore's, of a process that has the agent in it

    def __init__(self, loop, role, labels, options, several=False):
        self.loop, self.options, self.role = loop, options, role
        self.requests = server.RequestLog(loop, logging.getLogger('mdproxy.' + role))
        self.registry = metrics.Registry(dict(labels, role=role))
        self._servers = []
        self._status = None
        self._answers = collections.defaultdict(int)    # (origin, status of the answer) -> how many
        self.registry.read(
            'counter', 'mdproxy_requests_total', 'Requests by the status of the answer; 0 without one.',
            self._by_origin if several else self._by_status,
            ('router', 'network', 'status') if several else 'status')
        self._seconds = self.registry.histogram(
            'mdproxy_request_seconds', 'From a complete request to its complete answer.',
            _BOUNDS)
        self.registry.read('gauge', 'mdproxy_connections', 'Open connections of those who ask.',
                           lambda: sum(len(one.connections) for one in self._servers))

    def listen(self, listeners, handler, refused, limited=False, mac_of=None):
        """Have handler(exchange) called for requests that come to listeners.

        listeners, refused and mac_of: as of server.Server. limited: those who ask are guests, and have
        limits each.
        """
        self._servers.append(server.Server(self.loop, listeners, handler, refused, self.options,
                                           self._observe, limited, mac_of))

    def tell(self, listeners, alone=True):
        """Answer for metrics and status on listening sockets.

        alone: nobody else will answer there. Then files of unix sockets go when this process drains, and
        it answers on status_listen too.
        """
        if alone and self.options.status_listen:
            try:
                listeners = listeners + [namespaces.open_listener(*self.options.status_listen)]
            except namespaces.NamespaceError as error:
                _log.error('status_listen: nothing is told there: %s', error)
        if listeners:
            self._status = status.Status(self.loop, self.registry, self.describe, self.options,
                                          self.trace)
            self._status.serve(listeners, removing=alone)

    def describe(self):
        """What the status tells, besides what the metrics do, a dict."""
        return {'requests': self._by_status()}

    def counts(self):
        """The answers so far, for `add_counts` of another process: [[kind, id, status, how many]]."""
        return [[origin.kind, origin.id, answer, count]
                for (origin, answer), count in self._answers.items()]

    def add_counts(self, counts):
        """Take in what another process has counted before it ended."""
        for kind, id, answer, count in counts:
            self._answers[trust.Identity(str(kind), str(id)), answer] += count

    def configure(self, options):
        """Use other options, which are this process's then. Raises ValueError and changes nothing when
        they cannot work."""
        for name in self.fixed:
            if getattr(options, name) != getattr(self.options, name):
                _log.warning('%s has changed; that takes a restart', name)
                setattr(options, name, getattr(self.options, name))
        self.options = options
        logging.getLogger().setLevel(options.log_level.upper())
        for one in self._servers:
            one.configure(options)
        self.check_limits()

    def check_limits(self):
        """Say so when there cannot be as many connections as there may be."""
        wanted, allowed = server.descriptors_for(self.options.max_connections), eventloop.file_limit()
        if allowed < wanted:
            _log.warning('max_connections is %d, for which %d files have to be open, and %d may be: '
                         'raise the limit', self.options.max_connections, wanted, allowed)

    def drain(self, drained, patient=False):
        """Stop accepting, answer what is under way, then call drained(). patient: as of server.Server."""
        drains = self._servers + ([self._status] if self._status else [])
        left = list(drains)

        def one_drained():
            left.pop()
            if not left:
                drained()
        for one in drains:
            one.drain(one_drained, patient)
        if not drains:
            drained()

    def close(self):
        """Let go of what is neither a socket nor of the loop."""

    def watch(self, upstream):
        """Tell in the metrics how the endpoints are. upstream(): the present upstream.Upstream."""
        def of_each(value):
            return lambda: dict((one['name'], value(one)) for one in upstream().health())
        self.registry.read('gauge', 'mdproxy_endpoint_up', 'Whether its last request was answered.',
                           of_each(lambda one: int(one['up'])), 'endpoint')
        self.registry.read('counter', 'mdproxy_endpoint_failures_total',
                           'Requests to an endpoint that it did not answer.',
                           of_each(lambda one: one['failures']), 'endpoint')

    def _by_status(self):
        counts = {}
        for (_, answer), count in self._answers.items():
            counts[str(answer)] = counts.get(str(answer), 0) + count
        return counts

    def _by_origin(self):
        return dict(((origin.id if origin.kind == 'router' else '',
                      origin.id if origin.kind == 'network' else '', answer), count)
                    for (origin, answer), count in self._answers.items())

    def _observe(self, origin, answer, seconds):
        self._answers[origin, answer] += 1
        if seconds is not None:
            self._seconds.observe(seconds if seconds > 0 else 0.0)      # 2.7's clock can be set back


def run(service, sources, status_listener=None):
    """Serve until SIGTERM or SIGINT; at SIGHUP read the options again. Returns the exit status.

    sources: config.Sources of the service's options. status_listener: a listening unix socket.
    """
    def read_again():
        try:
            service.configure(sources.load(service.command or service.role))
        except (config.ConfigError, ValueError) as error:
            _log.error('the configuration stays as it was: %s', error)
        else:
            _log.info('the configuration was read again')

    service.check_limits()
    service.tell([status_listener] if status_listener else [])
    service.loop.on_signal(signal.SIGHUP, read_again)
    try:
        return eventloop.run_until_terminated(service.loop, service.drain)
    finally:
        service.close()
