"""Which names are namespaces to serve, and who says that there are others."""
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from forking import Home  # noqa: E402

from mdproxy import discovery, namespaces  # noqa: E402
from mdproxy.trust import Identity  # noqa: E402

ONE = '11111111-2222-3333-4444-555555555555'
TWO = '22222222-2222-3333-4444-555555555555'


@pytest.fixture
def folder(tmpdir, monkeypatch):
    monkeypatch.setattr(namespaces, 'FOLDER', str(tmpdir.join('netns')))
    return tmpdir.join('netns')


@pytest.fixture
def home():
    home = Home()
    yield home
    home.close()


@pytest.mark.parametrize('name', [
    'qrouter-', 'qrouter-x', 'qrouter-%s-old' % ONE, 'router-' + ONE, 'snat-' + ONE, ONE, 'qrouter',
    'qrouter-%s\n' % ONE, 'qrouter-%s' % ONE.replace('-', '')])
def test_a_name_that_only_looks_like_a_routers_is_none(name):
    assert discovery.identity_of(name) is None


def test_networks_are_found_when_that_is_wanted(folder):
    for name in ('qrouter-' + ONE, 'qdhcp-' + TWO, 'other'):
        folder.join(name).write('', ensure=True)
    assert discovery.find(False) == {'qrouter-' + ONE: Identity('router', ONE)}
    assert discovery.find(True) == {'qrouter-' + ONE: Identity('router', ONE),
                                    'qdhcp-' + TWO: Identity('network', TWO)}


def test_a_name_in_upper_case_is_the_same_router():
    letters = ONE.replace('1', 'a')
    assert discovery.identity_of('qrouter-' + letters.upper()) == Identity('router', letters)


def test_an_identity_is_of_native_text(folder):
    folder.join('qdhcp-' + TWO).write('', ensure=True)
    (name, identity), = discovery.find(True).items()
    assert [type(text) for text in (name, identity.kind, identity.id)] == [str] * 3


def test_a_name_that_is_no_text_is_nobodys(folder):
    folder.ensure(dir=True)
    open(os.path.join(str(folder).encode(), b'qrouter-\xff' + ONE.encode()), 'w').close()
    folder.join('qrouter-' + ONE).write('')
    assert list(discovery.find(True)) == ['qrouter-' + ONE]


def test_a_folder_that_cannot_be_read_does_not_mean_that_all_are_gone(folder):
    folder.write('no folder')
    with pytest.raises(OSError):
        discovery.find(True)


def test_before_the_first_namespace_there_is_no_folder_and_none_is_found(folder):
    assert discovery.find(True) == {}


def test_a_name_that_comes_or_goes_is_told_at_once(folder, home, monkeypatch):
    monkeypatch.setattr(discovery, 'RESCAN', 3600.0)
    folder.ensure(dir=True)
    changes = []
    discovery.Watch(home.loop, lambda: changes.append(sorted(os.listdir(str(folder)))))
    for number in range(3):
        folder.join('name%d' % number).write('')
    home.until(lambda: changes[-1] == ['name0', 'name1', 'name2'], 'word of new names')
    folder.join('name1').remove()
    home.until(lambda: changes[-1] == ['name0', 'name2'], 'word of one that has gone')


def test_what_nobody_tells_is_found_by_looking_again(folder, home, monkeypatch):
    monkeypatch.setattr(discovery, 'RESCAN', 0.05)
    monkeypatch.setattr(discovery.Watch, '_on_event', lambda self, events: os.read(self._descriptor, 4096))
    looks = []
    discovery.Watch(home.loop, lambda: looks.append(folder.check() and len(folder.listdir())))
    home.until(lambda: len(looks) > 1, 'a second look')
    assert not any(looks)
    folder.join('name').write('', ensure=True)
    home.until(lambda: looks[-1] == 1, 'the name')


def test_without_inotify_it_says_so_and_looks(folder, home, monkeypatch, caplog):
    class Libc(object):
        @staticmethod
        def inotify_init1(flags):
            return -1
    monkeypatch.setattr(discovery, 'RESCAN', 0.05)
    monkeypatch.setattr(discovery.ctypes, 'CDLL', lambda *args, **kwargs: Libc)
    looks = []
    discovery.Watch(home.loop, lambda: looks.append(True))
    home.until(lambda: len(looks) > 2, 'more looks')
    assert 'no word of new namespaces' in caplog.text
