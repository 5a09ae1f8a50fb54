"""Memory and open files over minutes of load."""
import time

import measures
import processes

_TURN = 3.0         # seconds of one load
_KINDS = ('16', measures.CLOSE + '64', '256')
_BURST = 200        # guests
_ROUNDS = 2         # of loads between two looks
_REST = 35.0        # seconds after which no connection to nova is kept any more


def run(subjects, seconds, say=lambda what: None):
    """Loads of every kind on all subjects in turn: {label: [{'seconds', 'pss', 'files'}, ...]}.

    seconds: of the whole. What is taken is taken while nobody asks; after each round of loads, and first
    after one round. pss in kB, and files: of all processes of a subject.
    """
    found, begun = dict((one.label, []) for one in subjects), time.monotonic()
    number = 0
    while not number or time.monotonic() - begun < seconds:
        say('soak, %.0f of %g s' % (time.monotonic() - begun, seconds))
        for one in subjects * _ROUNDS:
            _load(one)
        time.sleep(_REST)
        for one in subjects:
            found[one.label].append({'seconds': time.monotonic() - begun, 'pss': processes.pss(one.processes),
                                     'files': processes.open_files(one.processes)})
        number += 1
    return found


def _load(subject):
    """Every kind of load, and a crowd."""
    for kind in _KINDS:
        found = measures.load(subject, kind, _TURN)
        if found['errors']:
            raise processes.BenchError('%s: errors during the soak: %s' % (subject.label, found))
    measures.guests(subject, 0, _BURST)
