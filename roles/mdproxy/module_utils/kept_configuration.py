"""A node's configuration as it was before a run that changed it.

FOLDER/RUN/node.tar has the files of jobs and configuration as they were before RUN changed the first of
them, with owner and mode, and the links to the release that they ran with. The names of runs sort as
their times do. It holds secrets, and is root's alone.
"""
from __future__ import absolute_import, division, print_function

import collections
import glob
import io
import os
import shutil
import tarfile
import tempfile

_ARCHIVE, _RESTORED = 'node.tar', 'restored'

# What the modules take, and what roles/mdproxy/vars/main.yml gives them as mdproxy_keep. paths: folders, of
# which every file counts, and shell patterns of files. links: those that lead to the release.
ARGUMENTS = dict(folder=dict(type='path', required=True), run=dict(type='str', required=True),
                 runs=dict(type='int', required=True),
                 paths=dict(type='list', elements='str', required=True),
                 links=dict(type='list', elements='path', required=True))

# content: of a file its bytes, of a link where it leads; is_link tells which.
Entry = collections.namedtuple('Entry', 'content mode uid gid is_link')


def keep(module, arguments):
    """Keep what there is, for a module that is about to change it; where that cannot be, fail it."""
    try:
        Kept(arguments).keep()
    except EnvironmentError as error:
        module.fail_json(msg='%s: the configuration cannot be kept as it is (%s), so nothing was changed; '
                         'make room there and let root write'
                         % (arguments['folder'], error.strerror or error))


class Kept(object):
    """What is kept on this node; arguments are those of ARGUMENTS."""

    def __init__(self, arguments):
        self.folder, self.run, self._runs = arguments['folder'], arguments['run'], arguments['runs']
        self._paths, self._links = arguments['paths'], arguments['links']

    def present(self):
        """{path: Entry} of the files and links that there are now."""
        entries = {}
        for path in sorted(set(self._files())):
            stat = os.stat(path)
            with open(path, 'rb') as source:
                entries[path] = Entry(source.read(), stat.st_mode & 0o7777, stat.st_uid, stat.st_gid, False)
        for path in self._links:
            if os.path.islink(path):
                entries[path] = Entry(os.readlink(path), 0o777, 0, 0, True)
        return entries

    def _files(self):
        for pattern in self._paths:
            if os.path.isdir(pattern):
                for folder, _, names in os.walk(pattern):
                    for name in names:
                        # Not what a run that was cut short left beside the file that it was writing.
                        if not name.startswith('.') and os.path.isfile(os.path.join(folder, name)):
                            yield os.path.join(folder, name)
            else:
                for path in glob.glob(pattern):
                    if os.path.isfile(path):
                        yield path

    def keep(self):
        """Keep what there is now, unless this run has done so before it changed something."""
        archive = os.path.join(self.folder, self.run, _ARCHIVE)
        if os.path.exists(archive):
            return
        for folder in (self.folder, os.path.dirname(archive)):
            if not os.path.isdir(folder):
                os.makedirs(folder)
            os.chmod(folder, 0o700)
        descriptor, partial = tempfile.mkstemp(dir=os.path.dirname(archive))     # 0600
        try:
            with os.fdopen(descriptor, 'wb') as out:
                packed = tarfile.open(fileobj=out, mode='w')
                for path, entry in sorted(self.present().items()):
                    packed.addfile(*_member(path, entry))
                packed.close()
                out.flush()
                os.fsync(out.fileno())
            os.rename(partial, archive)
        except EnvironmentError:
            os.unlink(partial)
            raise
        for run in self.runs()[self._runs:]:
            shutil.rmtree(os.path.join(self.folder, run))

    def runs(self):
        """The runs before which something was kept, the last one first."""
        names = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        return [name for name in sorted(names, reverse=True)
                if os.path.exists(os.path.join(self.folder, name, _ARCHIVE))]

    def restored(self, what):
        """The run that was gone back to last, unless another one has changed something since; or None."""
        try:
            with open(os.path.join(self.folder, _RESTORED)) as note:
                told, before, at = note.read().split()
        except (IOError, ValueError):
            return None
        runs = self.runs()
        return before if told == what and before in runs and runs[0] <= at else None

    def note_restored(self, what, before):
        """Note that this run went back to what there was before another."""
        path = os.path.join(self.folder, _RESTORED)
        with open(path + '.new', 'w') as note:
            note.write('%s %s %s\n' % (what, before, self.run))
        os.rename(path + '.new', path)

    def before(self, run):
        """{path: Entry} of what there was before a run."""
        entries = {}
        packed = tarfile.open(os.path.join(self.folder, run, _ARCHIVE))
        try:
            for member in packed.getmembers():
                content = member.linkname if member.issym() else packed.extractfile(member).read()
                entries['/' + member.name] = Entry(content, member.mode, member.uid, member.gid,
                                                   member.issym())
        finally:
            packed.close()
        return entries


def _member(path, entry):
    member = tarfile.TarInfo(path.lstrip('/'))
    member.mode, member.uid, member.gid = entry.mode, entry.uid, entry.gid
    if entry.is_link:
        member.type, member.linkname = tarfile.SYMTYPE, entry.content
        return member, None
    member.size = len(entry.content)
    return member, io.BytesIO(entry.content)


def put(path, entry):
    """Bring a file or a link to what it was, in one step and never readable by more than it was."""
    if not os.path.isdir(os.path.dirname(path)):
        os.makedirs(os.path.dirname(path), 0o755)
    if entry.is_link:
        partial = path + '.new'
        if os.path.lexists(partial):
            os.unlink(partial)
        os.symlink(entry.content, partial)
    else:
        descriptor, partial = tempfile.mkstemp(dir=os.path.dirname(path), prefix='.mdproxy-')
        with os.fdopen(descriptor, 'wb') as out:
            out.write(entry.content)
            os.fchown(out.fileno(), entry.uid, entry.gid)
            os.fchmod(out.fileno(), entry.mode)
    os.rename(partial, path)
