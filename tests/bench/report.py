"""From the raw figures of a run (a dict, as the JSON has it) to what a person reads.

Rates are shares of straight nginx's in the same round; of several rounds the median counts. Absolute
figures say little about another machine.
"""
import statistics

import measures
import subjects

_OURS = tuple(kind.name for kind in subjects.OURS)


def text(run):
    """The whole report."""
    parts = [_header(run), _rates(run), _latencies(run), _cpu(run), _first_answers(run), _memory(run),
             _bursts(run), _storms(run), _verdicts(run)]
    return '\n\n'.join(part for part in parts if part)


def verdicts(run):
    """What issue 3 asks for and what was found: yields (label, what, found, limit, is_ok)."""
    for subject in run['subjects']:
        if subject['name'] in _OURS:
            for what, found, limit, is_ok in _verdicts_of(run, subject):
                yield subject['label'], what, found, limit, is_ok


def _verdicts_of(run, subject):
    label, is_old = subject['label'], subject['python'].startswith('2.')
    if run['loads']:
        yield from _load_verdicts(run, subject, is_old)
    if label in run['bursts']:
        yield _at_most('bursts: not answered 200', sum(
            found['unanswered'] for found in run['bursts'][label].values()), 0, '%d')
    for stage, found in run['memory'].get(label, {}).items():
        if subject['per_router'] and stage != 'idle':
            yield _at_most('MB PSS alone, ' + stage, found['alone'] / 1024.0, 10 if is_old else 13,
                           '%.1f')
    if subject['per_router'] and label in run['first_answers']:
        yield _at_most('ms to the first answer, median',
                       1000 * _middle(run['first_answers'][label]), 120, '%.0f')
    if label in run['storms']:
        found = run['storms'][label]
        api = found['api']
        yield _at_most('storm: not answered 200', found['unanswered'], 0, '%d')
        once = api['lookups'] == api['addresses'] == found['guests']
        yield ('storm: lookups per guest', '%.3f' % (float(api['lookups']) / found['guests']),
               'exactly 1', once)
        yield _at_most('storm: tokens', api['tokens'], 2, '%d')


def _load_verdicts(run, subject, is_old):
    loads = run['loads'][subject['label']]
    if '16' in loads and subject['name'] == 'builtin':
        yield _at_least('share of straight at 16', _share(run, subject['label'], '16'),
                        0.10 if is_old else 0.12)
        yield _at_most('CPU s per 1000 at 16', measures.median(loads['16'], 'cpu_per_1000'), 0.05,
                       '%.4f')
    if '16' in loads and subject['name'] == 'unix':
        yield _at_least('share of straight at 16', _share(run, subject['label'], '16'), 0.06)
    yield _at_most('errors at any load', sum(
        one['errors'] for results in loads.values() for one in results), 0, '%d')
    if '64' in loads:
        yield _at_most('p99 ms at 64', measures.median(loads['64'], 'p99') / 1000.0, 15, '%.1f')


def _at_least(what, found, limit):
    return what, '%.3f' % found, 'at least %g' % limit, found >= limit


def _at_most(what, found, limit, form):
    return what, form % found, 'at most %g' % limit, found <= limit


def _share(run, label, kind):
    return _middle(_shares(run, label, kind))


def _shares(run, label, kind):
    straight = run['loads'][run['subjects'][0]['label']]
    return [one['rate'] / beside['rate']
            for one, beside in zip(run['loads'][label][kind], straight[kind])]


def _middle(values):
    return statistics.median(values)


def _header(run):
    lines = ['%s: %s' % (name, ', '.join('%s %s' % (key, run[name][key]) for key in sorted(run[name])))
             for name in ('machine', 'versions', 'settings')]
    load = ['%s %s' % (when, ' '.join('%.2f' % value for value in run['load_average'][when]))
            for when in ('before', 'after')]
    return '\n'.join(lines + ['load average: ' + ', '.join(load)])


def _rates(run):
    """Shares of straight nginx: median, lowest and highest of the rounds."""
    if not run['loads']:
        return ''
    straight = run['subjects'][0]['label']
    kinds = list(run['loads'][straight])
    rows = []
    for label, loads in run['loads'].items():
        cells = []
        for kind in kinds:
            values, form = _shares(run, label, kind), '%.3f (%.3f-%.3f)'
            if label == straight:
                values, form = [one['rate'] for one in loads[kind]], '%.0f (%.0f-%.0f)'
            cells.append(form % (_middle(values), min(values), max(values)))
        rows.append([label] + cells)
    return _table('Requests per second: straight nginx, and shares of it; median (lowest-highest)\n'
                  '(close: a connection for every request)', ['connections'] + kinds, rows)


def _latencies(run):
    rows = []
    for label, loads in run['loads'].items():
        errors = sum(one['errors'] for kind in loads for one in loads[kind])
        rows.append([label] + ['%.2f / %.2f' % (measures.median(results, 'p50') / 1000,
                                                measures.median(results, 'p99') / 1000)
                               for results in loads.values()] + [str(errors)])
    kinds = list(rows and run['loads'][rows[0][0]])
    return _table('Milliseconds, p50 / p99', ['connections'] + kinds + ['errors'], rows)


def _cpu(run):
    rows = [[label] + ['%.4f' % measures.median(results, 'cpu_per_1000')
                       for results in loads.values()] for label, loads in run['loads'].items()]
    kinds = list(rows and run['loads'][rows[0][0]])
    return _table('CPU seconds per 1000 requests, all processes of the subject',
                  ['connections'] + kinds, rows)


def _first_answers(run):
    rows = [[label, '%.0f' % (1000 * _middle(seconds)), ' '.join('%.0f' % (1000 * s) for s in seconds)]
            for label, seconds in run['first_answers'].items()]
    return _table('Milliseconds from the start of the opener to the first 200', ['', 'median', 'each'],
                  rows)


def _memory(run):
    stages = list(next(iter(run['memory'].values()), {}))
    rows = [[label] + ['%.1f / %.1f' % (found[stage]['alone'] / 1024.0, found[stage]['pss'] / 1024.0)
                       for stage in stages] for label, found in run['memory'].items()]
    return _table('MB of the process that serves guests, PSS alone / PSS beside the others of its '
                  'Python here', [''] + stages, rows)


def _bursts(run):
    rows = [[label, name, _counted(found), '%.3f' % found['connect_seconds'], '%.3f' % found['seconds'],
             '%.0f / %.0f' % (1000 * found['p50'], 1000 * found['p99'])]
            for label, bursts in run['bursts'].items() for name, found in bursts.items()]
    return _table('Guests that connect at the same instant', [
        '', 'guests', 'answers', 'connect() s', 'last answer s', 'p50 / p99 ms'], rows)


def _storms(run):
    rows = [[label, '%d x %d' % (found['guests'], found['paths']), _counted(found),
             '%d for %d' % (found['api']['lookups'], found['api']['addresses']),
             str(found['api']['tokens']), '%.2f' % found['seconds'],
             '%.0f / %.0f' % (1000 * found['p50'], 1000 * found['p99']),
             '%.0f / %.0f' % (1000 * found['first_p50'], 1000 * found['first_p99']),
             '%.4f' % (1000 * found['cpu'] / (found['guests'] * found['paths']))]
            for label, found in run['storms'].items()]
    return _table('Cold boot storm, %g ms per API call' % (1000 * run['settings']['storm_delay']), [
        '', 'guests x paths', 'answers', 'lookups', 'tokens', 'seconds', 'p50 / p99 ms',
        'first request', 'CPU s per 1000'], rows)


def _counted(found):
    kinds = list(found['statuses'].items()) + list(found['errors'].items())
    return ', '.join('%d x %s' % (count, kind) for kind, count in kinds)


def _verdicts(run):
    rows = [[label, what, found, limit, 'ok' if is_ok else 'FALLS SHORT']
            for label, what, found, limit, is_ok in verdicts(run)]
    return _table('Issue 3, done when', ['', '', 'found', 'wanted', ''], rows)


def _table(title, head, rows):
    """Lines of aligned columns, or '' without rows."""
    if not rows:
        return ''
    widths = [max(len(row[n]) for row in [head] + rows) for n in range(len(head))]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
             for row in [head] + rows]
    return '\n'.join([title, '-' * max(map(len, title.split('\n')))] + lines)
