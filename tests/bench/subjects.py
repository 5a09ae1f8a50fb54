"""All subjects of a run."""
import ours
import peers
import processes
import subject

PLAIN, OURS = (subject.Straight, subject.Redirect), (ours.Unix, ours.Signed, ours.Shared, ours.SharedByTwo)
NAMES = ('straight', 'redirect', 'haproxy', 'folsom', 'unix', 'tcp', 'shared', 'shared-2')


def make(interpreters, only, neutron, folsom):
    """The subjects to measure, and a line for each peer that is missing.

    straight is the first, and always there. interpreters: of ours. only: names, none for all. neutron: the
    arguments of peers.haproxy; folsom: of peers.folsom.
    """
    found, missing = [kind() for kind in PLAIN if kind is subject.Straight or _wanted(kind.name, only)], []
    for name, make_peer, arguments in (('haproxy', peers.haproxy, neutron),
                                       ('folsom', peers.folsom, folsom)):
        if _wanted(name, only):
            try:
                found += make_peer(*arguments)
            except processes.Missing as error:
                missing.append('%s is not measured: %s' % (name, error))
    made = [kind(interpreter) for interpreter in interpreters for kind in OURS]
    return found + [one for one in made if _wanted(one.name, only)], missing


def _wanted(name, only):
    return not only or name in only
