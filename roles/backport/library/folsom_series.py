#!/usr/bin/python
"""Ansible module, for the controller: make a patch series for a Folsom tree from upstream's commits."""

DOCUMENTATION = r"""
module: folsom_series
short_description: Cherry-pick, resolve, check and write a patch series for a Folsom release
description:
  - Works in a bare repository of its own under I(dest), which borrows the objects of a local clone or
    fetches a URL once. The clone is only read.
  - Each pick is a three-way merge of every file that the commit changed, resolved by data alone. What
    comes out depends on the inputs and nothing else, down to the byte.
  - Everything is checked before anything is written; what is written replaces the old in one step.
  - The branch C(mdproxy/<base>) of the bare repository is the series as commits.
options:
  project:
    description: Which of the two trees.
    type: str
    choices: [nova, quantum]
    required: true
  source:
    description: URL or path of a clone with upstream's history.
    type: str
    required: true
  base:
    description: The Folsom tag that the series is for.
    type: str
    required: true
  series:
    description:
      - The series in order. An entry with C(commit) is upstream's; C(paths) says where files of a
        later layout lie in Folsom (longest beginning wins), C(leave_out) which of its files are not
        taken, C(resolve) what to do with a file. For the latter C(take) has a choice for each conflict
        (C(ours), C(theirs), C(added)), C(edits) replaces C(find) by C(with) in exactly C(times)
        places, and C(bases) limits it to some bases.
      - An entry with C(patch) is ours, a file of I(patches). C(replaces) names the commits of upstream
        in whose place it stands.
    type: list
    elements: dict
    required: true
  patches:
    description: Folder of our own patches.
    type: path
    required: true
  tests:
    description: Arguments of nosetests, each a test module of the tree that the series touches.
    type: list
    elements: str
    default: []
  tests_folder:
    description: Folder of the tree in which they are run.
    type: str
    default: "."
  python27:
    description: A Python 2.7 for compiling what changed. Without one the files are parsed.
    type: path
  test_python:
    description: A Python 2.7 with nose and what the tree needs. Without one no tests are run.
    type: path
  called_from:
    description: Folder that relative paths of I(source) and I(dest) start from.
    type: path
    default: /
  dest:
    description: Folder for series, trees and the bare repository.
    type: path
    required: true
author: mdproxy maintainers
"""

RETURN = r"""
manifest:
  description: What C(manifest.json) holds.
  returned: success
  type: dict
folder:
  description: Folder of the series.
  returned: success
  type: str
"""

import contextlib
import fcntl
import glob
import json
import os
import re
import shutil
import tempfile

from ansible.module_utils import series_checks
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.git_store import GitError, Store, opened
from ansible.module_utils.progress_note import note
from ansible.module_utils.series_build import Build, SeriesError, digest

_EDIT = {'find': {'type': 'str', 'required': True}, 'with': {'type': 'str', 'required': True},
         'times': {'type': 'int', 'required': True}}
_RESOLVE = {'file': {'type': 'str', 'required': True},
            'take': {'type': 'list', 'elements': 'str', 'default': [],
                     'choices': ['ours', 'theirs', 'added']},
            'edits': {'type': 'list', 'elements': 'dict', 'options': _EDIT, 'default': []},
            'bases': {'type': 'list', 'elements': 'str', 'default': []}}
_ENTRY = {'commit': {'type': 'str'}, 'patch': {'type': 'str'},
          'fixes': {'type': 'list', 'elements': 'str', 'required': True},
          'why': {'type': 'str', 'required': True},
          'paths': {'type': 'dict', 'default': {}},
          'leave_out': {'type': 'list', 'elements': 'str', 'default': []},
          'resolve': {'type': 'list', 'elements': 'dict', 'options': _RESOLVE, 'default': []},
          'replaces': {'type': 'list', 'elements': 'str', 'default': []}}


_FOLSOM = re.compile(r'2012\.2(\.\d+)?$')


def _upstream(module):
    """The Store of upstream's history: the local clone, or what was fetched of the URL."""
    project, source = module.params['project'], module.params['source']
    local = _absolute(module, source)
    try:
        if os.path.isdir(local):
            return opened(local)
        store = Store(os.path.join(module.params['dest'], 'git', 'upstream-%s.git' % project))
        fetched = os.path.isdir(store.folder)
        if not fetched or _missing(store, module):
            if module.check_mode:
                module.exit_json(changed=True, manifest=None, folder=_folder(module),
                                 msg='%s would be fetched; what comes of it is not known before.'
                                     % _shown_source(source))
            if not fetched:
                store.create()
            store.fetch(source)
        return store
    except GitError as error:
        raise SeriesError('%s_source %s cannot be read: %s' % (project, _shown_source(source), error))


def _absolute(module, path):
    """A path as the operator means it: relative to where the playbook was called."""
    return os.path.join(module.params['called_from'], os.path.expanduser(path))


def _shown_source(source):
    """A source without the password that a URL may hold."""
    return re.sub(r'^(\w+://)[^/@]*@', r'\1', source)


def _missing(store, module):
    """What the store lacks: the base's tag, ids of commits of the series."""
    tag = 'refs/tags/' + module.params['base']
    commits = [entry['commit'] for entry in module.params['series'] if entry['commit']]
    # A pick is a difference, so the commit before it is needed too.
    return ([] if store.find(tag + '^{commit}') else [tag]) + [
        sha for sha in commits if not (store.find(sha + '^{commit}') and store.find(sha + '^^{commit}'))]


def _find(store, module):
    """Refuse a history that lacks the base or a commit of the series, or that is another project's."""
    project, base = module.params['project'], module.params['base']
    source = _shown_source(module.params['source'])
    missing = _missing(store, module)
    if missing and missing[0].startswith('refs/'):
        tags = store.git('tag', '--list', '2012.2*').decode().split()
        raise SeriesError('%s_source %s has no tag %s (folsom_base); of Folsom it has %s. Fetch the tags '
                          'into the clone (git fetch --tags), or take another base.'
                          % (project, source, base, ', '.join(tags) or 'none'))
    if store.content('refs/tags/%s' % base, '%s/version.py' % project) is None:
        raise SeriesError('%s_source %s has no %s/version.py at %s: it is a clone of something else.'
                          % (project, source, project, base))
    if missing:
        raise SeriesError('%s_source %s lacks commits of the series: %s. Give a clone with the whole history '
                          '(git fetch --all --tags; in a shallow one also --unshallow).'
                          % (project, source, ', '.join(missing)))


def _store(module, folder):
    """A new repository for the series, which borrows upstream's objects."""
    note('reading ' + _shown_source(module.params['source']))
    upstream = _upstream(module)
    _find(upstream, module)
    store = Store(folder)
    store.create(borrow=os.path.join(upstream.folder, 'objects'))
    tag = 'refs/tags/' + module.params['base']
    store.git('update-ref', tag, upstream.find(tag))
    return store


@contextlib.contextmanager
def _workplace(module):
    """A folder to make a series and its repository in, which goes when all is done.

    One run at a time has the place where it all ends up, and what one left that was cut short goes. In
    check mode the folder is elsewhere.
    """
    dest = module.params['dest']
    if module.check_mode:
        with tempfile.TemporaryDirectory(prefix='backport-') as passing:
            yield passing
        return
    os.makedirs(dest, exist_ok=True)
    held = os.open(dest, os.O_RDONLY)       # let go of when this process ends
    fcntl.flock(held, fcntl.LOCK_EX)
    for left in glob.glob(os.path.join(dest, '.partial-*')):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix='.partial-', dir=dest) as partial:
        yield partial


def _folder(module):
    return os.path.join(module.params['dest'], module.params['base'], module.params['project'])


def _make(module, store, work):
    """Build and check the series and write it to the folder `work`; returns its manifest."""
    params = module.params
    build = Build(store, params['project'], params['base'], params['patches'])
    many = len(params['series'])
    for number, entry in enumerate(params['series'], 1):
        note('%d of %d patches, %s' % (number, many, (entry['commit'] or entry['patch'])[:40]))
        build.add(entry)
    note('%d patches made, checking them' % many)
    files = build.files()
    sources = series_checks.sources(build, [path for path in files if files[path]['after']])
    compiled = series_checks.compiles(sources, params['python27'] or params['test_python'])
    names = store.format(build.root, build.head, work)
    tree = series_checks.applies(build, work, names)
    patches = []
    for name, patch in zip(names, build.patches):
        with open(os.path.join(work, name), 'rb') as source:
            patches.append(dict(patch, file=name, sha256=digest(source.read())))
    identity = digest(''.join(patch['sha256'] for patch in patches).encode())[:12]
    manifest = {'schema': 1, 'project': params['project'], 'base': params['base'], 'series': identity,
                'base_commit': build.root, 'base_tree': store.find(build.root + '^{tree}'),
                'head_commit': build.head, 'head_tree': tree, 'patches': patches, 'files': files,
                'checks': {'syntax': compiled, 'sources': len(sources),
                           'tests': _tests(module, build, identity)}}
    store.git('update-ref', 'refs/heads/mdproxy/' + params['base'], build.head)
    with open(os.path.join(work, 'manifest.json'), 'w') as out:
        json.dump(manifest, out, indent=1, sort_keys=True)
        out.write('\n')
    return manifest


def _tests(module, build, identity):
    """Counts of the tree's own tests, or None; those of the same series are not run again."""
    python, wanted = module.params['test_python'], module.params['tests']
    if not python or not wanted:
        return None
    try:
        with open(os.path.join(_folder(module), 'manifest.json')) as source:
            known = json.load(source)
        if known['series'] == identity and sorted(known['checks']['tests'] or ()) == sorted(wanted):
            return known['checks']['tests']
    except (IOError, ValueError, KeyError):
        pass
    if module.check_mode:
        return None
    return series_checks.tests(build, python, wanted, module.params['tests_folder'])


def _contents(folder):
    """{name: bytes} of a folder's files; of one that is not there, nothing."""
    contents = {}
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        with open(os.path.join(folder, name), 'rb') as source:
            contents[name] = source.read()
    return contents


def _replace(work, folder):
    """Put the folder `work` in the place of `folder`, which goes with what is beside `work`."""
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    if os.path.isdir(folder):
        os.rename(folder, work + '.old')
    os.rename(work, folder)


def _shown(contents):
    """One line for each patch, for a diff."""
    manifest = json.loads(contents.get('manifest.json', '{"patches": []}'))
    return ''.join('%s %s\n' % (patch['sha256'][:12], patch['file']) for patch in manifest['patches'])


def _run(module):
    folder = _folder(module)
    with _workplace(module) as place:
        work, repository = os.path.join(place, 'series'), os.path.join(place, 'store.git')
        os.mkdir(work, 0o755)
        manifest = _make(module, _store(module, repository), work)
        before, after = _contents(folder), _contents(work)
        if not module.check_mode:
            _replace(repository, os.path.join(module.params['dest'], 'git', module.params['base'],
                                              module.params['project'] + '.git'))
            if before != after:
                _replace(work, folder)
    return {'changed': before != after, 'manifest': manifest, 'folder': folder,
            'diff': {'before_header': folder, 'after_header': folder,
                     'before': _shown(before), 'after': _shown(after)}}


def main():
    module = AnsibleModule(supports_check_mode=True, argument_spec={
        'project': {'type': 'str', 'choices': ['nova', 'quantum'], 'required': True},
        'source': {'type': 'str', 'required': True}, 'base': {'type': 'str', 'required': True},
        'series': {'type': 'list', 'elements': 'dict', 'required': True, 'options': _ENTRY,
                   'required_one_of': [('commit', 'patch')], 'mutually_exclusive': [('commit', 'patch')]},
        'patches': {'type': 'path', 'required': True},
        'tests': {'type': 'list', 'elements': 'str', 'default': []},
        'tests_folder': {'type': 'str', 'default': '.'},
        'python27': {'type': 'path'}, 'test_python': {'type': 'path'},
        'called_from': {'type': 'path', 'default': '/'}, 'dest': {'type': 'path', 'required': True}})
    module.params['dest'] = _absolute(module, module.params['dest'])
    if not _FOLSOM.match(module.params['base']):
        module.fail_json(msg='folsom_base %s is not a Folsom release: 2012.2 to 2012.2.4 are.'
                             % module.params['base'])
    try:
        result = _run(module)
    except (SeriesError, GitError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == '__main__':
    main()
