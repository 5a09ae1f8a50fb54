"""Whose MAC address answers to a link-local address: a router's neighbour table, as its kernel has it.

A guest that asks fe80::a9fe:a9fe does so from its own link-local address, which no port has as a
fixed IP. What a port has is a MAC address, and that is in the neighbour table by then, because the
router has sent the guest its half of the handshake.

What is believed, and why:

- The router is that of the socket, never of a header: a netlink socket belongs to the namespace that
  it was made in, whoever uses it later.
- The interface is that of the connection (the scope id that accept() gives). Behind two interfaces of
  a router there may be guests with one and the same link-local address.
- The entry is what the kernel goes by: the answer goes to that MAC address. All the same a guest can
  write it, with an advertisement that names another's. What a port may send is neutron's to enforce
  (port security), and that lets out its own MAC address alone and the link-local address made of it
  (EUI-64, RFC 4291 appendix A), but not every driver reads advertisements to the end. So an address
  of that form and an entry that says something else are refused (trust.believed_mac); so are two
  ports with one MAC address on the networks of the router (portapi).
- An entry that failed or is not resolved tells nothing. Nor does an answer that is not the kernel's,
  not to our question, or not well-formed: that is no entry.

Theory of operation: one question, RTM_GETNEIGH (rtnetlink(7)) for one address, which needs no rights.
Kernels before 5.0 give only the whole table, and it is looked through. The kernel has its answer ready
when the question is sent. Older kernels first wait for whoever changes an interface in any namespace,
some milliseconds where routers come and go; so ask once for a connection, not for a request.
"""
import errno
import os
import socket
import struct

from . import namespaces
from .eventloop import monotonic

_PATIENCE = 0.02        # seconds for all answers to one question; they are there or will never be
_PIECE = 65536          # bytes; the kernel makes them 32768 at most

_HEADER = struct.Struct('=IHHII')       # nlmsghdr: length, type, flags, sequence, port id
_NEIGHBOUR = struct.Struct('=BxxxiHBB')     # ndmsg: family, interface, state, flags, type
_ATTRIBUTE = struct.Struct('=HH')       # nlattr: length, type
_ERROR = struct.Struct('=i')            # nlmsgerr: -errno

_NLMSG_ERROR, _NLMSG_DONE, _RTM_NEWNEIGH, _RTM_GETNEIGH = 2, 3, 28, 30
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_RTMGRP_LINK = 1        # interfaces that come, go or change (rtnetlink(7))
_NDA_DST, _NDA_LLADDR = 1, 2
_KINDS = 0x3fff         # of an attribute's type; the rest are flags
# NUD_REACHABLE, STALE, DELAY, PROBE, PERMANENT: there is an address, and it has answered once.
_RESOLVED = 0x02 | 0x04 | 0x08 | 0x10 | 0x80


def open_socket(netns, of_links=False):
    """A netlink socket of the named namespace; takes root. Raises namespaces.NamespaceError.

    It is for one process: two that ask through one socket get each other's answers. of_links: it is not
    for questions, but can be read, without blocking, whenever an interface has changed.
    """
    with namespaces.inside(netns):
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            if of_links:
                sock.setblocking(False)
                sock.bind((0, _RTMGRP_LINK))
            return sock
        except (OSError, IOError) as error:
            raise namespaces.NamespaceError('namespace %s: its neighbours cannot be asked for: %s'
                                            % (netns, os.strerror(error.errno)))


def inherited_socket(descriptor):
    """The socket of `open_socket` behind a descriptor number, which is taken over."""
    sock = socket.fromfd(descriptor, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    os.close(descriptor)
    return sock


class Neighbours(object):
    """The table behind a socket of `open_socket`."""

    def __init__(self, sock):
        self._sock = sock
        self._sequence = 0
        self._single = True     # until the kernel says that it has no question for one address

    def mac(self, address, interface_index):
        """MAC address of the neighbour with this IPv6 address (native str without a zone), as
        'fa:16:3e:00:00:01'; None when the table has none that counts, or does not say in time."""
        try:
            key = interface_index, socket.inet_pton(socket.AF_INET6, address)
            if self._single:
                try:
                    return self._ask(key, 0, _attribute(_NDA_DST, key[1]))
                except _Refused as refused:
                    if refused.errno != errno.EOPNOTSUPP:
                        return None
                    self._single = False
            return self._ask(key, _NLM_F_DUMP, b'')
        except (_Refused, _Malformed, socket.error):     # of sockets, the time limit is one
            return None

    def close(self):
        """Close the socket."""
        self._sock.close()

    def _ask(self, key, flags, attributes):
        """The MAC address in the answer or, with _NLM_F_DUMP, in one of the answers."""
        end = monotonic() + _PATIENCE
        self._sequence = (self._sequence + 1) & 0xffffffff
        self._sock.settimeout(_PATIENCE)
        body = _NEIGHBOUR.pack(socket.AF_INET6, key[0], 0, 0, 0) + attributes
        self._sock.send(_HEADER.pack(_HEADER.size + len(body), _RTM_GETNEIGH, _NLM_F_REQUEST | flags,
                                     self._sequence, 0) + body)
        found = None
        while True:
            for kind, payload in self._answers(end):
                if kind == _NLMSG_ERROR:
                    raise _Refused(payload)
                if kind == _NLMSG_DONE:
                    return found
                if kind == _RTM_NEWNEIGH:
                    found = found or _mac(payload, key)
                    if not flags:
                        return found

    def _answers(self, end):
        """(type, payload) of the messages that come next and answer the last question."""
        left = end - monotonic()
        if left <= 0:
            raise socket.timeout('no answer in time')
        self._sock.settimeout(left)
        data, (sender, _) = self._sock.recvfrom(_PIECE)
        if sender != 0:             # not the kernel
            return
        for kind, sequence, payload in _messages(data):
            if sequence == self._sequence:
                yield kind, payload


class _Malformed(Exception):
    """Nothing that a kernel says."""


class _Refused(Exception):
    """The kernel's word that there is no answer."""

    def __init__(self, payload):
        if len(payload) < _ERROR.size:
            raise _Malformed()
        Exception.__init__(self)
        self.errno = -_ERROR.unpack_from(payload)[0]


def _mac(payload, key):
    """MAC address in a neighbour message, if it is of the key (interface, packed address), or None."""
    if len(payload) < _NEIGHBOUR.size:
        raise _Malformed()
    family, interface, state, _, _ = _NEIGHBOUR.unpack_from(payload)
    attributes = dict(_attributes(payload[_NEIGHBOUR.size:]))
    lladdr = bytearray(attributes.get(_NDA_LLADDR, b''))
    if ((family, interface, attributes.get(_NDA_DST)) != (socket.AF_INET6,) + key
            or not state & _RESOLVED or len(lladdr) != 6):
        return None
    return ':'.join('%02x' % byte for byte in lladdr)


def _messages(data):
    """(type, sequence, payload) of each netlink message."""
    for head, payload in _cut(data, _HEADER):
        yield head[1], head[3], payload


def _attributes(data):
    """(type, value) of each attribute."""
    for head, value in _cut(data, _ATTRIBUTE):
        yield head[1] & _KINDS, value


def _cut(data, header):
    """(header, content) of each piece; a header begins with the length of both. The next begins at a
    multiple of 4 bytes."""
    while data:
        if len(data) < header.size:
            raise _Malformed()
        head = header.unpack_from(data)
        if not header.size <= head[0] <= len(data):
            raise _Malformed()
        yield head, data[header.size:head[0]]
        data = data[(head[0] + 3) & ~3:]


def _attribute(kind, value):
    """An attribute, to be sent; its value is a multiple of 4 bytes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
