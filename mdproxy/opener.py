"""From a command line to a process that serves.

A process that only serves needs neither root nor what reading a command line takes. So the opener
does what needs root, in this order: listening socket, log file, status socket, daemon, pid file.
Then it gives up root and becomes the server (`serve`), which inherits those descriptors and no
other. Whatever can be refused is refused before anything is changed that others could see.

For a job it also waits until the router's namespace is there, however long that takes, and applies
the router's rules. The namespace may go again at any time, and another of its name come: what was
begun in one is never finished in another (`_open_once`), and later the server looks (`watch`).

The agent is one process for the whole node, and so is the master of proxies for all routers; they
are the process that was started.
"""
import fcntl
import logging
import os
import sys
import time
from collections import namedtuple

from mdproxy import config, daemon, logs, namespaces, privileges

PAUSE = 0.5             # seconds before a job's failure ends it; the service manager adds as much
_POLL = 0.25            # seconds between two looks for a namespace
_SYSLOG = '/dev/log'

_log = logging.getLogger('mdproxy.opener')


def attempt(program, run, *arguments):
    """Exit status of run(*arguments): its own, or of what it raised, which becomes one line."""
    try:
        return run(*arguments)
    except config.ConfigError as error:
        return logs.fail(2, error, program)
    except (namespaces.NamespaceError, privileges.PrivilegeError, daemon.DaemonError,
            logs.LogError) as error:
        return logs.fail(1, error, program)


class Opened(namedtuple('Opened', 'listeners table watched')):
    """What a server inherits: listening sockets; a socket of neighbours.open_socket, or None; (name, inode)
    of the namespace, or None where no agent makes it anew."""

    __slots__ = ()

    def sockets(self):
        return self.listeners + ([self.table] if self.table else [])


class Proxy(object):
    """A proxy that is to be started: `open()`.

    identity: trust.Identity. listen: (address, port). sources: config.Sources. netns: name of the
    namespace to listen in, else it is the one that this process was started in. log:
    logs.Destination; a daemon's is syslog unless it is a file. group: name or number of the serving
    group, else it is the user's own. rules: path of the rules to apply in netns. wait: wait until
    netns is there, and an address to listen on that is one of its own.
    """

    def __init__(self, identity, listen, sources, netns=None, pid_file=None, daemonize=False,
                 log=logs.STDERR, group=None, rules=None, wait=False):
        self._identity, self._listen, self._netns, self._group = identity, listen, netns, group
        self._rules, self._wait = rules, wait
        self._daemonize = daemonize
        # A daemon's working directory is another, and SIGHUP reads the files again.
        self._pid_file = pid_file and os.path.abspath(pid_file)
        self._sources = sources._replace(paths=tuple(map(os.path.abspath, sources.paths)))
        if daemonize and log == logs.STDERR and os.path.exists(_SYSLOG):
            log = logs.Destination(None, 'daemon')
        self._log = log._replace(file=log.file and os.path.abspath(log.file))

    def open(self):
        """Become the server. Returns only by raising one of the errors that `attempt` knows."""
        options = self._sources.load('proxy')
        logs.configure(options.log_level)
        if os.geteuid() == 0:
            privileges.ids(options.user, self._group)       # or there is nobody to serve as
        if self._pid_file:
            daemon.refuse_second(self._pid_file, self._identity.id)
        opened = self._open_listeners(options)
        if self._netns is None:
            _leave(options)
        words = self._words(opened)
        descriptors = [sock.fileno() for sock in opened.sockets()]
        if self._log.file:
            with privileges.acting_as(options.user, self._group):
                descriptors.append(logs.open_file(self._log.file))
            words.append('log-fd=%d' % descriptors[-1])
        from mdproxy import status
        told = status.socket_or_warning(options, '%s-%s' % self._identity, _log, self._group)
        if told:
            descriptors.append(told.fileno())
            words.append('status-fd=%d' % descriptors[-1])
        if self._daemonize:
            if self._log == logs.STDERR:
                _log.warning('nothing will be logged: no --log-file, and no %s', _SYSLOG)
            descriptors.append(daemon.detach(self._pid_file))
            words.append('ready-fd=%d' % descriptors[-1])
        if self._pid_file:
            self._write_pid(options)
        privileges.become(options.user, self._group)
        exec_server(_interpreter(options) + words, descriptors)

    def _open_listeners(self, options):
        """An Opened."""
        if self._netns is None:
            name, own = namespaces.PREFIXES[self._identity.kind] + self._identity.id, namespaces.own_inode()
            listener = namespaces.open_listener(*self._listen)
            return Opened([listener], None, (name, own) if namespaces.inode(name) == own else None)
        wanted = []
        if self._rules:
            from mdproxy import rules  # here: what it imports is for those who have some
            wanted = [rules.of_file(self._rules)]
            if options.ipv6:
                from mdproxy import linklocal
                wanted += linklocal.wanted_rules(self._listen[1])
        return self._open_awaited(wanted) if self._wait else self._open_once(wanted)

    def _open_awaited(self, wanted):
        """As `_open_once`, as soon as namespace and address are there. SIGTERM ends the process well."""
        daemon.await_signals()
        said = None
        while True:
            lacking, there = 'namespace ' + self._netns, namespaces.inode(self._netns)
            if there is not None:
                try:
                    return self._open_once(wanted)
                except namespaces.NoAddressError:
                    lacking = 'address %s in namespace %s' % (self._listen[0], self._netns)
                except namespaces.NamespaceError:
                    if namespaces.inode(self._netns) == there:
                        raise           # for a reason that has nothing to do with its coming and going
            if lacking != said:
                _log.warning('waiting for %s', lacking)
                said = lacking
            time.sleep(_POLL)

    def _open_once(self, wanted):
        """An Opened, and the namespace's rules applied. wanted: rules.Rules of IPv4 and, where guests of
        IPv6 are served, of IPv6.

        The rules come first: at no moment is the port open to strangers. Then guests are led to it, and
        the next thing is that it listens; who comes before the server runs waits in the backlog.
        """
        inode, ipv6 = namespaces.inode(self._netns), len(wanted) > 1
        bound, table = [], None
        try:
            bound.append(namespaces.bind(*self._listen, netns=self._netns))
            if ipv6:
                bound.append(namespaces.bind('::', self._listen[1], self._netns, only_ipv6=True))
                from mdproxy import linklocal, neighbours
                linklocal.add(self._netns)
                table = neighbours.open_socket(self._netns)
            for rules in wanted:
                rules.apply(self._netns)
            for sock in bound:
                namespaces.listen(sock, self._netns)
            if namespaces.inode(self._netns) != inode:
                raise namespaces.NamespaceError('namespace %s went away' % self._netns)
        except namespaces.NamespaceError:
            for sock in bound + ([table] if table else []):
                sock.close()
            raise
        return Opened(bound, table, (self._netns, inode))

    def _write_pid(self, options):
        """In the name of the user who serves and later removes it.

        In a folder where that user may not write, as an l3 agent's own, root writes a file of that user's.
        """
        try:
            with privileges.acting_as(options.user, self._group):
                daemon.write_pid(self._pid_file)
        except daemon.DaemonError:
            daemon.write_pid(self._pid_file,
                             privileges.ids(options.user, self._group) if os.geteuid() == 0 else None)

    def _words(self, opened):
        """The server's own words; `ps` shows them and the l3 agent looks for the id in them."""
        words = ['%s=%s' % self._identity]
        words += ['listen-fd=%d' % listener.fileno() for listener in opened.listeners]
        if opened.table:
            words.append('neighbours-fd=%d' % opened.table.fileno())
        if opened.watched:
            words += ['netns=%s' % opened.watched[0], 'inode=%d:%d' % opened.watched[1]]
        for name, value in (('pid-file', self._pid_file), ('log-file', self._log.file),
                            ('syslog', self._log.facility)):
            if value:
                words.append('%s=%s' % (name, value))
        sources = self._sources
        for name, values in (('default', sources.defaults), ('config-file', sources.paths),
                             ('set', sources.settings)):
            words += ['%s=%s' % (name, value) for value in values]
        return words


def _leave(options):
    """Out of a router's namespace, where the listener is now and only guests can be reached."""
    if os.geteuid() != 0:
        return                  # nor was one brought into a router's namespace
    try:
        namespaces.leave_for_host()
    except namespaces.NamespaceError as error:
        remote = [one for one in options.agents if isinstance(one, tuple)]
        if remote or options.builtin_agent or options.status_listen:
            raise
        _log.info('the proxy stays in the namespace that it was started in: %s', error)


def _interpreter(options):
    """Interpreter, package and `serve`.

    -E and -s: neither the caller's environment nor a home directory may choose what is imported. -S
    saves time and memory. It keeps OpenSSL out as well (`serve`), which only a proxy that asks the
    port API by itself could need; and in a checkout requests is where -S does not look.
    """
    flags = '-Es' if options.builtin_agent else '-EsS'
    return [sys.executable, flags, os.path.dirname(os.path.abspath(__file__)), 'serve']


def exec_server(argv, descriptors):
    """Replace this process by argv, which inherits these descriptors and 0, 1, 2, and no other.

    Raises NamespaceError when argv cannot be run by the user that this process is now.
    """
    # The sockets themselves and no copies: a socket listens until its last descriptor is closed.
    # The others also because a caller on Python 2.7 hands down whatever it has open.
    for number in map(int, os.listdir('/proc/self/fd')):
        keep = number < 3 or number in descriptors
        try:
            flags = fcntl.fcntl(number, fcntl.F_GETFD) & ~fcntl.FD_CLOEXEC
            fcntl.fcntl(number, fcntl.F_SETFD, flags if keep else flags | fcntl.FD_CLOEXEC)
        except (OSError, IOError):
            pass                # that with which the folder was read
    try:
        os.execv(argv[0], argv)
    except OSError as error:
        raise namespaces.NamespaceError('%s cannot be run as user %d: %s'
                                        % (argv[0], os.geteuid(), error.strerror))


def agent(sources, log=logs.STDERR, group=None):
    """Serve as the agent; returns the exit status or raises what `attempt` knows."""
    options = sources.load('agent')
    privileges.make_folder(os.path.dirname(options.metadata_proxy_socket), options.user, group)
    if log.file:
        with privileges.acting_as(options.user, group):
            descriptor = logs.open_file(log.file)
    privileges.become(options.user, group)
    if log.file:
        logs.take_over(descriptor, (1, 2))
    logs.configure(options.log_level, log)
    daemon.await_signals()
    from mdproxy import agent as serving
    return serving.run(sources)


def master(sources, listen, rules_file=None):
    """Be the proxy of all routers of this host; returns the exit status or raises what `attempt` knows.

    listen: (address, port) in routers' namespaces. rules_file: as of supervisor.run.
    """
    logs.configure(sources.load('proxy').log_level)
    daemon.await_signals()
    from mdproxy import supervisor
    return supervisor.run(sources, listen, rules_file)
