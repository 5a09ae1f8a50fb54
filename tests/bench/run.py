"""Our figures beside straight nginx's and what others run today, in one run.

    python3 tests/bench/run.py [--quick] [--python PATH[:FOLDER]]... [--only NAME]... [--json FILE]

Needs root, nginx and wrk; says what is missing and exits 2. Runs on a machine's own Python 3.9 or
later; --python says what is measured, and FOLDER where its requests is. `make bench` has the peers:
neutron's virtualenv (--neutron) and haproxy; for Folsom's, what quantum imports (--folsom-site) and its
patched tree (--folsom-tree), run by --folsom-python. A peer that is not there is passed over with a word.
The raw figures are kept under build/bench/. Everything happens in namespaces that end with the run
(isolation).

Who knows whom, imports go down only: `run`, `page`; `report`, `verdicts`; `soak`, `measures`; `subjects`;
`ours`, `peers`; `subject`; `interpreters`, `nova`, `portapi`; `topology`; `processes`, `isolation`.
`guests` and `wrk.lua` are run in a guests' namespace, `lookups` beside the port API, `neutron_lookup` and
`folsom_program` by the peers' Pythons, `page` by one with matplotlib. Another
subject is a class in `ours` or `peers`; another figure is a function in `measures` and a table in `report`.
"""
import argparse
import glob
import json
import os
import platform
import re
import shutil
import sys
import time

import interpreters
import isolation
import measures
import processes
import report
import soak
import subjects
import topology

sys.path.insert(0, topology.ROOT)

from mdproxy import config  # noqa: E402

MEASURES = ('first', 'load', 'growth', 'burst', 'storm', 'soak')
_FULL = {'quick': False, 'seconds': 2, 'rounds': 5, 'connections': (1, 16, 64, 256), 'rest': 5.0, 'first': 5,
         'routers': (1, 20, 100, 500), 'bursts': (16, 200, 1000), 'storm_delays': (0, 0.01, 0.05),
         'storm_guests': 1000, 'storm_guests_of_peers': 40, 'storm_paths': 25, 'soak': 600}
_QUICK = dict(_FULL, quick=True, seconds=1, rounds=2, connections=(16, 64), rest=2.0, first=2,
              routers=(1, 20), bursts=(16, 200), storm_delays=(0, 0.01), storm_guests=200,
              storm_guests_of_peers=8, soak=20)


class Parser(argparse.ArgumentParser):
    """Bad usage is one line."""

    def error(self, message):
        self.exit(2, '%s: %s\n' % (self.prog, message))


def make_parser():
    """The command line."""
    parser = Parser(description='Figures of mdproxy, straight nginx and what others run, in one run.')
    parser.add_argument('--quick', action='store_true', help='shorter, and less to be trusted')
    parser.add_argument('--python', action='append', metavar='PATH[:FOLDER]',
                        help='a Python to measure, and where it finds requests; default: this one')
    parser.add_argument('--only', action='append', metavar='NAME', choices=subjects.NAMES,
                        help='of %s; straight is always there' % ', '.join(subjects.NAMES))
    parser.add_argument('--measure', action='append', metavar='NAME', choices=MEASURES,
                        help='of %s; default: all' % ', '.join(MEASURES))
    parser.add_argument('--source', metavar='DIR', default=topology.ROOT,
                        help='checkout whose mdproxy is measured; default: this one')
    parser.add_argument('--neutron', metavar='DIR', help='virtualenv with neutron')
    parser.add_argument('--folsom-python', metavar='PATH', help='Python 2.7 that runs quantum')
    parser.add_argument('--folsom-site', metavar='DIR', help='what quantum imports')
    parser.add_argument('--folsom-tree', metavar='DIR', help='quantum, patched')
    parser.add_argument('--json', metavar='FILE', help='default: build/bench/TIME.json')
    return parser


def missing():
    """What the run needs and this machine does not have."""
    found = [] if os.geteuid() == 0 else ['root']
    return found + [name for name in ('nginx', 'wrk', 'ip', 'iptables-restore')
                    if not shutil.which(name)]


class Run(object):
    """One run: `result` is what there is of it so far."""

    def __init__(self, options):
        self._options, self._begun = options, time.monotonic()
        self.settings = _QUICK if options.quick else _FULL
        self.result = {'time': time.strftime('%Y-%m-%d %H:%M:%S'), 'argv': sys.argv,
                       'machine': _machine(), 'settings': self.settings, 'versions': _versions(options),
                       'load_average': {'before': os.getloadavg()}, 'missing': [], 'subjects': [],
                       'commands': {}, 'first_answers': {}, 'memory': {}, 'loads': {}, 'growth': {},
                       'bursts': {}, 'storms': {}, 'alone': {}, 'soak': {}}
        self._subjects = []

    def measure(self):
        """Measure everything that was asked for."""
        self._start()
        self._memory('idle')
        for name in self._options.measure or MEASURES:
            getattr(self, '_' + name)()
        self.result['load_average']['after'] = os.getloadavg()
        self.result['duration'] = time.monotonic() - self._begun
        for subject in self._subjects:
            for process in subject.processes:
                process.check()

    def _start(self):
        topology.ip('link', 'set', 'lo', 'up')
        options = self._options
        found = [interpreters.Interpreter(spec, number, options.source)
                 for number, spec in enumerate(options.python or [sys.executable])]
        self.result['versions']['measured'] = ' and '.join(one.version for one in found)
        made, missing = subjects.make(found, options.only, (options.neutron,), (
            options.folsom_python, options.folsom_site, options.folsom_tree))
        for line in missing:
            self._say(line)
        self.result['missing'] = missing
        for subject in made:
            self._say('start of ' + subject.label)
            subject.start()
            self._subjects.append(subject)
            self.result['subjects'].append({'label': subject.label, 'name': subject.name,
                                            'python': subject.python, 'peer': subject.is_peer,
                                            'per_router': subject.is_per_router})
            self.result['commands'][subject.label] = [one.argv for one in subject.processes]

    def _first(self):
        for subject in self._subjects:
            if subject.interpreter or subject.is_peer:
                self._say('first answers of ' + subject.label)
                self.result['first_answers'][subject.label] = [
                    measures.first_answer(subject) for _ in range(self.settings['first'])]

    def _load(self):
        self.result['loads'] = measures.loads(
            self._subjects, self.settings['connections'], self.settings['seconds'], self.settings['rounds'],
            self._say)
        self._memory('after load')

    def _growth(self):
        counts = self.settings['routers']
        routers = [topology.EmptyRouter() for _ in range(max(counts))]
        for subject in self._subjects:
            if subject.most_routers:
                self.result['growth'][subject.label] = measures.growth(subject, routers, counts, self._say)

    def _memory(self, stage):
        ours = self._ours()
        if ours:
            time.sleep(self.settings['rest'])
        for subject in ours:
            self.result['memory'].setdefault(subject.label, {})[stage] = measures.memory(subject)

    def _burst(self):
        """Nobody is known at first: each burst is of other guests; then the same again, known."""
        for subject in self._subjects[1:]:
            self._say('bursts at ' + subject.label)
            subject.begin_lookups(subject.delay)
            found, first = self.result['bursts'].setdefault(subject.label, {}), 0
            for count in self.settings['bursts']:
                for state in ('unknown', 'known') if subject.interpreter else ('',):
                    name = ('%d %s' % (count, state)).strip()
                    found[name] = measures.guests(subject, first, count)
                first += count
        self._memory('after bursts')

    def _storm(self):
        """Nobody knows any guest: servers and agents begin anew for each."""
        for delay in self.settings['storm_delays']:
            name = '%g ms' % (1000 * delay)
            for subject in self._ours()[:1]:
                subject.begin_lookups(delay)
                self.result['alone'][name] = measures.lookups_alone(
                    subject, self.settings['storm_guests'], config.Options({}).api_threads)
            for subject in self._subjects:
                if subject.interpreter or (subject.is_peer and not subject.delay):
                    self._say('storm at %s, %s per API call' % (subject.label, name))
                    found = self.result['storms'].setdefault(subject.label, {})
                    found[name] = self._one_storm(subject, delay)

    def _one_storm(self, subject, delay):
        subject.stop()
        subject.start()
        subject.begin_lookups(delay)
        try:
            return measures.guests(subject, 0, self.settings[
                'storm_guests_of_peers' if subject.is_peer else 'storm_guests'], self.settings['storm_paths'])
        finally:
            subject.begin_lookups(0)

    def _soak(self):
        self.result['soak'] = soak.run([one for one in self._ours() if one.name == 'shared'],
                                       self.settings['soak'], self._say)

    def _ours(self):
        return [subject for subject in self._subjects if subject.interpreter]

    def _say(self, what):
        sys.stderr.write('%5.0f s  %s\n' % (time.monotonic() - self._begun, what))


def _machine():
    with open('/proc/cpuinfo') as lines:
        models = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return {'cpu': models[0] if models else platform.machine(), 'cores': os.cpu_count(),
            'kernel': platform.release()}


def _versions(options):
    found = glob.glob('%s/lib/python3*/site-packages/neutron-*.dist-info' % options.neutron)
    return {'neutron': re.findall(r'neutron-(.*)\.dist-info', found[0])[0] if found else 'none',
            'haproxy': processes.run(['sh', '-c', 'haproxy -v || echo HAProxy version none']).split()[2],
            'nginx': processes.run(['sh', '-c', 'nginx -v 2>&1']).strip().rpartition('/')[2],
            'wrk': processes.run(['sh', '-c', 'wrk -v 2>&1 || true']).split()[1],
            'runner': platform.python_version()}


def _keep(result, path):
    folder = os.path.join(topology.ROOT, 'build', 'bench')
    path = path or os.path.join(folder, time.strftime('%Y%m%d-%H%M%S.json'))
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, 'w') as out:
        json.dump(result, out, indent=1)
    return path


def _run(options):
    """Measure, keep and report; the exit status."""
    run = Run(options)
    try:
        run.measure()
    except processes.BenchError as error:
        sys.stderr.write('bench: %s\n' % error)
        return 2 if isinstance(error, processes.Missing) else 1
    finally:
        if run.result['subjects']:
            path = _keep(run.result, options.json)
    print(report.text(run.result))
    print('\nraw figures: %s' % path)
    return 0


def main():
    """The exit status: 0 measured, whatever came of it; 1 the run broke off; 2 it could not begin."""
    options = make_parser().parse_args()
    os.environ['PATH'] += ':/usr/sbin:/sbin'
    lacking = missing()
    if lacking:
        sys.stderr.write('bench: missing: %s\n' % ', '.join(lacking))
        return 2
    try:
        return isolation.run(lambda: _run(options))
    except OSError as error:
        sys.stderr.write('bench: cannot have namespaces of its own: %s\n' % error.strerror)
        return 2


if __name__ == '__main__':
    sys.exit(main())
