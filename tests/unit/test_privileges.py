"""Giving up root. What needs root itself runs in a child, so that the tests stay who they are."""
import os
import stat
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

from mdproxy import privileges  # noqa: E402

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason='needs root')


def in_child(function):
    """What the function returns or raises, as text, when a child runs it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = str(function())
        except BaseException as error:
            text = '%s: %s' % (type(error).__name__, error)
        os.write(writing, text.encode('utf-8'))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, 'rb') as answer:
        text = answer.read().decode('utf-8')
    os.waitpid(child, 0)
    return text


def status_of_process():
    with open('/proc/self/status') as status:
        return dict(line.split(':', 1) for line in status.read().splitlines())


@needs_root
def test_nothing_of_root_is_left():
    def become():
        os.setgroups([0, 4])
        privileges.become('nobody')
        status = status_of_process()
        assert os.getgroups() == []
        return ' '.join(status[name].strip() for name in ('CapEff', 'CapPrm', 'NoNewPrivs')) + ' ' + \
            ' '.join(set(status['Uid'].split() + status['Gid'].split()))
    none = '0' * 16
    assert in_child(become) == '%s %s 1 65534' % (none, none)


@needs_root
@pytest.mark.parametrize('back', [lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.seteuid(0),
                                  lambda: os.setgroups([0]), lambda: os.listdir('/proc/1/fd')])
def test_there_is_no_way_back(back):
    assert 'Error' in in_child(lambda: (privileges.become('nobody'), back()))


@needs_root
@pytest.mark.parametrize('user, reason', [
    ('no-such-user', 'user no-such-user does not exist; create it or set [mdproxy] user'),
    ('root', 'user root is root, which must not serve')])
def test_a_user_that_cannot_serve_is_refused_and_nothing_is_served_as_root(user, reason):
    assert in_child(lambda: privileges.become(user)).startswith('PrivilegeError: ' + reason)


@pytest.mark.parametrize('user, group, expected', [
    ('nobody', None, (65534, 65534)), ('65534', None, (65534, 65534)), (u'nobody', None, (65534, 65534)),
    ('nobody', 'daemon', (65534, 1)), ('nobody', '12345', (65534, 12345)), ('12345', '12345', (12345, 12345)),
    ('12345', 'daemon', (12345, 1))])
def test_users_and_groups_have_names_or_numbers(user, group, expected):
    assert privileges.ids(user, group) == expected


@pytest.mark.parametrize('user, group, reason', [
    ('12345', None, 'user 12345 does not exist'), ('no-such-user', '12345', 'user no-such-user does not'),
    ('nobody', 'no-such-group', 'group no-such-group does not exist'),
    ('0', None, 'user 0 is root'), ('root', 'daemon', 'user root is root'),
    ('nobody', '0', 'group of nobody is root'), ('nobody', 'root', 'group of nobody is root')])
def test_who_is_unknown_or_root_serves_nothing(user, group, reason):
    with pytest.raises(privileges.PrivilegeError) as caught:
        privileges.ids(user, group)
    assert str(caught.value).startswith(reason)


@needs_root
def test_a_group_can_be_chosen():
    def become():
        privileges.become('nobody', 'daemon')
        return os.getuid(), os.getgid(), os.getgroups()
    assert in_child(become) == '(65534, 1, [])'


@needs_root
def test_who_is_not_root_stays_who_he_is():
    def become():
        os.setgid(12345)
        os.setuid(12345)
        privileges.become('no-such-user')
        return os.getuid()
    assert in_child(become) == '12345'


@needs_root
def test_the_folder_is_made_for_the_user_and_its_group_alone(tmpdir):
    folder = tmpdir.join('run')
    privileges.make_folder(str(folder), 'nobody')
    found = os.stat(str(folder))
    assert stat.S_IMODE(found.st_mode) == 0o750
    assert found.st_uid == 65534


@needs_root
def test_a_folder_that_is_there_stays_as_it_is(tmpdir):
    folder = tmpdir.mkdir('run')
    os.chmod(str(folder), 0o711)
    privileges.make_folder(str(folder), 'no-such-user')
    found = os.stat(str(folder))
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o711, 0)


@needs_root
def test_a_folder_that_cannot_be_made_is_named(tmpdir):
    folder = str(tmpdir.join('missing', 'run'))
    with pytest.raises(privileges.PrivilegeError) as caught:
        privileges.make_folder(folder, 'nobody')
    assert str(caught.value) == 'folder %s cannot be made: No such file or directory' % folder


@needs_root
@pytest.mark.parametrize('owner', ['nobody', 'root'])
def test_root_without_cap_kill_ends_processes_of_the_user_and_its_own(owner):
    target = subprocess.Popen(['sleep', '60'], preexec_fn=lambda: owner == 'root' or os.setuid(65534))
    subprocess.check_call(['setpriv', '--bounding-set=-kill', sys.executable, '-c',
                           'import sys; sys.path.insert(0, %r); from mdproxy import privileges; '
                           'privileges.kill(%d, 9, "nobody")' % (ROOT, target.pid)])
    assert target.wait() == -9
