"""The report in a real browser: as the role writes it, on a phone and on a screen, light and dark."""
import html
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

yaml = pytest.importorskip('yaml')
HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
CHROMIUM = shutil.which('chromium')
if not CHROMIUM:
    pytest.skip('needs chromium', allow_module_level=True)

PLAY = [{
    'hosts': 'network_nodes', 'gather_facts': False,
    'tasks': [{'ansible.builtin.include_role': {'name': 'verify', 'tasks_from': 'report'}}]}]
TIMES = dict(rule=None, listener=0.123, agent=12.5, lookup=48.25, nova=1234.567)


def router(number):
    """(id, entry of the probe): of every ten one that is down, at some hop, and one that is degraded."""
    id = '%08x-46ee-516f-9a1c-60ef1d553ec4' % (number * 2654435761 % (1 << 32))
    entry = dict(router=id, outcome='well', hop='', detail='', hops=dict(TIMES))
    if number % 10 == 1:
        hop = number // 10 % 6
        entry.update(outcome='down', hop=(['namespace'] + list(TIMES))[hop],
                     detail='<b>it</b> & what it says, %s-%s' % (id, id),
                     hops=dict(list(TIMES.items())[:max(0, hop - 1)]))
    elif number % 10 == 2:
        entry.update(outcome='degraded', hop='nova',
                     detail='nova-api-2.management.example.com:8775: Connection refused')
    return id, entry


def guest(router_id, number):
    well = number % 7
    return dict(name='guest-with-a-long-name-%d' % number, router_id=router_id,
                fixed_ip='10.0.0.%d' % (number % 250 + 2),
                hop='' if well else 'port', detail='' if well else 'no port found: none with that address',
                instance_id='60737641-f0cc-5d57-a391-a5e5d66ba416' if well else '', ec2_id='i-0000000b',
                milliseconds=12 if well else 0)


def inventory(routers, nodes):
    """So many routers, shared out among so many nodes; the first node has not the release."""
    hosts = {}
    for node in range(nodes):
        made = [router(number) for number in range(node, routers, nodes)]
        name = 'network-node-%02d.example.com' % node
        hosts[name] = dict(
            verify_host=dict(python='3.11.2', service_manager='systemd', release='0.1.0-2b96ad22d8aa',
                             tree='quantum 2012.2.4, applied, series 3f2a9c77d1e0'),
            verify_node=dict(
                probed=[entry for _, entry in made], trouble='' if node else 'mdproxy probe told nothing',
                guests=[guest(id, number) for number, (id, _) in enumerate(made) if number % 3 == 0]))
    return {'all': {'vars': dict(ansible_connection='local', ansible_python_interpreter=sys.executable,
                                 ansible_become=False, mdproxy_mode='shared', mdproxy_lifecycle='jobs',
                                 mdproxy_agent_location='local'),
                    'children': {'network_nodes': {'hosts': hosts}}}}


@pytest.fixture(scope='module', params=[(2, 1), (500, 10)], ids=['2 routers', '500 routers'])
def page(request, tmp_path_factory):
    """(folder with report.html, how many routers), written by the role."""
    folder = tmp_path_factory.mktemp('report')
    for name, content in (('play.yml', PLAY), ('hosts.yml', inventory(*request.param))):
        (folder / name).write_text(json.dumps(content))
    subprocess.run([os.path.join(os.path.dirname(sys.executable), 'ansible-playbook'),
                    '-i', str(folder / 'hosts.yml'), str(folder / 'play.yml'),
                    '-e', 'verify_report=%s' % (folder / 'report.html')],
                   check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    shutil.copy(os.path.join(HERE, 'report', 'check.html'), str(folder))
    return folder, request.param[0]


def seen(folder, dark):
    """What check.html tells of the page."""
    out = subprocess.run(
        [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage',
         '--user-data-dir=%s' % (folder / 'profile'), '--allow-file-access-from-files',
         '--virtual-time-budget=20000', '--blink-settings=preferredColorScheme=%d' % (not dark),
         '--dump-dom', 'file://%s' % (folder / 'check.html')],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    told = re.search('<pre id="told">(.+?)</pre>', out.stdout.decode(), re.DOTALL)
    assert told, 'the page did not come so far as to be looked at'
    return json.loads(html.unescape(told.group(1)))


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
def test_it_can_be_read_on_a_phone_and_on_a_screen(page, dark):
    folder, routers = page
    told = seen(folder, dark)
    assert told['use']['dark'] == dark
    for look in told['looks']:
        assert look['texts'] > 9 * routers, 'as good as nothing was looked at'
        assert (look['overflow'], look['outside'], look['pale']) == (0, [], []), 'at %(width)d pixels' % look
        assert look['smallest'] >= 11


def test_trouble_comes_first_and_a_router_is_found_by_its_id(page):
    folder, routers = page
    use = seen(folder, False)['use']
    assert len(use['all']) == use['again'] == routers
    order = ['down', 'degraded', 'well', 'idle']
    outcomes = [one.split()[0] for one in use['all']]
    assert outcomes == sorted(outcomes, key=order.index) and outcomes[0] == 'down'
    assert use['searched'] == use['all'][-1:]
    assert use['troubled'] == [one for one in use['all'] if one.split()[0] in order[:2]]


def test_it_needs_nothing_else_and_is_not_large(page):
    folder, _routers = page
    text = (folder / 'report.html').read_text()
    assert not re.search(r'(src=|href="[^#]|@import|url\(|https?://)', text)
    assert len(text.encode()) < 2e6
    assert '<b>it</b>' not in text and '&lt;b&gt;it&lt;/b&gt; &amp; what it says' in text


def test_the_same_is_there_for_programs_and_in_words(page):
    folder, routers = page
    found = json.loads((folder / 'verify.json').read_text())
    assert len(found['paths']) == sum(found['routers'].values()) == routers
    words = (folder / 'verify.txt').read_text()
    assert '%(down)d down, %(degraded)d degraded, %(well)d well, %(idle)d idle.' % found['routers'] in words
    assert len(words.splitlines()) < 500
