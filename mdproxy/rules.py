"""A router's iptables rules: applied whole, as often as one likes, and taken away without a trace.

The rules are a file in iptables-restore form, made by the operator's tool. Two things that form
cannot say are added here, by looking at what the namespace has: a jump from a built-in chain that is
already there is moved, not repeated; and chains of ours that are no longer wanted go, the jumps to
them first. Everything goes through one `iptables-restore --noflush` per call, which changes a table
whole or not at all; `filter` comes before `nat`, so the port is closed before guests are led to it.
IPv6 has tables of its own, and `ip6tables-restore` for them. Only chains that begin with `mdproxy-`
are ever touched; the l3 agent rewrites its own and so do we.
"""
from __future__ import unicode_literals

import io
import re
import subprocess
import time

from . import namespaces

_OWN = 'mdproxy-'
_JUMP = re.compile(r'-[AI] (\S+)(?: \d+)? -j (%s\S+)\s*$' % _OWN)
_LINE = re.compile(r':%s\S+ |-A %s\S+ ' % (_OWN, _OWN))     # what a file may hold beside jumps

_BUSY = 4                               # exit status: somebody else holds the lock of all namespaces
_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, None)      # seconds before it is tried again

_FOR_GUESTS = """\
*nat
:mdproxy-PREROUTING - [0:0]
-I PREROUTING 1 -j mdproxy-PREROUTING
-A mdproxy-PREROUTING -d %(address)s/%(bits)d -i %(interface)s -p tcp -m tcp --dport 80 -j REDIRECT --to-ports %(port)d
COMMIT
*filter
:mdproxy-INPUT - [0:0]
-I INPUT 1 -j mdproxy-INPUT
-A mdproxy-INPUT -i %(interface)s -p tcp -m tcp --dport %(port)d -m conntrack --ctorigdst %(address)s --ctorigdstport 80 -j ACCEPT
-A mdproxy-INPUT -p tcp -m tcp --dport %(port)d -j DROP
COMMIT
"""  # noqa: E501

IPV4, IPV6 = 'iptables', 'ip6tables'     # families, as the commands' names begin


class RulesError(namespaces.NamespaceError):
    """Rules that cannot be read or applied; the message names the namespace or file and the reason."""


class _Busy(RulesError):
    """It may work in a moment."""


def for_guests(interface='qr-+', port=9697):
    """The rules of a router whose guests are behind these interfaces (as iptables names them), text.

    Guests are led to the port, and nobody else reaches it (bugs 1187102, 1399462).
    """
    return _FOR_GUESTS % {'address': '169.254.169.254', 'bits': 32, 'interface': interface, 'port': port}


def for_guests6(interface='qr-+', port=9697):
    """The same for IPV6: guests that ask fe80::a9fe:a9fe, which their router has to have as an address."""
    return _FOR_GUESTS % {'address': 'fe80::a9fe:a9fe', 'bits': 128, 'interface': interface, 'port': port}


class Rules(object):
    """Wanted rules of one family, for any number of namespaces. origin: what messages call their text.

    Raises RulesError for a text that is no rules, or not of our chains alone.
    """

    def __init__(self, text, origin, family=IPV4):
        self._wanted, self._origin, self._family = _parsed(text, origin), origin, family
        self._spelled = None

    def apply(self, netns):
        """Bring the namespace's own chains to the rules; True when they were not so before."""
        before = _save(netns, self._family)
        if self._differ(before):
            _restore(netns, _script(self._wanted, before), self._family)
            return True
        return False

    def differ(self, netns):
        """True when the namespace's own chains are not as the rules say."""
        return self._differ(_save(netns, self._family))

    def same(self):
        """What two Rules have alike that want the same, for a dictionary."""
        return tuple(sorted((table, tuple(lines)) for table, lines in self._wanted.items()))

    def _differ(self, saved):
        own = _own(saved)
        return not own or own != self._canonical()

    def _canonical(self):
        """The rules as this kernel and this iptables spell them: restored in a scratch namespace."""
        if self._spelled is None:
            spell = '{0}-restore && {0}-save'.format(self._family)
            out = _run(self._origin, ['unshare', '--net', 'sh', '-c', spell], _script(self._wanted, {}))
            self._spelled = _own(_tables(out))
        return self._spelled


def of_file(path):
    """The Rules of a file. Raises RulesError."""
    try:
        with io.open(path, encoding='utf-8') as found:
            return Rules(found.read(), path)
    except (IOError, OSError, UnicodeDecodeError) as error:
        raise RulesError('%s: cannot be read: %s' % (path, getattr(error, 'strerror', error)))


def check(pairs):
    """[(netns, reason)] for those of (netns, path) whose namespace is not as its file says.

    Most files want the same; how the kernel spells that is found out once.
    """
    distinct, wrong = {}, []
    for netns, path in pairs:
        try:
            wanted = of_file(path)
            if distinct.setdefault(wanted.same(), wanted).differ(netns):
                wrong.append((netns, 'the rules differ from %s' % path))
        except RulesError as error:
            wrong.append((netns, str(error)))
    return wrong


def remove(netns, family=IPV4):
    """Take away every chain of ours and what jumps to it; True when there was one.

    A namespace that is gone has none.
    """
    if namespaces.inode(netns) is None:
        return False
    before = _save(netns, family)
    if not _own(before):
        return False
    _restore(netns, _script({}, before), family)
    return True


def _script(wanted, before):
    """The restore input: in each table our old jumps go, the file's lines come as they are, and then
    the chains of ours that it does not declare go."""
    script = []
    for table in sorted(set(wanted) | set(table for table, _ in _own(before))):
        lines, old = wanted.get(table, ()), before.get(table, ())
        declared = [line for line in lines if line.startswith(':')]
        surplus = sorted(set(_chains(old)) - set(_chains(lines)))
        script += ['*' + table] + declared
        script += ['-D ' + line[3:] for line in old if _is_jump(line)]
        script += ['-F ' + chain for chain in surplus]
        script += [line for line in lines if line not in declared]
        script += ['-X ' + chain for chain in surplus] + ['COMMIT']
    return script


def _chains(lines):
    return [line.split()[0][1:] for line in lines if line.startswith(':' + _OWN)]


def _is_jump(line):
    match = _JUMP.match(line)
    return match is not None and not match.group(1).startswith(_OWN)


def _own(tables):
    """What is ours of a namespace, {(table, chain): rules}, without counters: what `apply` may change."""
    own = {}
    for table, lines in tables.items():
        for chain in _chains(lines):
            own[table, chain] = [line for line in lines if line.startswith('-A %s ' % chain)]
        for line in filter(_is_jump, lines):
            own.setdefault((table, line.split()[1]), []).append(line)
    return own


def _parsed(text, origin):
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith((':', '-')) and not _LINE.match(line) and not _JUMP.match(line):
            raise RulesError('%s:%d: "%s" is not in a chain of ours (%s*)'
                             % (origin, number, line, _OWN))
        if not line.startswith((':', '-', '*', '#')) and line.strip() not in ('', 'COMMIT'):
            raise RulesError('%s:%d: expected a table, chain, rule or COMMIT' % (origin, number))
    tables = _tables(text)
    if not tables:
        raise RulesError('%s: holds no table' % origin)
    return tables


def _tables(text):
    tables, lines = {}, None
    for line in text.splitlines():
        if line.startswith('*'):
            lines = tables.setdefault(line[1:].strip(), [])
        elif line.startswith((':', '-')) and lines is not None:
            lines.append(line.strip())
    return tables


def _save(netns, family):
    return _tables(_run('namespace ' + netns, [family + '-save'], (), netns))


def _restore(netns, script, family):
    _run('namespace ' + netns, [family + '-restore', '--noflush'], script, netns)


def _run(where, argv, script=(), netns=None):
    """What a command writes; again when others are at the rules, for all namespaces have one lock."""
    for pause in _PAUSES:
        try:
            return _run_once(where, argv, script, netns)
        except _Busy as error:
            if pause is None:
                raise RulesError(str(error))
            time.sleep(pause)


def _run_once(where, argv, script, netns):
    text = '\n'.join(list(script) + [''])
    try:
        # Of the namespace it is the network alone that counts. `ip netns exec` takes three times as
        # long, because it makes a view of /sys as well.
        with namespaces.inside(netns):
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, close_fds=True)
    except namespaces.NamespaceError as error:
        raise RulesError(str(error))
    except OSError as error:
        raise RulesError('%s cannot be run: %s' % (argv[0], error.strerror))
    out, err = process.communicate(text.encode('utf-8'))
    if process.returncode:
        reasons = [line for line in err.decode('utf-8', 'replace').splitlines()
                   if line.strip() and not line.startswith('#')]     # the kernel's other tables
        failed = _Busy if process.returncode == _BUSY else RulesError
        raise failed('%s: %s' % (where, ': '.join(reasons[:2]) or '%s failed' % argv[0]))
    return out.decode('utf-8', 'replace')
