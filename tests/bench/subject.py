"""What is measured: each subject is something that guests, or wrk, can ask, and knows its processes.

A Subject has
    name, python    'shared', '3.11'; python is None for what is not ours
    label           both, as the report shows them
    netns, url      where and what wrk asks
    router          its topology.Router, or None
    api             its portapi.PortApi, or None
    processes       of the subject itself, neither nova nor the port API
    server          that of them which guests talk to
    is_peer         not ours, and not nginx alone
    delay           seconds that a call of the port API takes, unless something else is said
    is_per_router   each router has a server of its own
    start(), stop()
    begin_server(), stop_server()   the server alone; begin_server() does not wait for it
Who can be had for many routers also has
    most_routers    as many as fit on a machine of 16 GiB
    serve(routers)  has servers of all these serve, which may be more than those of the last call; the
                    Processes of that
    forget()        ends those
"""
import os

import isolation
import nova
import portapi
import processes
import topology

SECRET = 'the shared secret'
_AT_ONCE = 16       # servers that are started side by side


class Subject(object):
    """What all have in common."""

    name = None
    python = interpreter = router = api = server = netns = None
    url = 'http://%s/' % topology.METADATA
    is_per_router = is_peer = False
    most_routers = delay = 0

    def __init__(self):
        self._folder = None
        self._many = {}

    @property
    def label(self):
        return '%s %s' % (self.name, self.python) if self.python else self.name

    @property
    def processes(self):
        return [self.server] if self.server else []

    def make_router(self, with_api):
        """Have a router with guests, and a port API that knows it."""
        self.router = topology.Router()
        self.netns = self.router.guests
        if with_api:
            self.api = portapi.PortApi(self.router, self.path('portapi'))
            self.api.begin(0)

    def path(self, name):
        """A path in a folder of its own."""
        if self._folder is None:
            self._folder = os.path.join(isolation.FOLDER, self.label.replace(' ', '-'))
            os.mkdir(self._folder)
        return os.path.join(self._folder, name)

    def write(self, name, text):
        """A file in its folder; the path."""
        with open(self.path(name), 'w') as out:
            out.write(text)
        return self.path(name)

    def begin_lookups(self, delay):
        """From now on each call that looks a port up takes `delay` seconds, and counts are from 0."""
        if self.api is not None:
            self.api.begin(delay)

    def lookups(self):
        """What was looked up since then: {'lookups': ...} and more, or None."""
        if self.api is None:
            return None
        counts = self.api.counts()
        lookups = list(counts['lookups'].values())
        return {'tokens': counts['tokens'], 'interfaces': counts['interfaces'], 'other': counts['other'],
                'lookups': sum(lookups), 'addresses': len(lookups), 'most_lookups': max(lookups or [0])}

    def stop(self):
        for process in self.processes:
            process.stop()

    def stop_server(self):
        self.server.stop()


class PerRouter(Subject):
    """Has a server for each router, and an agent for all. Subclasses say how a server is begun."""

    is_per_router = True
    agent = None

    @property
    def processes(self):
        return [process for process in (self.server, self.agent) if process]

    def begin(self, router):
        """Begin a router's server; its Process."""
        raise NotImplementedError

    def start_server(self):
        """The server of the router with guests, when it listens."""
        self.begin_server()
        self._await([(self.router, self.server)])

    def begin_server(self):
        self.server = self.begin(self.router)

    def serve(self, routers):
        lacking = [router for router in routers if router.id not in self._many]
        for first in range(0, len(lacking), _AT_ONCE):
            begun = [(router, self.begin(router)) for router in lacking[first:first + _AT_ONCE]]
            self._many.update((router.id, process) for router, process in begun)
            self._await(begun)
        return list(self._many.values())

    def forget(self):
        while self._many:
            self._many.popitem()[1].stop()

    @staticmethod
    def _await(begun):
        for router, process in begun:
            processes.wait_until(lambda: process.check() or router.is_served(),   # noqa: B023
                                 'listener of ' + ' '.join(process.argv))


class Straight(Subject):
    """wrk beside nova, nothing in between: what all others are shares of."""

    name, url = 'straight', 'http://127.0.0.1:%d/' % nova.PORT

    def start(self):
        topology.have_many_connections()
        self.server = nova.start(self.path('nginx'))


class Redirect(Subject):
    """The same nginx where the proxy would be: what the way through the namespaces leaves."""

    name = 'redirect'

    def start(self):
        self.make_router(with_api=False)
        self.server = nova.start(self.path('nginx'), '0.0.0.0:%d' % topology.PORT, self.router.netns)
