"""A router's iptables rules: applied whole, as often as one likes, and taken away without a trace.

The rules are a file in iptables-restore form, made by the operator's tool. Two things that form
cannot say are added here, by looking at what the namespace has: a jump from a built-in chain that is
already there is moved, not repeated; and chains of ours that are no longer wanted go, the jumps to
them first. Everything goes through one `iptables-restore --noflush` per call, which changes a table
whole or not at all; `filter` comes before `nat`, so the port is closed before guests are led to it.
Only chains that begin with `mdproxy-` are ever touched; the l3 agent rewrites its own and so do we.
"""
from __future__ import unicode_literals

import io
import re
import subprocess

_OWN = 'mdproxy-'
_JUMP = re.compile(r'-[AI] (\S+)(?: \d+)? -j (%s\S+)\s*$' % _OWN)
_LINE = re.compile(r':%s\S+ |-A %s\S+ ' % (_OWN, _OWN))     # what a file may hold beside jumps


class RulesError(Exception):
    """Rules that cannot be read or applied; the message names the namespace or file and the reason."""


def apply(netns, path):
    """Bring the namespace's own chains to what the file says; True when they were not so before."""
    wanted, before = _read(path), _save(netns)
    if _own(before) == _own(_canonical(wanted, path)):
        return False
    _restore(netns, _script(wanted, before))
    return True


def differs(netns, path):
    """True when the namespace's own chains are not what the file says."""
    return _own(_save(netns)) != _own(_canonical(_read(path), path))


def remove(netns):
    """Take away every chain of ours and what jumps to it; True when there was one."""
    before = _save(netns)
    if not _own(before):
        return False
    _restore(netns, _script({}, before))
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


def _read(path):
    try:
        with io.open(path, encoding='utf-8') as rules:
            text = rules.read()
    except (IOError, OSError, UnicodeDecodeError) as error:
        raise RulesError('%s: cannot be read: %s' % (path, getattr(error, 'strerror', error)))
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith((':', '-')) and not _LINE.match(line) and not _JUMP.match(line):
            raise RulesError('%s:%d: "%s" is not in a chain of ours (%s*)'
                             % (path, number, line, _OWN))
        if not line.startswith((':', '-', '*', '#')) and line.strip() not in ('', 'COMMIT'):
            raise RulesError('%s:%d: expected a table, chain, rule or COMMIT' % (path, number))
    tables = _tables(text)
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


def _canonical(wanted, path):
    """The wanted rules as this kernel and this iptables spell them: restored in a scratch namespace."""
    script = '\n'.join(_script(wanted, {})) + '\n'
    return _tables(_run(path, ['unshare', '--net', 'sh', '-c',
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
        reasons = [line for line in err.decode('utf-8', 'replace').splitlines()
                   if line.strip() and not line.startswith('#')]     # the kernel's other tables
        raise RulesError('%s: %s' % (where, ': '.join(reasons[:2]) or '%s failed' % argv[0]))
    return out.decode('utf-8', 'replace')
