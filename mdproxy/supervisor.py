"""One process for all routers of a host: `mdproxy proxy --discover`, the master.

Rules kept:

- Root's part and nothing more: listening sockets in namespaces, rules there, and workers that serve. No
  byte of a guest is read here.
- A namespace is its inode, not its name. One that was made anew has a socket and rules anew.
- What is wrong with one namespace is said, tried again and again, and stops no other.
- Nothing blocks: rules are applied by children (rulekeeper), and guests served by others (workers).

SIGHUP reads the configuration again and replaces the workers. SIGUSR2 ends the master alone: its workers
serve until the one that the service manager starts next does, so that a new release costs no request.
"""
import errno
import fcntl
import importlib
import json
import logging
import os
import signal
import socket

from . import (
    children,
    config,
    daemon,
    discovery,
    eventloop,
    linklocal,
    namespaces,
    neighbours,
    privileges,
    proxy,
    rulekeeper,
    rules,
    server,
    service,
    status,
    unixsocket,
    upstream,
    workers,
)

NETWORK_LISTEN = ('169.254.169.254', 80)        # the address is on a network's own interface
_MOST_WORKERS = 8
_RULERS_PER_CORE, _MOST_RULERS = 4, 16      # processes that apply rules; they mostly wait for the kernel
# Seconds until something that failed is tried again: the first time, the second, ...
_RETRIES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_RULES_RETRIES = (0.5, 2.0, 10.0)
_UNREMARKABLE = 3       # failures that come of how namespaces are made: first the name, then the rest
_LINKS_SETTLE = 0.2     # seconds in which more changes of interfaces count as one
_LINES = 10             # of a kind that are logged in a second

_log = logging.getLogger('mdproxy.supervisor')


class Site(object):
    """A namespace, with what is served in it.

    sockets: bound, empty while they cannot be had; nobody can connect before the rules are there, and
    they are served. inode: the namespace's. links: a netlink socket that tells of its interfaces, or
    None. looked_at: when its rules were, by the loop's clock. failures: of sockets or rules, in a row.
    trouble: what the last one was. said: it was logged. waiting: for the address to be an interface's.
    """

    __slots__ = ('name', 'identity', 'inode', 'sockets', 'links', 'served', 'waiting', 'looked_at',
                 'failures', 'trouble', 'said')

    def __init__(self, name, identity):
        self.name, self.identity = name, identity
        self.inode, self.sockets, self.links, self.served = None, (), None, False
        self.waiting, self.looked_at = False, 0.0
        self.failures, self.trouble, self.said = 0, '', False

    @property
    def has_rules(self):
        """A network's address is on an interface; nobody has to be led to it."""
        return self.identity.kind == 'router'

    def bind(self, addresses):
        """Take addresses in the namespace that now has the name. Raises NamespaceError."""
        self.close()
        inode = namespaces.inode(self.name)
        if inode is None:
            raise namespaces.NamespaceError('no namespace is mounted there')
        for host, port, only_ipv6 in addresses:
            self.sockets += (namespaces.bind(host, port, self.name, shared=True, only_ipv6=only_ipv6),)
        if namespaces.inode(self.name) != inode:
            self.close()
            raise namespaces.NamespaceError('another was made meanwhile')
        self.inode = inode

    def listen(self):
        """Let guests connect. Raises NamespaceError."""
        for sock in self.sockets:
            namespaces.listen(sock, self.name)
        self.served = True

    def close(self):
        """Let go of the sockets; the namespace can go then, as far as this process is concerned."""
        for sock in self.sockets:
            sock.close()
        self.inode, self.sockets, self.served = None, (), False

    @property
    def settled(self):
        """Whether it is served, or will not be for a reason that is known."""
        return self.served or self.said or self.waiting


class Supervisor(service.Service):
    """The master. listen: (address, port) in routers' namespaces. load_rules(): their rules.Rules, of
    IPv4 and, if guests of IPv6 are served, of IPv6.

    Raises ValueError when the name of an agent, or with builtin_agent of nova, cannot be resolved.
    """

    fixed = service.Service.fixed + ('lock_file', 'rules_interval', 'ipv6')
    command = 'proxy'

    def __init__(self, loop, listen, load_rules, options):
        super(Supervisor, self).__init__(loop, 'master', {}, options, several=True)
        upstream.remember(_endpoints(options))
        self._load_rules, self._wanted = load_rules, load_rules()
        self._ipv6 = len(self._wanted) > 1
        self._listen = [listen + (False,)]
        if self._ipv6 and listen[0] != '::':
            self._listen.append(('::', listen[1], True))
        self._lock = _locked(options.lock_file)
        eventloop.raise_file_limit(2 * server.descriptors_for(options.max_connections))
        self._children = children.Children(loop)
        self._children.private.add(self._lock)
        self._sites = {}
        self._lines = {}                # kind of log line -> how many within this second
        self._stopping = self._handing_over = False
        self._told = [_status_socket(options, 'worker-%d' % slot) for slot in range(_count(options))]
        rulers = min(_RULERS_PER_CORE * _cores(), _MOST_RULERS)
        self._rules = rulekeeper.RuleKeeper(loop, self._children, rulers, self._ruled)
        self._workers = workers.Workers(loop, self._children, _count(options), self._work,
                                        self._serving, self._counted, self._kill)
        self._workers.drain_times = options.drain_timeout, server.longest_drain(options)
        loop.on_signal(signal.SIGUSR2, self._hand_over)
        self.registry.read('gauge', 'mdproxy_namespaces', 'Namespaces by how they are served.',
                           self._by_state, 'state')
        self.registry.read('gauge', 'mdproxy_workers', 'Processes that serve, and that drain.',
                           lambda: {'serving': len(self._workers.pids()),
                                    'draining': self._workers.draining}, 'state')

    def start(self):
        """Find namespaces and serve in them, from now on."""
        discovery.Watch(self.loop, self._look)
        if self.options.rules_interval:
            self._check_rules()
        self._workers.renew()

    def configure(self, options):
        try:
            wanted = self._load_rules()
        except rules.RulesError as error:
            raise ValueError(str(error))
        upstream.remember(_endpoints(options))
        super(Supervisor, self).configure(options)
        count = _count(options)
        while len(self._told) < count:
            self._told.append(_status_socket(options, 'worker-%d' % len(self._told)))
        while len(self._told) > count:
            self._stop_telling()
        self._wanted = wanted
        self._workers.drain_times = options.drain_timeout, server.longest_drain(options)
        self._workers.renew(count)
        for site in self._sites.values():
            self._rule(site)
        self._look()

    def describe(self):
        troubles = dict((site.name, site.trouble) for site in self._sites.values() if site.said)
        if self._workers.failing:
            troubles['workers'] = 'they end before they serve; the log says why'
        return dict(super(Supervisor, self).describe(), namespaces=self._by_state(), troubles=troubles,
                    workers=self._workers.pids(), changing=self._workers.changing)

    def drain(self, drained, patient=False):
        """End the workers and take the rules away, then call drained()."""
        if self._stopping:
            return
        self._stopping = True
        for site in self._sites.values():
            self._close(site)
            if site.has_rules:
                self._rules.do(site.name, None, self._remove_rules)
        self._workers.drain(lambda: self._when_ruled(
            lambda: super(Supervisor, self).drain(drained, patient)))

    def close(self):
        while self._told and not self._handing_over:
            self._stop_telling()
        os.close(self._lock)

    def _stop_telling(self):
        """The last worker's status socket is no longer wanted."""
        sock = self._told.pop()
        if sock:
            sock.close()
            _remove_status_socket(self.options, 'worker-%d' % len(self._told))

    # Namespaces

    def _look(self):
        """See which namespaces there are, and serve in those that are new."""
        if self._stopping:
            return
        try:
            found = discovery.find(self.options.isolated_networks)
        except OSError as error:        # what is served stays so
            self._say('folder', '%s: %s', namespaces.FOLDER, error.strerror, level=logging.ERROR)
            return
        for name in list(self._sites):
            if name not in found:
                self._forget(self._sites[name])
        eventloop.raise_file_limit(len(found) + server.descriptors_for(self.options.max_connections))
        for name in sorted(found):
            site = self._sites.get(name)
            if site is None:
                site = self._sites[name] = Site(name, found[name])
                self._open(site)
            elif site.sockets and site.inode != namespaces.inode(name):
                self._say('anew', '%s was made anew', name)
                self._workers.renew()       # those that have the old socket keep the old one alive
                self._open(site)

    def _open(self, site):
        if self._stopping or self._sites.get(site.name) is not site:
            return
        try:
            self._close(site)
            site.bind(self._listen if site.has_rules else [NETWORK_LISTEN + (False,)])
            if self._ipv6 and site.has_rules:
                self._watch_links(site)
        except namespaces.NoAddressError:
            # A network that has a router: its guests do not ask here. Some day it may have none.
            self._close(site)
            site.waiting = True
            self.loop.call_later(discovery.RESCAN, self._open, site)
            return
        except (namespaces.NamespaceError, IOError, OSError) as error:
            self._close(site)
            self._failed(site, str(error), _RETRIES, self._open, _UNREMARKABLE)
            return
        site.failures, site.waiting = 0, False
        if site.has_rules:
            self._rule(site)
        else:
            self._serve(site)

    def _forget(self, site):
        del self._sites[site.name]
        self._rules.forget(site.name)
        if site.served:
            self._workers.renew()
        self._close(site)
        self._say('gone', '%s is gone', site.name)

    def _close(self, site):
        if site.links is not None:
            self.loop.unregister(site.links.fileno())
            site.links.close()
            site.links = None
        site.close()

    def _watch_links(self, site):
        """An interface that is plugged later gets the metadata address of IPv6 too."""
        site.links = neighbours.open_socket(site.name, of_links=True)

        def changed(_events):
            try:
                while site.links.recv(65536):
                    pass
            except socket.error:
                pass
            self.loop.call_later(_LINKS_SETTLE, self._rule, site)
        self.loop.register(site.links.fileno(), eventloop.EPOLLIN, changed)

    # Rules

    def _ruled(self, name, inode, outcome, reason):
        site = self._sites.get(name)
        if self._stopping and outcome == rulekeeper.FAILED:
            _log.error('%s: its rules stay: %s', name, reason)
        if site is None or not site.sockets or site.inode != inode:
            return
        site.looked_at = self.loop.now
        if outcome == rulekeeper.FAILED:
            self._failed(site, reason, _RULES_RETRIES, self._rule)
        elif not site.served:
            self._serve(site)
        else:
            site.failures, site.trouble, site.said = 0, '', False
            if outcome == rulekeeper.APPLIED:
                _log.warning('%s: its rules were not as they should be, and are again', name)

    def _serve(self, site):
        try:
            site.listen()
        except namespaces.NamespaceError as error:
            self._close(site)
            self._failed(site, str(error), _RETRIES, self._open)
            return
        site.failures, site.trouble, site.said = 0, '', False
        self._say('serving', 'serving %s %s', *site.identity)
        self._workers.renew()

    def _rule(self, site):
        if not self._stopping and self._sites.get(site.name) is site and site.sockets:
            self._rules.do(site.name, site.inode, self._apply_rules)

    def _apply_rules(self, name):
        """In a child."""
        changed = linklocal.add(name) if self._ipv6 else linklocal.remove(name)
        return any([changed] + [wanted.apply(name) for wanted in self._wanted])

    @staticmethod
    def _remove_rules(name):
        """In a child."""
        return any([linklocal.remove(name), rules.remove(name)])

    def _check_rules(self):
        """Look at the rules of some routers each second, so that each has its turn in time."""
        interval = self.options.rules_interval
        due = [site for site in self._sites.values() if site.served and site.has_rules
               and site.looked_at + interval <= self.loop.now]
        for site in due[:1 + int(len(self._sites) / interval)]:
            self._rule(site)
        self.loop.call_later(1.0, self._check_rules)

    def _when_ruled(self, then):
        if self._rules.idle:
            then()
        else:
            self.loop.call_later(0.02, self._when_ruled, then)

    # Workers

    def _work(self, slot, control):
        """In a new process: serve what is open now."""
        served = [site for site in self._sites.values() if site.served]
        listeners = [(sock, site.identity) for site in served for sock in site.sockets]
        tables = list(self._neighbours(served)) if self._ipv6 else ()
        privileges.become(self.options.user)
        return workers.serve(slot, control, listeners, tables, self.options, self._told[slot])

    def _kill(self, pid, number):
        privileges.kill(pid, number, self.options.user)

    @staticmethod
    def _neighbours(served):
        """As of proxy.Proxy.serve; of routers whose namespace is gone meanwhile nobody will ask."""
        for site in served:
            if site.has_rules:
                try:
                    yield site.identity, neighbours.open_socket(site.name)
                except namespaces.NamespaceError as error:
                    _log.debug('%s', error)

    def _serving(self):
        """All workers of a generation serve: who served for a master before may drain, if these have all
        that can be served."""
        if not all(site.settled for site in self._sites.values()):
            return                      # another generation will come
        os.ftruncate(self._lock, 0)
        os.lseek(self._lock, 0, os.SEEK_SET)
        os.write(self._lock, b'%d\n' % os.getpid())

    def _counted(self, text):
        self.add_counts(json.loads(text))

    def _hand_over(self):
        """End, when no child is at work any more: the next master's would be beside it."""
        if not self._stopping:
            _log.info('handing over to the next master')
            self._stopping = self._handing_over = True
            self._rules.forget_all()
            self._when_ruled(self.loop.stop)

    # Words

    def _failed(self, site, reason, retries, again, unremarkable=0):
        """Try again later; say why, once, when it has happened more often than is unremarkable."""
        site.failures += 1
        if site.failures > unremarkable and not (site.said and reason == site.trouble):
            self._say('trouble', '%s: %s; trying again', site.name, reason, level=logging.ERROR)
            if not site.settled:
                self._workers.renew()   # what was waited for is known now (`_serving`)
            site.said = True
        site.trouble = reason
        delay = retries[min(site.failures, len(retries)) - 1]
        self.loop.call_later(delay, again, site)

    def _say(self, kind, text, *words, **level):
        """Log, or count, a line of a kind that may come for every namespace at once."""
        count = self._lines[kind] = self._lines.get(kind, 0) + 1
        if count == 1:
            self.loop.call_later(1.0, self._account, kind)
        if count <= _LINES:
            _log.log(level.get('level', logging.INFO), text, *words)

    def _account(self, kind):
        more = self._lines.pop(kind) - _LINES
        if more > 0:
            _log.info('%d more within a second: %s (mdproxy status tells all that is wrong)', more, kind)

    def _by_state(self):
        counts = {'served': 0, 'starting': 0, 'waiting': 0, 'failing': 0}
        for site in self._sites.values():
            counts['served' if site.served else 'failing' if site.said else 'waiting' if site.waiting
                   else 'starting'] += 1
        return counts


def run(sources, listen, rules_file=None):
    """Be the master until SIGTERM or SIGINT; returns the exit status.

    sources: config.Sources. listen: (address, port) in routers' namespaces. rules_file: iptables rules
    for them in iptables-restore form, else those of rules.for_guests. Raises ConfigError, PrivilegeError,
    and DaemonError when there is a master already.
    """
    options = sources.load('proxy')
    if os.geteuid() != 0:
        raise privileges.PrivilegeError('proxy --discover needs root, to enter namespaces; it serves as %s'
                                        % options.user)
    privileges.ids(options.user)        # or there is nobody to serve as

    def load_rules():
        wanted = [rules.of_file(rules_file) if rules_file else rules.Rules(
            rules.for_guests(port=listen[1]), 'the rules for guests')]
        return wanted + (linklocal.wanted_rules(listen[1]) if options.ipv6 else [])

    if options.builtin_agent:
        for name in ('mdproxy.agent', 'requests'):      # what takes memory is shared with the workers
            importlib.import_module(name)
    try:
        master = Supervisor(eventloop.Loop(), listen, load_rules, options)
    except (ValueError, rules.RulesError) as error:
        raise config.ConfigError(str(error))
    master.start()
    return service.run(master, sources, _status_socket(options, 'master'))


def _cores():
    return os.sysconf('SC_NPROCESSORS_ONLN')


def _endpoints(options):
    """Whom the workers will ask."""
    if options.builtin_agent:
        from . import agent
        return agent.nova_endpoints(options)
    return proxy.agents(options)


def _count(options):
    """How many workers there are to be."""
    return options.workers or min(_cores(), _MOST_WORKERS)


def _locked(path):
    """A descriptor of the lock file; raises DaemonError when another master has it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        os.fchmod(descriptor, 0o644)    # workers of this master will read it
        fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (IOError, OSError) as error:
        if error.errno == errno.EAGAIN:
            raise daemon.DaemonError('already running: another proxy --discover holds %s' % path)
        raise daemon.DaemonError('lock file %s: %s' % (path, error.strerror))
    os.ftruncate(descriptor, 0)         # the workers of an earlier master wait for our name in there
    return descriptor


def _status_socket(options, name):
    """A status socket, or None. Whoever holds the lock may take it from an earlier master's worker."""
    _remove_status_socket(options, name)
    return status.socket_or_warning(options, name, _log)


def _remove_status_socket(options, name):
    if not options.status_folder:
        return
    try:
        with privileges.acting_as(options.user):
            unixsocket.remove(os.path.join(options.status_folder, name + '.sock'))
    except OSError:
        pass                            # status.socket_or_warning says what is wrong
