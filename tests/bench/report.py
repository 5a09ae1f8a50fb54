"""From the raw figures of a run (a dict, as the JSON has it) to tables: report.py [--markdown] JSON...

Of several files the first is the run, and the others add what playbooks.py found.

Rates are shares of straight nginx's in the same round; of several rounds the median counts. Absolute
figures say little about another machine.
"""
import json
import statistics
import sys
from collections import namedtuple

import measures
import verdicts

# title: one line. note: what has to be known to read it, '' for nothing. rows: lists of str, as head.
Table = namedtuple('Table', 'title note head rows')


def load(paths):
    """The run of these files."""
    run = {}
    for path in paths:
        with open(path) as found:
            run = dict(json.load(found), **run)
    return run


def text(run):
    """The whole report, for a terminal."""
    return '\n\n'.join([header(run)] + [_aligned(table) for table in tables(run)])


def markdown(run):
    """The tables for a document."""
    return '\n\n'.join('### %s\n\n%s\n%s' % (table.title, table.note and table.note + '\n', '\n'.join(
        '| %s |' % ' | '.join(row) for row in [table.head, ['---'] * len(table.head)] + table.rows))
        for table in tables(run))


def tables(run):
    """A Table for each kind of figure that the run has."""
    made = [_verdicts(run), _rates(run), _latencies(run), _cpu(run), _growth(run), _first_answers(run),
            _memory(run), _bursts(run), _storms(run), _playbooks(run), _soak(run)]
    return [table for table in made if table.rows]


def header(run):
    """The machine, and all that the figures depend on."""
    lines = ['%s: %s' % (name, ', '.join('%s %s' % (key, run[name][key]) for key in sorted(run[name])))
             for name in ('machine', 'versions', 'settings')]
    load = ['%s %s' % (when, ' '.join('%.2f' % value for value in values))
            for when, values in run['load_average'].items()]
    loads = [one for kinds in run['loads'].values() for results in kinds.values() for one in results]
    if loads:
        lines.append('cores taken by the hypervisor: at most %.1f %% during a load; %d loads were made again '
                     'for more' % (100 * max(one['stolen'] for one in loads),
                               sum(len(one['disturbed']) for one in loads)))
    return '\n'.join(lines + ['load average: ' + ', '.join(load)] + run['missing'])


def _verdicts(run):
    rows = [[one.label, one.what, one.found, one.wanted, 'ok' if one.is_ok else 'FALLS SHORT']
            for one in verdicts.of(run)]
    return Table('What is asked for', '', ['', '', 'found', 'wanted', ''], rows)


def _rates(run):
    straight = run['subjects'][0]['label']
    rows = []
    for label, loads in run['loads'].items():
        cells = []
        for kind, results in loads.items():
            values, form = verdicts.shares(run, label, kind), '%s (%s-%s)'
            show = _share
            if label == straight:
                values, show = [one['rate'] for one in results], '{:.0f}'.format
            cells.append(form % tuple(show(value) for value in (
                statistics.median(values), min(values), max(values))))
        rows.append([label] + cells)
    return Table('Requests per second', 'Straight nginx, and shares of it; median (lowest-highest). close: a '
                 'connection for every request.', ['connections'] + _kinds(run), rows)


def _share(value):
    return '%.3f' % value if value >= 0.02 else '%.4f' % value


def _kinds(run):
    return list(next(iter(run['loads'].values()), ()))


def _latencies(run):
    rows = []
    for label, loads in run['loads'].items():
        errors = sum(one['errors'] for results in loads.values() for one in results)
        answers = sum(one['requests'] for results in loads.values() for one in results)
        rows.append([label] + ['/'.join(_ms(measures.median(results, name) / 1e6)
                                        for name in ('p50', 'p99', 'p999'))
                               for results in loads.values()] + ['%d of %d' % (errors, answers)])
    return Table('Milliseconds, p50/p99/p99.9', 'Errors: no connection, cut off, timed out, not 200.',
                 ['connections'] + _kinds(run) + ['errors'], rows)


def _cpu(run):
    rows = [[label] + ['%.3f' % measures.median(results, 'cpu_per_1000') for results in loads.values()]
            for label, loads in run['loads'].items()]
    return Table('CPU seconds per 1000 requests', 'All processes of the subject.',
                 ['connections'] + _kinds(run), rows)


def _growth(run):
    counts = sorted(set(int(count) for found in run['growth'].values() for count in found))
    rows = []
    for label, found in run['growth'].items():
        row = [label]
        for count in map(str, counts):
            row += ['%.3f' % (found[count]['pss'] / 1024.0 / int(count)),
                    '%.1f' % found[count]['seconds']] if count in found else ['', '']
        rows.append(row + ['%.0f' % (max(one['agent'] for one in found.values()) / 1024.0)])
    return Table('MB PSS per router, and seconds until all are served', 'Without the agent, which is in the '
                 'last column. shared: one process anew for each number; else those that are lacking.',
                 ['routers'] + [cell for count in counts for cell in ('%d: MB' % count, 's')] + ['agent MB'],
                 rows)


def _first_answers(run):
    rows = [[label, _ms(statistics.median(seconds)), ' '.join(_ms(one) for one in seconds)]
            for label, seconds in run['first_answers'].items()]
    return Table('Milliseconds from the start of a router\'s server to its guest\'s first 200', '',
                 ['', 'median', 'each'], rows)


def _memory(run):
    stages = list(next(iter(run['memory'].values()), {}))
    rows = [[label] + ['%.1f / %.1f' % (found[stage]['alone'] / 1024.0, found[stage]['pss'] / 1024.0)
                       for stage in stages] for label, found in run['memory'].items()]
    return Table('MB of the process that serves guests', 'PSS alone on a machine / PSS beside the others '
                 'of its Python here.', [''] + stages, rows)


def _bursts(run):
    rows = [[label, name, _counted(found), '%.3f' % found['connect_seconds'], '%.3f' % found['seconds'],
             _ms(found['p50']) + '/' + _ms(found['p99'])]
            for label, bursts in run['bursts'].items() for name, found in bursts.items()]
    return Table('Guests that connect at the same instant', 'unknown: looked up for the first time.', [
        '', 'guests', 'answers', 'connect() s', 'last answer s', 'p50/p99 ms'], rows)


def _storms(run):
    rows = [['lookups alone', name, '', '', '', '%.2f' % found['seconds'], '', '', '']
            for name, found in run['alone'].items()]
    for label, storms in run['storms'].items():
        for name, found in storms.items():
            api = found['api']
            rows.append([label, name, '%d x %d' % (found['guests'], found['paths']), _counted(found),
                         '%d for %d' % (api['lookups'], found['guests']), '%.2f' % found['seconds'],
                         _ms(found['p50']) + '/' + _ms(found['p99']),
                         _ms(found['first_p50']) + '/' + _ms(found['first_p99']),
                         '%.3f' % (1000 * found['cpu'] / (found['guests'] * found['paths']))])
    return Table('Cold boot storm', 'Lookups alone: those that ours makes, by as many threads that do '
                 'nothing else.', [
        '', 'API call', 'guests x paths', 'answers', 'lookups', 'seconds', 'p50/p99 ms', 'first request',
        'CPU s per 1000'], rows)


def _playbooks(run):
    rows = [[one['mode'], str(one['nodes']), str(one['routers']), '%.1f' % one['first'],
             '%.1f' % one['again'], '%.1f' % one['one'] if one['one'] else '', str(one['failed'])]
            for one in run.get('playbooks', ())]
    return Table('Seconds of routers.yml', 'Nodes are containers on this one machine and share its cores.',
                 ['mode', 'nodes', 'routers each', 'first', 'again', 'one router', 'failed'], rows)


def _soak(run):
    rows = []
    for label, samples in run['soak'].items():
        early, late = verdicts.minute_and_end(samples)
        rows.append([label, '%.0f' % late['seconds']] + [form % one[name] for name, form in (
            ('pss', '%d'), ('files', '%d')) for one in (samples[0], early, late)])
    return Table('Soak', 'At the first sample, after a minute, at the end.', [
        '', 'seconds', 'kB PSS', '1 min', 'end', 'open files', '1 min', 'end'], rows)


def _counted(found):
    kinds = list(found['statuses'].items()) + list(found['errors'].items())
    return ', '.join('%d x %s' % (count, kind) for kind, count in kinds)


def _ms(seconds):
    return '%.3g' % (1000 * seconds) if seconds < 1 else '%.0f' % (1000 * seconds)


def _aligned(table):
    """Lines of aligned columns."""
    widths = [max(len(row[n]) for row in [table.head] + table.rows) for n in range(len(table.head))]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
             for row in [table.head] + table.rows]
    head = [table.title] + ([table.note] if table.note else [])
    return '\n'.join(head + ['-' * max(map(len, head))] + lines)


if __name__ == '__main__':
    if sys.argv[1] == '--markdown':
        print(markdown(load(sys.argv[2:])))
    else:
        print(text(load(sys.argv[1:])))
