"""A router's rules: what a file may say, and what is asked of iptables-restore for it.

With the real iptables in real namespaces: tests/integration/test_rules_applied.py.
"""
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from mdproxy import rules  # noqa: E402

FILE = u"""\
# Router 1
*nat
:mdproxy-PREROUTING - [0:0]
-I PREROUTING 1 -j mdproxy-PREROUTING
-A mdproxy-PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 9697
COMMIT

*filter
:mdproxy-INPUT - [0:0]
-A INPUT -j mdproxy-INPUT
-A mdproxy-INPUT -p tcp -m tcp --dport 9697 -j DROP
COMMIT
"""
# What iptables-save says of a namespace, our chains of an older file and others' beside them.
SAVED = u"""\
*filter
:INPUT ACCEPT [12:3456]
:quantum-l3-agent-INPUT - [0:0]
:mdproxy-INPUT - [3:180]
:mdproxy-OLD - [0:0]
-A INPUT -j quantum-l3-agent-INPUT
-A INPUT -j mdproxy-INPUT
-A INPUT -p tcp -j mdproxy-INPUT
-A mdproxy-INPUT -j mdproxy-OLD
-A quantum-l3-agent-INPUT -m comment --comment mdproxy-INPUT -j ACCEPT
COMMIT
"""


@pytest.fixture
def written(tmpdir):
    """written(text): path of a file of rules."""
    def write(text):
        tmpdir.join('router.rules').write_binary(text if isinstance(text, bytes) else text.encode('utf-8'))
        return str(tmpdir.join('router.rules'))
    return write


def test_a_file_is_read_as_tables_of_chains_and_rules(written):
    tables = rules.of_file(written(FILE))._wanted
    assert sorted(tables) == ['filter', 'nat']
    assert tables['filter'] == [':mdproxy-INPUT - [0:0]', '-A INPUT -j mdproxy-INPUT',
                                '-A mdproxy-INPUT -p tcp -m tcp --dport 9697 -j DROP']


@pytest.mark.parametrize('line', [
    ':INPUT DROP [0:0]', '-A INPUT -p tcp -j DROP', '-A INPUT -p tcp -j mdproxy-INPUT', '-F', '-X',
    '-F INPUT', '-P INPUT DROP', '-D INPUT 1', '-t nat -A INPUT -j ACCEPT', ':', '-', '-A', '-A INPUT',
    '-I INPUT 1 -j quantum-l3-agent-INPUT', '-F mdproxy-INPUT', '-A mdproxy- -j DROP',
    '-A INPUT -j mdproxy-INPUT -m comment --comment x'])
def test_a_file_that_touches_what_is_not_ours_is_refused(written, line):
    with pytest.raises(rules.RulesError) as caught:
        rules.of_file(written(u'*filter\n%s\nCOMMIT\n' % line))
    assert 'router.rules:2: "%s" is not in a chain of ours (mdproxy-*)' % line in str(caught.value)


@pytest.mark.parametrize('line', [' -A mdproxy-INPUT -j DROP', '[1:60] -A mdproxy-INPUT -j DROP', 'DROP'])
def test_no_line_is_passed_over_in_silence(written, line):
    with pytest.raises(rules.RulesError) as caught:
        rules.of_file(written(u'*filter\n:mdproxy-INPUT - [0:0]\n%s\nCOMMIT\n' % line))
    assert 'router.rules:3: expected a table, chain, rule or COMMIT' in str(caught.value)


@pytest.mark.parametrize('text, reason', [(b'', 'holds no table'), (b'# nothing\n', 'holds no table'),
                                          (b'\xff\n', 'cannot be read')])
def test_a_file_without_rules_is_refused(written, text, reason):
    with pytest.raises(rules.RulesError) as caught:
        rules.of_file(written(text))
    assert reason in str(caught.value) and 'router.rules' in str(caught.value)


def test_ours_is_told_from_others_by_the_chain_and_not_by_the_word():
    assert rules._own(rules._tables(SAVED)) == {
        ('filter', 'mdproxy-INPUT'): ['-A mdproxy-INPUT -j mdproxy-OLD'],
        ('filter', 'mdproxy-OLD'): [],
        ('filter', 'INPUT'): ['-A INPUT -j mdproxy-INPUT']}


def test_the_order_of_chains_and_the_counters_do_not_matter():
    turned = SAVED.replace(u':mdproxy-INPUT - [3:180]\n:mdproxy-OLD - [0:0]',
                           u':mdproxy-OLD - [9:9]\n:mdproxy-INPUT - [0:0]')
    assert turned != SAVED
    assert rules._own(rules._tables(turned)) == rules._own(rules._tables(SAVED))


def test_a_jump_is_moved_and_a_chain_that_is_no_longer_wanted_goes(written):
    assert rules._script(rules.of_file(written(FILE))._wanted, rules._tables(SAVED)) == [
        '*filter',
        ':mdproxy-INPUT - [0:0]',
        '-D INPUT -j mdproxy-INPUT',
        '-F mdproxy-OLD',
        '-A INPUT -j mdproxy-INPUT',
        '-A mdproxy-INPUT -p tcp -m tcp --dport 9697 -j DROP',
        '-X mdproxy-OLD',
        'COMMIT',
        '*nat',
        ':mdproxy-PREROUTING - [0:0]',
        '-I PREROUTING 1 -j mdproxy-PREROUTING',
        '-A mdproxy-PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 9697',
        'COMMIT']


def test_removal_takes_jumps_before_chains_and_leaves_others_tables_alone():
    saved = SAVED + u'*nat\n:PREROUTING ACCEPT [0:0]\n:quantum-l3-agent-PREROUTING - [0:0]\nCOMMIT\n'
    assert rules._script({}, rules._tables(saved)) == [
        '*filter', '-D INPUT -j mdproxy-INPUT', '-F mdproxy-INPUT', '-F mdproxy-OLD',
        '-X mdproxy-INPUT', '-X mdproxy-OLD', 'COMMIT']


def test_a_command_that_is_missing_is_named(written, tmpdir, monkeypatch):
    monkeypatch.setenv('PATH', '/nonexistent')
    monkeypatch.setattr(rules.namespaces, '_enter', lambda descriptor, what: None)
    monkeypatch.setattr(rules.namespaces, 'FOLDER', str(tmpdir))
    tmpdir.join('qrouter-1').write('')
    with pytest.raises(rules.RulesError) as caught:
        rules.of_file(written(FILE)).apply('qrouter-1')
    assert str(caught.value) == 'iptables-save cannot be run: No such file or directory'


def test_the_rules_of_ipv6_differ_from_the_others_in_the_address_alone():
    assert rules.for_guests6('qr-1', 9999) == rules.for_guests('qr-1', 9999).replace(
        '169.254.169.254/32', 'fe80::a9fe:a9fe/128').replace('169.254.169.254', 'fe80::a9fe:a9fe')


SPELLED = FILE.replace(u'-I PREROUTING 1', u'-A PREROUTING')     # what iptables-save says of it


class Namespaces(object):
    """Stands in for namespaces and iptables; notes what is done in which."""

    def __init__(self, monkeypatch, saved=None):
        self.done, self.saved = [], saved or {}
        monkeypatch.setattr(rules, '_save', lambda netns, family: rules._tables(self.saved.get(netns, u'')))
        monkeypatch.setattr(rules, '_run', self.run)

    def run(self, where, argv, script=(), netns=None):
        self.done.append((where, [line for line in script if line.startswith('*')]))
        return u'\n'.join(script).replace(u'-I PREROUTING 1', u'-A PREROUTING')     # as the kernel says it


def test_many_are_checked_with_the_kernels_spelling_of_each_text_asked_for_once(tmpdir, monkeypatch):
    texts = [FILE, FILE.replace(u'Router 1', u'Router 2'), FILE.replace(u'9697', u'9797')]
    pairs = []
    for number, text in enumerate(texts + [u'DROP\n']):
        path = tmpdir.join('%d.rules' % number)
        path.write_binary(text.encode('utf-8'))
        pairs.append(('qrouter-%d' % number, str(path)))
    made = Namespaces(monkeypatch, dict((netns, SPELLED) for netns, _ in pairs))
    assert rules.check(pairs) == [
        ('qrouter-2', 'the rules differ from ' + pairs[2][1]),
        ('qrouter-3', '%s:1: expected a table, chain, rule or COMMIT' % pairs[3][1])]
    assert [where for where, _ in made.done] == [pairs[0][1], pairs[2][1]]


def test_the_rules_of_discovered_routers_are_those_that_the_role_writes():
    path = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
                        'roles', 'router_proxy', 'templates', 'proxy.rules.j2')
    with open(path) as template:
        lines = template.read().splitlines()[1:]
    text = '\n'.join(lines + ['']).replace('{{ router_proxy_interface }}', 'qr-+')
    assert text.replace('{{ router_proxy_port }}', '9697') == rules.for_guests()
