"""The report as a page with plots: page.py JSON... writes report.html beside the first.

The files are those of report.py. The page needs nothing but itself. Run by a Python with matplotlib.
"""
import html
import io
import os
import sys

import matplotlib
import report
import verdicts

matplotlib.use('svg')
from matplotlib import pyplot, ticker  # noqa: E402

_STYLE = '''
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 76rem;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin: 2.5rem 0 .3rem }
p.note, pre { color: #57606a } pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem }
.scroll { overflow-x: auto } svg { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem .2rem 0; border-bottom: 1px solid #d8dee4; text-align: left;
  white-space: nowrap }
td.ok { color: #1a7f37 } td.short { color: #cf222e; font-weight: 600 }
'''
_COLOURS = {'straight': '#24292f', 'redirect': '#8c959f', 'haproxy': '#bc4c00', 'haproxy 10 ms': '#f0883e',
            'folsom': '#cf222e', 'unix': '#0969da', 'tcp': '#54aeff', 'shared': '#1a7f37',
            'shared-2': '#7ee787'}
_DASHES = {'2.7': '--'}
_KINDS = (('kept alive', ''), ('a connection per request', 'close '))


def main(paths):
    folder = os.path.dirname(os.path.abspath(paths[0]))
    with open(os.path.join(folder, 'report.html'), 'w') as out:
        out.write(_page(report.load(paths), [os.path.basename(path) for path in paths]))
    print(os.path.join(folder, 'report.html'))


def _page(run, names):
    parts = ['<h1>The way to the metadata service, measured</h1>',
             '<p class="note">%s. Raw figures: %s</p>' % (_e(run['time']), ', '.join(
                 '<a href="%s">%s</a>' % (_e(name), _e(name)) for name in names)),
             '<pre>%s</pre>' % _e(report.header(run))]
    tables = dict((table.title, table) for table in report.tables(run))
    for title, draw in _PLOTS:
        parts += [_section(tables.pop(title), draw(run))] if title in tables else []
    parts += [_section(table) for table in tables.values()]
    commands = ''.join('%s\n%s\n' % (label, ''.join('    %s\n' % ' '.join(argv) for argv in found))
                       for label, found in run['commands'].items())
    return ('<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>mdproxy: bench</title>'
            '<meta name="viewport" content="width=device-width"><style>%s</style>\n%s\n'
            '<h2>Commands</h2><pre>%s</pre></html>\n' % (_STYLE, '\n'.join(parts), _e(commands)))


def _section(table, plot=''):
    note = '<p class="note">%s</p>' % _e(table.note) if table.note else ''
    return '<h2>%s</h2>%s%s<div class="scroll"><table><tr>%s</tr>\n%s</table></div>' % (
        _e(table.title), note, plot, ''.join('<th>%s</th>' % _e(cell) for cell in table.head),
        '\n'.join('<tr>%s</tr>' % ''.join(map(_cell, row)) for row in table.rows))


def _cell(text):
    kind = {'ok': ' class="ok"', 'FALLS SHORT': ' class="short"'}.get(text, '')
    return '<td%s>%s</td>' % (kind, _e(text))


def _e(text):
    return html.escape(text)


def _line(axes, run, label, points, **more):
    """Draw points, (x, y) or (x, y, lowest, highest), as that subject's line."""
    one = [found for found in run['subjects'] if found['label'] == label]
    name, python = (one[0]['name'], one[0]['python']) if one else (label, None)
    points = sorted(points)
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    style = dict({'color': _COLOURS.get(name), 'linestyle': _DASHES.get(python, '-'), 'label': label,
                  'marker': 'o', 'markersize': 3, 'linewidth': 1.5}, **more)
    axes.plot(xs, ys, **style)
    if axes.get_xscale() == 'log':
        axes.set_xticks(xs)
    if points and len(points[0]) > 2:
        axes.fill_between(xs, [point[2] for point in points], [point[3] for point in points],
                          color=style['color'], alpha=0.12, linewidth=0)


def _panels(count, title, xlabel, ylabel, scale='log'):
    figure, panels = pyplot.subplots(1, count, figsize=(12, 4.2), squeeze=False, sharey=True)
    for axes in panels[0]:
        axes.set(xscale=scale, yscale=scale, xlabel=xlabel)
        axes.grid(True, which='major', alpha=0.25)
        axes.spines[['top', 'right']].set_visible(False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ticker.FormatStrFormatter('%g'))
            axis.set_minor_formatter(ticker.NullFormatter())
    panels[0][0].set_ylabel(ylabel)
    if title:
        panels[0][0].set_title(title)
    return figure, panels[0]


def _svg(figure, axes):
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc='center left', bbox_to_anchor=(1.0, 0.5), frameon=False,
                      fontsize=8)
    figure.tight_layout()
    out = io.StringIO()
    figure.savefig(out, format='svg', bbox_inches='tight')
    pyplot.close(figure)
    return out.getvalue()[out.getvalue().index('<svg'):]


def _of_loads(run, ylabel, points):
    """Two panels over the number of connections. points(label, kind): y, or y with lowest and highest."""
    figure, panels = _panels(2, '', 'connections', ylabel)
    for axes, (title, prefix) in zip(panels, _KINDS):
        axes.set_title(title)
        for label, loads in run['loads'].items():
            counts = [kind.rpartition(' ')[2] for kind in loads if kind.startswith('close ') == bool(prefix)]
            _line(axes, run, label, [(int(count),) + points(label, prefix + count) for count in counts])
    return _svg(figure, panels[0])


def _rates(run):
    def points(label, kind):
        values = sorted(verdicts.shares(run, label, kind))
        return report.statistics.median(values), values[0], values[-1]
    return _of_loads(run, 'share of straight nginx', points)


def _latencies(run):
    return _of_loads(run, 'p99, ms', lambda label, kind: (
        report.measures.median(run['loads'][label][kind], 'p99') / 1000.0,))


def _cpu(run):
    return _of_loads(run, 'CPU s per 1000 requests', lambda label, kind: (
        max(report.measures.median(run['loads'][label][kind], 'cpu_per_1000'), 1e-3),))


def _growth(run):
    figure, panels = _panels(2, '', 'routers', 'MB')
    for axes, title, share in ((panels[0], 'MB PSS per router', True), (panels[1], 'MB PSS of all', False)):
        axes.set_title(title)
        for label, found in run['growth'].items():
            _line(axes, run, label, [(int(count), one['pss'] / 1024.0 / (int(count) if share else 1))
                                     for count, one in found.items()])
    return _svg(figure, panels[0])


def _storms(run):
    figure, panels = _panels(1, '', 'ms per API call', 'p99 of 25 requests of each guest, s', 'linear')
    for label, storms in list(run['storms'].items()):
        if label.partition(' ')[0] not in ('haproxy', 'folsom'):        # fewer guests
            _line(panels[0], run, label, [(float(name.split()[0]), found['p99'])
                                          for name, found in storms.items()])
    _line(panels[0], run, 'lookups alone, all of them', [
        (float(name.split()[0]), found['seconds']) for name, found in run['alone'].items()], color='#8250df')
    return _svg(figure, panels[0])


def _playbooks(run):
    figure, panels = _panels(2, '', '', 'seconds')
    for axes, title, fixed, by in ((panels[0], 'one node: routers', 'nodes', 'routers'),
                                   (panels[1], '20 routers each: nodes', 'routers', 'nodes')):
        axes.set(title=title, xlabel=by)
        rows = [one for one in run['playbooks'] if one[fixed] == (1 if fixed == 'nodes' else 20)]
        for mode, colour in (('per_router', '#0969da'), ('shared', '#1a7f37')):
            for name, dashes in (('first', '-'), ('again', '--'), ('one', ':')):
                points = [(one[by], one[name]) for one in rows if one['mode'] == mode and one[name]]
                if points:
                    _line(axes, run, '%s, %s' % (mode, name), points, color=colour, linestyle=dashes)
    return _svg(figure, panels[0])


def _soak(run):
    figure, panels = _panels(1, '', 'seconds', 'MB PSS', 'linear')
    for label, samples in run['soak'].items():
        _line(panels[0], run, label, [(one['seconds'], one['pss'] / 1024.0) for one in samples])
    panels[0].set_ylim(bottom=0)
    return _svg(figure, panels[0])


# Title of the table that each goes with.
_PLOTS = (('What is asked for', lambda run: ''), ('Requests per second', _rates),
          ('Milliseconds, p50/p99/p99.9', _latencies), ('CPU seconds per 1000 requests', _cpu),
          ('MB PSS per router, and seconds until all are served', _growth), ('Cold boot storm', _storms),
          ('Seconds of routers.yml', _playbooks), ('Soak', _soak))


if __name__ == '__main__':
    main(sys.argv[1:])
