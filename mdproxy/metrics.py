"""Counters of one process and their text for Prometheus (exposition format 0.0.4).

Rules kept:

- Every server of a router imports this, and every request passes through it: no imports that cost
  memory, no lock. All of it belongs to the loop's thread.
- What somebody else counts already is read when asked for, not counted twice.
- Each name is registered once, so each family has one HELP, one TYPE and no series twice.
"""
from bisect import bisect_left

_INFINITE = float('inf')
_UNICODE = type(u'')


class Counter(object):
    """Counts, one for each value of its label (None: without one)."""

    __slots__ = ('values',)

    def __init__(self):
        self.values = {}

    def add(self, value=None, n=1):
        """Count n more for a value of the label."""
        self.values[value] = self.values.get(value, 0) + n


class Histogram(object):
    """How many observations were up to each bound, and their sum. bounds: rising numbers."""

    __slots__ = ('bounds', 'counts', 'sum')

    def __init__(self, bounds):
        self.bounds = list(bounds)
        self.counts = [0] * (len(self.bounds) + 1)      # not cumulative; the last is beyond all
        self.sum = 0.0

    def observe(self, seconds):
        """Take in one observation."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def quantile(self, share):
        """Estimate of the value that this share (0 to 1) of all is not above; None without any.

        Straight within a bucket, as Prometheus' histogram_quantile does it. What is beyond all
        bounds counts as the highest.
        """
        rank, below, lower = share * sum(self.counts), 0, 0.0
        for upper, count in zip(self.bounds, self.counts):
            if count and below + count >= rank:
                return lower + (upper - lower) * (rank - below) / count
            below, lower = below + count, upper
        return self.bounds[-1] if self.counts[-1] else None


class Registry(object):
    """The metrics of a process. labels: dict of those that every series has."""

    def __init__(self, labels):
        self.labels = dict(labels)
        self._constant = [(name, labels[name]) for name in sorted(labels)]
        self._families = []         # (name, type, help, function() -> samples, function() -> JSON)
        self._names = set()

    def counter(self, name, help, label=None):
        """A Counter; name ends in _total."""
        counter = Counter()
        if label is None:
            counter.values[None] = 0
            self.read('counter', name, help, lambda: counter.values[None])
        else:
            self.read('counter', name, help, lambda: counter.values, label)
        return counter

    def histogram(self, name, help, bounds):
        """A Histogram, of seconds unless the name says otherwise."""
        histogram = Histogram(bounds)
        self._register(name, 'histogram', help,
                       lambda: self._buckets(name, histogram), lambda: _summary(histogram))
        return histogram

    def read(self, type, name, help, function, label=None):
        """Read a 'gauge' or 'counter' when asked: function() gives a number, {label's value:
        number}, or None for nothing to tell.

        label: a name; or several, and then the dict's keys are tuples of their values.
        """
        self._register(name, type, help, lambda: self._series(name, label, function()), function)

    def prometheus(self):
        """All as text, a native str."""
        lines = []
        for name, type, help, samples, _ in self._families:
            found = samples()
            if found:
                lines.append('# HELP %s %s' % (name, _escaped(help)))
                lines.append('# TYPE %s %s' % (name, type))
                lines += found
        return '\n'.join(lines) + '\n' if lines else ''

    def as_dict(self):
        """{name: number or {label's value: number}}; of a histogram count, sum, p50 and p99.

        What there is nothing to tell of is left out.
        """
        found = {}
        for name, _, _, _, value in self._families:
            value = value()
            if isinstance(value, dict):
                value = dict((_text(key), number) for key, number in value.items())
            if value is not None:
                found[name] = value
        return found

    def _register(self, name, *rest):
        if name in self._names:
            raise ValueError('there is a metric %s already' % name)
        self._names.add(name)
        self._families.append((name,) + rest)

    def _series(self, name, label, value):
        """Lines of what a function gave."""
        if value is None:
            return []
        if not isinstance(value, dict):
            return [self._sample(name, (), value)]
        several = isinstance(label, tuple)
        return [self._sample(name, zip(label, key) if several else ((label, key),), value[key])
                for key in sorted(value, key=_text) if value[key] is not None]

    def _buckets(self, name, histogram):
        lines, total = [], 0
        for bound, count in zip(histogram.bounds + [_INFINITE], histogram.counts):
            total += count
            lines.append(self._sample(name + '_bucket', (('le', _number(bound)),), total))
        lines.append(self._sample(name + '_sum', (), histogram.sum))
        lines.append(self._sample(name + '_count', (), total))
        return lines

    def _sample(self, name, labels, value):
        pairs = ','.join('%s="%s"' % (label, _escaped(_text(text)).replace('"', '\\"'))
                         for label, text in self._constant + list(labels))
        return '%s%s %s' % (name, '{%s}' % pairs if pairs else '', _number(value))


def _summary(histogram):
    return {'count': sum(histogram.counts), 'sum': histogram.sum,
            'p50': histogram.quantile(0.5), 'p99': histogram.quantile(0.99)}


def _escaped(text):
    return text.replace('\\', '\\\\').replace('\n', '\\n')


def _text(value):
    """A label's value as native str."""
    if isinstance(value, tuple):
        return ' '.join(map(_text, value))
    return value.encode('utf-8') if str is bytes and isinstance(value, _UNICODE) else str(value)


def _number(value):
    if not isinstance(value, float):
        return '%d' % value
    if value != value:
        return 'NaN'
    return repr(value) if abs(value) != _INFINITE else '+Inf' if value > 0 else '-Inf'
