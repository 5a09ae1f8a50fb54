"""How the way from the agent on is: port lookup and nova, gone once for `mdproxy probe`.

Rules kept:

- It is the guests' way: the same lookup, the same connections to nova, and what comes of it counts for
  both as a guest's request does.
- No guest is needed, and none is touched: the address that is looked up is nobody's, and so is the instance
  that nova is asked for. It says 403 when it does not believe the agent's signature, and else 404.
- Each such 404 is an error in nova's log. So when it has believed the agent a moment ago it is asked for its
  versions, which it lists for everybody (bug 1192774).
"""
from . import eventloop
from .http1 import END, HEAD, Request, format_request
from .ports import Instance

# Of 192.0.0.0/29 and beside it, which no subnet is made of (RFC 7335, RFC 7600). The probe asks from the one,
# so that is known to be nobody's by now; the other is looked up.
PROBE, NOBODY = '192.0.0.8', '192.0.0.6'
_NOBODY = '00000000-0000-0000-0000-000000000000'
INSTANCE = Instance(_NOBODY, _NOBODY, _NOBODY)
BELIEVED = 60.0         # seconds for which a signature that nova believed is taken to be right


class Trace(object):
    """One question. told(dict) is called when both are known, with `lookup` (outcome as of ports, detail)
    and `nova` (status, 0 without an answer, and detail), each with its milliseconds. headers: for nova;
    signed: whether they are those of INSTANCE.

    To upstream.Upstream it is the exchange that wants nova's answer.
    """

    request = Request(b'GET', b'/', 1, [], b'', True)       # method and body are what counts
    source, started, gone = None, False, False

    def __init__(self, nova, headers, signed, told):
        self._nova, self._told = nova, told
        self._payload = format_request(b'GET', b'/latest' if signed else b'/', headers, b'')
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
