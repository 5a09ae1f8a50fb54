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

CLOSE = 'close '            # begins the name of a load with a connection for every request
_ASK = ('GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n'
        % topology.METADATA).encode()
_HERE = os.path.dirname(os.path.abspath(__file__))
_WRK, _GUESTS, _LOOKUPS = (os.path.join(_HERE, name) for name in ('wrk.lua', 'guests.py', 'lookups.py'))
_STOLEN, _TRIES = 0.03, 5   # the share of the cores' time that may be taken, runs until it is taken as it is
_KNOCK = 0.02               # seconds until a connection is tried anew, sooner than TCP would: 1 s
_PATIENCE = 10              # seconds that wrk waits for an answer


def kinds(connections):
    """Names of the loads with so many connections: kept alive, and one for every request."""
    return [str(count) for count in connections] + [CLOSE + str(count) for count in connections]


def loads(subjects, connections, seconds, rounds, say=lambda what: None):
    """wrk against every subject in turn, `rounds` times: {label: {kind: [result of each round]}}.

    Neighbours in time are what is compared, so a round of one kind goes through all subjects before
    the next, and begins with another subject each time.
    """
    names = kinds(connections)
    found = dict((one.label, dict((kind, []) for kind in names)) for one in subjects)
    for number in range(rounds):
        for kind in names:
            say('load, round %d of %d: %s connections' % (number + 1, rounds, kind))
            for subject in subjects[number % len(subjects):] + subjects[:number % len(subjects)]:
                found[subject.label][kind].append(load(subject, kind, seconds))
    return found


def load(subject, kind, seconds):
    """One run of wrk; again, but not for ever, when a hypervisor took the machine's cores meanwhile.

    stolen: the share that it took. idle: that had nothing to do. disturbed: those runs that were not taken,
    whatever they gave.
    """
    disturbed = []
    while True:
        (idle, stolen), begun = processes.cores(), time.monotonic()
        found = _wrk(subject, kind, seconds)
        after, all_cores = processes.cores(), (time.monotonic() - begun) * os.cpu_count()
        found.update(idle=(after[0] - idle) / all_cores, stolen=(after[1] - stolen) / all_cores)
        if found['stolen'] <= _STOLEN or len(disturbed) == _TRIES - 1:
            return dict(found, disturbed=disturbed)
        disturbed.append(found)


def _wrk(subject, kind, seconds):
    argv = ['wrk', '-t1', '-c' + kind.rpartition(' ')[2], '-d%gs' % seconds, '--timeout', '%ds' % _PATIENCE,
            '-s', _WRK, subject.url]
    if kind.startswith(CLOSE):
        argv.insert(1, '-HConnection: close')
    cpu = processes.cpu_seconds(subject.processes)
    said = processes.run(topology.within(subject.netns, argv))
    cpu = processes.cpu_seconds(subject.processes) - cpu
    if subject.is_peer:
        processes.until_quiet(subject.processes)        # its queues outlive who asked
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
    if subject.is_peer:
        processes.until_quiet(subject.processes)
    found['api'] = subject.lookups()
    return found


def lookups_alone(subject, count, threads):
    """Seconds that as many threads as of an agent take for the lookups of so many guests, and no more."""
    argv = [sys.executable, _LOOKUPS, str(subject.api.port), subject.router.id, str(count), str(threads)]
    return json.loads(processes.run(argv))


def memory(subject):
    """kB of the process that guests talk to."""
    return processes.memory(processes.tree([subject.server])[-1], subject.interpreter.owns)


def growth(subject, routers, counts, say=lambda what: None):
    """{number of routers: kB PSS of all processes that their number makes more or larger}, and the seconds
    that it took to have them serve."""
    found = {}
    for count in counts:
        if count <= min(len(routers), subject.most_routers):
            say('%d routers at %s' % (count, subject.label))
            begun = time.monotonic()
            running = subject.serve(routers[:count])
            seconds = time.monotonic() - begun
            processes.until_quiet(running)
            found[str(count)] = {'pss': processes.pss(running), 'seconds': seconds,
                                 'agent': processes.pss([subject.agent]) if subject.is_per_router else 0}
    subject.forget()
    return found


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
    sock.settimeout(_KNOCK)
    try:
        sock.connect((topology.METADATA, 80))
        sock.settimeout(processes.DEADLINE)
        sock.sendall(_ASK)
        return sock.recv(65536).startswith(b'HTTP/1.1 200 ')
    except (ConnectionRefusedError, socket.timeout):
        return False
    finally:
        sock.close()
