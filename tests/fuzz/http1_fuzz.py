"""Mutated requests and responses against mdproxy.http1, for as long as asked. Stops at a failure.

What is checked of every input, whatever its bytes:

- A request stream is requests and at most one ProtocolError, which stays; a response is an answer
  or a 502. Nothing else is raised.
- The outcome is the same however the bytes are cut.
- What is accepted, h11 accepts with the same meaning, but for the differences that
  test_http1_properties lists; and h11 as the guest reads an accepted answer as it was meant.
- It takes no more than --limit milliseconds of CPU to read it in one piece.
- The process does not grow by more than 8 MB from a fifth of the time on.

Theory of operation: the corpus begins with what is built here. An input is one of the corpus with a
few places changed: tokens that have a meaning put in, bytes flipped, taken out, doubled, or
another's end put on; some are blown up to 64 KiB. An input whose outcome has a form that none had
before (statuses and reasons, or which kinds of requests) joins the corpus: that leads further in
than chance alone. The same seed gives the same inputs, but time decides of how many.

    python tests/fuzz/http1_fuzz.py --seconds 300 --seed 1
"""
from __future__ import print_function

import argparse
import collections
import gc
import os
import random
import sys
import time

_UNIT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, 'unit')
sys.path[:0] = [os.path.join(_UNIT, os.pardir, os.pardir), _UNIT]

import test_http1_properties as promises  # noqa: E402

from mdproxy import http1  # noqa: E402

try:
    import h11
except ImportError:
    h11 = None

cpu_seconds = getattr(time, 'process_time', None) or getattr(time, 'clock', None)
SMALL = promises.LIMITS         # near enough to be hit
LARGE = {'max_head': 16384, 'max_fields': 64, 'max_body': 65536}
BLOWN_UP = 65536                # bytes of the largest inputs
GROWTH = 8 * 1024               # KiB that the process may grow by
CORPUS = 3000                   # inputs kept at most

FIELDS = [b'Accept: */*', b'Connection: close', b'Connection: keep-alive', b'Connection: x-a, te',
          b'Content-Length: 5', b'Transfer-Encoding: chunked', b'Expect: 100-continue', b'X-A: b',
          b'x-a:c', b'Empty:', b'TE: trailers', b'Upgrade: h2c', b'Keep-Alive: timeout=5',
          b'Date: Mon, 23 Nov 2026 13:00:00 GMT', b'Content-Type: text/plain; charset=UTF-8']
TOKENS = FIELDS + [
    b'\r\n', b'\r\n\r\n', b'\n', b'\r', b'\n\n', b'\n\r\n', b' ', b'\t', b':', b': ', b',', b';',
    b'_', b'-', b'\x00', b'\x0b', b'\x7f', b'\xff', b'0', b'1', b'5', b'a', b'F', b'ffffffff',
    b'+1', b'-1', b'0x5', b'00', b'5, 5', b'99999999999', b'0\r\n\r\n', b'5\r\nabcde\r\n',
    b';e="\xe9"', b'GET', b'HEAD', b'POST', b'PUT', b'DELETE', b'/', b'*',
    b'http://169.254.169.254:80', b'HTTP/1.1', b'HTTP/1.0', b'HTTP/1.2', b'HTTP/2.0',
    b'HTTP/1.1 100 Continue\r\n\r\n', b' 204 ', b' 304 ', b' 101 ', b'Host', b'Host: h',
    b'Host: a b', b'\r\nHost: other', b'\r\n folded',
    b'X_A: b', b'X-A : b', b': none', b'gzip', b', chunked', b'chunked', b'close', b'x' * 200]


def asks(method, minor=1, keep_alive=True):
    """A guest's request, to be answered."""
    return http1.Request(method, b'/', minor, [], b'', keep_alive)


def first_corpus():
    """[(the Request that is answered, or None for a stream of requests; bytes)]."""
    chunked = b'2\r\nab\r\n3;e=f\r\ncde\r\n0\r\nT: u\r\n\r\n'
    requests, answers = [], []
    for framing, content in ((), b''), ((b'Content-Length: 5',), b'abcde'), (
            (b'Transfer-Encoding: chunked',), chunked):
        for number, field in enumerate(FIELDS):
            method = http1.METHODS[number % 4]
            for minor in b'1', b'0':
                lines = (field,) + framing if number % 2 else framing + (field,)
                rest = b'\r\n'.join(lines) + b'\r\n\r\n' + content
                requests.append(method + b' /latest HTTP/1.' + minor + b'\r\nHost: h\r\n' + rest)
                answers.append((asks(b'GET', number % 2, number % 3 > 0),
                                b'HTTP/1.' + minor + b' 200 OK\r\n' + rest))
    for asked, line in ((asks(b'HEAD'), b'200 OK'), (asks(b'GET'), b'204 No Content'),
                        (asks(b'GET'), b'304 Not Modified'), (asks(b'POST'), b'404 Not Found'),
                        (asks(b'GET'), b'100 Continue\r\n\r\nHTTP/1.1 200 '),
                        (asks(b'PUT'), b'200')):
        answers.append((asked, b'HTTP/1.1 ' + line + b'\r\nContent-Length: 5\r\n\r\nabcde'))
    requests += [requests[index] + requests[-index] for index in range(1, len(requests), 5)]
    return [(None, data) for data in requests] + answers


class Mutator(object):
    """Makes inputs from a corpus."""

    def __init__(self, chance, corpus):
        self._chance, self._corpus = chance, corpus

    def make(self):
        """(Request that is answered or None, bytes)."""
        chance = self._chance
        asked, data = chance.choice(self._corpus)
        for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 5))):
            data = self._change(data)
        if chance.random() < 0.02:
            place = chance.randrange(len(data) + 1)
            piece = data[place:place + chance.randrange(1, 40)] or b'a'
            data = data[:place] + piece * ((BLOWN_UP - len(data)) // len(piece)) + data[place:]
        return asked, data

    def _change(self, data):
        chance = self._chance
        place = chance.randrange(len(data) + 1)
        length = chance.choice((0, 1, 1, 2, 4, 8, 30))
        kind = chance.randrange(8)
        if kind < 3:
            return data[:place] + chance.choice(TOKENS) + data[place:]
        if kind == 3:
            return data[:place] + chance.choice(TOKENS) + data[place + length:]
        if kind == 4:
            return data[:place] + data[place + length:]
        if kind == 5:
            return data[:place + length] + data[place:]
        if kind == 6:
            byte = bytes(bytearray([chance.randrange(256)]))
            return data[:place] + byte + data[place + 1:]
        other = chance.choice(self._corpus)[1]
        return data[:place] + other[chance.randrange(len(other) + 1):]


class Failed(Exception):
    """A promise was broken."""


def read(asked, pieces, limits):
    """The outcome of the bytes: of a request stream, or of an answer to the Request `asked`."""
    if asked is None:
        return promises.outcome(pieces, limits)
    return promises.answer(asked, pieces, limits['max_head'])


def refusal(asked, outcome):
    """(status, reason) if an outcome is or ends with an error, else None."""
    last = outcome[-1] if asked is None else outcome
    return last if type(last) is tuple and len(last) == 2 else None


def form(asked, outcome):
    """What is kept of an outcome to tell whether it is of a new kind."""
    if asked is None:
        return tuple(item if len(item) != 6 else (item[0], item[2], bool(item[4]), item[5])
                     for item in outcome[:2] + outcome[-1:])
    if len(outcome) == 2:
        return asked.method, outcome
    status, _, minor, headers, body, out, close = outcome
    return (asked.method, asked.minor, status // 100, minor, len(headers), bool(body), close,
            b'chunked' in out)


def check_refusal(data, limits, error):
    """A refused stream is refused for good, whatever comes."""
    reader = http1.RequestReader(**limits)
    reader.feed(data)
    seen = []
    for _ in range(len(data) + 2):
        try:
            if reader.next_request() is None:
                break
        except http1.ProtocolError as again:
            seen.append((again.status, again.reason))
            reader.feed(b'GET / HTTP/1.0\r\n\r\n')
            if len(seen) == 3:
                break
    if seen != [error] * 3:
        raise Failed('refused once, but then: %r' % (seen,))


def check_by_h11(asked, data, outcome):
    """What we accept means the same to h11."""
    if asked is None:
        ours = [item for item in outcome if len(item) == 6]
        if ours:
            promises.check_meaning(ours, promises.by_h11(h11, data))
    elif len(outcome) != 2:
        status, _, _, _, body, out, close = outcome
        promises.check_guest_reads(h11, asked.method, out, close, status, body)


class Trial(object):
    """Checks inputs and counts what became of them."""

    def __init__(self, chance, limit):
        self._chance, self._limit = chance, limit
        self.tried = self.accepted = 0
        self.refused = collections.Counter()
        self.slowest = 0.0

    def run(self, asked, data):
        """Check one input; returns the form of its outcome. Raises Failed, or what went wrong."""
        chance = self._chance
        limits = SMALL if len(data) < 1000 and chance.random() < 0.7 else LARGE
        outcome = self._timed(asked, data, limits)
        for pieces in self._cuts(data):
            if read(asked, pieces, limits) != outcome:
                raise Failed('cut into %r it is another outcome' % (pieces,))
        error = refusal(asked, outcome)
        if asked is None and error:
            check_refusal(data, limits, error)
        elif asked is not None and error and error[0] != 502:
            raise Failed('a bad answer with status %d' % error[0])
        if h11 is not None and len(data) < 4096:
            check_by_h11(asked, data, outcome)
        self.tried += 1
        if error:
            self.refused[error[0]] += 1
        else:
            self.accepted += asked is not None or len(outcome) > 1
        return form(asked, outcome)

    def _timed(self, asked, data, limits):
        for _ in range(3):      # the garbage collector has its own hours
            begin = cpu_seconds()
            outcome = read(asked, [data], limits)
            spent = cpu_seconds() - begin
            if spent < self._limit:
                break
        else:
            raise Failed('took %d ms' % (1000 * spent))
        self.slowest = max(self.slowest, spent)
        return outcome

    def _cuts(self, data):
        chance = self._chance
        places = [chance.randrange(len(data) + 1) for _ in range(chance.randrange(1, 8))]
        yield promises.cut(data, places)
        if len(data) < 400:
            yield [data[index:index + 1] for index in range(len(data))]


def resident():
    """KiB of memory that the process has."""
    gc.collect()
    with open('/proc/self/status') as status:
        return [int(line.split()[1]) for line in status if line.startswith('VmRSS')][0]


def fuzz(seconds, seed, limit):
    """Run; returns the exit status."""
    chance = random.Random(seed)
    corpus = first_corpus()
    begun_with = len(corpus)
    mutator, trial, forms = Mutator(chance, corpus), Trial(chance, limit / 1000.0), set()
    for asked, data in corpus:
        forms.add(trial.run(asked, data))
    begin, early = time.time(), None
    asked = data = None
    try:
        while time.time() - begin < seconds:
            if early is None and time.time() - begin > seconds / 5.0:
                early = resident()
            asked, data = mutator.make()
            new = trial.run(asked, data)
            if new not in forms and len(corpus) < CORPUS and len(data) < 4096:
                forms.add(new)
                corpus.append((asked, data))
    except Exception:
        print('seed %s, answer to %r: %r' % (seed, asked, data))
        raise
    growth = resident() - (early or 0)
    print('corpus %d, %d of them found; inputs %d, accepted %d, refused %s; slowest %.1f ms; '
          'memory %+d KiB; h11 %s' % (
              len(corpus), len(corpus) - begun_with, trial.tried, trial.accepted,
              ', '.join('%d: %d' % item for item in sorted(trial.refused.items())),
              trial.slowest * 1000, growth, 'agrees' if h11 else 'is not installed'))
    if growth > GROWTH:
        print('the process has grown')
        return 1
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--seconds', type=float, default=300.0)
    parser.add_argument('--seed', type=int, default=None, help='default: another at each run')
    parser.add_argument('--limit', type=float, default=50.0, metavar='MS',
                        help='CPU time per input')
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    print('seed %d' % seed)
    return fuzz(options.seconds, seed, options.limit)


if __name__ == '__main__':
    sys.exit(main())
