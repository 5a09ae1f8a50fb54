"""Log lines: where they go, what is before them, and what becomes of a renamed file."""
import os
import re
import socket
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from loopback import ROOT  # noqa: E402

from mdproxy import logs, privileges  # noqa: E402

STAMP = r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} '
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason='needs root')


def log(code, stderr=subprocess.PIPE, destination='logs.STDERR'):
    """What a process wrote to standard error that runs the code with `log`, a configured logger."""
    process = subprocess.Popen(
        [sys.executable, '-c', 'import logging, os, sys\nsys.path.insert(0, %r)\n'
         'from mdproxy import logs\nlogs.configure("info", %s)\nlog = logging.getLogger("mdproxy.x")\n%s'
         % (ROOT, destination, code)], stderr=stderr)
    err = process.communicate()[1]
    assert process.returncode == 0, err
    return err and err.decode('utf-8')


def test_a_line_for_journald_has_no_time_stamp_of_its_own():
    assert log('log.info("a %s", 1); log.debug("b")') == 'INFO mdproxy.x: a 1\n'


def test_a_line_in_a_file_has_one(tmpdir):
    path = tmpdir.join('log')
    with open(str(path), 'w') as out:
        log('log.warning("a")', out)
    assert re.match(STAMP + r'WARNING mdproxy\.x: a\n\Z', path.read())


def test_it_goes_on_in_a_new_file_when_the_old_one_was_renamed(tmpdir):
    path, old = tmpdir.join('log'), tmpdir.join('log.1')
    with open(str(path), 'w') as out:
        log('log.info("a"); os.rename(%r, %r); log.info("b"); log.info("c"); os.write(2, b"d")'
            % (str(path), str(old)), out, 'logs.Destination(%r, None)' % str(path))
    assert [line[-2:] for line in old.read().splitlines()] == [' a']
    assert [line[-2:] for line in path.read().splitlines()] == [' b', ' c', 'd']


def test_it_goes_on_in_the_old_file_when_there_can_be_no_new_one(tmpdir):
    path, old = tmpdir.join('folder', 'log'), tmpdir.join('old')
    path.write('', ensure=True)
    with open(str(path), 'a') as out:
        log('log.info("a"); os.rename(%r, %r); os.rmdir(%r); log.info("b")'
            % (str(path), str(old), str(path.dirpath())), out, 'logs.Destination(%r, None)' % str(path))
    assert [line[-2:] for line in old.read().splitlines()] == [' a', ' b']


def test_a_link_is_not_followed_to_where_it_leads(tmpdir):
    target, link = tmpdir.join('shadow'), tmpdir.join('log')
    target.write('x')
    os.symlink(str(target), str(link))
    with pytest.raises(logs.LogError) as caught:
        logs.open_file(str(link))
    assert str(caught.value).startswith('log file %s cannot be opened by ' % link)


@needs_root
def test_it_is_opened_with_the_rights_of_who_serves(tmpdir):
    """An l3 agent names the file, and root's rights would let it name any."""
    path = tmpdir.join('log')
    with privileges.acting_as('nobody'):
        with pytest.raises(logs.LogError) as caught:
            logs.open_file(str(path))
    assert 'by user 65534' in str(caught.value) and not path.check()


# /dev/log is the machine's, so this one is in a mount namespace where /dev is another.
_SYSLOG = '''
set -e
mount --bind %(dev)s /dev
exec %(python)s -c '%(code)s'
'''


@needs_root
def test_syslog_gets_facility_priority_name_and_pid(tmpdir):
    dev = tmpdir.mkdir('dev')
    for name in ('null', 'urandom'):
        found = os.stat('/dev/' + name)
        os.mknod(str(dev.join(name)), found.st_mode, found.st_rdev)
    syslogd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    syslogd.settimeout(10)
    syslogd.bind(str(dev.join('log')))
    code = ('import logging, sys; sys.path.insert(0, "%s"); from mdproxy import logs; '
            'logs.configure("debug", logs.Destination(None, "local3")); '
            'log = logging.getLogger("mdproxy.x"); log.info("one"); '
            'log.error("two\\nthree"); log.debug("four")' % ROOT)
    process = subprocess.Popen(['unshare', '--mount', 'sh', '-c', _SYSLOG % dict(
        dev=dev, python=sys.executable, code=code)], stderr=subprocess.PIPE)
    err = process.communicate()[1]
    if process.returncode and (b'mount' in err or b'unshare' in err):
        pytest.skip('no mount namespace: %s' % err)
    assert process.returncode == 0, err
    got = [syslogd.recv(1024).decode() for _ in range(4)]
    syslogd.close()
    facility = 19 << 3
    for line, priority, text in zip(got, (6, 3, 3, 7), ('mdproxy.x: one', 'mdproxy.x: two', 'three',
                                                        'mdproxy.x: four')):
        assert line.startswith('<%d>' % (facility | priority))
        assert re.search(r'mdproxy\[\d+\]: %s\Z' % re.escape(text), line), line


def test_a_refusal_is_one_line_with_the_programs_name(capsys):
    assert logs.fail(2, 'no', 'quantum-metadata-agent') == 2
    assert capsys.readouterr()[1] == 'quantum-metadata-agent: no\n'
