"""From a base and the series' data to commits on it, one for each entry.

Who knows whom: git_store has the objects, resolution fits one file's text, and this module walks the
series. It reads nothing but the store and our own patches.
"""
import datetime
import email.parser
import email.policy
import email.utils
import hashlib
import os
import re

from ansible.module_utils.git_store import Commit, GitError
from ansible.module_utils.resolution import ResolutionError, conflicts, edit, marked, merge, take

_CHANGE_ID = re.compile(r'^Change-Id: (I[0-9a-f]{40})$', re.MULTILINE)


class SeriesError(Exception):
    """A series cannot be made; the message is one for the operator."""


class Build:
    """The series on a base: `head` is its last commit, `patches` says of each what became of it."""

    def __init__(self, store, project, base, folder):
        """store: with the tag `base` and every commit. folder: where our own patches are."""
        self.store, self.project, self.base, self.folder = store, project, base, folder
        self.root = self.head = store.find('refs/tags/%s^{commit}' % base)
        self.patches = []
        store.start(self.root)

    def add(self, entry):
        """Put one entry of the series on top. Raises SeriesError."""
        name = 'commit %s' % entry['commit'][:10] if entry['commit'] else entry['patch']
        try:
            made = self._pick(entry) if entry['commit'] else self._ours(entry)
        except (ResolutionError, GitError) as error:
            raise SeriesError('%s %s, %s: %s' % (self.project, self.base, name, error))
        before, self.head = self.head, made.pop('made')
        files = [path for path, _, _ in self.store.changes(before, self.head)]
        if not files:
            raise SeriesError('%s %s, %s: changes nothing on this base; take it out of the series'
                              % (self.project, self.base, name))
        self.patches.append(dict(made, fixes=entry['fixes'], why=entry['why'], files=sorted(files)))

    def files(self):
        """{path: {before, after, mode}}: SHA-256 of each file that the series touches, None where absent."""
        found = {}
        for path, _, mode in self.store.changes(self.root, self.head):
            before, after = (self.store.content(revision, path) for revision in (self.root, self.head))
            found[path] = {'before': digest(before), 'after': digest(after),
                           'mode': mode if after is not None else None}
        return found

    def _pick(self, entry):
        commit = Commit(self.store, entry['commit'])
        resolutions = {item['file']: item for item in entry['resolve']
                       if not item['bases'] or self.base in item['bases']}
        notes, left = [], set(entry['leave_out'])
        for path, *modes in list(self.store.changes(commit.parent, commit.sha)):
            if path in left:
                left.discard(path)
                notes.append('%s is not taken' % path)
                continue
            to = _placed(path, entry['paths'])
            item = resolutions.pop(to, None)
            notes += self._file(commit, modes, path, to, item)
        unused = sorted(left) + sorted(resolutions)
        if unused:
            raise ResolutionError('the series names %s, which this commit does not change'
                                  % ', '.join(unused))
        message = commit.message + '\n(cherry picked from commit %s)\n' % commit.sha
        if notes:
            message += '\nFitted to %s:\n%s' % (self.base, ''.join('- %s\n' % note for note in notes))
        change = _CHANGE_ID.findall(commit.message)
        return {'made': self.store.commit(self.head, (commit.name, commit.email, commit.date), message),
                'commit': commit.sha, 'change_id': change[-1] if change else None,
                'subject': commit.subject, 'outcome': 'resolved' if notes else 'clean', 'notes': notes,
                'replaces': []}

    def _file(self, commit, modes, path, to, item):
        """Bring one file's change into the index; what had to be done beyond that, as notes."""
        before, theirs = (self.store.content(revision, path) for revision in (commit.parent, commit.sha))
        ours = self.store.content('', to)
        if (ours is None) != (before is None):
            raise ResolutionError('%s %s in the series so far, and upstream\'s commit %s it' % (
                to, 'is not' if ours is None else 'is already', 'adds' if before is None else 'changes'))
        if theirs is None:
            if ours != before:
                raise ResolutionError('%s differs from what upstream\'s commit removes' % to)
            self.store.remove(to)
            return ['%s stands for %s' % (to, path)] if to != path else []
        text = merge(ours, before, theirs) if before is not None else theirs
        found = len(conflicts(text))
        try:
            text = take(text, item['take'] if item else [])
            for change in item['edits'] if item else []:
                text = edit(text, change['find'].encode('utf-8'), change['with'].encode('utf-8'),
                            change['times'])
        except ResolutionError as error:
            raise ResolutionError('%s: %s' % (to, error))
        if marked(text):
            raise ResolutionError('%s: a conflict\'s marker is left in it' % to)
        # Upstream's mode only where its commit is what sets it.
        self.store.put(to, text, modes[1] if modes[0] != modes[1] else self.store.mode(to))
        return _notes(path, to, found, item)

    def _ours(self, entry):
        try:
            with open(os.path.join(self.folder, entry['patch']), 'rb') as source:
                author, subject, text, body = _read_patch(source.read())
        except (OSError, TypeError, ValueError) as error:
            raise ResolutionError('cannot be read as a patch (From, Date and Subject, a text, a line "---", '
                                  'a diff): %s' % error)
        self.store.apply(body)
        made = self.store.commit(self.head, author, '%s\n\n%s\n' % (subject, text))
        return {'made': made, 'commit': None, 'change_id': None, 'subject': subject, 'outcome': 'ours',
                'notes': [], 'replaces': entry['replaces']}


def digest(content):
    """SHA-256 in hex, None of None."""
    return None if content is None else hashlib.sha256(content).hexdigest()


def _read_patch(raw):
    """(author, subject, text, diff) of a patch of ours, also of one that git format-patch made.

    Raises TypeError or ValueError for what is none.
    """
    head, body = raw.split(b'\n---\n', 1)
    mail = email.parser.BytesParser(policy=email.policy.default).parsebytes(head + b'\n')
    name, address = email.utils.parseaddr(mail['From'])
    date = email.utils.parsedate_to_datetime(mail['Date'])
    seconds = (date if date.tzinfo else date.replace(tzinfo=datetime.timezone.utc)).timestamp()
    subject = re.sub(r'^(\[PATCH[^]]*\] *)+', '', str(mail['Subject']))
    if not address or not mail['Subject']:
        raise ValueError('From or Subject is missing')
    return (name, address, '%d +0000' % seconds), subject, mail.get_content().strip(), body


def _placed(path, paths):
    """Where a file of upstream's layout lies in Folsom: the longest beginning in `paths` counts."""
    for beginning in sorted(paths, key=len, reverse=True):
        if path.startswith(beginning):
            return paths[beginning] + path[len(beginning):]
    return path


def _notes(path, to, found, item):
    notes = []
    if to != path:
        notes.append('%s stands for %s' % (to, path))
    if found:
        notes.append('%s: %d conflict%s resolved' % (to, found, '' if found == 1 else 's'))
    if item and item['edits']:
        notes.append('%s: %d edit%s' % (to, len(item['edits']), '' if len(item['edits']) == 1 else 's'))
    return notes
