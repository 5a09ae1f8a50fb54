"""Our figures beside straight nginx's, in one run: prints them with what issue 3 asks for.

    python3 tests/bench/run.py [--quick] [--python PATH[:FOLDER]]... [--only NAME]... [--json FILE]

Needs root, nginx and wrk; says what is missing and exits 2. Runs on a machine's own Python 3.9 or
later; --python says what is measured, and FOLDER where its requests is. The raw figures are kept
under build/bench/. Everything happens in namespaces that end with the run (isolation).

Who knows whom, imports go down only: `run`; `report`; `measures`; `subjects`; `interpreters`, `nova`,
`portapi`; `topology`; `processes`, `isolation`. `guests` and `wrk.lua` are run in a guests' namespace.
Another subject is a class in `subjects`; another figure is a function in `measures` and a table in
`report`.
"""
import argparse
import json
import os
import platform
import shutil
import sys
import time

import interpreters
import isolation
import measures
import processes
import report
import subjects
import topology

MEASURES = ('first', 'load', 'burst', 'storm')
_BURSTS = (200, 1000)   # guests
_PATHS = 25
_STORM_DELAY = 0.02     # seconds per API call
_FIRST_ANSWERS = 5


class Parser(argparse.ArgumentParser):
    """Bad usage is one line."""

    def error(self, message):
        self.exit(2, '%s: %s\n' % (self.prog, message))


def make_parser():
    """The command line."""
    parser = Parser(description='Figures of mdproxy beside straight nginx\'s, in one run.')
    parser.add_argument('--quick', action='store_true', help='shorter, and less to be trusted')
    parser.add_argument('--python', action='append', metavar='PATH[:FOLDER]',
                        help='a Python to measure, and where it finds requests; default: this one')
    parser.add_argument('--only', action='append', metavar='NAME', choices=subjects.NAMES,
                        help='of %s; straight is always there' % ', '.join(subjects.NAMES))
    parser.add_argument('--measure', action='append', metavar='NAME', choices=MEASURES,
                        help='of %s; default: all' % ', '.join(MEASURES))
    parser.add_argument('--source', metavar='DIR', default=topology.ROOT,
                        help='checkout whose mdproxy is measured; default: this one')
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
        self._what = options.measure or MEASURES
        quick = options.quick
        self.settings = {'quick': quick, 'seconds': 1 if quick else 2, 'rounds': 2 if quick else 3,
                         'connections': (16, 64, 256) if quick else (1, 16, 64, 256),
                         'rest': 2.0 if quick else 5.0,
                         'storm_guests': 300 if quick else 1000, 'storm_delay': _STORM_DELAY}
        self.result = {'time': time.strftime('%Y-%m-%d %H:%M:%S'), 'argv': sys.argv,
                       'machine': _machine(), 'settings': self.settings, 'versions': _versions(),
                       'load_average': {'before': os.getloadavg()}, 'subjects': [], 'commands': {},
                       'loads': {}, 'first_answers': {}, 'memory': {}, 'bursts': {}, 'storms': {}}
        self._subjects = []

    def measure(self):
        """Measure everything that was asked for."""
        self._start()
        self._memory('idle')
        if 'load' in self._what:
            self._say('load')
            self.result['loads'].update(measures.loads(
                self._subjects, self.settings['connections'] + (measures.CLOSE,),
                self.settings['seconds'], self.settings['rounds']))
            self._memory('after load')
        if 'burst' in self._what:
            self._bursts()
            self._memory('after bursts')
        if 'storm' in self._what:
            self._storms()
        self.result['load_average']['after'] = os.getloadavg()
        self.result['duration'] = time.monotonic() - self._begun
        for subject in self._subjects:
            for process in subject.processes:
                process.check()

    def _start(self):
        topology.ip('link', 'set', 'lo', 'up')
        specs = self._options.python or [sys.executable]
        found = [interpreters.Interpreter(spec, number, self._options.source)
                 for number, spec in enumerate(specs)]
        self.result['versions']['measured'] = ' and '.join(one.version for one in found)
        for subject in subjects.make(found, self._options.only):
            self._say('start of ' + subject.label)
            subject.start()
            self._subjects.append(subject)
            self.result['subjects'].append({'label': subject.label, 'name': subject.name,
                                            'python': subject.python,
                                            'per_router': subject.is_per_router})
            self.result['commands'][subject.label] = [one.argv for one in subject.processes]
            if subject.interpreter and 'first' in self._what:
                self.result['first_answers'][subject.label] = [
                    measures.first_answer(subject) for _ in range(_FIRST_ANSWERS)]

    def _memory(self, stage):
        ours = self._ours()
        if ours:
            time.sleep(self.settings['rest'])
        for subject in ours:
            self.result['memory'].setdefault(subject.label, {})[stage] = measures.memory(subject)

    def _bursts(self):
        """Nobody is known at first: each burst is of other guests; then the same again, known."""
        for subject in self._subjects[1:]:
            self._say('bursts at ' + subject.label)
            found, first = self.result['bursts'].setdefault(subject.label, {}), 0
            for count in _BURSTS:
                for state in ('unknown', 'known') if subject.api else ('',):
                    name = ('%d %s' % (count, state)).strip()
                    found[name] = measures.guests(subject, first, count)
                first += count

    def _storms(self):
        for subject in self._ours():
            self._say('storm at ' + subject.label)
            subject.stop()
            subject.start()
            subject.api.begin(_STORM_DELAY)
            self.result['storms'][subject.label] = measures.guests(
                subject, 0, self.settings['storm_guests'], _PATHS)
            subject.api.begin(0)

    def _ours(self):
        return [subject for subject in self._subjects if subject.interpreter]

    def _say(self, what):
        sys.stderr.write('%5.0f s  %s\n' % (time.monotonic() - self._begun, what))


def _machine():
    with open('/proc/cpuinfo') as lines:
        models = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return {'cpu': models[0] if models else platform.machine(), 'cores': os.cpu_count(),
            'kernel': platform.release()}


def _versions():
    return {'nginx': processes.run(['sh', '-c', 'nginx -v 2>&1']).strip().rpartition('/')[2],
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
