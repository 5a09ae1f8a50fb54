"""What a process tells of itself: /metrics for Prometheus, /status as JSON, on its own listeners.

Rules kept:

- Nobody who asks here may slow down those who are served: few connections, short waits, and no
  answer that takes longer than formatting some numbers.
- Never on a guest's listener. The unix socket is for the serving user, its group and root; they alone
  can have a lookup and a question to nova made (/path).
- A process without a status serves all the same; `open_socket` says why there is none.
"""
import errno
import logging
import os
import sys
import time

from . import __version__, eventloop, server, trust, unixsocket
from .http1 import BODY, END, HEAD, ResponseHead

METRICS_TYPE = b'text/plain; version=0.0.4; charset=utf-8'
_READING = (b'GET', b'HEAD')
_PATH = b'/path'
_ALLOW = ((b'Allow', b'GET, HEAD'),)

_log = logging.getLogger('mdproxy.status')


class _Limits(object):
    """The server's limits here: our own, and never wider than those for guests."""

    max_connections, max_body = 32, 1024
    _seconds = (('idle_timeout', 15.0), ('head_timeout', 2.0), ('body_timeout', 2.0),
                ('write_timeout', 5.0), ('drain_timeout', 1.0))

    def __init__(self, options):
        for name, seconds in self._seconds:
            setattr(self, name, min(seconds, getattr(options, name)))


class Status(object):
    """Answers for a process. describe(): a dict that is put into the JSON as it is. trace(identity, told):
    as AgentCore's, of a process that has the agent in it."""

    def __init__(self, loop, registry, describe, options, trace=None):
        self._loop, self._registry, self._describe = loop, registry, describe
        self._trace = trace
        self._limits = _Limits(options)
        self._requests = server.RequestLog(loop, _log)
        self._began, self._started = eventloop.monotonic(), time.time()
        self._files = []            # (path, stat) of unix sockets
        self._server = None
        self._pages = {b'/metrics': self._metrics, b'/status': self._status, b'/': self._status}
        registry.read('gauge', 'mdproxy_start_time_seconds', 'When the process began, Unix time.',
                      lambda: self._started)
        registry.read('gauge', 'mdproxy_info', 'What runs; the value is always 1.',
                      lambda: {(__version__, _python()): 1}, ('version', 'python'))

    def serve(self, listeners, removing=True):
        """Answer on listening sockets, unix or TCP. removing: `drain` removes the files of the former."""
        if removing:
            self._files += _files(listeners)
        self._server = server.Server(self._loop, [(sock, None) for sock in listeners], self._handle,
                                     self._refused, self._limits)

    def drain(self, drained, _patient=False):
        """Remove the unix sockets, answer what is under way, then call drained()."""
        for path, own in self._files:
            try:
                unixsocket.remove(path, own)
            except OSError as error:
                _log.warning('%s is left over: %s', path, error.strerror)
        self._server.drain(drained)

    def _handle(self, exchange):
        request = exchange.request
        target, _, query = request.target.partition(b'?')
        page = self._pages.get(target)
        if page is None and not (target == _PATH and self._trace and not exchange.peer):
            exchange.respond(404, 'there are /metrics and /status, and where the agent is /path')
        elif request.method not in _READING:
            exchange.respond(405, 'this is for reading', _ALLOW)
        elif page is None:
            self._tell_path(exchange, query)
        else:
            _show(exchange, *page())

    def _tell_path(self, exchange, query):
        """What a question that goes all the way finds. Only this one waits for it."""
        name, _, router = query.decode('ascii', 'replace').partition('=')
        if name == 'router' and trust.is_uuid(router):
            self._trace(trust.Identity('router', str(router)),
                        lambda found: _show(exchange, *_json(found)))
        else:
            exchange.respond(400, 'expected /path?router=UUID')

    def _metrics(self):
        return METRICS_TYPE, self._registry.prometheus()

    def _status(self):
        return _json(self._snapshot())

    def _snapshot(self):
        """What the JSON says, a dict; seconds and counts."""
        values = self._registry.as_dict()
        latency = values.get('mdproxy_request_seconds', {})
        found = dict(self._registry.labels)
        found.update(
            version=__version__, python=_python(), pid=os.getpid(),
            started=time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(self._started)),
            uptime=round(eventloop.monotonic() - self._began, 1),
            requests=values.get('mdproxy_requests_total', {}),
            connections=values.get('mdproxy_connections', 0),
            latency={'p50': latency.get('p50'), 'p99': latency.get('p99')})
        found.update(self._describe())
        return found

    def _refused(self, _origin, peer, status, text):
        self._requests.failed('status, asked by %s' % (peer or 'a process of this host'), status,
                              text)


def _show(exchange, kind, text):
    """Answer with a page."""
    body = text if isinstance(text, bytes) else text.encode('utf-8', 'replace')
    exchange.relay([(HEAD, ResponseHead(200, b'OK', [
        (b'Content-Type', kind), (b'Content-Length', b'%d' % len(body)),
        (b'Cache-Control', b'no-store')])), (BODY, body), (END, None)])


def _json(value):
    # Not before somebody asks: 0.15 MB, for which most routers' servers have no use.
    import json
    return b'application/json', json.dumps(value, sort_keys=True) + '\n'


def open_socket(folder, name, user, group=None):
    """A listening unix socket FOLDER/NAME.sock that user and group may open, and the folder for it.

    Root makes both in the user's name, others in their own. Raises SocketError or PrivilegeError.
    """
    # Here: the server of a router gets its socket from elsewhere.
    from . import privileges
    privileges.make_folder(os.path.dirname(folder), user, group)
    try:
        with privileges.acting_as(user, group):
            os.mkdir(folder, 0o750)
    except OSError as error:
        if error.errno == errno.EACCES and os.geteuid() == 0:
            privileges.make_folder(folder, user, group)
        elif error.errno != errno.EEXIST:
            raise unixsocket.SocketError('%s: cannot be made: %s' % (folder, error.strerror))
    with privileges.acting_as(user, group):
        return unixsocket.listen(os.path.join(folder, name + '.sock'), 0o660)


def socket_or_warning(options, name, log, group=None):
    """`open_socket` as the options say, or None: who serves does so without a status all the same.

    log: a Logger, which gets the reason if there is one.
    """
    if not options.status_folder:
        return None
    from . import privileges
    try:
        return open_socket(options.status_folder, name, options.user, group)
    except (unixsocket.SocketError, privileges.PrivilegeError) as error:
        log.warning('no status is told: %s', error)


def _files(listeners):
    """[(path, stat)] of those that are unix sockets with a file."""
    found = []
    for path in map(unixsocket.path_of, listeners):
        try:
            if path:
                found.append((path, os.lstat(path)))
        except OSError:
            pass                # somebody else's way of listening; nothing for us to remove
    return found


def _python():
    return '%d.%d.%d' % sys.version_info[:3]
