"""Listening sockets and their way to the process that serves; namespaces are in tests/integration."""
import errno
import os
import socket
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import loopback  # noqa: E402, F401

from mdproxy import namespaces  # noqa: E402


def free_port():
    probe = socket.socket()
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
    probe.close()
    return port


def test_a_listener_accepts_connections_that_do_not_wait_for_more_data():
    port = free_port()
    listener = namespaces.open_listener('127.0.0.1', port)
    guest = socket.create_connection(('127.0.0.1', port), 5)
    accepted, _ = listener.accept()
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    for sock in (guest, accepted, listener):
        sock.close()


def test_an_address_that_is_taken_is_said_to_be():
    port = free_port()
    listener = namespaces.open_listener('127.0.0.1', port)
    with pytest.raises(namespaces.NamespaceError) as caught:
        namespaces.open_listener('127.0.0.1', port)
    listener.close()
    assert str(caught.value) == ('this namespace: cannot listen on 127.0.0.1 port %d: %s; another proxy '
                                 'serves there' % (port, os.strerror(errno.EADDRINUSE)))


def test_two_that_share_an_address_may_both_listen_there():
    port = free_port()
    first = namespaces.bind('127.0.0.1', port, shared=True)
    namespaces.listen(first)
    second = namespaces.bind('127.0.0.1', port, shared=True)
    namespaces.listen(second)
    with pytest.raises(namespaces.NamespaceError):
        namespaces.bind('127.0.0.1', port)
    first.close()
    second.close()


def test_of_two_that_share_an_address_the_later_one_gets_the_connections():
    port = free_port()
    first, second = (namespaces.bind('127.0.0.1', port, shared=True) for _ in range(2))
    namespaces.listen(first)
    socket.create_connection(('127.0.0.1', port), 5).close()
    assert first.accept()
    namespaces.listen(second)
    guests = [socket.create_connection(('127.0.0.1', port), 5) for _ in range(50)]
    first.setblocking(False)
    with pytest.raises(socket.error):
        first.accept()
    first.close()
    for guest in guests:
        second.accept()[0].close()
        guest.close()
    socket.create_connection(('127.0.0.1', port), 5).close()       # the only one again
    assert second.accept()
    second.close()


def test_a_kernel_in_which_nobody_can_share_gives_the_first_one_the_address(monkeypatch):
    monkeypatch.setattr(namespaces, '_SO_REUSEPORT', 9999)      # no option of any kernel
    port = free_port()
    first = namespaces.bind('127.0.0.1', port, shared=True)
    namespaces.listen(first)
    with pytest.raises(namespaces.NamespaceError):
        namespaces.bind('127.0.0.1', port, shared=True)
    first.close()


def test_nobody_connects_before_it_listens():
    port = free_port()
    bound = namespaces.bind('127.0.0.1', port)
    with pytest.raises(socket.error):
        socket.create_connection(('127.0.0.1', port), 5)
    namespaces.listen(bound)
    socket.create_connection(('127.0.0.1', port), 5).close()
    bound.close()


def test_all_addresses_of_ipv6_leave_those_of_ipv4_to_another():
    port = free_port()
    four = namespaces.open_listener('0.0.0.0', port)
    six = namespaces.bind('::', port, only_ipv6=True)
    namespaces.listen(six)
    four.close()
    six.close()


def test_an_address_of_another_host_is_refused_by_name():
    with pytest.raises(namespaces.NamespaceError) as caught:
        namespaces.open_listener('192.0.2.1', 9697)
    assert 'cannot listen on 192.0.2.1 port 9697: %s' % os.strerror(errno.EADDRNOTAVAIL) in str(caught.value)


def test_a_namespace_that_does_not_exist_is_refused():
    with pytest.raises(namespaces.NamespaceError) as caught:
        namespaces.open_listener('0.0.0.0', 9697, 'qrouter-nowhere')
    assert 'namespace qrouter-nowhere does not exist' in str(caught.value)


def test_an_inherited_socket_is_of_the_family_it_was_made_with(tmpdir):
    for family, address in ((socket.AF_INET, ('127.0.0.1', 0)),
                            (socket.AF_UNIX, str(tmpdir.join('s')))):
        made = socket.socket(family)
        made.bind(address)
        made.listen(1)
        inherited = namespaces.inherited_listener(os.dup(made.fileno()))
        made.close()
        assert inherited.family == family
        asking = socket.socket(family)
        asking.connect(inherited.getsockname())
        asking.close()
        inherited.close()


def test_what_is_no_listening_socket_is_refused():
    connected, other = socket.socketpair()
    bound = socket.socket()
    reading, writing = os.pipe()
    for descriptor, reason in ((reading, 'is not a socket'), (999, 'is not a socket'),
                               (bound.fileno(), 'is not a listening socket')):
        with pytest.raises(namespaces.NamespaceError) as caught:
            namespaces.inherited_listener(descriptor)
        assert 'descriptor %d %s' % (descriptor, reason) in str(caught.value)
    for sock in (connected, other, bound):
        sock.close()
    os.close(reading)
    os.close(writing)
