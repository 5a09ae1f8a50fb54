"""Daemons and pid files; every daemon here is a process of its own that ends with its pipe."""
import os
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from loopback import ROOT, wait_until  # noqa: E402

from mdproxy import daemon  # noqa: E402

ROUTER = '11111111-2222-3333-4444-555555555555'


@pytest.fixture
def pid_file(tmpdir):
    return tmpdir.join('router.pid')


@pytest.fixture
def sleeper():
    """sleeper(*words): a process with these words in its command line."""
    made = []

    def start(*words):
        made.append(subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()'] + list(words),
                                     stdin=subprocess.PIPE))
        wait_until(lambda: '-c' in cmdline(made[-1].pid))         # it has become what it is to be
        return made[-1]
    yield start
    for process in made:
        process.stdin.close()
        process.wait()


def cmdline(pid):
    with open('/proc/%d/cmdline' % pid) as found:
        return found.read()


def test_a_living_process_with_the_id_in_its_command_line_holds_the_file(pid_file, sleeper):
    process = sleeper('router=' + ROUTER)
    pid_file.write('%d\n' % process.pid)
    assert daemon.holder(str(pid_file), ROUTER) == process.pid
    with pytest.raises(daemon.DaemonError) as caught:
        daemon.refuse_second(str(pid_file), ROUTER)
    assert str(caught.value) == 'already running: process %d of %s serves %s' % (
        process.pid, pid_file, ROUTER)


def test_a_pid_that_was_given_out_again_does_not(pid_file, sleeper):
    pid_file.write('%d' % sleeper('router=' + ROUTER.replace('1', '9')).pid)
    assert daemon.holder(str(pid_file), ROUTER) is None
    daemon.refuse_second(str(pid_file), ROUTER)


def test_nor_does_a_process_that_is_gone(pid_file, sleeper):
    process = sleeper('router=' + ROUTER)
    pid_file.write('%d' % process.pid)
    process.kill()
    wait_until(lambda: not cmdline(process.pid))        # a zombie: the name is left, nothing else
    assert daemon.holder(str(pid_file), ROUTER) is None
    process.wait()
    assert daemon.holder(str(pid_file), ROUTER) is None


def test_nor_do_we_ourselves(pid_file):
    """In a container a start often has the pid of the start before."""
    pid_file.write('%d' % os.getpid())
    assert daemon.holder(str(pid_file), 'python') is None


@pytest.mark.parametrize('content', ['', '\n', 'x', '-1', '0', '99999999999999999999', '1 2', '\0'])
def test_nor_does_a_file_without_a_pid(pid_file, content):
    pid_file.write(content)
    assert daemon.holder(str(pid_file), '') is None
    assert daemon.holder(str(pid_file) + '.none', '') is None


def test_a_pid_file_is_replaced_as_a_whole(pid_file):
    pid_file.write('1234567890')
    inode = os.stat(str(pid_file)).st_ino
    daemon.write_pid(str(pid_file))
    assert pid_file.read() == '%d\n' % os.getpid()
    assert os.stat(str(pid_file)).st_ino != inode
    assert pid_file.dirpath().listdir() == [pid_file]


def test_no_link_is_followed_when_it_is_written(pid_file, tmpdir):
    target = tmpdir.join('shadow')
    target.write('x')
    for name in (str(pid_file), '%s.%d' % (pid_file, os.getpid())):
        os.symlink(str(target), name)
    daemon.write_pid(str(pid_file))
    assert target.read() == 'x' and not os.path.islink(str(pid_file))


def test_a_file_that_holds_something_else_is_not_replaced(pid_file):
    pid_file.write('root:x:0:0\n')
    with pytest.raises(daemon.DaemonError) as caught:
        daemon.write_pid(str(pid_file))
    assert 'holds no pid' in str(caught.value) and pid_file.read() == 'root:x:0:0\n'


def test_a_pid_file_that_cannot_be_written_is_named(tmpdir):
    path = str(tmpdir.join('none', 'pid'))
    with pytest.raises(daemon.DaemonError) as caught:
        daemon.write_pid(path)
    assert str(caught.value) == 'pid file %s cannot be written: No such file or directory' % path


@pytest.mark.skipif(os.geteuid() != 0, reason='needs another user')
def test_in_a_folder_of_somebody_elses_it_is_emptied(pid_file):
    """By the user who serves; the file is made by root before."""
    source = ('import os, sys; from mdproxy import daemon; daemon.write_pid(sys.argv[1], (65534, 65534)); '
              'os.setgid(65534); os.setuid(65534); daemon.remove_pid(sys.argv[1])')
    for folder in pid_file.parts()[1:-1]:
        folder.chmod(folder.stat().mode & 0o7777 | 0o111)
    assert subprocess.call([sys.executable, '-c', source, str(pid_file)], cwd=ROOT) == 0
    assert pid_file.read() == '' and daemon.holder(str(pid_file), '') is None
    daemon.write_pid(str(pid_file))
    assert pid_file.read() == '%d\n' % os.getpid()


def test_only_ones_own_pid_file_is_removed(pid_file):
    pid_file.write(str(os.getpid() + 1))
    daemon.remove_pid(str(pid_file))
    assert pid_file.check()
    daemon.write_pid(str(pid_file))
    daemon.remove_pid(str(pid_file))
    assert not pid_file.check()
    daemon.remove_pid(str(pid_file))


# The daemon says what it is and waits until its standard input ends. {status}: what it tells.
_DAEMON = '''
import os, sys
sys.path.insert(0, {root!r})
from mdproxy import daemon
ready = daemon.detach({pid_file!r})
print(' '.join(str(part) for part in (os.getpid(), os.getppid(), os.getsid(0), os.getcwd())))
sys.stdout.flush()
{then}
sys.stdin.read()
'''


class Caller(object):
    """A process that becomes a daemon; `process` is the one that was started."""

    def __init__(self, then, pid_file=None):
        self.process = subprocess.Popen(
            [sys.executable, '-c', _DAEMON.format(root=ROOT, pid_file=pid_file, then=then)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        words = self.process.stdout.readline().decode().split()
        self.pid, self.parent, self.session = (int(word) for word in words[:3])
        self.folder = words[3]

    def lives(self):
        try:
            return bool(cmdline(self.pid))      # process 1 may take its time with the dead
        except IOError:
            return False

    def end(self):
        self.process.stdin.close()
        self.process.stdout.close()
        wait_until(lambda: not self.lives())
        self.process.wait()


def test_a_daemon_outlives_its_caller_and_can_never_get_a_terminal():
    caller = Caller('daemon.tell(ready, daemon.SERVING)')
    assert caller.process.wait() == 0
    assert caller.lives() and caller.folder == '/'
    assert caller.session not in (caller.pid, os.getsid(0))     # leads no session, and not in ours
    assert caller.process.pid not in (caller.pid, caller.parent)
    caller.end()


def test_the_caller_waits_until_the_daemon_has_told():
    caller = Caller('sys.stdin.readline(); daemon.tell(ready, daemon.SERVING)')
    assert caller.process.poll() is None
    caller.process.stdin.write(b'\n')
    caller.process.stdin.flush()
    assert caller.process.wait() == 0
    caller.end()


@pytest.mark.parametrize('then, status', [
    ('daemon.tell(ready, 2); sys.exit()', 2), ('sys.exit()', 1), ('os.kill(os.getpid(), 9)', 1)])
def test_the_caller_has_the_exit_status_of_a_daemon_that_fails(then, status, pid_file):
    pid_file.write('99999999')
    caller = Caller('daemon.write_pid(%r); %s' % (str(pid_file), then), str(pid_file))
    assert caller.process.wait() == status
    assert not pid_file.check()
    caller.end()


def test_a_pid_file_that_the_failed_daemon_had_not_written_stays(pid_file):
    pid_file.write('99999999')
    caller = Caller('sys.exit()', str(pid_file))
    assert caller.process.wait() == 1
    assert pid_file.read() == '99999999'
    caller.end()


def test_a_daemon_whose_caller_was_killed_serves_all_the_same():
    caller = Caller('sys.stdin.readline(); daemon.tell(ready, daemon.SERVING); print("served"); '
                    'sys.stdout.flush()')
    caller.process.kill()
    caller.process.wait()
    caller.process.stdin.write(b'\n')
    caller.process.stdin.flush()
    assert caller.process.stdout.readline() == b'served\n'
    caller.end()
