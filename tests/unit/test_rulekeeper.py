"""Rules for many namespaces: who is told what, whatever becomes of those who apply them."""
import os
import signal
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from forking import Home  # noqa: E402

from mdproxy import rulekeeper, rules  # noqa: E402


class Wanted(object):
    """Stands for rules.Rules: does what the name says."""

    @staticmethod
    def apply(name):
        if name.startswith('die'):
            os.kill(os.getpid(), signal.SIGKILL)
        if name.startswith('hang'):         # in a program that has all of the child's descriptors
            subprocess.call(['sleep', '60'], close_fds=False)
        if name.startswith('bad'):
            raise rules.RulesError(u'namespace %s: caf\xe9 is closed' % name)
        if name.startswith('bug'):
            raise KeyError(name)
        return not name.startswith('same')


class Keeping(object):
    def __init__(self, at_once=2):
        self.home, self.told = Home(), {}
        self.keeper = rulekeeper.RuleKeeper(self.home.loop, self.home.children, at_once, self.tell)

    def tell(self, name, token, outcome, reason):
        self.told.setdefault(name, []).append((outcome, reason))

    def until_idle(self):
        self.home.until(lambda: self.keeper.idle, 'end of the work')
        return self.told


@pytest.fixture
def keeping():
    keeping = Keeping()
    yield keeping
    keeping.home.close()


def test_everyone_is_told_of_once_with_what_came_of_it(keeping):
    names = ['ns%d' % number for number in range(120)] + ['same1', 'bad1']
    for name in names:
        keeping.keeper.do(name, None, Wanted.apply)
    told = keeping.until_idle()
    assert sorted(told) == sorted(names)
    assert told['ns7'] == [('applied', '')] and told['same1'] == [('unchanged', '')]
    assert told['bad1'] == [('failed', u'namespace bad1: caf\xe9 is closed')]
    assert all(len(outcomes) == 1 for outcomes in told.values())


@pytest.mark.parametrize('name', ['die', 'bug'])
def test_one_whose_child_dies_has_failed_and_so_have_those_after_it(keeping, name):
    for each in ('before', name, 'after'):
        keeping.keeper._queue[each] = None, Wanted.apply
    keeping.keeper._at_once = 1
    keeping.keeper._start()
    told = keeping.until_idle()
    assert [told[each][0][0] for each in ('before', name, 'after')] == ['applied', 'failed', 'failed']
    assert 'ended before it came to them' in told['after'][0][1]


def test_one_that_hangs_is_ended(keeping, monkeypatch):
    monkeypatch.setattr(rulekeeper, '_PATIENCE', 0.2)
    keeping.keeper.do('hang', None, Wanted.apply)
    assert keeping.until_idle() == {'hang': [('failed', 'iptables did not come to an end within 0.2 s')]}


def test_in_one_namespace_one_is_at_work(keeping, tmpdir):
    log = str(tmpdir.join('log'))

    def work(name):
        for word in ('begin\n', 'end\n'):
            with open(log, 'a') as out:
                out.write(word)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            try:
                signal.pause()
            except Exception:
                pass
        return True

    def begin():
        signal.signal(signal.SIGALRM, lambda *_: None)
        keeping.keeper.do('ns1', 1, work)
        keeping.keeper._start()
        keeping.keeper.do('ns1', 2, work)
        keeping.keeper.do('ns2', 3, lambda name: True)
    begin()
    keeping.until_idle()
    with open(log) as found:
        assert found.read().split() == ['begin', 'end', 'begin', 'end']
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_a_namespace_that_is_gone_is_not_waited_for(keeping):
    keeping.keeper.do('ns1', None, Wanted.apply)
    keeping.keeper.do('ns2', None, Wanted.apply)
    keeping.keeper.forget('ns1')
    assert sorted(keeping.until_idle()) == ['ns2']


def test_what_is_asked_last_counts(keeping):
    keeping.keeper.do('ns1', None, Wanted.apply)
    keeping.keeper.do('ns1', None, lambda name: False)
    assert keeping.until_idle() == {'ns1': [('unchanged', '')]}


def test_without_processes_all_have_failed(keeping, monkeypatch):
    def fork(run, ended):
        raise OSError(11, 'Resource temporarily unavailable')
    monkeypatch.setattr(keeping.home.children, 'fork', fork)
    keeping.keeper.do('ns1', None, Wanted.apply)
    assert keeping.until_idle() == {'ns1': [('failed', 'fork: Resource temporarily unavailable')]}
