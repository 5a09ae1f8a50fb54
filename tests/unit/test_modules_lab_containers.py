"""lab_containers: a lab is used again only when nothing speaks against it.

What podman would say is written down here; that it says so is what `make lab` shows.
"""
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import ansible_module  # noqa: E402

ansible_module.needs_ansible()

lab_containers = ansible_module.imported('lab_containers')
RECORD = dict(run_id='run1', wanted='digest', addresses={})


class Module(object):
    """The parameters of a lab of two hosts."""

    def __init__(self, folder, hosts):
        self.params = dict(lab_id='lab1', folder=str(folder), conf='conf', hosts=[
            dict(name=name, networks=['internal']) for name in hosts])


def container(name, run='run1', state='running'):
    return dict(Names=['mdproxy-lab1-' + name], State=state, Labels={'mdproxy.run': run})


WHOLE = [container('api1'), container('agent1')]


def lab(tmpdir, found, networks=(), hosts=('api1', 'agent1')):
    """A Lab that finds these containers, and notes in `asked` what it tells podman, which does it."""
    made = lab_containers['Lab'](Module(tmpdir, hosts))
    made.asked = []
    made.containers, made.networks = lambda: found, lambda: list(networks)
    made.try_podman = lambda *words: made.asked.append(words) or (0, '', '')
    return made


def test_a_whole_lab_is_used_again(tmpdir):
    assert lab(tmpdir, WHOLE).fault(RECORD, 'digest') is None


@pytest.mark.parametrize('found, record, wanted, reason', [
    ([], None, 'digest', 'there was none'),
    (WHOLE, None, 'digest', 'the last creation did not end'),
    (WHOLE, RECORD, 'another', 'image, key or hosts changed'),
    (WHOLE[:1], RECORD, 'digest', 'agent1 does not run'),
    ([WHOLE[0], container('agent1', state='exited')], RECORD, 'digest',
     'agent1 does not run'),
    ([WHOLE[0], container('agent1', run='run2')], RECORD, 'digest',
     'agent1 does not run'),
    (WHOLE + [container('old', run='run0')], RECORD, 'digest', 'containers of another run are there'),
    (WHOLE + [container('old', state='exited')], RECORD, 'digest', 'containers of another run are there')])
def test_what_speaks_against_a_lab_is_named(tmpdir, found, record, wanted, reason):
    assert lab(tmpdir, found).fault(record, wanted).endswith(reason)


@pytest.mark.parametrize('content', [None, '', '{"run_id": "ru'])
def test_a_record_that_is_lost_or_cut_off_is_none(tmpdir, content):
    if content is not None:
        tmpdir.join('containers.json').write(content)
    assert lab(tmpdir, []).recorded() is None


def test_removal_takes_what_carries_the_label_or_one_of_the_names(tmpdir):
    tmpdir.join('containers.json').write('{}')
    found = lab(tmpdir, [container('old', run='run0')])
    found.remove()
    assert [words[0] for words in found.asked] == ['rm']
    assert found.asked[0][-3:] == ('mdproxy-lab1-agent1', 'mdproxy-lab1-api1', 'mdproxy-lab1-old')
    assert not tmpdir.join('containers.json').check()


@pytest.mark.parametrize('failing, tries, failed', [(1, 2, []), (9, 3, ['podman rm: it does not die'])])
def test_a_container_that_takes_long_to_die_is_removed_again(tmpdir, failing, tries, failed):
    found, statuses = lab(tmpdir, WHOLE), [125] * failing
    found.module.fail_json = lambda msg: failed.remove(msg)
    found.try_podman = lambda *words: found.asked.append(words) or (
        statuses.pop() if statuses else 0, '', 'it does not die\n')
    found.remove()
    assert len(found.asked) == tries and not failed


def test_removal_of_nothing_asks_podman_for_nothing(tmpdir):
    found = lab(tmpdir, [], hosts=())
    found.remove()
    assert found.asked == []


@pytest.mark.parametrize('found, left_by', [('0\n', None), ('1\n', None), ('1\n', '0\n')])
def test_forwarding_is_put_back_to_what_the_first_run_found(tmpdir, monkeypatch, found, left_by):
    switch = tmpdir.join('switch')
    switch.write(found)
    monkeypatch.setitem(lab_containers, '_FORWARD', str(switch))
    if left_by:     # a run that was cut short noted this, and podman has changed it since
        tmpdir.join('ip_forward').write(left_by)
    with lab_containers['Forwarding'](str(tmpdir)):
        switch.write('1\n')
    assert switch.read() == (left_by or found)
    assert not tmpdir.join('ip_forward').check()
