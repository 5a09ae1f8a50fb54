"""What is said of a long task, while it runs and at its end: to standard error, and nothing of quick ones."""
import json
import os
import re
import subprocess
import sys

import pytest

pytest.importorskip('ansible')

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
COUNTING = '''#!/usr/bin/python
import time
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.progress_note import note
module = AnsibleModule({})
for number in range(1, 4):
    note('%d of 3 parts,\\nthe next' % number)
    time.sleep(0.8)
module.exit_json(counts={'parts': 3, 'refused': 0})
'''
TASKS = [
    dict(name='Be quick', debug=dict(msg='quick')),
    dict(name="Count {{ 'slowly' }}", counting={}, when="inventory_hostname == 'one'"),
    dict(name='Do one after the other', command='sleep {{ item }}', loop=[0.4, 0.5, 0.6],
         loop_control=dict(label='a nap of {{ item }}')),
    dict(name='Fail', command='sh -c "sleep 0.7; false"')]


def play(tmpdir, seconds, callback='default'):
    """(standard output, standard error) of a playbook with these tasks on two hosts; the last fails."""
    tmpdir.join('library', 'counting.py').write(COUNTING, ensure=True)
    tmpdir.join('play.yml').write(json.dumps([dict(
        hosts='all', connection='local', gather_facts=False, tasks=TASKS)]))
    process = subprocess.Popen(
        [os.path.join(os.path.dirname(sys.executable), 'ansible-playbook'), '-i', 'one,two', 'play.yml'],
        cwd=str(tmpdir), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=dict(os.environ, ANSIBLE_CONFIG=os.path.join(ROOT, 'ansible.cfg'), ANSIBLE_LIBRARY='library',
                 ANSIBLE_MODULE_UTILS=os.path.join(ROOT, 'roles', 'backport', 'module_utils'),
                 ANSIBLE_STDOUT_CALLBACK=callback, ANSIBLE_PYTHON_INTERPRETER=sys.executable,
                 TMPDIR=str(tmpdir.mkdir('tmp')), MDPROXY_PROGRESS_SECONDS=str(seconds)))
    out, err = process.communicate()
    assert process.returncode == 2, err
    assert [path for path in tmpdir.join('tmp').listdir() if 'progress' in path.basename] == []
    return out.decode('utf-8'), err.decode('utf-8')


def test_a_long_task_says_what_it_is_at_and_how_long_it_took(tmpdir):
    out, err = play(tmpdir, 0.5)
    lines = [line.strip() for line in err.splitlines() if ' so far: ' in line or ' in all: ' in line]
    assert ''.join(lines) == ''.join(line.strip() for line in err.splitlines())     # nothing else is there
    assert ' so far: ' not in out and ' in all: ' not in out
    texts = [re.sub(r'^\d+ s ', '', line) for line in lines]
    assert 'so far: Count slowly (2 of 3 parts, the next; 1 host done; waiting for one)' in texts
    assert 'in all: Count slowly (one 3 parts)' in texts
    assert any(re.match(r'so far: Do one after the other \(\d items? done, the last a nap of 0\.[45]; '
                        r'waiting for one, two\)$', text) for text in texts)
    assert 'in all: Do one after the other (2 hosts)' in texts
    assert 'in all: Fail (2 hosts)' in texts and texts[-1] == 'in all: play.yml'
    assert 'Be quick' not in err
    taken, = [int(line.split()[0]) for line in lines if 'in all: Count' in line]
    assert len([text for text in texts if text.startswith('so far: Count')]) <= (taken + 1) / 0.5


@pytest.mark.parametrize('seconds', [0, 60])
def test_of_what_is_quick_nothing_is_said_and_with_0_nothing_at_all(tmpdir, seconds):
    assert play(tmpdir, seconds)[1] == ''


def test_json_stays_json(tmpdir):
    # The callbacks that write JSON are no part of ansible-core; this one is in its place.
    tmpdir.join('callback_plugins', 'one_json.py').write(
        'import json\nfrom ansible.plugins.callback import CallbackBase\n'
        'class CallbackModule(CallbackBase):\n'
        "    CALLBACK_TYPE, CALLBACK_NAME = 'stdout', 'one_json'\n"
        '    def v2_playbook_on_stats(self, stats):\n'
        "        self._display.display(json.dumps(dict(hosts=sorted(stats.processed))))\n", ensure=True)
    out, err = play(tmpdir, 0.5, 'one_json')
    assert json.loads(out) == {'hosts': ['one', 'two']} and ' in all: ' in err


def test_a_module_that_nobody_listens_to_leaves_no_note(tmpdir, monkeypatch):
    from ansible_module import utility
    note = utility('progress_note').note
    monkeypatch.delenv('MDPROXY_PROGRESS', raising=False)
    monkeypatch.chdir(tmpdir)
    note('1 of 2')
    assert tmpdir.listdir() == []
    monkeypatch.setenv('MDPROXY_PROGRESS', str(tmpdir))
    note('1 of 2')
    note('2 of 2')
    assert [path.read() for path in tmpdir.listdir()] == ['2 of 2']
