"""How a proxy is opened in a namespace that comes and goes.

In real ones: tests/integration/test_opener.py.
"""
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from mdproxy import config, namespaces, opener, trust  # noqa: E402

ROUTER = '11111111-2222-3333-4444-555555555555'
ONE, OTHER = (4, 4026532100), (4, 4026532200)
GONE = namespaces.NamespaceError('namespace qrouter-1 does not exist')
TAKEN = namespaces.NamespaceError('namespace qrouter-1: the port is taken')
NO_ADDRESS = namespaces.NoAddressError('namespace qrouter-1: no such address')


class Listener(object):

    closed = False

    def close(self):
        self.closed = True


def proxy(**kwargs):
    return opener.Proxy(trust.Identity('router', ROUTER), ('169.254.169.254', 80),
                        config.Sources((), (), ()), 'qrouter-1', wait=True, **kwargs)


@pytest.fixture
def scripted(monkeypatch):
    """scripted(inodes, tries): what opens, when looks and tries have these results one after another.

    Returns (what was opened or raised, naps).
    """
    def run(inodes, tries):
        inodes, tries, naps = list(inodes), list(tries), []

        def attempt(_rules):
            outcome = tries.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        waiting = proxy()
        monkeypatch.setattr(waiting, '_open_once', attempt)
        monkeypatch.setattr(opener.namespaces, 'inode', lambda netns: inodes.pop(0))
        monkeypatch.setattr(opener.daemon, 'await_signals', lambda: None)
        monkeypatch.setattr(opener.time, 'sleep', naps.append)
        try:
            outcome = waiting._open_awaited(None)
        except namespaces.NamespaceError as error:
            outcome = error
        assert not inodes and not tries
        return outcome, naps
    return run


def said(caplog):
    return [record.getMessage() for record in caplog.records]


def test_who_waits_looks_four_times_a_second_and_says_so_once(scripted, caplog):
    outcome, naps = scripted([None, None, None, ONE], ['opened'])
    assert outcome == 'opened' and naps == [0.25] * 3
    assert said(caplog) == ['waiting for namespace qrouter-1']


def test_a_namespace_that_is_there_is_not_waited_for(scripted, caplog):
    assert scripted([ONE], ['opened']) == ('opened', [])
    assert said(caplog) == []


@pytest.mark.parametrize('meanwhile', [None, OTHER])
def test_a_namespace_that_went_away_meanwhile_is_waited_for_again(scripted, caplog, meanwhile):
    outcome, naps = scripted([ONE, meanwhile, None, OTHER], [GONE, 'opened'])
    assert outcome == 'opened'
    assert said(caplog) == ['waiting for namespace qrouter-1']


def test_an_error_in_a_namespace_that_stays_is_an_error(scripted):
    assert scripted([ONE, ONE], [TAKEN]) == (TAKEN, [])


def test_an_address_that_is_not_there_so_far_is_waited_for(scripted, caplog):
    outcome, naps = scripted([None, ONE, ONE, ONE], [NO_ADDRESS, NO_ADDRESS, 'opened'])
    assert outcome == 'opened'
    assert said(caplog) == ['waiting for namespace qrouter-1',
                            'waiting for address 169.254.169.254 in namespace qrouter-1']


class Rules(object):
    """Rules that can be applied, or not. Notes that they were, and of whom."""

    def __init__(self, done, error=None):
        self._done, self._error = done, error

    def apply(self, netns):
        self._done.append('rules')
        if self._error:
            raise self._error


@pytest.fixture
def opening(monkeypatch):
    """opening(inodes, error): opens; what is done comes one after another in `done`, closed in `closed`."""
    class Opening(object):
        done, listener = [], Listener()

        def __call__(self, inodes, error=None):
            inodes = list(inodes)
            monkeypatch.setattr(opener.namespaces, 'inode', lambda netns: inodes.pop(0))
            return proxy()._open_once([Rules(self.done, error)])

    opening = Opening()
    opening.done = []
    monkeypatch.setattr(opener.namespaces, 'bind',
                        lambda *address, **where: opening.done.append('bind') or opening.listener)
    monkeypatch.setattr(opener.namespaces, 'listen', lambda sock, netns: opening.done.append('listen'))
    return opening


def test_the_port_is_closed_to_strangers_before_anything_listens_there(opening):
    opened = opening([ONE, ONE])
    assert opening.done == ['bind', 'rules', 'listen']
    assert opened == ([opening.listener], None, ('qrouter-1', ONE)) and not opening.listener.closed


@pytest.mark.parametrize('now', [None, OTHER])
def test_what_was_opened_in_a_namespace_that_is_gone_is_closed(opening, now):
    with pytest.raises(namespaces.NamespaceError) as caught:
        opening([ONE, now])
    assert str(caught.value) == 'namespace qrouter-1 went away' and opening.listener.closed


def test_what_was_opened_is_closed_when_guests_cannot_be_led_to_it(opening):
    with pytest.raises(namespaces.NamespaceError):
        opening([ONE], TAKEN)
    assert opening.done == ['bind', 'rules'] and opening.listener.closed
