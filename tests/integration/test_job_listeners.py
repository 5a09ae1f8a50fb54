"""job_listeners: who listens in which namespace, asked of real ones. Needs root."""
import os
import socket
import subprocess
import sys
import uuid

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'unit'))

import ansible_module  # noqa: E402

from mdproxy import namespaces  # noqa: E402

job_listeners = ansible_module.utility('job_listeners')
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason='needs root, for namespaces')
PORT = 9697


@pytest.fixture
def made():
    """made(): the name of a namespace that is made now and goes with the test."""
    names = []

    def make():
        names.append('qrouter-' + str(uuid.uuid4()))
        subprocess.check_call(['ip', 'netns', 'add', names[-1]])
        return names[-1]
    yield make
    for name in names:
        subprocess.call(['ip', 'netns', 'del', name])


@pytest.fixture
def netns(made):
    return made()


def here():
    return os.stat('/proc/self/ns/net').st_ino


@pytest.mark.parametrize('address', ['0.0.0.0', '127.0.0.1', '::'])
def test_a_listener_is_found_in_its_namespace_on_its_port_and_nowhere_else(netns, address):
    home = here()
    with namespaces.inside(netns):
        subprocess.check_call(['ip', 'link', 'set', 'lo', 'up'])
    listener = namespaces.open_listener(address, PORT, netns)
    wanted = set([(netns, PORT), (netns, PORT + 1), ('qrouter-none', PORT)])
    assert job_listeners.listening(wanted) == set([(netns, PORT)])
    listener.close()
    assert job_listeners.listening(wanted) == set()
    assert here() == home


def test_a_listener_in_an_older_namespace_of_the_same_name_does_not_count(netns):
    listener = namespaces.open_listener('0.0.0.0', PORT, netns)
    subprocess.check_call(['ip', 'netns', 'del', netns])
    subprocess.check_call(['ip', 'netns', 'add', netns])
    assert job_listeners.listening(set([(netns, PORT)])) == set()
    listener.close()


def test_a_connection_that_has_ended_is_no_listener(netns):
    with namespaces.inside(netns):
        subprocess.check_call(['ip', 'link', 'set', 'lo', 'up'])
    listener = namespaces.open_listener('127.0.0.1', PORT, netns)
    with namespaces.inside(netns):
        client = socket.create_connection(('127.0.0.1', PORT))
    served = listener.accept()[0]
    listener.close()
    served.close()      # it is the one that waits for stray packets now
    client.close()
    assert job_listeners.listening(set([(netns, PORT)])) == set()


def test_looking_does_not_keep_a_server_from_its_port(netns):
    job_listeners.listening(set([(netns, PORT)]))
    namespaces.open_listener('0.0.0.0', PORT, netns).close()


def test_those_that_stay_silent_are_named(netns):
    listener = namespaces.open_listener('0.0.0.0', PORT, netns)
    readies = {'one': dict(netns=netns, port=PORT), 'other': dict(netns=netns, port=PORT + 1)}
    assert job_listeners.silent(readies, 0.2, 0.2) == ['other']
    listener.close()


def test_a_namespace_without_guests_may_be_silent_as_long_as_not_all_are(made):
    served, used, left = made(), made(), made()
    for name in (served, used):
        subprocess.check_call(['ip', '-n', name, 'link', 'add', 'qr-1', 'type', 'bridge'])

    def silent(**more):
        entry = dict(netns='{item}', port=PORT, items=[served, used, left], **more)
        return ansible_module.run('mdproxy_jobs', dict(
            service_manager='systemd', release='', listeners=[entry], wait=0))['silent']
    assert silent(interface='qr-') == sorted([served, used, left])
    listener = namespaces.open_listener('0.0.0.0', PORT, served)
    assert silent(interface='qr-') == [used]
    assert silent() == sorted([used, left])
    listener.close()
