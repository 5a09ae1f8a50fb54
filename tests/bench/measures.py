"""What is measured of subjects: each function gives a dict that goes into the JSON as it is."""
import json
import os
import socket
import statistics
import sys
import time

import isolation
import processes
import topology

CLOSE = 'close'             # name of the load with a connection for every request, of which there are:
_CLOSE_CONNECTIONS = 16
_ASK = ('GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n'
        % topology.METADATA).encode()
_WRK = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'wrk.lua')
_GUESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'guests.py')


def loads(subjects, kinds, seconds, rounds):
    """wrk against every subject in turn, `rounds` times: {label: {kind: [result of each round]}}.

    kinds: numbers of connections, and CLOSE. Neighbours in time are what is compared, so a round of
    one kind goes through all subjects before the next, and begins with another subject each time.
    """
    found = dict((subject.label, dict((str(kind), []) for kind in kinds)) for subject in subjects)
    for number in range(rounds):
        for kind in kinds:
            for subject in subjects[number % len(subjects):] + subjects[:number % len(subjects)]:
                found[subject.label][str(kind)].append(_wrk(subject, kind, seconds))
    return found


def _wrk(subject, kind, seconds):
    argv = ['wrk', '-t1', '-d%ds' % seconds, '-s', _WRK, subject.url]
    argv[1:1] = (['-c%d' % _CLOSE_CONNECTIONS, '-HConnection: close'] if kind == CLOSE
                 else ['-c%d' % kind])
    cpu = processes.cpu_seconds(subject.processes)
    said = processes.run(topology.within(subject.netns, argv))
    cpu = processes.cpu_seconds(subject.processes) - cpu
    found = json.loads(said.strip().splitlines()[-1])
    requests = found['requests'] or 1
    return dict(found, command=' '.join(argv), rate=found['requests'] / found['seconds'],
                cpu_per_1000=1000 * cpu / requests,
                errors=sum(found[name] for name in ('connect', 'read', 'write', 'timeout', 'status')))


def median(results, name):
    """Median of one figure over the rounds."""
    return statistics.median(result[name] for result in results)


def guests(subject, first, count, paths=1):
    """Guests that begin at the same instant (guests.py), and what was asked of the port API."""
    argv = [sys.executable, _GUESTS, str(first), str(count), str(paths)]
    cpu = processes.cpu_seconds(subject.processes)
    found = json.loads(processes.run(topology.within(subject.netns, argv)))
    found['cpu'] = processes.cpu_seconds(subject.processes) - cpu
    found['unanswered'] = count * paths - found['statuses'].get('200', 0)
    if subject.api:
        counts = subject.api.counts()
        lookups = list(counts['lookups'].values())
        found['api'] = {'tokens': counts['tokens'], 'interfaces': counts['interfaces'],
                        'other': counts['other'], 'lookups': sum(lookups), 'addresses': len(lookups),
                        'most_lookups': max(lookups or [0])}
    return found


def memory(subject):
    """kB of the process that guests talk to."""
    return processes.memory(subject.server.pid, subject.interpreter.owns)


def first_answer(subject):
    """Seconds from the start of the opener to the guest's first 200. The server runs afterwards."""
    subject.stop_server()
    begun = time.monotonic()
    subject.begin_server()
    with isolation.inside(subject.netns):
        while not _is_answered():
            if time.monotonic() - begun > processes.DEADLINE:
                raise processes.BenchError('%s gives no first answer: %s'
                                           % (subject.label, subject.server.last_words()))
            time.sleep(0.002)
        return time.monotonic() - begun


def _is_answered():
    """Whether a connection is taken, and then answered 200."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(processes.DEADLINE)
    try:
        sock.connect((topology.METADATA, 80))
        sock.sendall(_ASK)
        return sock.recv(65536).startswith(b'HTTP/1.1 200 ')
    except ConnectionRefusedError:
        return False
    finally:
        sock.close()
