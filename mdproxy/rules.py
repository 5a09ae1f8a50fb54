"""A router's iptables rules: applied whole, as often as one likes, and taken away without a trace.

The rules are a file in iptables-restore form, made by the operator's tool. Two things that form
cannot say are added here, by looking at what the namespace has: a jump from a built-in chain that is
already there is moved, not repeated; and on removal the jumps go before the chains. Everything goes
through one `iptables-restore --noflush` per call, so the kernel sees all of it or nothing.
Only chains that begin with `mdproxy-` are ever touched; the l3 agent rewrites its own and so do we.
"""
from __future__ import unicode_literals

import io
import re
import subprocess

_OWN = 'mdproxy-'
_JUMP = re.compile(r'-[AI] (\S+)(?: \d+)? -j (%s\S+)$' % _OWN)


class RulesError(Exception):
    """Rules that cannot be read or applied; the message names the namespace or file and the reason."""


def apply(netns, path):
    """Bring the namespace's own chains to what the file says; True when they were not so before."""
    wanted, before = _read(path), _save(netns)
    if _own(before) == _own(_canonical(wanted)):
        return False
    _restore(netns, _script(wanted, _jumps(before)))
    return True


def differs(netns, path):
    """True when the namespace's own chains are not what the file says."""
    return _own(_save(netns)) != _own(_canonical(_read(path)))


def remove(netns):
    """Take away every chain of ours and what jumps to it; True when there was one."""
    before = _save(netns)
    script = []
    for table in sorted(before):
        chains = [line.split()[0][1:] for line in before[table] if line.startswith(':' + _OWN)]
        if chains:
            script += ['*' + table]
            script += ['-D %s -j %s' % jump for jump in _jumps(before).get(table, ())]
            script += ['-F ' + chain for chain in chains] + ['-X ' + chain for chain in chains]
            script += ['COMMIT']
    if script:
        _restore(netns, script)
    return bool(script)


def _script(wanted, jumps):
    """The restore input: each table's old jumps deleted, then the file's lines as they are."""
    script = []
    for table in sorted(wanted):
        script += ['*' + table]
        script += [line for line in wanted[table] if line.startswith(':')]
        script += ['-D %s -j %s' % jump for jump in jumps.get(table, ())]
        script += [line for line in wanted[table] if not line.startswith(':')]
        script += ['COMMIT']
    return script


def _jumps(tables):
    found = {}
    for table, lines in tables.items():
        matches = [_JUMP.match(line) for line in lines]
        found[table] = [match.groups() for match in matches
                        if match and not match.group(1).startswith(_OWN)]
    return found


def _own(tables):
    """What is ours of a namespace, without counters: the part that `apply` may change."""
    return dict((table, [line.split(' [')[0] for line in lines if _OWN in line])
                for table, lines in tables.items() if any(_OWN in line for line in lines))


def _read(path):
    try:
        with io.open(path, encoding='utf-8') as rules:
            tables = _tables(rules.read())
    except (IOError, OSError) as error:
        raise RulesError('%s: cannot be read: %s' % (path, error.strerror))
    for lines in tables.values():
        for line in lines:
            chain = line[1:].split()[0] if line.startswith(':') else line.split()[1]
            if not chain.startswith(_OWN) and not _JUMP.match(line):
                raise RulesError('%s: "%s" is not in a chain of ours (%s*)' % (path, line, _OWN))
    if not tables:
        raise RulesError('%s: holds no table' % path)
    return tables


def _tables(text):
    tables, lines = {}, None
    for line in text.splitlines():
        if line.startswith('*'):
            lines = tables.setdefault(line[1:].strip(), [])
        elif line.startswith((':', '-')) and lines is not None:
            lines.append(line.strip())
    return tables


def _canonical(wanted):
    """The wanted rules as this kernel and this iptables spell them: restored in a scratch namespace."""
    script = '\n'.join(_script(wanted, {})) + '\n'
    return _tables(_run('scratch namespace', ['unshare', '--net', 'sh', '-c',
                                              'iptables-restore && iptables-save'], script))


def _save(netns):
    return _tables(_run('namespace ' + netns, ['ip', 'netns', 'exec', netns, 'iptables-save']))


def _restore(netns, script):
    _run('namespace ' + netns, ['ip', 'netns', 'exec', netns, 'iptables-restore', '--noflush'],
         '\n'.join(script) + '\n')


def _run(where, argv, text=''):
    try:
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
    except OSError as error:
        raise RulesError('%s cannot be run: %s' % (argv[0], error.strerror))
    out, err = process.communicate(text.encode('utf-8'))
    if process.returncode:
        reason = err.decode('utf-8', 'replace').strip().splitlines() or ['no reason given']
        raise RulesError('%s: %s: %s' % (where, argv[-1], reason[0]))
    return out.decode('utf-8', 'replace')
