"""git repositories: upstream's, which is only read, and one of our own, in which a series is made.

Our own borrows the objects of upstream's (git's alternates), so nothing is copied and nothing written
there. Commits are made from trees and dates alone, without the operator's git configuration, hooks,
clock or checkout: the same inputs give the same ids.
"""
import glob
import os
import subprocess

# Whatever of the operator's could change a byte of what is made.
_ISOLATED = {
    'GIT_CONFIG_NOSYSTEM': '1', 'GIT_CONFIG_GLOBAL': os.devnull, 'GIT_ATTR_NOSYSTEM': '1',
    'LC_ALL': 'C', 'TZ': 'UTC',
}
# Who commits, beside the author, who stays upstream's.
_COMMITTER = ('mdproxy backport', 'backport@mdproxy.invalid')


class GitError(Exception):
    """git refused; the message names the command and what it said."""


class Commit:
    """What is needed of an upstream commit: its id, author, date, message and first parent's id."""

    def __init__(self, store, sha):
        raw = store.git('show', '-s', '--format=%H%x00%an%x00%ae%x00%ad%x00%P%x00%B',
                        '--date=raw', sha).decode('utf-8')
        self.sha, self.name, self.email, self.date, parents, message = raw.split('\0', 5)
        if not parents:
            raise GitError('%s is the first commit of its history, which changes nothing' % self.sha)
        self.parent = parents.split()[0]
        self.message = message.strip() + '\n'
        self.subject = self.message.split('\n', 1)[0]


class Store:
    """The git directory `folder`; its index is the tree that the next commit will have."""

    def __init__(self, folder):
        self.folder = folder
        self._environment = {name: value for name, value in os.environ.items()
                             if not name.startswith('GIT_')}
        self._environment.update(_ISOLATED, GIT_DIR=folder,
                                 GIT_INDEX_FILE=os.path.join(folder, 'series.index'))

    def git(self, *words, stdin=None, environment=None):
        """What git prints, as bytes. Raises GitError when it fails."""
        return _run(words, dict(self._environment, **(environment or {})), stdin)

    def create(self, borrow=None):
        """Make the repository, bare and empty. borrow: a folder of objects to read from as well."""
        os.makedirs(self.folder)
        self.git('init', '--quiet', '--bare', '--template=')
        if borrow:
            info = os.path.join(self.folder, 'objects', 'info')
            os.makedirs(info, exist_ok=True)
            with open(os.path.join(info, 'alternates'), 'w') as out:
                out.write(borrow + '\n')

    def fetch(self, url):
        """Fetch all tags and branches, with the operator's own git configuration.

        The ways in which git asks a person for a password are closed: it fails instead.
        """
        for left in glob.glob(os.path.join(self.folder, 'objects', 'pack', 'tmp_*')):   # cut short
            os.unlink(left)
        environment = dict(_operators(), GIT_DIR=self.folder, GIT_TERMINAL_PROMPT='0')
        environment.setdefault('GIT_SSH_COMMAND', 'ssh -o BatchMode=yes')
        _run(['fetch', '--quiet', '--no-auto-gc', '--no-write-fetch-head', '--end-of-options', url,
              '+refs/tags/*:refs/tags/*', '+refs/heads/*:refs/heads/*'], environment)

    def find(self, name):
        """The full id of a revision, or None."""
        try:
            return self.git('rev-parse', '--verify', '--quiet', '--end-of-options', name).decode().strip()
        except GitError:
            return None

    def content(self, revision, path):
        """The bytes of a file in a revision, or None where it is not; '' is the index."""
        if not self.find('%s:%s' % (revision, path)):
            return None
        return self.git('cat-file', 'blob', '%s:%s' % (revision, path))

    def changes(self, before, after):
        """Yield (path, mode before, mode after) of each file that differs; renames are two files.

        Modes are git's six digits, zeros where there is no file.
        """
        raw = self.git('diff-tree', '-r', '-z', '--no-renames', before, after).decode('utf-8')
        fields = raw.split('\0')[:-1]
        for entry, path in zip(fields[::2], fields[1::2]):
            old, new = entry.lstrip(':').split(' ')[:2]
            yield path, old, new

    def mode(self, path):
        """The mode of a file of the index."""
        return self.git('ls-files', '--stage', '--', path).decode('utf-8').split(' ', 1)[0]

    def start(self, revision):
        """Make the index the tree of a revision."""
        self.git('read-tree', revision)

    def put(self, path, content, mode):
        """Set a file of the index to these bytes."""
        blob = self.git('hash-object', '-w', '--stdin', stdin=content).decode().strip()
        self.git('update-index', '--add', '--cacheinfo', '%s,%s,%s' % (mode, blob, path))

    def remove(self, path):
        """Take a file out of the index."""
        self.git('update-index', '--force-remove', '--', path)

    def apply(self, patch):
        """Apply a patch to the index, at its exact context."""
        self.git('apply', '--cached', '--whitespace=nowarn', '-', stdin=patch)

    def tree(self):
        """The id of the index's tree."""
        return self.git('write-tree').decode().strip()

    def commit(self, parent, author, message):
        """Commit the index on `parent`; author is (name, email, raw date). Returns the commit's id."""
        name, email, date = author
        return self.git('commit-tree', '-p', parent, self.tree(), stdin=message.encode('utf-8'),
                        environment={
                            'GIT_AUTHOR_NAME': name, 'GIT_AUTHOR_EMAIL': email, 'GIT_AUTHOR_DATE': date,
                            'GIT_COMMITTER_NAME': _COMMITTER[0], 'GIT_COMMITTER_EMAIL': _COMMITTER[1],
                            'GIT_COMMITTER_DATE': date}).decode().strip()

    def format(self, base, head, folder):
        """Write the commits from base to head as NNNN-*.patch; returns their names in order."""
        self.git('format-patch', '--quiet', '--no-numbered', '--full-index', '--no-renames', '--no-signature',
                 '--zero-commit', '--diff-algorithm=myers', '--unified=3', '--src-prefix=a/',
                 '--dst-prefix=b/', '--no-ext-diff', '--no-attach', '--output-directory', folder,
                 '%s..%s' % (base, head))
        return sorted(name for name in os.listdir(folder) if name.endswith('.patch'))

    def checkout(self, revision, folder):
        """Write a revision's files to a new folder."""
        os.makedirs(folder)
        self.start(revision)
        self.git('checkout-index', '--all', environment={'GIT_WORK_TREE': folder})


def opened(clone):
    """The Store of a local clone (a checkout, a worktree or a bare repository), for reading."""
    found = _run(['-C', clone, 'rev-parse', '--path-format=absolute', '--git-common-dir'], _operators())
    return Store(found.decode('utf-8').rstrip('\n'))


def _operators():
    """The operator's environment, less what git tells the programs that it starts itself."""
    environment = {name: value for name, value in os.environ.items()
                   if name not in ('GIT_DIR', 'GIT_INDEX_FILE', 'GIT_WORK_TREE')}
    return dict(environment, LC_ALL='C')


def _run(words, environment, stdin=None):
    process = subprocess.run(['git'] + list(words), input=stdin or b'', env=environment,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if process.returncode:
        said = process.stderr.decode('utf-8', 'replace').strip() or 'exit %d' % process.returncode
        raise GitError('git %s: %s' % (words[2] if words[0] == '-C' else words[0], said))
    return process.stdout
