"""How the way from the agent on is: port lookup and nova, gone once for `mdproxy probe`.

Rules kept:

- It is the guests' way: the same lookup, the same connections to nova, and what comes of it counts for
  both as a guest's request does.
- No guest is needed, and none is touched: the address that is looked up is nobody's, and nova lists its
  versions for everybody (bug 1192774).
"""
from . import eventloop
from .http1 import END, HEAD, Request, format_request

# Of 192.0.0.0/29 and beside it, which no subnet is made of (RFC 7335, RFC 7600). The probe asks from the one,
# so that is known to be nobody's by now; the other is looked up.
PROBE, NOBODY = '192.0.0.8', '192.0.0.6'


class Trace(object):
    """One question. told(dict) is called when both are known, with `lookup` (outcome as of ports, detail)
    and `nova` (status, 0 without an answer, and detail), each with its milliseconds. host: for nova's Host
    field, native str.

    To upstream.Upstream it is the exchange that wants nova's answer.
    """

    request = Request(b'GET', b'/', 1, [], b'', True)
    source, started, gone = None, False, False

    def __init__(self, nova, host, told):
        self._nova, self._told = nova, told
        self._payload = format_request(b'GET', b'/', [(b'Host', host.encode('ascii'))], b'')
        self._found = {}
        self._began, self._status = eventloop.stopwatch(), 0

    def looked_up(self, outcome):
        self._found['lookup'] = self._timed(outcome=outcome.reason, detail=outcome.detail)
        self._began = eventloop.stopwatch()
        self._nova.forward(self, self._payload, self._failed)

    def relay(self, events):
        for kind, value in events:
            if kind is HEAD:
                self.started, self._status = True, value.status
            elif kind is END:
                self._end(self._status, '')

    def abort(self):
        """Its answer is cut off, which `_failed` is told too."""

    def _failed(self, _exchange, failure):
        self._end(0, failure.detail)

    def _end(self, status, detail):
        self._found['nova'] = self._timed(status=status, detail=detail)
        self._told(self._found)

    def _timed(self, **found):
        return dict(found, milliseconds=milliseconds(self._began))


def milliseconds(began):
    """Since a time of eventloop.stopwatch; to the microsecond, as a connection within a host takes 0.1."""
    return round(max(eventloop.stopwatch() - began, 0.0) * 1000, 3)
