"""What is asked of the figures of a run, and whether they give it.

All limits are ratios within the run, but for memory, which hardly depends on the machine.
"""
import statistics
from collections import namedtuple

# what: is asked of the subject `label`. found, wanted: as a person reads them.
Verdict = namedtuple('Verdict', 'label what found wanted is_ok')

_MINUTE = 60.0


def of(run):
    """Every Verdict that the run's figures allow."""
    for one in run['subjects']:
        if one['python']:
            is_old = one['python'].startswith('2.')
            label, name = one['label'], one['name']
            if label in run['loads']:
                yield from _of_loads(run, label, name, is_old)
            if label in run['bursts']:
                yield _at_most(label, 'simultaneous connects: not answered 200', sum(
                    found['unanswered'] for found in run['bursts'][label].values()), 0, '%d')
            yield from _of_storms(run, label, name)
            yield from _of_growth(run, label, name)
            if label in run['soak']:
                yield from _of_soak(label, run['soak'][label])


def shares(run, label, kind, of_label=None):
    """Rates of a subject as shares of another's, by default straight nginx's, in each round."""
    others = run['loads'][of_label or run['subjects'][0]['label']][kind]
    return [one['rate'] / beside['rate'] for one, beside in zip(run['loads'][label][kind], others)]


def minute_and_end(samples):
    """The soak's sample that is nearest to the first minute, and the last."""
    return min(samples, key=lambda sample: abs(sample['seconds'] - _MINUTE)), samples[-1]


def _of_loads(run, label, name, is_old):
    loads = run['loads'][label]
    yield _at_most(label, 'errors at any load', sum(
        one['errors'] for results in loads.values() for one in results), 0, '%d')
    least = {'shared': 0.15 if is_old else 0.18, 'unix': 0.08}.get(name)
    if '16' in loads and least:
        yield _at_least(label, 'of straight nginx, 16 connections', _share(run, label, '16'), least)
    if name == 'shared' and '16' in loads:
        for peer, times in (('haproxy', 45), ('folsom', 70)):
            if peer in run['loads']:
                yield _at_least(label, 'times %s, 16 connections' % peer,
                                _share(run, label, '16', peer), times, '%.1f')
    if name == 'shared' and 'close 16' in loads:
        yield _at_least(label, 'of straight nginx, a connection per request, 16',
                        _share(run, label, 'close 16'), 0.35)
    one_worker = label.replace('shared-2', 'shared')
    if name == 'shared-2' and '64' in loads and one_worker in run['loads']:
        yield _of_two_workers(run, label, one_worker)


def _of_two_workers(run, label, one_worker):
    """Beside it, how many times as much the cores had room for: what they left idle with one worker, while
    a request costs the same."""
    times = _share(run, label, '64', one_worker)
    most = 1 / (1 - statistics.median(one['idle'] for one in run['loads'][one_worker]['64']))
    return _at_least(label, 'times one worker, 64 connections', times, 1.4,
                     '%%.2f, the cores have room for %.2f' % most)


def _of_storms(run, label, name):
    storms = run['storms'].get(label, {})
    if not storms:
        return
    yield _at_most(label, 'storms: not answered 200',
                   sum(found['unanswered'] for found in storms.values()), 0, '%d')
    # Each worker looks up for itself.
    yield _at_most(label, 'storms: lookups per guest',
                   max(float(found['api']['lookups']) / found['guests'] for found in storms.values()),
                   2 if name == 'shared-2' else 1, '%.3f')
    if '10 ms' in storms:
        yield _at_most(label, 'storm, 10 ms: p99 over the lookups alone',
                       storms['10 ms']['p99'] / run['alone']['10 ms']['seconds'], 2, '%.2f')


def _of_growth(run, label, name):
    count = str(max([int(count) for count in run['growth'].get(label, ())] or [0]))
    if name == 'shared' and int(count) > 100:
        yield _at_most(label, 'MB PSS per router, %s routers' % count,
                       run['growth'][label][count]['pss'] / 1024.0 / int(count), 0.1, '%.3f')
        peer = run['growth'].get('haproxy', {}).get(count)
        if peer:
            yield _at_least('haproxy', 'MB PSS per router, %s routers' % count,
                            peer['pss'] / 1024.0 / int(count), 3.6, '%.2f')


def _of_soak(label, samples):
    early, late = minute_and_end(samples)
    yield _at_most(label, 'soak: memory at the end over that after a minute',
                   late['pss'] / float(early['pss']), 1.03, '%.4f')
    yield Verdict(label, 'soak: open files after a minute, at the end',
                  '%d, %d' % (early['files'], late['files']), 'the same', early['files'] == late['files'])


def _share(run, label, kind, of_label=None):
    return statistics.median(shares(run, label, kind, of_label))


def _at_least(label, what, found, limit, form='%.3f'):
    return Verdict(label, what, form % found, 'at least %g' % limit, found >= limit)


def _at_most(label, what, found, limit, form):
    return Verdict(label, what, form % found, 'at most %g' % limit, found <= limit)
