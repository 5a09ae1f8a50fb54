"""A strict reader of Prometheus' text format 0.0.4, for tests. AssertionError: not valid."""
import re

_NAME = '[a-zA-Z_:][a-zA-Z0-9_:]*'
_HEAD = re.compile(r'# (HELP|TYPE) (%s) (.+)\Z' % _NAME)
_SAMPLE = re.compile(r'(%s)(?:\{(.*)\})? (\S+)\Z' % _NAME, re.S)
_PAIR = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(?:,|\Z)')
_NUMBER = re.compile(r'[+-]?(\d+(\.\d+)?(e[+-]?\d+)?|Inf)\Z|NaN\Z')
_ESCAPED = re.compile(r'\\(.)')


def families(text):
    """{family: (type, help, {(sample's name, its labels as sorted pairs): value})}."""
    assert text == '' or text.endswith('\n')
    found, family = {}, None
    for line in text[:-1].split('\n'):
        if line.startswith('#'):
            word, name, rest = _HEAD.match(line).groups()
            if word == 'HELP':
                assert name not in found, 'family %s twice' % name
                family = name
                found[name] = [None, _plain(rest), {}]
            else:
                assert name == family and found[name][0] is None and not found[name][2]
                assert rest in ('counter', 'gauge', 'histogram')
                assert (rest == 'counter') == name.endswith('_total')
                found[name][0] = rest
        else:
            _sample(line, family, *found[family])
    for name, (kind, _, samples) in found.items():
        assert kind and samples, 'family %s is not complete' % name
        if kind == 'histogram':
            _check_histogram(name, samples)
    return found


def values(text):
    """{sample's name: {labels as sorted pairs: value}}."""
    found = {}
    for _, _, samples in families(text).values():
        for (name, labels), value in samples.items():
            found.setdefault(name, {})[labels] = value
    return found


def _sample(line, family, kind, _help, samples):
    name, labels, value = _SAMPLE.match(line).groups()
    parts = ('_bucket', '_sum', '_count') if kind == 'histogram' else ('',)
    assert name in [family + part for part in parts], line
    pairs, at = [], 0
    while at < len(labels or ''):
        pair = _PAIR.match(labels, at)
        assert pair, 'labels of ' + line
        pairs.append((pair.group(1), _plain(pair.group(2))))
        at = pair.end()
    assert len(dict(pairs)) == len(pairs), 'a label twice: ' + line
    key = name, tuple(sorted(pairs))
    assert key not in samples, 'a series twice: ' + line
    assert _NUMBER.match(value), line
    samples[key] = float(value)
    assert kind != 'counter' or samples[key] >= 0


def _check_histogram(family, samples):
    buckets = {}
    for (name, labels), value in samples.items():
        if name.endswith('_bucket'):
            rest = tuple(pair for pair in labels if pair[0] != 'le')
            buckets.setdefault(rest, []).append((float(dict(labels)['le']), value))
    assert buckets
    for labels, counts in buckets.items():
        counts.sort()
        assert counts[-1] == (float('inf'), samples[family + '_count', labels])
        assert [count for _, count in counts] == sorted(count for _, count in counts)
        assert samples[family + '_sum', labels] >= 0


def _plain(text):
    return _ESCAPED.sub(lambda match: '\n' if match.group(1) == 'n' else match.group(1), text)
