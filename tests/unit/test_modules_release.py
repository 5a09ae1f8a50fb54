"""mdproxy_release: a release that is there is whole, and the current one is switched in one step."""
import io
import os
import stat
import sys
import tarfile

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import ansible_module  # noqa: E402

ansible_module.needs_ansible()

MAIN = b'import sys\nprint("mdproxy 9.9 " + " ".join(sys.argv[1:]))\n'


def bundle(path, main=MAIN, extra=()):
    archive = tarfile.open(str(path), 'w:gz')
    for name, content in [('lib/mdproxy/__main__.py', main), ('lib/mdproxy/__init__.py', b'')] + list(extra):
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(content), 0o644
        archive.addfile(member, io.BytesIO(content))
    archive.close()
    return str(path)


class Node(object):
    """A node's /opt/mdproxy."""

    def __init__(self, tmpdir):
        self.tmpdir, self.root = tmpdir, tmpdir.join('opt')
        self.bundle = bundle(tmpdir.join('bundle.tgz'))

    def run(self, release, check=False, **arguments):
        arguments = dict(dict(bundle=self.bundle, release=release, root=str(self.root),
                              python=sys.executable), **arguments)
        return ansible_module.run('mdproxy_release', arguments, check=check)

    def current(self):
        return os.readlink(str(self.root.join('current')))

    def releases(self):
        return sorted(os.listdir(str(self.root.join('releases'))))


@pytest.fixture
def node(tmpdir):
    return Node(tmpdir)


def test_a_bundle_becomes_the_current_release_and_runs(node):
    result = node.run('1.0-a')
    assert result['changed'] and result['path'] == str(node.root.join('releases', '1.0-a'))
    assert node.current() == 'releases/1.0-a'
    assert os.popen('%s --version' % node.root.join('current', 'bin', 'mdproxy')).read() == \
        'mdproxy 9.9 --version\n'


@pytest.mark.parametrize('project', ['quantum', 'neutron'])
def test_launchers_with_upstreams_names_say_which_one_was_meant(node, project):
    node.run('1.0-a')
    for name in ('ns-metadata-proxy', 'metadata-agent'):
        name = '%s-%s' % (project, name)
        link = str(node.tmpdir.join('elsewhere-' + name))
        os.symlink(str(node.root.join('current', 'bin', name)), link)
        assert os.popen(link + ' --router_id="a b"').read() == \
            'mdproxy 9.9 drop-in %s --router_id=a b\n' % name


def test_a_release_that_misses_a_launcher_is_made_anew(node):
    node.run('1.0-a')
    node.root.join('releases', '1.0-a', 'bin', 'quantum-metadata-agent').remove()
    assert node.run('1.0-a', check=True)['changed'] and node.run('1.0-a')['changed']
    assert not node.run('1.0-a')['changed']


def test_a_second_run_changes_nothing(node):
    node.run('1.0-a')
    inode = os.stat(str(node.root.join('releases', '1.0-a'))).st_ino
    assert not node.run('1.0-a')['changed']
    assert os.stat(str(node.root.join('releases', '1.0-a'))).st_ino == inode


def test_check_mode_says_what_it_would_do_and_does_nothing(node):
    result = node.run('1.0-a', check=True, bundle='/nonexistent')
    assert result['changed'] and 'releases/1.0-a' in result['diff']['after']
    assert not node.root.check()


def test_going_back_is_a_switch_alone(node):
    node.run('1.0-a')
    node.run('1.0-b')
    os.unlink(node.bundle)
    result = node.run('1.0-a')
    assert result['changed'] and node.current() == 'releases/1.0-a'
    assert result['diff']['before'].endswith('-> releases/1.0-b\n')


def test_a_release_that_does_not_run_is_refused_and_the_current_one_stays(node):
    node.run('1.0-a')
    broken = bundle(node.tmpdir.join('broken.tgz'), main=b'raise SystemExit("broken indeed")\n')
    result = node.run('1.0-b', bundle=broken)
    assert result['failed'] and 'broken indeed' in result['msg'] and '1.0-b' in result['msg']
    assert node.current() == 'releases/1.0-a' and node.releases() == ['1.0-a']


def test_a_run_that_was_cut_short_is_made_good(node):
    leftover = node.root.join('releases', '.partial-1.0-a', 'lib', 'mdproxy')
    leftover.ensure(dir=True)
    leftover.join('stale.py').write('stale')
    os.symlink('nowhere', str(node.root.join('current.new')))
    node.run('1.0-a')
    assert node.current() == 'releases/1.0-a' and node.releases() == ['1.0-a']
    assert not node.root.join('releases', '1.0-a', 'lib', 'mdproxy', 'stale.py').check()


def test_old_releases_go_but_never_the_current_one(node):
    for number in range(4):
        node.run('1.%d' % number, keep=3)
        os.utime(str(node.root.join('releases', '1.%d' % number)), (number, number))
    assert node.releases() == ['1.1', '1.2', '1.3']
    node.run('1.1', keep=1)
    assert node.releases() == ['1.1', '1.3'] and node.current() == 'releases/1.1'


def test_the_release_before_is_known_and_stays(node):
    node.run('1.0-a', keep=1)
    assert not os.path.lexists(str(node.root.join('previous')))
    node.run('1.0-b', keep=1)
    node.run('1.0-b', keep=1)
    assert os.readlink(str(node.root.join('previous'))) == 'releases/1.0-a'
    assert node.releases() == ['1.0-a', '1.0-b']
    node.run('1.0-c', keep=1)
    assert node.releases() == ['1.0-b', '1.0-c']


def test_nothing_is_unpacked_beside_the_release(node):
    evil = bundle(node.tmpdir.join('evil.tgz'), extra=[
        ('../../escaped', b'x'), ('lib/../../../escaped', b'x'), (str(node.tmpdir.join('escaped')), b'x')])
    node.run('1.0-a', bundle=evil)
    found = [os.path.join(folder, name) for folder, _, names in os.walk(str(node.tmpdir))
             for name in names if name == 'escaped']
    assert found == []


def test_the_user_that_serves_can_read_it_whatever_umask_root_has(node):
    old = os.umask(0o077)
    try:
        node.run('1.0-a')
    finally:
        os.umask(old)
    for folder, _, names in os.walk(str(node.root)):
        assert stat.S_IMODE(os.stat(folder).st_mode) & 0o055 == 0o055, folder
        for name in names:
            assert os.stat(os.path.join(folder, name)).st_mode & 0o044 == 0o044, name


def test_a_release_of_another_interpreter_is_made_anew(node):
    node.run('1.0-a')
    launcher = node.root.join('releases', '1.0-a', 'bin', 'mdproxy')
    launcher.write(launcher.read().replace(sys.executable, '/usr/bin/python-that-was'))
    assert node.run('1.0-a', check=True)['changed']
    assert node.run('1.0-a')['changed']
    assert sys.executable in launcher.read()
    assert not node.run('1.0-a')['changed']


def test_bundles_go_with_their_releases_and_so_does_what_was_cut_short(node):
    for name in ('1.0-a', '1.0-b', '1.0-c'):
        node.root.join('bundles', name + '.tgz').write('', ensure=True)
        node.run(name, keep=2)
        node.root.join('releases', '.partial-' + name, 'lib').ensure(dir=True)
    node.run('1.0-b', keep=2)
    assert node.releases() == ['1.0-b', '1.0-c']
    assert sorted(os.listdir(str(node.root.join('bundles')))) == ['1.0-b.tgz', '1.0-c.tgz']
