"""What docs/monitoring promises: alerts and dashboard ask for metrics that mdproxy has, by labels that
these have, nothing that it tells is forgotten, and every alert fires when it should and not before."""
import ast
import glob
import io
import itertools
import json
import os
import re
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import exposition  # noqa: E402
from loopback import ROOT, Options, Running  # noqa: E402

from mdproxy import probe, service  # noqa: E402

yaml = pytest.importorskip('yaml')

FOLDER = os.path.join(ROOT, 'docs', 'monitoring')
RULES = os.path.join(FOLDER, 'mdproxy.rules.yml')
# Of every process, as far as it has them; those of the scrape.
PROCESS = {'role', 'router', 'network', 'worker', 'instance'}
# node_exporter's own, which say how old what it read is.
FOREIGN = {'node_textfile_mtime_seconds': {'file', 'instance'}, 'node_textfile_scrape_error': {'instance'}}
# Neither on the dashboard nor in a rule, and why.
LEFT_OUT = {}
WORDS = {'and', 'or', 'unless', 'by', 'on', 'without', 'ignoring', 'group_left', 'group_right', 'bool',
         'offset', 'inf', 'nan'}


def exported():
    """{name of a series: its labels} of everything that the package registers anywhere."""
    found = {}
    for path in glob.glob(os.path.join(ROOT, 'mdproxy', '*.py')):
        with io.open(path, encoding='utf-8') as source:
            calls = [node for node in ast.walk(ast.parse(source.read())) if isinstance(node, ast.Call)]
        for call in calls:
            kind = getattr(call.func, 'attr', '')
            at = {'read': 1, 'counter': 0, 'histogram': 0}.get(kind)
            name = at is not None and len(call.args) > at and getattr(call.args[at], 'value', None)
            if not isinstance(name, str) or not name.startswith('mdproxy_'):
                continue
            own = set() if os.path.basename(path) in ('overview.py', 'probe.py') else PROCESS
            labels = own | {'instance'} | set(
                node.value for argument in call.args[at + 3:] for node in ast.walk(argument)
                if isinstance(node, ast.Constant))
            if kind == 'histogram':
                found.update({name + '_bucket': own | {'le'}, name + '_sum': own, name + '_count': own})
            else:
                found[name] = labels
    return found


EXPORTED = exported()


def parsed(expression):
    """({metric: labels that it is selected by}, labels that are grouped by) of PromQL."""
    strings = re.compile(r'"(?:[^"\\]|\\.)*"')
    grouped = set()

    def group(match):
        grouped.update(re.findall(r'\w+', match.group(2)))
        return ' '
    text = strings.sub('""', expression)
    text = re.sub(r'\b(by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)', group, text)
    text = re.sub(r'\[[^\]]*\]', '', text)
    metrics = {}
    for name, selector in re.findall(r'(?<![\w.$])([a-zA-Z_:][\w:]*)\b(?!\s*\()\s*(\{[^}]*\})?', re.sub(
            r'(?<=\{)[^}]*', lambda found: found.group().replace(' ', ''), text)):
        if name not in WORDS and not re.match(r'.*\{', name):
            metrics.setdefault(name, set()).update(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)', selector))
    labels = set(itertools.chain(*metrics.values()))
    return dict((name, found) for name, found in metrics.items() if name not in labels), grouped


def alerts():
    with io.open(RULES, encoding='utf-8') as source:
        return [rule for group in yaml.safe_load(source)['groups'] for rule in group['rules']]


def dashboard():
    with io.open(os.path.join(FOLDER, 'grafana-dashboard.json'), encoding='utf-8') as source:
        return json.load(source)


def expressions():
    """(where, expression) of everything that asks for a metric."""
    found = [(rule['alert'], rule['expr']) for rule in alerts()]
    found += [(panel['title'], target['expr']) for panel in dashboard()['panels']
              for target in panel.get('targets', ())]
    for variable in dashboard()['templating']['list']:
        if variable['type'] == 'query':
            found.append((variable['name'], re.match(r'label_values\((.*), \w+\)$',
                                                     variable['query']['query']).group(1)))
    return found


def test_what_was_found_in_the_source_is_what_a_process_tells():
    with Running() as running:
        made = running.call(service.Service, running.loop, 'proxy', {'worker': '0'}, Options(), True)
    made._observe(service.trust.Identity('router', 'r'), 200, 0.1)
    told = exposition.values(made.registry.prometheus())
    told.update(exposition.values(probe.prometheus([dict(
        router='r', outcome='down', hop='nova', detail='', hops={'agent': 1.0})])))
    assert len(told) >= 9
    for name, samples in told.items():
        for labels in samples:
            assert set(dict(labels)) <= EXPORTED[name], name


@pytest.mark.parametrize('expression, metrics, grouped', [
    ('sum by (a, b) (rate(x_total{status=~"5..", role="y(z)"}[5m])) / on (c) z_total > 0.05',
     {'x_total': {'status', 'role'}, 'z_total': set()}, {'a', 'b', 'c'}),
    ('(x{a="}"} == bool 0) unless on (i) time() - y offset 5m', {'x': {'a'}, 'y': set()}, {'i'}),
    ('1e3 * foo', {'foo': set()}, set())])
def test_promql_is_taken_apart(expression, metrics, grouped):
    assert parsed(expression) == (metrics, grouped)


@pytest.mark.parametrize('where, expression', expressions())
def test_an_expression_asks_for_what_there_is(where, expression):
    metrics, grouped = parsed(expression)
    known = dict(FOREIGN, **EXPORTED)
    assert metrics
    for name, labels in metrics.items():
        assert name in known, '%s: mdproxy tells no %s' % (where, name)
        assert labels <= known[name], '%s: %s has no label %s' % (where, name, labels - known[name])
        if name in EXPORTED and not name.startswith('mdproxy_probe'):
            assert grouped - known[name] <= {'instance'}, '%s: %s is not grouped by that' % (where, name)


def test_nothing_that_mdproxy_tells_is_forgotten():
    asked = set(itertools.chain(*(parsed(expression)[0] for _, expression in expressions())))
    assert set(EXPORTED) - asked == set(LEFT_OUT)


@pytest.mark.parametrize('rule', alerts(), ids=lambda rule: rule['alert'])
def test_an_alert_says_what_is_wrong_and_what_to_do(rule):
    assert set(rule['annotations']) == {'summary', 'description', 'runbook'}
    assert rule['labels']['severity'] in ('critical', 'warning')
    runbook = rule['annotations']['runbook']
    assert re.search(r'\b[Hh]op\b', runbook)
    for path in re.findall(r'\bplaybooks/\w+\.yml|docs/[\w/.-]+\.\w+', runbook):
        assert os.path.exists(os.path.join(ROOT, path)), path


def test_every_hop_of_the_probe_has_its_alert():
    asked = ' '.join(rule['expr'] for rule in alerts())
    hops = set(re.findall(r'mdproxy_probe_broken\{hop="(\w+)"\}', asked))
    assert hops == set(probe.HOPS) | {'namespace'}


def test_the_dashboard_can_be_drawn():
    panels = dashboard()['panels']
    assert len(set(panel['id'] for panel in panels)) == len(panels) > 10
    variables = [variable['name'] for variable in dashboard()['templating']['list']]
    assert variables[0] == 'datasource'
    taken = {}
    for panel in panels:
        at = panel['gridPos']
        assert at['x'] >= 0 and at['x'] + at['w'] <= 24 and at['h'] > 0 < at['w']
        for cell in itertools.product(range(at['x'], at['x'] + at['w']), range(at['y'], at['y'] + at['h'])):
            assert cell not in taken, '%s lies upon %s' % (panel['title'], taken[cell])
            taken[cell] = panel['title']
        if panel['type'] == 'row':
            continue
        assert panel['targets'] and panel['description'] and panel['fieldConfig']['defaults']['unit']
        for target in panel['targets']:
            assert target['datasource']['uid'] == panel['datasource']['uid'] == '${datasource}'
            used = set(re.findall(r'\$(\w+)', target['expr'])) - {'__rate_interval'}
            assert used <= set(variables)


PROMTOOL = next((path for path in (os.path.join(folder, 'promtool')
                                   for folder in os.environ.get('PATH', '').split(os.pathsep))
                 if os.access(path, os.X_OK)), None)
needs_promtool = pytest.mark.skipif(not PROMTOOL, reason='no promtool on the PATH; docs/monitoring/README.md '
                                                         'says where to get it')


def promtool(*arguments):
    process = subprocess.Popen((PROMTOOL,) + arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out = process.communicate()[0].decode('utf-8')
    assert process.returncode == 0, out


@needs_promtool
def test_prometheus_takes_the_rules():
    promtool('check', 'rules', RULES)


@needs_promtool
def test_prometheus_takes_the_dashboards_expressions(tmpdir):
    rules = [dict(record='panel:%d' % number, expr=re.sub(r'\$__rate_interval', '5m', expression))
             for number, (_, expression) in enumerate(expressions())]
    path = tmpdir.join('dashboard.yml')
    path.write(json.dumps(dict(groups=[dict(name='dashboard', rules=rules)])))
    promtool('check', 'rules', str(path))


N, R = 'instance="n"', 'instance="n",router="r"'


def broken(hop, outcome='down'):
    return {'mdproxy_probe_%s{%s}' % (outcome, R): '1x60',
            'mdproxy_probe_broken{%s,hop="%s"}' % (R, hop): '1x60'}


# All is well: these are there, and nothing fires. One value a minute for an hour, in promtool's notation:
# `1x60` stays 1, `0+60x60` rises by 60 a minute, as Unix time does, which is 0 at the beginning.
WELL = {
    'mdproxy_up{%s,process="agent"}' % N: '1x60',
    'mdproxy_up{%s,process="router-r"}' % N: '1x60',
    'mdproxy_start_time_seconds{%s,role="agent"}' % N: '7x60',
    'mdproxy_info{%s,version="1"}' % N: '1x60',
    'mdproxy_workers{%s,state="serving"}' % N: '2x60',
    'mdproxy_namespaces{%s,state="failing"}' % N: '0x60',
    'mdproxy_namespaces{%s,state="starting"}' % N: '0x60',
    'mdproxy_probe_down{%s}' % R: '0x60',
    'mdproxy_probe_degraded{%s}' % R: '0x60',
    'mdproxy_probe_seconds{%s,hop="agent"}' % R: '0.1x60',
    'mdproxy_probe_time_seconds{%s}' % N: '0+60x60',
    'node_textfile_mtime_seconds{%s,file="/d/mdproxy.prom"}' % N: '0+60x60',
    'node_textfile_mtime_seconds{%s,file="/d/mdproxy_probe.prom"}' % N: '0+60x60',
    'node_textfile_scrape_error{%s}' % N: '0x60',
    'mdproxy_requests_total{%s,role="proxy",status="200"}' % N: '0+600x60',
    'mdproxy_requests_total{%s,role="proxy",status="503"}' % N: '0x60',
    'mdproxy_requests_total{%s,role="proxy",status="429"}' % N: '0x60',
    'mdproxy_request_seconds_bucket{%s,role="proxy",le="1.0"}' % N: '0+600x60',
    'mdproxy_request_seconds_bucket{%s,role="proxy",le="5.0"}' % N: '0+600x60',
    'mdproxy_request_seconds_bucket{%s,role="proxy",le="10.0"}' % N: '0+600x60',
    'mdproxy_request_seconds_bucket{%s,role="proxy",le="+Inf"}' % N: '0+600x60',
    'mdproxy_lookups_total{%s,role="agent",outcome="error"}' % N: '0x60',
    'mdproxy_lookups_total{%s,role="agent",outcome="many"}' % N: '0x60',
    'mdproxy_lookups_total{%s,role="agent",outcome="hit"}' % N: '0+600x60',
    'mdproxy_endpoint_up{%s,role="agent",endpoint="a"}' % N: '1x60',
    'mdproxy_endpoint_up{%s,role="agent",endpoint="b"}' % N: '1x60',
    'mdproxy_endpoint_up{%s,role="proxy",endpoint="s"}' % N: '1x60',
}
GONE = None
REQUESTS = 'mdproxy_requests_total{%s,role="proxy",status="%%s"}' % N
# What is changed of that, and what fires then, all of it.
CASES = [
    ({}, []),
    ({'mdproxy_up{%s,process="agent"}' % N: '0x60'}, ['MdproxyProcessSilent']),
    ({'mdproxy_up{%s,process="agent"}' % N: GONE, 'mdproxy_up{%s,process="router-r"}' % N: GONE},
     ['MdproxyNothingRuns']),
    ({'mdproxy_start_time_seconds{%s,role="agent"}' % N: '0+60x60'}, ['MdproxyProcessRestarts']),
    ({'mdproxy_workers{%s,state="serving"}' % N: '2x40 0x20'}, ['MdproxyNoWorkers']),
    ({'mdproxy_workers{%s,state="serving"}' % N: '2x40 1x20'}, ['MdproxyWorkersMissing']),
    ({'mdproxy_namespaces{%s,state="failing"}' % N: '3x60'}, ['MdproxyNamespacesFailing']),
    ({'mdproxy_namespaces{%s,state="starting"}' % N: '3x60'}, ['MdproxyNamespacesNotBegun']),
    ({'mdproxy_namespaces{%s,state="starting"}' % N: '0x55 3x5'}, []),
    ({'mdproxy_info{%s,version="2"}' % N: '1x60', 'mdproxy_info{%s,version="1"}' % N: '1x60'},
     ['MdproxyVersionsDiffer']),
    (broken('namespace'), ['MdproxyNamespaceBroken']),
    (broken('rule'), ['MdproxyRuleBroken']),
    (broken('listener'), ['MdproxyListenerBroken']),
    (broken('agent'), ['MdproxyAgentBroken']),
    (broken('lookup'), ['MdproxyLookupBroken']),
    (broken('nova'), ['MdproxyNovaBroken']),
    (broken('nova', 'degraded'), ['MdproxyProbeDegraded']),
    ({'mdproxy_probe_seconds{%s,hop="agent"}' % R: '3x60'}, ['MdproxyProbeSlow']),
    ({'mdproxy_probe_time_seconds{%s}' % N: '0x60'}, ['MdproxyTextfileOld']),
    ({'mdproxy_probe_time_seconds{%s}' % N: GONE}, ['MdproxyProbeSilent']),
    ({'mdproxy_probe_time_seconds{%s}' % N: GONE, 'mdproxy_up{%s,process="router-r"}' % N: GONE}, []),
    ({'node_textfile_mtime_seconds{%s,file="/d/mdproxy.prom"}' % N: '0x60'}, ['MdproxyTextfileOld']),
    ({'node_textfile_scrape_error{%s}' % N: '1x60'}, ['MdproxyTextfileUnreadable']),
    ({REQUESTS % '502': '0+60x60'}, ['MdproxyServerErrors']),
    ({REQUESTS % '502': '0+6x60'}, []),
    ({REQUESTS % '503': '0+6x60'}, ['MdproxyOverloaded']),
    ({REQUESTS % '429': '0+120x60'}, ['MdproxyRateLimited']),
    ({'mdproxy_request_seconds_bucket{%s,role="proxy",le="5.0"}' % N: '0+580x60',
      'mdproxy_request_seconds_bucket{%s,role="proxy",le="1.0"}' % N: '0+580x60'}, ['MdproxySlow']),
    ({'mdproxy_lookups_total{%s,role="agent",outcome="error"}' % N: '0+6x60'}, ['MdproxyPortApiFailing']),
    ({'mdproxy_lookups_total{%s,role="agent",outcome="error"}' % N: '0+6x60', REQUESTS % '503': '0+6x60'},
     ['MdproxyPortApiFailing']),
    ({'mdproxy_lookups_total{%s,role="agent",outcome="many"}' % N: '0+6x60'}, ['MdproxyGuestAmbiguous']),
    ({'mdproxy_endpoint_up{%s,role="agent",endpoint="b"}' % N: '0x60'}, ['MdproxyEndpointDown']),
    ({'mdproxy_endpoint_up{%s,role="agent",endpoint="a"}' % N: '0x60',
      'mdproxy_endpoint_up{%s,role="agent",endpoint="b"}' % N: '0x60'}, ['MdproxyNoNova']),
    ({'mdproxy_endpoint_up{%s,role="proxy",endpoint="s"}' % N: '0x60'}, ['MdproxyNoAgent']),
    # A proxy that nobody asks has not noticed it.
    ({'mdproxy_endpoint_up{%s,role="proxy",endpoint="s"}' % N: '0x60',
      'mdproxy_endpoint_up{%s,role="proxy",endpoint="s"}' % R: '1x60'}, ['MdproxyNoAgent']),
    ({'mdproxy_endpoint_up{%s,role="proxy",endpoint="s"}' % R: '0x60',
      'mdproxy_endpoint_up{%s,role="proxy",endpoint="t"}' % R: '1x60'}, ['MdproxyEndpointDown']),
]


def test_every_alert_is_made_to_fire():
    assert set(itertools.chain(*(fires for _, fires in CASES))) == set(rule['alert'] for rule in alerts())


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then(tmpdir):
    tests = []
    for changed, fires in CASES:
        series = dict(WELL, **changed)
        tests.append(dict(
            name=', '.join(sorted(changed)) or 'all is well', interval='1m',
            input_series=[dict(series=name, values=series[name]) for name in sorted(series) if series[name]],
            promql_expr_test=[dict(
                expr='count by (alertname) (ALERTS{alertstate="firing"})', eval_time='59m',
                exp_samples=[dict(labels='{alertname="%s"}' % name, value=1) for name in fires])]))
    path = tmpdir.join('cases.yml')
    path.write(json.dumps(dict(rule_files=[RULES], evaluation_interval='1m', tests=tests)))
    promtool('test', 'rules', str(path))
