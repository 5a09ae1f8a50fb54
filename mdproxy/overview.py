"""What runs on this host, out of what every process tells on its status socket.

Rules kept:

- All are asked at once and nobody is waited for longer than PATIENCE: what hangs is just what has
  to be found.
- A socket that gives no answer is an entry that says so, never a gap; but what a removed router's
  proxy has left behind is no process that is missing.
- The table has one line for each process, those with trouble first, and the words come last.
"""
from __future__ import unicode_literals

import errno
import json
import os
import pwd
import re
import socket

from . import eventloop, metrics, namespaces
from .http1 import BODY, END, HEAD, ProtocolError, ResponseReader, format_request

PATIENCE = 2.0              # seconds for all answers together
_LARGEST = 1 << 20          # bytes of an answer
_AGAIN_AFTER = 0.02         # seconds until a socket whose backlog was full is tried again
_SILENT = 'no answer within %g s'
_NAMED = 3                  # namespaces that cannot be served and are named in the table
_CONTROLS = re.compile('[\x00-\x1f\x7f-\x9f]+')
# What every /status has; `describe` may add to it.
_NEEDED = frozenset(('pid', 'uptime', 'requests', 'latency', 'connections'))
_COLUMNS = ('PROCESS', 'PID', 'UP', 'REQUESTS', 'OK', '4XX', '5XX', 'CUT', 'P99', 'CONNS',
            'LOOKUPS', 'NEXT HOP', 'OUTCOME')
_LEFT_ALIGNED = frozenset((0, len(_COLUMNS) - 1))


def collect(folder):
    """What all processes tell, a list of dicts sorted by name.

    name: of the socket, as `agent` or `router-UUID`. One that gave no answer has besides that only
    error (text) and running (False when nobody listens any more). Else it is the JSON of /status.
    """
    return [_entry(question) for question in _ask_all(folder, b'/status')]


def exit_status(entries):
    """0 all is well, 1 something is not, 2 nothing runs."""
    if not any(entry.get('running', True) for entry in entries):
        return 2
    return 1 if any(map(_troubles, entries)) else 0


def table(entries):
    """The entries for a person, native str."""
    if not entries:
        return _native('nothing runs here that tells of itself\n')
    rows = [_row(entry) for entry in sorted(entries, key=lambda entry: not _troubles(entry))]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows)]
    lines = []
    for row in [_COLUMNS] + rows:
        cells = [cell.ljust(width) if number in _LEFT_ALIGNED else cell.rjust(width)
                 for number, (cell, width) in enumerate(zip(row, widths))]
        lines.append('  '.join(cells).rstrip())
    return _native('\n'.join(lines + ['', _sums(entries)]) + '\n')


def prometheus(folder):
    """The metrics of all processes as one exposition, native str.

    mdproxy_up tells of each socket whether it gave an answer.
    """
    questions = _ask_all(folder, b'/metrics')
    families = {}               # name -> ([HELP and TYPE], [samples])
    for question in questions:
        _merge(families, question.text)
    own = metrics.Registry({})
    own.read('gauge', 'mdproxy_up', 'Whether the process answered on its status socket.',
             lambda: dict((one.name, int(not one.error)) for one in questions), 'process')
    lines = [line for name in sorted(families) for part in families[name] for line in part]
    return own.prometheus() + _native(''.join(line + '\n' for line in lines))


def page(path, target, patience):
    """(text, error) of a page of the process that has the socket at this path; one of them is empty.
    patience: seconds."""
    question, asking = _Question(path, path), _Asking(1, patience)
    question.ask(asking, target)
    asking.wait()
    return question.text, question.error


def _ask_all(folder, target):
    """One finished _Question for every socket in the folder, sorted by name."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith('.sock'))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return []
        refused = _Question(folder, folder)
        refused.error = _refusal(folder, error)
        return [refused]
    questions = [_Question(name[:-len('.sock')], os.path.join(folder, name)) for name in names]
    if questions:
        eventloop.raise_file_limit(len(questions) + 64)
        asking = _Asking(len(questions), PATIENCE)
        for question in questions:
            question.ask(asking, target)
        asking.wait()
    return [question for question in questions if not question.vanished
            and (question.running or not _is_of_a_removed_router(question.name))]


def _is_of_a_removed_router(name):
    """Whether a socket was a router's in whose namespace no interface leads to guests any more.

    Folsom's l3 agent kills the proxy of a router that is removed (SIGKILL), and leaves the namespace.
    """
    kind, _, id = name.partition('-')
    if kind != 'router':
        return False
    try:
        with namespaces.inside(namespaces.PREFIXES['router'] + id):
            return not namespaces.internal_interfaces()
    except namespaces.NamespaceError:       # gone as a whole, or not for us to enter
        return False


class _Asking(object):
    """The loop on which questions are under way. until: when all have to be answered."""

    def __init__(self, count, patience):
        self.loop = eventloop.Loop()
        self.until = self.loop.now + patience
        self.silent = _SILENT % patience
        self._left = count

    def ended(self):
        """One question has."""
        self._left -= 1
        if not self._left:
            self.loop.stop()

    def wait(self):
        """Return when all have ended."""
        try:
            self.loop.run()
        finally:
            self.loop.close()


class _Question(object):
    """One socket that is asked. name, error and running as in an entry, text of the answer;
    vanished: the process has ended meanwhile, as it should."""

    def __init__(self, name, path):
        self.name, self._path = _text(name), path
        self.text, self.error, self.running, self.vanished = '', '', True, False
        self._asking = None

    def ask(self, asking, target):
        """Begin."""
        self._asking = asking
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except (IOError, OSError) as error:
            self.end(_text(error.strerror))
        else:
            sock.setblocking(False)
            self._connect(sock, target)

    def end(self, error, text=''):
        """The answer is there, or why there is none."""
        self.error, self.text = error, text
        self._asking.ended()

    def _connect(self, sock, target):
        asking = self._asking
        try:
            sock.connect(self._path)
        except (IOError, OSError) as error:
            if error.errno == errno.EAGAIN and asking.loop.now < asking.until:
                asking.loop.call_later(_AGAIN_AFTER, self._connect, sock, target)
                return
            sock.close()
            self.vanished = error.errno == errno.ENOENT
            self.running = error.errno != errno.ECONNREFUSED
            self.end(asking.silent if error.errno == errno.EAGAIN else _refusal(self._path, error))
        else:
            _Conversation(asking, sock, self, target)


class _Conversation(eventloop.Stream):
    """The connection for one question."""

    def __init__(self, asking, sock, question, target):
        self._question, self._pieces, self._size = question, [], 0
        self._silent = asking.silent
        self._reader = ResponseReader()
        self._reader.expect(b'GET')
        super(_Conversation, self).__init__(asking.loop, sock)
        self.set_deadline(asking.until)
        self.write(format_request(b'GET', target, [(b'Host', b'localhost'),
                                                   (b'Connection', b'close')], b''))

    def data_received(self, data):
        self._read(self._reader.feed, data)

    def eof_received(self):
        self._read(self._reader.eof)
        self.close()

    def timed_out(self):
        self._end(self._silent)

    def connection_lost(self):
        self._end('no valid answer: closed before its end')

    def _read(self, events, *data):
        try:
            for kind, value in events(*data):
                if kind is HEAD and value.status != 200:
                    self._end('no valid answer: status %d' % value.status)
                elif kind is BODY:
                    self._pieces.append(value)
                    self._size += len(value)
                    if self._size > _LARGEST:
                        self._end('no valid answer: more than %d bytes' % _LARGEST)
                elif kind is END:
                    self._end('', b''.join(self._pieces).decode('utf-8', 'replace'))
        except ProtocolError as error:
            self._end('no valid answer: %s' % error.reason)

    def _end(self, error, text=''):
        """For the first time; what comes later is no news."""
        question, self._question = self._question, None
        if question is not None:
            question.end(error, text)
            self.close()


def _refusal(path, error):
    """Why a socket or folder cannot be asked, with what to do about it."""
    if error.errno == errno.ECONNREFUSED:
        return 'not running: %s is left over' % _text(path)
    if error.errno == errno.EACCES:
        return 'not permitted: ask as root%s' % _owner(path)
    return '%s: %s' % (_text(path), _text(error.strerror or str(error)))


def _owner(path):
    try:
        uid = os.stat(path).st_uid
        return ' or as %s' % _text(pwd.getpwuid(uid).pw_name) if uid else ''
    except (OSError, KeyError):
        return ' or as the user that serves'


def _entry(question):
    name, error = question.name, question.error
    if not error:
        try:
            found = json.loads(question.text)
            if _NEEDED.issubset(found):
                return dict(found, name=name)
        except (ValueError, TypeError):
            pass
        error = 'no valid answer: not the status of a process'
    return {'name': name, 'error': error, 'running': question.running}


def _merge(families, text):
    """Add the lines of one exposition, family by family. What describes a family is told once."""
    known = frozenset(families)
    head = samples = None       # of the family that the lines belong to
    for line in text.split('\n'):
        if line.startswith('# '):
            name = line.split(' ', 3)[2]
            head, samples = families.setdefault(name, ([], []))
            if name not in known:
                head.append(line)
        elif line:
            samples.append(line)


def _troubles(entry):
    """What is wrong with a process, texts."""
    if 'error' in entry:
        return [entry['error']]
    hop = 'nova' if 'lookups' in entry else 'agent'
    troubles = ['%s %s down for %s: %s' % (hop, one['name'], _span(one.get('down_for')),
                                           one['last_error'])
                for one in entry.get('endpoints', ()) if not one['up']]
    namespaces = ['%s: %s' % item for item in sorted(entry.get('troubles', {}).items())]
    troubles += namespaces[:_NAMED]
    if len(namespaces) > _NAMED:
        troubles.append('%d more namespaces (--json names them)' % (len(namespaces) - _NAMED))
    api = entry.get('api', {})
    if api.get('api') == 'failing':
        waiting = api.get('waiting') and '; %d requests wait' % api['waiting'] or ''
        troubles.insert(0, 'port API failing for %s: %s%s'
                        % (_span(api.get('since')), api.get('last_error', ''), waiting))
    return troubles


def _row(entry):
    """The cells of a process, texts."""
    process = _CONTROLS.sub(' ', entry['name'].replace('-', ' ', 1))
    outcome = _CONTROLS.sub(' ', '; '.join(_troubles(entry))) or 'ok'
    if 'error' in entry:
        return [process] + ['-'] * (len(_COLUMNS) - 2) + [outcome]
    counts = _counts(entry)
    endpoints = entry.get('endpoints', ())
    figures = [entry['pid'], _span(entry['uptime'])] + counts
    return [process] + ['%s' % one for one in figures] + [
        _latency(entry['latency']['p99']), '%d' % entry['connections'],
        _hits(entry.get('lookups', {})),
        _share(entry.get('namespaces')) or
        '%d/%d up' % (sum(1 for one in endpoints if one['up']), len(endpoints)), outcome]


def _share(namespaces):
    """How many namespaces a master serves, in place of what is up behind others."""
    if namespaces:
        return '%d/%d served' % (namespaces['served'], sum(namespaces.values()) - namespaces['waiting'])


def _counts(entry):
    """Requests in all, and of each class of status, as in the table."""
    requests = entry['requests']
    of = [sum(count for status, count in requests.items() if status[0] in first)
          for first in ('23', '4', '5', '0')]
    return [sum(of)] + of


def _sums(entries):
    told = [entry for entry in entries if 'error' not in entry]
    sums = [sum(column) for column in zip(*map(_counts, told))] or [0] * 5
    return ('%d processes, %d in trouble; %d requests: %d ok, %d 4xx, %d 5xx, %d cut off; '
            '%d connections' % tuple([len(entries), sum(1 for entry in entries if _troubles(entry))]
                                     + sums + [sum(entry['connections'] for entry in told)]))


def _hits(lookups):
    """Share of lookups that needed no call of their own to the port API."""
    total = sum(lookups.values())
    if not total:
        return '-'
    shared = sum(lookups.get(outcome, 0) for outcome in ('hit', 'shared', 'stale'))
    return '%d (%d%% hit)' % (total, 100 * shared // total)


def _span(seconds):
    """A duration in at most two units: 12s, 4m05s, 2h13m, 9d04h."""
    if seconds is None:
        return 'unknown time'
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    for big, small, form in ((days, hours, '%dd%02dh'), (hours, minutes, '%dh%02dm'),
                             (minutes, seconds, '%dm%02ds')):
        if big:
            return form % (big, small)
    return '%ds' % seconds


def _latency(seconds):
    if seconds is None:
        return '-'
    return '%.1fms' % (seconds * 1000) if seconds < 1 else '%.1fs' % seconds


def _text(name):
    """A file's name, or a system's words, as text."""
    return name.decode('utf-8', 'replace') if isinstance(name, bytes) else name


def _native(text):
    return text.encode('utf-8') if str is bytes else text
