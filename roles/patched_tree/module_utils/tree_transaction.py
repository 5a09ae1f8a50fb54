"""Replacing many files so that all are replaced or none, whenever the process ends.

A Transaction has a folder of its own, in which it keeps

- `backups/`, contents under their SHA-256, so that what is there is whole or was never written;
- `state.json`, the record of what the user of this module did, replaced with the files and as one
  of them;
- `journal.json`, only while files are being changed: what each was and what it is to be.

Before the first change everything that will be replaced is in `backups/`, and the journal is on
the disk. The new files are then written beside their places, which is where a full disk shows,
and renamed there. The journal's removal is what makes the change good: where there is a journal,
the change was cut short, and undo() takes back what was done of it.

What stands at a path is a dict, which JSON can hold: a file (sha256, mode, uid, gid, mtime in
nanoseconds), a link (link, uid, gid), a folder (folder, mode, uid, gid); or None, nothing.
"""
from __future__ import absolute_import, division, print_function

import collections
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
import sys

# Beside a file that is about to be replaced. Not *.py: services load whole folders of those.
_TEMPORARY = '.%s.patched-tree'
# Python 2.7 reads and sets times in microseconds at best.
_NANOSECONDS = hasattr(os.stat_result, 'st_mtime_ns')

# path: without links in its folders. state: what is to stand there. source: path of the file that
# this one was made from, if it was; then it is taken back when that is, whatever it holds by then.
Step = collections.namedtuple('Step', 'path state source')


class TransactionError(Exception):
    """What went wrong, and in what state that leaves the files."""


def state_of(path):
    """What stands at a path; a link is not followed."""
    try:
        found = os.lstat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise
    state = dict(uid=found.st_uid, gid=found.st_gid)
    if stat.S_ISLNK(found.st_mode):
        return dict(state, link=os.readlink(path))
    state['mode'] = stat.S_IMODE(found.st_mode)
    if stat.S_ISDIR(found.st_mode):
        return dict(state, folder=True)
    if not stat.S_ISREG(found.st_mode):
        raise TransactionError('%s is neither a file, a link nor a folder' % path)
    mtime = (found.st_mtime_ns if _NANOSECONDS else int(found.st_mtime * 1e6 + 0.5) * 1000)
    return dict(state, sha256=digest(read(path)), mtime=mtime)


def same(one, other):
    """Whether two states hold the same; owner, mode and time aside."""
    if one is None or other is None:
        return one is other
    return all(one.get(key) == other.get(key) for key in ('sha256', 'link', 'folder'))


def digest(content):
    return hashlib.sha256(content).hexdigest()


def read(path):
    with open(path, 'rb') as source:
        return source.read()


class Transaction(object):
    """Changes of files, and what is kept of them in a folder."""

    def __init__(self, folder):
        self.folder = folder
        self.record_path = os.path.join(folder, 'state.json')
        self._journal = os.path.join(folder, 'journal.json')
        self._backups = os.path.join(folder, 'backups')

    def lock(self, make):
        """Keep other processes out of the folder until this one ends. make: also where there is none."""
        if make and not os.path.isdir(self._backups):
            os.makedirs(self._backups, 0o755)
        if not os.path.isdir(self.folder):
            return
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except IOError:
            raise TransactionError('%s: another run is at work there; let it end first' % self.folder)

    def add(self, content):
        """Keep a content; its SHA-256."""
        name = digest(content)
        path = os.path.join(self._backups, name)
        if not os.path.exists(path) or read(path) != content:
            _save(path, content)
        return name

    def content(self, sha256):
        """A content that is kept."""
        path = os.path.join(self._backups, sha256)
        content = read(path)
        if digest(content) != sha256:
            raise TransactionError('%s is damaged: its checksum is not its name. Reinstall the files and '
                                   'remove %s' % (path, self.folder))
        return content

    def record(self, text):
        """The Step that makes this text the record, for the end of a list of steps; None: no record."""
        state = None
        if text is not None:
            state = dict(sha256=self.add(text), mode=0o644, uid=os.getuid(), gid=os.getgid(), mtime=None)
        return Step(self.record_path, state, None)

    def run(self, steps):
        """Take all steps, in their order, or none; TransactionError says why none.

        Contents of the states must have been added. A folder goes only if it is empty by then.
        """
        entries = []
        try:
            for step in steps:
                before = state_of(step.path)
                if before and 'sha256' in before:
                    before['sha256'] = self.add(read(step.path))
                entries.append(dict(path=step.path, before=before, after=step.state, source=step.source))
            _sync_folder(self._backups)
            _save(self._journal, json.dumps(entries, sort_keys=True).encode('ascii'))
            _sync_folder(self.folder)
            self._put([(step.path, step.state) for step in steps])
            _remove_file(self._journal)
        except BaseException as error:
            self._take_back(error)
        try:
            _sync_folder(self.folder)
        except EnvironmentError:
            pass        # All is done. Should the journal come back with a power cut, it is undone.

    def interrupted(self):
        """What undo() would do: {path: what it was} and the paths that it would leave; None if nothing.

        A file that is neither as it was nor as it was to be was changed by somebody since, by a package's
        upgrade for one. It is left, and so is what was made from it.
        """
        if not os.path.exists(self._journal):
            return None
        restore, left = collections.OrderedDict(), []
        entries = self._entries()
        for entry in reversed(entries):
            path, now = entry['path'], state_of(entry['path'])
            parent = os.path.dirname(path)
            if entry['source']:
                restore[path] = entry['before']
            elif same(now, entry['after']) and (os.path.isdir(parent) or restore.get(parent)):
                restore[path] = entry['before']
            elif not same(now, entry['before']):
                left.append(path)
        for entry in entries:
            if entry['source'] in left:
                restore.pop(entry['path'], None)
        return restore, left

    def undo(self):
        """Take back a change that was cut short, which may be tried again if it fails."""
        restore, _ = self.interrupted()
        for entry in self._entries():
            _remove_file(_temporary(entry['path']))
        self._put(list(restore.items()))
        _remove_file(self._journal)
        _sync_folder(self.folder)

    def has_backups(self):
        """Whether contents are kept."""
        return os.path.isdir(self._backups) and bool(os.listdir(self._backups))

    def clean(self, keep):
        """Remove contents that are kept for nothing any more, and the folder when it is empty."""
        if os.path.exists(self._journal) or not os.path.isdir(self._backups):
            return
        for name in os.listdir(self._backups):
            if name not in keep:
                os.unlink(os.path.join(self._backups, name))
        _remove_file(self._journal + '.new')
        for folder in (self._backups, self.folder):
            _remove_folder(folder)

    def _entries(self):
        return parse(self._journal, read(self._journal))

    def _put(self, states):
        """Make the paths what the states say; all is written before the first is replaced."""
        for path, state in states:
            with _about(path):
                if state and 'folder' in state:
                    if not os.path.isdir(path):
                        os.mkdir(path)
                    _own_folder(path, state)
                elif state:
                    self._prepare(_temporary(path), state)
        for path, state in states:
            with _about(path):
                if state is None:
                    _remove(path)
                elif 'folder' not in state:
                    os.rename(_temporary(path), path)
        for folder in set(os.path.dirname(path) for path, _ in states):
            if os.path.isdir(folder):
                _sync_folder(folder)

    def _prepare(self, path, state):
        if 'link' in state:
            os.symlink(state['link'], path)
            os.lchown(path, state['uid'], state['gid'])
            return
        _write(path, self.content(state['sha256']), state)

    def _take_back(self, error):
        """After an error: undo, and raise a TransactionError that says how that went."""
        said = describe(error)
        try:
            if os.path.exists(self._journal):
                self.undo()
        except Exception as second:
            raise TransactionError(
                '%s; and to go back failed too, so some files are changed (%s). The next run goes on '
                'with going back' % (said, describe(second)))
        if not isinstance(error, Exception):
            raise error
        raise TransactionError('%s; every file is as it was' % said)


def describe(error):
    """An error in words, with the file it is about."""
    if isinstance(error, EnvironmentError) and error.strerror:
        return '%s: %s' % (error.filename, error.strerror) if error.filename else error.strerror
    return str(error) or type(error).__name__


def parse(path, content):
    """What a JSON file says, in this Python's own strings; TransactionError if it is damaged."""
    try:
        return _native(json.loads(content.decode('ascii')))
    except ValueError:
        raise TransactionError('%s is damaged: it is not JSON' % path)


def _native(value):
    if isinstance(value, dict):
        return dict((_native(key), _native(entry)) for key, entry in value.items())
    if isinstance(value, list):
        return [_native(entry) for entry in value]
    if sys.version_info[0] == 2 and isinstance(value, type(u'')):
        return value.encode('utf-8')
    return value


def _temporary(path):
    return os.path.join(os.path.dirname(path), _TEMPORARY % os.path.basename(path))


@contextlib.contextmanager
def _about(path):
    """Have errors name this path: Python 2.7 names none for many calls."""
    try:
        yield
    except EnvironmentError as error:
        error.filename = path
        raise


def _save(path, content):
    """Write a file of our own, or replace it, in one step."""
    with _about(path):
        _write(path + '.new', content)
        os.rename(path + '.new', path)


def _write(path, content, state=None):
    """Write a new file to the disk; one that is left there goes. state: whose owner, mode and time it gets.

    Without one it is for its owner alone. Owner and the like are set by the descriptor, because the folder
    may be somebody's who puts a link in the file's place meanwhile.
    """
    _remove_file(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, 'wb') as out:
        out.write(content)
        out.flush()
        if state:
            _own(out.fileno(), state)
            if state['mtime'] is not None:
                _set_time(out.fileno(), state['mtime'])
        os.fsync(out.fileno())


def _own_folder(path, state):
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _own(descriptor, state)
    finally:
        os.close(descriptor)


def _own(descriptor, state):
    found = os.fstat(descriptor)
    if (found.st_uid, found.st_gid) != (state['uid'], state['gid']):
        os.fchown(descriptor, state['uid'], state['gid'])
    os.fchmod(descriptor, state['mode'])        # last: a change of owner takes bits away


def _set_time(descriptor, nanoseconds):
    if _NANOSECONDS:
        os.utime(descriptor, ns=(nanoseconds, nanoseconds))
    else:       # half a microsecond more, because the rest is cut off
        os.utime('/proc/self/fd/%d' % descriptor, ((nanoseconds // 1000 + 0.5) / 1e6,) * 2)


def _remove(path):
    if os.path.isdir(path) and not os.path.islink(path):
        _remove_folder(path)
    else:
        _remove_file(path)


def _remove_file(path):
    with _about(path):
        if os.path.lexists(path):
            os.unlink(path)


def _remove_folder(path):
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _sync_folder(path):
    with _about(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
