"""Makes patches and series as the backport does, from contents, without git."""
import base64
import difflib
import hashlib
import io
import json
import zlib

_NO_END = '\\ No newline at end of file\n'


def sha256(content):
    return None if content is None else hashlib.sha256(content).hexdigest()


def _lines(content):
    return [line.decode('latin-1') for line in io.BytesIO(content or b'').readlines()]


def diff(path, before, after, mode='100644', context=3):
    """What git says of one file; None is no file."""
    out = ['diff --git a/%s b/%s\n' % (path, path)]
    if before is None:
        out.append('new file mode %s\n' % mode)
    if after is None:
        out.append('deleted file mode %s\n' % mode)
    out.append('index %s..%s%s\n' % ('0' * 40, '1' * 40, '' if None in (before, after) else ' 100644'))
    hunks = list(difflib.unified_diff(_lines(before), _lines(after), n=context))[2:]
    if hunks:
        out += ['--- %s\n' % ('/dev/null' if before is None else 'a/' + path),
                '+++ %s\n' % ('/dev/null' if after is None else 'b/' + path)]
    out += [line if line.endswith('\n') else line + '\n' + _NO_END for line in hunks]
    return ''.join(out).encode('latin-1')


def patch(diffs, subject='a change'):
    head = ('From %s Mon Sep 17 00:00:00 2001\nFrom: A <a@b.c>\nDate: Fri, 1 Mar 2013 00:00:00 +0000\n'
            'Subject: [PATCH] %s\n\nWhy.\n---\n 1 file changed\n\n' % ('0' * 40, subject))
    return head.encode('ascii') + b''.join(diffs)


class Series(object):
    """A series on a tree. Each step gives the paths that one patch changes their new contents."""

    def __init__(self, tree, *steps, **manifest):
        """tree: {path: content}. manifest: entries of the manifest that are not the usual ones."""
        now, self.patches, self.modes = dict(tree), {}, {}
        for number, step in enumerate(steps):
            name = '%04d-step.patch' % (number + 1)
            self.patches[name] = patch([diff(path, now.get(path), step[path]) for path in sorted(step)])
            now.update(step)
        paths = set(path for step in steps for path in step)
        self.after = dict((path, now[path]) for path in paths)
        self.manifest = dict(
            schema=1, project='nova', base='2012.2.4', series='0123456789ab',
            patches=[dict(file=name, sha256=sha256(content), subject='a change')
                     for name, content in sorted(self.patches.items())],
            files=dict((path, dict(before=sha256(tree.get(path)), after=sha256(now[path]), mode='100644'))
                       for path in paths))
        self.manifest.update(manifest)

    def packed(self):
        """As the lookup packs it."""
        text = json.dumps(dict(manifest=self.manifest, patches=dict(
            (name, content.decode('latin-1')) for name, content in self.patches.items())), sort_keys=True)
        return base64.b64encode(zlib.compress(text.encode('ascii'))).decode('ascii')
