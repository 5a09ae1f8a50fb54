"""Listening sockets and their way to the process that serves; namespaces are in tests/integration."""
import errno
import os
import socket
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from loopback import ROOT  # noqa: E402

from mdproxy import namespaces  # noqa: E402


@pytest.mark.parametrize('text, address', [
    ('0.0.0.0:9697', ('0.0.0.0', 9697)), ('169.254.169.254:80', ('169.254.169.254', 80)),
    ('[::]:9697', ('::', 9697)), ('[fe80::1]:65535', ('fe80::1', 65535))])
def test_an_address_and_a_port_are_understood(text, address):
    assert namespaces.parse_listen(text) == address


@pytest.mark.parametrize('text', [
    '', ':', '9697', ':9697', '0.0.0.0', '0.0.0.0:', '0.0.0.0:0', '0.0.0.0:65536', '0.0.0.0:-1',
    '0.0.0.0:9x', '0.0.0.0: 9697', '::1:9697', '[]:9697', '[::1:9697', '[10.0.0.1]:9697',
    'localhost:9697', '10.0.0:9697', '10.0.0.256:9697'])
def test_anything_else_is_refused_without_asking_what_a_name_means(text):
    with pytest.raises(ValueError) as caught:
        namespaces.parse_listen(text)
    assert str(caught.value).startswith('expected ADDR:PORT')


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


def test_an_address_of_another_host_is_refused_by_name():
    with pytest.raises(namespaces.NamespaceError) as caught:
        namespaces.open_listener('192.0.2.1', 9697)
    assert 'cannot listen on 192.0.2.1 port 9697: %s' % os.strerror(errno.EADDRNOTAVAIL) in str(caught.value)


def test_a_namespace_that_does_not_exist_is_refused():
    with pytest.raises(namespaces.NamespaceError) as caught:
        namespaces.open_listener('0.0.0.0', 9697, 'qrouter-nowhere')
    assert 'namespace qrouter-nowhere does not exist' in str(caught.value)


# Run as a process: opens a listener and becomes a process that shows its descriptors.
_OPENER = '''
import os, sys
sys.path.insert(0, %(root)r)
from mdproxy import namespaces
listener = namespaces.open_listener(%(host)r, %(port)d)
namespaces.exec_server(listener, [sys.executable, '-c', %(server)r])
'''
_SERVER = '''
import os, socket, sys
sys.path.insert(0, %(root)r)
from mdproxy import namespaces
assert sys.argv[1] == '--listen-fd', sys.argv
before = [n for n in os.listdir('/proc/self/fd') if n > '2']
links = [os.path.join('/proc/self/fd', n) for n in before]
sockets = [os.readlink(link) for link in links if os.path.lexists(link)]
assert len([link for link in sockets if link.startswith('socket:')]) == 1, sockets
listener = namespaces.inherited_listener(int(sys.argv[2]))
assert listener.family == getattr(socket, %(family)r)
print(listener.getsockname()[1])
listener.close()
probe = socket.socket(listener.family)
assert probe.connect_ex((%(host)r, %(port)d)), 'somebody still listens'
'''


@pytest.mark.parametrize('host, family', [('127.0.0.1', 'AF_INET'), ('::1', 'AF_INET6')])
def test_the_server_inherits_the_listener_and_no_second_descriptor_of_it(host, family):
    probe = socket.socket(getattr(socket, family))
    try:
        probe.bind((host, 0))
    except socket.error:
        pytest.skip('no ' + host)
    values = dict(root=ROOT, host=host, family=family, port=probe.getsockname()[1])
    probe.close()
    values['server'] = _SERVER % values
    process = subprocess.Popen([sys.executable, '-c', _OPENER % values], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    assert process.communicate()[0].decode().strip() == str(values['port'])
    assert process.returncode == 0


def test_a_server_that_cannot_be_run_is_named():
    listener = namespaces.open_listener('127.0.0.1', free_port())
    with pytest.raises(namespaces.NamespaceError) as caught:
        namespaces.exec_server(listener, ['/nonexistent/python', 'proxy'])
    listener.close()
    assert str(caught.value).startswith('/nonexistent/python cannot be run as user %d' % os.geteuid())


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
