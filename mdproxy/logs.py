"""Where log lines go: standard error, a file or syslog; and the one line of what is refused.

Standard error gets no time stamps, because journald and upstart's logs have their own, unless it is
a regular file. A log file *is* standard error, so that what Python itself has to say is in it too.
When the file was renamed (logrotate) the next line goes to a new one of its name, if this user may
make one, else on to the old one.
"""
from __future__ import print_function

import logging
import os
import stat
import sys
from collections import namedtuple

_FORMAT = '%(levelname)s %(name)s: %(message)s'
_STAMPED = '%(asctime)s ' + _FORMAT
# By their numbers (RFC 5424, section 6.2.1), as <syslog.h> calls them in lower case without LOG_.
FACILITIES = ('kern', 'user', 'mail', 'daemon', 'auth', 'syslog', 'lpr', 'news', 'uucp', 'cron',
              'authpriv', 'ftp', None, None, None, None, 'local0', 'local1', 'local2', 'local3',
              'local4', 'local5', 'local6', 'local7')
# A link could lead root to any file; the folder may belong to a user that is not trusted so far.
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_NOFOLLOW
_NOISY = ('urllib3', 'requests')


class LogError(Exception):
    """A log that cannot be had; the message names it and says why."""


class Destination(namedtuple('Destination', 'file facility')):
    """Where to log: path of a file, or a syslog facility (of FACILITIES); neither: stderr."""

    __slots__ = ()


STDERR = Destination(None, None)


def configure(level, destination=STDERR):
    """Send log lines of this level ('info') and above to the destination.

    A file has to be standard error already (`open_file`, `take_over`).
    """
    if destination.facility:
        handler = _Syslog(destination.facility)
    else:
        handler = _Following(destination.file) if destination.file else logging.StreamHandler()
        in_file = stat.S_ISREG(os.fstat(sys.stderr.fileno()).st_mode)
        handler.setFormatter(logging.Formatter(_STAMPED if in_file else _FORMAT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


def open_file(path):
    """A descriptor that appends to a log file, which is made if it is not there.

    Raises LogError, also for a symbolic link.
    """
    try:
        return os.open(path, _APPEND | os.O_CREAT, 0o640)
    except OSError as error:
        raise LogError('log file %s cannot be opened by user %d, who serves: %s'
                       % (path, os.geteuid(), error.strerror))


def take_over(descriptor, numbers):
    """Make the descriptors of these numbers copies of another, which is closed."""
    for number in numbers:
        os.dup2(descriptor, number)
    if descriptor not in numbers:
        os.close(descriptor)


def fail(status, reason, program='mdproxy'):
    """Print the one line of a refusal on standard error; returns the exit status."""
    try:
        line = '%s: %s' % (program, reason)
    except UnicodeEncodeError:          # 2.7, of a value that is not ASCII
        line = (u'%s: %s' % (program, reason)).encode('utf-8')
    print(line, file=sys.stderr)
    return status


class _Following(logging.StreamHandler):
    """Standard error that is a log file."""

    def __init__(self, path):
        logging.StreamHandler.__init__(self)
        self._path = path

    def emit(self, record):
        self._follow()
        logging.StreamHandler.emit(self, record)

    def _follow(self):
        ours = os.fstat(2)
        try:
            there = os.stat(self._path)
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                return
        except OSError:
            pass
        try:
            take_over(open_file(self._path), (1, 2))
        except LogError:
            pass


class _Syslog(logging.Handler):
    """syslog(3), with the message's own priority."""

    def __init__(self, facility):
        logging.Handler.__init__(self)
        import syslog
        self.setFormatter(logging.Formatter('%(name)s: %(message)s'))
        self._send = syslog.syslog
        self._priorities = ((logging.CRITICAL, syslog.LOG_CRIT), (logging.ERROR, syslog.LOG_ERR),
                            (logging.WARNING, syslog.LOG_WARNING), (logging.INFO, syslog.LOG_INFO),
                            (0, syslog.LOG_DEBUG))
        syslog.openlog('mdproxy', syslog.LOG_PID, FACILITIES.index(facility) << 3)

    def emit(self, record):
        priority = next(number for level, number in self._priorities if record.levelno >= level)
        for line in self.format(record).split('\n'):
            self._send(priority, line)
