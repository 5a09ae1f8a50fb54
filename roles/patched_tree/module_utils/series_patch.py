"""Patches as `git format-patch --no-renames` writes them: reading, and applying in memory.

Bytes in, bytes out; nothing here touches a file. A patch is read strictly: line counts must match
their header, and what this does not know (binary files, renames, links) is an error, not skipped.

A hunk applies where all lines of its old side stand; nothing is left out of the comparison. That is
at the line that its header names, or, where moving is allowed, at the one other place in the file.
To be moved it must fit the file's ends as in `git apply`: a hunk without context above its changes
was made at the start of the file and belongs there, one without context below at the end.
"""
from __future__ import absolute_import, division, print_function

import collections
import io
import re

_REGULAR = (b'100644', b'100755')
_MODES = (b'old mode ', b'new mode ', b'new file mode ', b'deleted file mode ')
_HUNK = re.compile(br'@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@')

# path: in the git tree. patch: name of the patch file. created, deleted: whether the file is.
Change = collections.namedtuple('Change', 'patch path created deleted hunks')
# start: index of the first old line. old, new: lines of either side. top, bottom: where the file's
# first or last line belongs to the hunk.
Hunk = collections.namedtuple('Hunk', 'name start old new top bottom')
# content: bytes, or None for no file. moved: sentences on hunks that apply elsewhere.
# refused: what does not apply, a name for each hunk.
Applied = collections.namedtuple('Applied', 'content moved refused')


class PatchError(Exception):
    """A patch that cannot be read; the text names the patch and says what is wrong with it."""


def checked_path(path):
    """The path, if it stays below the folder it is relative to; PatchError otherwise."""
    if path.startswith('/') or set(path.split('/')) & set(['', '.', '..']):
        raise PatchError('%r is not a path inside a tree' % path)
    return path


def read_patch(name, data):
    """The Changes in the bytes of a patch file, in their order; PatchError if there is none."""
    lines = _Lines(name, data)
    while lines.next() is not None and not lines.next().startswith(b'diff --git '):
        lines.take()
    changes = []
    while lines.next() is not None:
        changes.append(_read_change(lines))
    if not changes:
        raise PatchError('%s: changes no file' % name)
    return changes


def apply(content, changes, moving=False):
    """The content of one file after its Changes, as Applied. moving: hunks may have moved.

    What does not apply is left out and noted, so that all there is to say is said at once.
    """
    moved, refused = [], []
    for change in changes:
        content = _apply_change(content, change, moving, moved, refused)
    return Applied(content, moved, refused)


class _Lines(object):
    """The lines of a patch, one after the other, and errors that name the current one."""

    def __init__(self, name, data):
        self.name, self.number = name, 0
        self._lines = data.split(b'\n')
        if self._lines.pop():
            raise PatchError('%s: is cut short, its last line has no end' % name)

    def next(self):
        """The next line without its end, which stays; None after the last."""
        return self._lines[self.number] if self.number < len(self._lines) else None

    def take(self):
        line = self.next()
        if line is None:
            raise PatchError('%s: is cut short, its last hunk is not complete' % self.name)
        self.number += 1
        return line

    def starts(self, prefix):
        return self.next() is not None and self.next().startswith(prefix)

    def error(self, problem):
        return PatchError('%s: line %d: %s' % (self.name, self.number, problem))


def _read_change(lines):
    path = _read_path(lines)
    created = deleted = False
    while lines.starts((b'index ',) + _MODES):
        line = lines.take()
        created = created or line.startswith(b'new file ')
        deleted = deleted or line.startswith(b'deleted file ')
        if line.startswith(_MODES) and not line.endswith(_REGULAR):
            raise lines.error('%s is not a regular file' % path)
    if lines.starts((b'GIT binary patch', b'Binary files ')):
        raise lines.error('%s is a binary file, and only text can be patched' % path)
    hunks = []
    if lines.starts(b'--- '):
        _take_exactly(lines, b'--- ', '/dev/null' if created else 'a/' + path)
        _take_exactly(lines, b'+++ ', '/dev/null' if deleted else 'b/' + path)
        if not lines.starts(b'@@ '):
            lines.take()
            raise lines.error('a hunk was expected')
        while lines.starts(b'@@ '):
            hunks.append(_read_hunk(lines, path))
    if lines.next() is not None and not lines.starts(b'diff --git '):
        lines.take()
        raise lines.error('this does not belong to a diff made with --no-renames --no-signature')
    return Change(lines.name, path, created, deleted, hunks)


def _read_path(lines):
    """The path of `diff --git a/PATH b/PATH`, which has no quotes and is the same on both sides."""
    both = lines.take()[len(b'diff --git '):]
    old, new = both[:len(both) // 2], both[len(both) // 2 + 1:]
    if not old.startswith(b'a/') or not new.startswith(b'b/') or old[2:] != new[2:]:
        raise lines.error('a path was expected that is the same on both sides and has no quotes')
    try:
        return checked_path(str(old[2:].decode('ascii')))
    except (UnicodeDecodeError, PatchError):
        raise lines.error('%r is not a path inside a tree' % old[2:])


def _take_exactly(lines, prefix, path):
    # git ends a path that has a space with a tab.
    if lines.take().rstrip(b'\t') != prefix + path.encode('ascii'):
        raise lines.error('"%s%s" was expected' % (prefix.decode('ascii'), path))


def _read_hunk(lines, path):
    header = _HUNK.match(lines.take())
    if not header:
        raise lines.error('the header of a hunk was expected')
    start = int(header.group(1))
    left = dict((sign, int(count or b'1')) for sign, count in
                ((b'-', header.group(2)), (b'+', header.group(4))))
    sides, kinds = {b'-': [], b'+': []}, []
    while max(left.values()) > 0:
        line = lines.take()
        kind = line[:1]
        signs = {b' ': b'-+', b'-': b'-', b'+': b'+'}.get(kind)
        if signs is None:
            raise lines.error('a line of the hunk was expected')
        kinds.append(kind)
        ends = b'\n'
        if lines.starts(b'\\ '):
            lines.take()
            ends = b''
        for sign in (signs[:1], signs[1:]):
            if sign:
                sides[sign].append(line[1:] + ends)
                left[sign] -= 1
    old, new = sides[b'-'], sides[b'+']
    if (any(left.values()) or old and not start
            or not all(line.endswith(b'\n') for line in old[:-1] + new[:-1])):
        raise lines.error('the hunk has other lines than its header says')
    return Hunk('%s: %s %s' % (lines.name, path, header.group(0).decode('ascii')),
                start - 1 if old else start, old, new,
                kinds[:1] != [b' '], kinds[-1:] != [b' '])


def _apply_change(content, change, moving, moved, refused):
    """The content after one Change; additions to `moved` and `refused` say what was odd."""
    this = '%s: %s' % (change.patch, change.path)
    if change.created != (content is None):
        refused.append('%s (%s)' % (this, 'exists already' if change.created else 'is missing'))
        return content
    lines = io.BytesIO(content or b'').readlines()      # which ends lines at line feeds alone
    after, done, shift = [], 0, 0
    for hunk in change.hunks:
        place = _place(hunk, lines, done, shift, moving)
        if place is None:
            refused.append(hunk.name)
            continue
        if place != hunk.start:
            moved.append('%s applies at line %d' % (hunk.name, place + 1))
        shift = place - hunk.start
        after += lines[done:place] + hunk.new
        done = place + len(hunk.old)
    content = b''.join(after + lines[done:])
    if not change.deleted:
        return content
    if content:
        refused.append('%s (has more in it than is removed)' % this)
    return content or None


def _place(hunk, lines, done, shift, moving):
    """Index of the line where the hunk applies, or None. done: lines that hunks before it used."""
    size = len(hunk.old)

    def fits(place):
        return lines[place:place + size] == hunk.old

    if not moving:
        return hunk.start if hunk.start >= done and fits(hunk.start) else None
    last = len(lines) - size
    places = [place for place in range(last + 1) if fits(place)
              and (place == 0 or not hunk.top) and (place == last or not hunk.bottom)]
    expected = hunk.start + shift
    if expected not in places:
        if len(places) != 1:
            return None
        expected = places[0]
    return expected if expected >= done else None
