"""How a change made for a later release is fitted to Folsom's text of a file.

A cherry-pick is a three-way merge: what upstream's commit changed is applied to the file as the series
has it so far. Where both touched the same lines there is a conflict, and the series' data says what to
take of each, from the top of the file down:

    ours    Folsom's lines
    theirs  upstream's lines
    added   Folsom's lines, and after them those that upstream's commit added to its own (and it must
            have done nothing but add)

Edits come last. Each replaces a text as often as it says and is an error when the text is there more
or less often: data that does not fit the tree it meets must not pass in silence.
"""
import difflib
import os
import re
import subprocess
import tempfile

_SIDES = ('ours', 'before', 'theirs')
_CONFLICT = re.compile(br'^<{7} ours\n(.*?)^\|{7} before\n(.*?)^={7}\n(.*?)^>{7} theirs\n',
                       re.DOTALL | re.MULTILINE)
# A line that only an unresolved conflict leaves; a row of `=` alone may be a heading.
_MARKER = re.compile(br'^(<{7}|\|{7}|>{7}) ', re.MULTILINE)
_CONTEXT = 3    # lines shown around a place


class ResolutionError(Exception):
    """The data of a resolution does not fit; the message shows the place."""


def merge(ours, before, theirs):
    """The three-way merge of a file's bytes, with conflicts marked in git's diff3 style."""
    with tempfile.TemporaryDirectory(prefix='backport-') as folder:
        for side, content in zip(_SIDES, (ours, before, theirs)):
            with open(os.path.join(folder, side), 'wb') as out:
                out.write(content)
        labels = [word for side in _SIDES for word in ('-L', side)]
        process = subprocess.run(['git', 'merge-file', '-p', '--diff3', *labels, *_SIDES], cwd=folder,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 env={'PATH': os.environ.get('PATH', os.defpath), 'LC_ALL': 'C',
                                      'GIT_CONFIG_NOSYSTEM': '1', 'GIT_CONFIG_GLOBAL': os.devnull})
    if process.returncode > 127 or process.returncode < 0:     # else the number of conflicts
        raise ResolutionError('git merge-file: %s' % process.stderr.decode('utf-8', 'replace').strip())
    return process.stdout


def conflicts(text):
    """The conflicts of a merged text, as they are marked in it."""
    return [match.group(0) for match in _CONFLICT.finditer(text)]


def take(text, choices):
    """The merged text with every conflict resolved, the first by the first choice and so on.

    Raises ResolutionError when there are more or fewer conflicts than choices.
    """
    found = conflicts(text)
    if len(found) != len(choices):
        raise ResolutionError('%s where `take` resolves %d%s' % (
            _count(len(found), 'conflict'), len(choices),
            ''.join('\nconflict %d:\n%s' % (number, _shown(hunk))
                    for number, hunk in enumerate(found, 1))))
    remaining = iter(choices)
    return _CONFLICT.sub(lambda match: _chosen(next(remaining), *match.groups()), text)


def _chosen(choice, ours, before, theirs):
    if choice == 'added':
        return ours + b''.join(_added(before.splitlines(True), theirs.splitlines(True)))
    return {'ours': ours, 'theirs': theirs}[choice]


def _added(before, after):
    for kind, _, _, low, high in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == 'insert':
            yield from after[low:high]
        elif kind != 'equal':
            raise ResolutionError('`take: added` where upstream changed lines as well:\n%s'
                                  % _shown(b''.join(after)))


def edit(text, find, replacement, times):
    """The text with `find` replaced, which must be there `times` times; else ResolutionError."""
    found = text.count(find)
    if found != times:
        places = [match.start() for match in re.finditer(re.escape(find), text)]
        raise ResolutionError('%s where an edit counts on %d, of\n%s%s' % (
            _count(found, 'place'), times, _shown(find),
            ''.join('\nat line %d:\n%s' % _around(text, place) for place in places)))
    return text.replace(find, replacement)


def marked(text):
    """True when a conflict's marker is left in the text."""
    return bool(_MARKER.search(text))


def _count(number, noun):
    return '%s %s%s' % (number or 'no', noun, '' if number == 1 else 's')


def _shown(raw):
    return '    ' + raw.decode('utf-8', 'replace').rstrip('\n').replace('\n', '\n    ')


def _around(text, place):
    """(line number, lines around it) of an offset in the text."""
    number = text.count(b'\n', 0, place)
    lines = text.splitlines(True)[max(number - _CONTEXT, 0):number + _CONTEXT + 1]
    return number + 1, _shown(b''.join(lines))
