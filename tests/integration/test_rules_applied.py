"""A router's rules in real namespaces, with the machine's own iptables."""
import os
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import equipment  # noqa: E402

equipment.requirements()

from equipment import Router, ip, iptables_save, namespace, working_folder  # noqa: E402

sys.path.insert(0, equipment.ROOT)

from mdproxy import rules  # noqa: E402


@pytest.fixture
def netns():
    with namespace() as name:
        yield name


@pytest.fixture
def path():
    with working_folder() as folder:
        yield write(folder, Router('r').rules())


def write(folder, text):
    with open(os.path.join(folder, 'router.rules'), 'w') as out:
        out.write(text)
    return out.name


def iptables(netns, *words):
    return ip('netns', 'exec', netns, 'iptables', *words)


def test_rules_are_applied_once_and_then_found_as_they_should_be(netns, path):
    assert rules.of_file(path).differ(netns)
    assert rules.of_file(path).apply(netns)
    saved = iptables_save(netns)
    assert not rules.of_file(path).differ(netns)
    assert not rules.of_file(path).apply(netns)
    assert iptables_save(netns) == saved
    assert '-A PREROUTING -j mdproxy-PREROUTING' in saved
    assert '-A mdproxy-INPUT -p tcp -m tcp --dport 9697 -j DROP' in saved


@pytest.mark.parametrize('harm', [
    ('-t', 'nat', '-F', 'mdproxy-PREROUTING'),
    ('-D', 'INPUT', '-j', 'mdproxy-INPUT'),
    ('-A', 'INPUT', '-j', 'mdproxy-INPUT'),
    ('-I', 'mdproxy-INPUT', '1', '-j', 'ACCEPT'),
    ('-N', 'mdproxy-OLD'),
    ('-t', 'mangle', '-N', 'mdproxy-OLD'),
])
def test_what_was_changed_by_hand_is_seen_and_put_right(netns, path, harm):
    rules.of_file(path).apply(netns)
    whole = [line for line in iptables_save(netns) if 'mdproxy-' in line]
    iptables(netns, *harm)
    assert rules.of_file(path).differ(netns)
    assert rules.of_file(path).apply(netns)
    assert [line for line in iptables_save(netns) if 'mdproxy-' in line] == whole
    assert not rules.of_file(path).differ(netns)


def test_many_are_checked_in_one_go(netns, path):
    with namespace() as other, namespace() as bare, working_folder() as folder:
        commented = write(folder, '# Another router\n' + Router('s').rules())
        rules.of_file(path).apply(netns)
        rules.of_file(path).apply(other)
        assert rules.check([(netns, path), (other, commented)]) == []
        iptables(other, '-I', 'mdproxy-INPUT', '1', '-j', 'ACCEPT')
        assert rules.check([(netns, path), (other, commented), (bare, path), ('mdproxy-nowhere', path)]) == [
            (other, 'the rules differ from ' + commented), (bare, 'the rules differ from ' + path),
            ('mdproxy-nowhere', 'namespace mdproxy-nowhere does not exist; is the router on this host?')]


def test_a_chain_in_use_that_a_newer_file_lacks_goes_with_its_jumps(netns, path):
    rules.of_file(path).apply(netns)
    whole = [line for line in iptables_save(netns) if 'mdproxy-' in line]
    iptables(netns, '-N', 'mdproxy-OLD')
    iptables(netns, '-A', 'mdproxy-OLD', '-j', 'RETURN')
    iptables(netns, '-A', 'FORWARD', '-j', 'mdproxy-OLD')
    iptables(netns, '-A', 'mdproxy-INPUT', '-j', 'mdproxy-OLD')
    rules.of_file(path).apply(netns)
    assert [line for line in iptables_save(netns) if 'mdproxy-' in line] == whole


def test_a_file_that_changed_is_applied_in_place_of_the_old_one(netns, path):
    rules.of_file(path).apply(netns)
    with working_folder() as folder:
        other = write(folder, Router('r').rules(port=9999))
        assert rules.of_file(other).apply(netns)
        saved = '\n'.join(iptables_save(netns))
        assert '9999' in saved and '9697' not in saved
        assert saved.count('-j mdproxy-INPUT') == saved.count('-j mdproxy-PREROUTING') == 1


def test_the_jumps_come_before_what_the_l3_agent_has_there(netns, path):
    for table, chain in (('nat', 'PREROUTING'), ('filter', 'INPUT')):
        iptables(netns, '-t', table, '-N', 'quantum-l3-agent-' + chain)
        iptables(netns, '-t', table, '-A', chain, '-j', 'quantum-l3-agent-' + chain)
    rules.of_file(path).apply(netns)
    for table, chain in (('nat', 'PREROUTING'), ('filter', 'INPUT')):
        jumps = iptables(netns, '-t', table, '-S', chain).splitlines()[1:]
        assert jumps == ['-A %s -j %s-%s' % (chain, owner, chain)
                         for owner in ('mdproxy', 'quantum-l3-agent')]


def test_removal_leaves_everything_else_as_it_was(netns, path):
    iptables(netns, '-N', 'quantum-l3-agent-INPUT')
    iptables(netns, '-A', 'INPUT', '-j', 'quantum-l3-agent-INPUT')
    iptables(netns, '-t', 'nat', '-A', 'POSTROUTING', '-j', 'MASQUERADE', '-m', 'comment',
             '--comment', 'mdproxy-like')
    before = iptables_save(netns)
    rules.of_file(path).apply(netns)
    assert rules.remove(netns)
    assert iptables_save(netns) == before
    assert not rules.remove(netns)


def test_a_rule_that_iptables_refuses_changes_nothing_and_is_named(netns, path):
    rules.of_file(path).apply(netns)
    before = iptables_save(netns)
    with working_folder() as folder:
        bad = write(folder, Router('r').rules(port=9999).replace('REDIRECT', 'NO-SUCH-TARGET'))
        with pytest.raises(rules.RulesError) as caught:
            rules.of_file(bad).apply(netns)
        assert bad in str(caught.value) and '\n' not in str(caught.value)
    assert iptables_save(netns) == before


def test_a_namespace_that_does_not_exist_is_named(path):
    with pytest.raises(rules.RulesError) as caught:
        rules.of_file(path).apply('mdproxy-test-nowhere')
    assert 'namespace mdproxy-test-nowhere does not exist' in str(caught.value)
    assert not os.path.exists('/var/run/netns/mdproxy-test-nowhere')


def ours_here():
    out = subprocess.Popen(['iptables-save'], stdout=subprocess.PIPE).communicate()[0]
    return [line for line in out.splitlines() if b'mdproxy-' in line]


def test_the_hosts_own_rules_are_never_touched(netns, path):
    before = ours_here()
    rules.of_file(path).apply(netns)
    assert not rules.of_file(path).differ(netns)
    assert ours_here() == before
    rules.remove(netns)
    assert ours_here() == before
