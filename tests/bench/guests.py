"""Guests that begin at the same instant: each asks one path after the other, a connection for each.

    python3 guests.py FIRST COUNT PATHS     prints what they got, in JSON

Run in the guests' namespace. One epoll loop is all of them: every one's first connect() is made
before any answer is read, without waiting, each from an address of its own. That is how images of
every age ask: cloud-init and its forerunners make a connection for each path. No one asks twice: what
goes wrong is an error.

    guests, paths       as asked
    statuses            {status: answers}
    errors              {kind: requests without a complete answer}; a guest's last
    connect_seconds     that the first connect() of all took
    seconds             from the first connect() to the last answer
    p50, p99, max       seconds from connect() to complete answer
    first_p50, ...      the same of everybody's first request
"""
import errno
import json
import resource
import select
import socket
import sys
import time

import topology

_PATIENCE = 60.0        # seconds without any answer after which guests give up
_NAMES = ('instance-id', 'hostname', 'local-ipv4', 'public-keys/', 'placement/availability-zone')


class Guest(object):
    """One guest and the request it is at."""

    def __init__(self, crowd, address, paths):
        self._crowd, self._address, self._paths = crowd, address, paths
        self._asked = 0

    def connect(self):
        """Begin the next request."""
        self._sent, self._answer = False, b''
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket.bind((self._address, 0))
        self._begun = time.monotonic()
        code = self._socket.connect_ex((topology.METADATA, 80))
        if code not in (0, errno.EINPROGRESS):
            self._end(error=errno.errorcode[code])
        else:
            self._crowd.watch(self._socket, self)

    def on_event(self):
        """The connection is there, or something came, or it broke."""
        try:
            if not self._sent:
                self._send()
                return
            while True:
                piece = self._socket.recv(65536)
                if not piece:
                    break
                self._answer += piece
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error=errno.errorcode.get(error.errno, str(error)))
            return
        self._end_of_answer()

    def give_up(self):
        """It has waited for too long."""
        self._end(error='timeout')

    def _send(self):
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, 'connect')
        self._socket.send(('GET /latest/meta-data/%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n'
                           % (_NAMES[self._asked % len(_NAMES)], topology.METADATA)).encode())
        self._sent = True
        self._crowd.await_answer(self._socket)

    def _end_of_answer(self):
        head, _, body = self._answer.partition(b'\r\n\r\n')
        words = head.split(None, 2)
        length = [line.partition(b':')[2] for line in head.split(b'\r\n')
                  if line.lower().startswith(b'content-length:')]
        if len(words) < 2 or not length or len(body) != int(length[0]):
            self._end(error='cut off')
        else:
            self._end(status=words[1].decode())

    def _end(self, status=None, error=None):
        self._crowd.forget(self._socket)
        self._socket.close()
        self._crowd.count(status, error, time.monotonic() - self._begun, self._asked == 0)
        self._asked += 1
        if error is None and self._asked < self._paths:
            self.connect()


class Crowd(object):
    """All guests, the loop that moves them, and what they got."""

    def __init__(self, first, count, paths):
        self._epoll, self._waiting = select.epoll(), {}
        self._guests = [Guest(self, topology.guest_address(first + n), paths) for n in range(count)]
        self._statuses, self._errors, self._seconds, self._first = {}, {}, [], []
        self._paths = paths

    def run(self):
        """Let them all ask; what they got."""
        begun = self._last = time.monotonic()
        for guest in self._guests:
            guest.connect()
        connected = time.monotonic()
        while self._waiting:
            for descriptor, _ in self._epoll.poll(1.0):
                self._waiting[descriptor].on_event()
            if time.monotonic() - self._last > _PATIENCE:
                for guest in list(self._waiting.values()):
                    guest.give_up()
        return dict(_percentiles('', self._seconds), guests=len(self._guests), paths=self._paths,
                    statuses=self._statuses, errors=self._errors,
                    connect_seconds=connected - begun, seconds=self._last - begun,
                    **_percentiles('first_', self._first))

    def watch(self, sock, guest):
        """Tell a guest when its connection is there."""
        self._waiting[sock.fileno()] = guest
        self._epoll.register(sock, select.EPOLLOUT)

    def await_answer(self, sock):
        """Tell its guest when something comes."""
        self._epoll.modify(sock, select.EPOLLIN)

    def forget(self, sock):
        """Its guest is about to close it."""
        self._waiting.pop(sock.fileno(), None)

    def count(self, status, error, seconds, is_first):
        """One request has ended: with an HTTP status, or with an error."""
        kinds, kind = (self._errors, error) if error else (self._statuses, status)
        kinds[kind] = kinds.get(kind, 0) + 1
        self._last = time.monotonic()
        self._seconds.append(seconds)
        if is_first:
            self._first.append(seconds)


def _percentiles(prefix, values):
    values = sorted(values)
    def at(share):
        return values[min(len(values) - 1, int(share * len(values)))]
    return {prefix + 'p50': at(0.5), prefix + 'p99': at(0.99), prefix + 'max': values[-1]}


if __name__ == '__main__':
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    print(json.dumps(Crowd(*map(int, sys.argv[1:])).run()))
