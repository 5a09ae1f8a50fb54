#!/usr/bin/python
"""Ansible module: a patch series in an installed nova or quantum, all of it or nothing, undoable."""
from __future__ import absolute_import, division, print_function

DOCUMENTATION = r"""
module: patched_tree
short_description: Apply a patch series to an installed package and take it back
description:
  - The series is applied to what the package installed, in memory, and checked against the checksums
    of its manifest on both sides. Only then are the files replaced, all or none, also when the run
    is killed, because the next run takes back what one that was cut short has done.
  - What was there before is kept in I(state_folder) with owner, mode and time, so that I(state=absent)
    restores it byte for byte, compiled files included. A newer series is applied to that as well,
    not to what an older one made of it.
  - Files that are no longer as the series left them, after a package's upgrade for one, count as the
    package's. They are reported as overwritten, patched anew if their content is known, and never
    rolled back.
  - A file that is a link is patched where it really is and stays a link; its compiled file is
    expected beside the link, as Ubuntu 12.04 has them.
  - An existing file keeps its owner and mode, also where the series changes the mode.
options:
  project:
    description: The package.
    type: str
    choices: [nova, quantum]
    required: true
  state:
    description:
      - C(present) applies I(series), C(absent) takes back what is applied, C(inspect) only reports.
    type: str
    choices: [inspect, present, absent]
    required: true
  series:
    description: What the lookup C(patch_series) returns. Needed for I(state=present).
    type: str
  root:
    description: Folder that holds the package's folder; empty to look for it in I(search).
    type: path
    default: ''
  search:
    description: Folders that may hold the package's folder.
    type: list
    elements: path
    default: []
  places:
    description:
      - Where the git tree's paths are installed. Each has C(prefix), a path of the tree, and C(to),
        absolute or relative to I(root). The longest prefix wins. Files without a place are left
        out; so are those of an C(optional) one where C(to) does not exist.
    type: list
    elements: dict
    default: []
  allow_drift:
    description:
      - Take files that differ from the base where every hunk applies with all of its context, at the
        expected line or at exactly one other place. What was taken so is listed in C(drift).
    type: bool
    default: false
  keep_changed:
    description:
      - Take a series back although somebody has changed one of the files that it patched, and leave that
        file. It is refused otherwise, unless a package upgrade has replaced all of them.
    type: bool
    default: false
  python:
    description:
      - The interpreter that runs the services, to compile what had a compiled file before. If empty,
        compiled files of patched sources are removed.
    type: path
    default: ''
  state_folder:
    description: Folder for the record and the backups, one folder in it for each project.
    type: path
    default: /var/lib/mdproxy/patches
  mark:
    description:
      - A file that is there from before a change until the one who restarts the services removes it,
        so that a run that was cut short between the two is made good by the next.
    type: path
author: mdproxy maintainers
"""

RETURN = r"""
restart:
  description: Whether files changed since the mark was last removed.
  returned: always
  type: bool
tree_state:
  description: C(unpatched), C(applied), C(overwritten) when files of the series are not as it left
    them, or C(interrupted) when a run was cut short and the next one will take back what it did.
  returned: when state is inspect
  type: str
series:
  description: Id of the series that is applied, or empty.
  returned: always
  type: str
base:
  description: The version that this series was made for, or empty.
  returned: always
  type: str
version:
  description: The installed version; empty for I(state=absent), which does not look at it.
  returned: always
  type: str
root:
  description: Folder that holds the package's folder; empty for I(state=absent).
  returned: always
  type: str
files:
  description: Installed files that were (in check mode, would be) changed; all that the series
    changed for I(state=inspect).
  returned: always
  type: list
left_out:
  description: Paths of the git tree that the series changes and that have no place on this node.
  returned: always
  type: list
drift:
  description: Files that were taken although they differ from the base, and hunks that moved.
  returned: always
  type: list
overwritten:
  description: Files of the recorded series that are not as it left them.
  returned: always
  type: list
notes:
  description: Sentences for the operator. On success C(msg) has them too.
  returned: always
  type: list
"""

import collections
import json
import os
import re
import shutil
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.text.converters import to_text
from ansible.module_utils.installed_files import Installed, View
from ansible.module_utils.packed_series import BACKPORT, Places, Refused, Series
from ansible.module_utils.series_patch import PatchError, apply
from ansible.module_utils.tree_transaction import (
    Step,
    Transaction,
    TransactionError,
    describe,
    digest,
    read,
    same,
)

# Arguments: source, compiled file and the name to show in a traceback, for each file.
_COMPILE = '''
import py_compile, sys
for n in range(1, len(sys.argv), 3):
    py_compile.compile(sys.argv[n], sys.argv[n + 1], sys.argv[n + 2], True)
'''
_PLACE = dict(prefix=dict(type='str', required=True), to=dict(type='str', required=True),
              optional=dict(type='bool', default=False))

# What is recorded where nothing is applied.
_NOTHING = dict(files={}, folders=[], series='', base='', version='')

# What a file is to be. content: bytes, or None for no file. drift: what was taken although it is not
# as the series expects, in sentences. mode: of a new file.
Target = collections.namedtuple('Target', 'content drift mode')
# What is to be done. targets: {name: Target}. changed: names of the files that are not as they are to
# be. made, gone: folders. record: what is to be recorded, or None. when: the time of new files.
Plan = collections.namedtuple('Plan', 'targets changed made gone record when')


class Node(object):
    """The installed tree, what is recorded of it, and the result that is being gathered."""

    def __init__(self, module):
        self.module, self.project = module, module.params['project']
        self.transaction = Transaction(os.path.join(module.params['state_folder'], self.project))
        self.result = dict(changed=False, restart=False, series='', base='', version='', root='', files=[],
                           left_out=[], drift=[], overwritten=[], notes=[])
        self.diff = []
        self.undone = False     # whether an interrupted run was
        self.orphaned = False   # whether there are backups of nobody knows what

    def begin(self):
        """Take back what an interrupted run did, and read the record."""
        interrupted = self.transaction.interrupted()
        self.interrupted = interrupted is not None
        restored, left = interrupted or ({}, [])
        if self.interrupted and self.module.params['state'] != 'inspect':
            self.undone = True
            self.note('An earlier run was cut short, and what it had changed is taken back first.')
            for path in left:
                self.note('%s was changed by somebody else since and stays as it is.' % path)
            if not self.module.check_mode:
                self._undo()
                restored = {}
        self.view = View(self.transaction, restored)
        self.record = self.view.record()
        # Without a record they may be all that is left of what they were made of.
        self.orphaned = self.record is None and not self.interrupted and self.transaction.has_backups()
        self.record = self.record or _NOTHING
        self.files = dict((name, Installed(self.view, name, entry))
                          for name, entry in self.record['files'].items())
        self.result['overwritten'] = sorted(name for name in self.files if not self.files[name].ours)

    def _undo(self):
        self.leave_mark()
        try:
            self.transaction.undo()
        except (EnvironmentError, TransactionError) as error:
            raise Refused('what a run that was cut short had changed cannot be taken back (%s); the next '
                          'run tries again' % describe(error))

    def find(self):
        """Find the package and its version."""
        params = self.module.params
        candidates = [params['root']] if params['root'] else params['search']
        found = []
        for folder in candidates:
            package = os.path.join(folder, self.project)
            if (any(os.path.isfile(os.path.join(package, name)) for name in ('__init__.py', 'version.py'))
                    and os.path.realpath(folder) not in found):
                found.append(os.path.realpath(folder))
        if len(found) != 1:
            raise Refused('%s is %s; set patched_tree_root to the folder that holds %s/' % (
                self.project, 'in more than one folder: ' + ', '.join(found) if found
                else 'not in ' + (', '.join(candidates) or 'any folder, for none was given'), self.project))
        self.result['root'] = self.root = found[0]
        self.result['version'] = self._version()

    def _version(self):
        name = os.path.join(self.root, self.project, 'version.py')
        text = self.view.content(self.view.real(name)) or b''
        found = re.search(r'^%s_VERSION = \[(.*)\]' % self.project.upper(), text.decode('latin-1'),
                          re.MULTILINE)
        if not found:
            raise Refused('%s does not say a version; is this a Folsom %s?' % (name, self.project))
        return '.'.join(re.findall(r'[\'"](\w+)[\'"]', found.group(1)))     # a last None is left out

    def pristine(self, file):
        """The content of a file before any series was applied; None for no file."""
        if file.ours:
            return file.pristine and self.transaction.content(file.pristine['sha256'])
        return self.view.content(file.real)

    def note(self, sentence):
        self.result['notes'].append(sentence)

    def leave_mark(self):
        """Leave the mark; True when it was not there."""
        mark = self.module.params['mark']
        if not mark or os.path.exists(mark):
            return False
        if not os.path.isdir(os.path.dirname(mark)):
            os.makedirs(os.path.dirname(mark), 0o755)
        open(mark, 'w').close()
        return True

    def clean(self):
        """Remove backups that the record does not need any more."""
        record, keep = View(self.transaction, {}).record(), set()
        if self.orphaned and not record:
            self.note('There are backups and no record of what they are of; they stay in %s.'
                      % self.transaction.folder)
            return
        for entry in (record or _NOTHING)['files'].values():
            keep.update(state.get('sha256')
                        for state in [entry['before']] + list(entry['compiled'].values()) if state)
        self.transaction.clean(keep)


def _inspect(node):
    node.find()
    result, record = node.result, node.record
    result.update(series=record['series'], base=record['base'], files=sorted(record['files']))
    result['drift'] = sorted(sum((entry['drift'] for entry in record['files'].values()), []))
    result['tree_state'] = ('interrupted' if node.interrupted else
                            'overwritten' if result['overwritten'] else
                            'applied' if record['files'] else 'unpatched')
    if result['overwritten']:
        _note_overwritten(node)


def _absent(node):
    """Give every file back that is still as the series left it."""
    changed = [name for name in node.result['overwritten']
               if not same(node.files[name].now, node.files[name].entry['before'])]
    _refuse_mixture(node, changed)
    for name in changed:
        node.note('%s is not as series %s left it and stays as it is.' % (name, node.record['series']))
    _carry_out(node, _back(node, node.files), None)


def _refuse_mixture(node, changed):
    """Refuse to take patches back around a patched file that somebody has changed since.

    A package upgrade replaces every file that was the package's, so after one there is nothing to mix.
    """
    patched = [name for name, file in node.files.items() if file.ours and file.entry['before']]
    changed = [name for name in changed if node.files[name].entry['before']]
    if not patched or not changed:
        return
    if not node.module.params['keep_changed']:
        raise Refused(
            '%s: changed by somebody since series %s was applied, and may need the rest of the series, which '
            'would go. Undo that change or install the package again; patched_tree_keep_changed: true takes '
            'the rest back all the same' % (', '.join(sorted(changed)), node.record['series']))
    node.note('%s %s is a mixture now: install the package again.'
              % (node.project, node.record['version']))


def _back(node, names):
    """{name: Target} that makes of our files what they were before any series."""
    return dict((name, Target(node.pristine(node.files[name]), [], None)) for name in names
                if node.files[name].ours)


def _present(node):
    if not node.module.params['series']:
        raise Refused('series is needed for state present')
    series = Series(node.module.params['series'], node.project)
    node.find()
    result = node.result
    if result['overwritten']:
        _note_overwritten(node)
    if result['version'] != series.base:
        raise Refused('%s in %s is %s and the series was made for %s; make one for it: %s' % (
            node.project, node.root, result['version'], series.base, BACKPORT % result['version']))
    wanted = _place(node, series)
    targets = _judge_all(node, series, wanted)
    record = dict(schema=1, project=node.project, series=series.id, base=series.base,
                  version=result['version'], root=node.root,
                  files=dict((name, _entry(node.files[name], path, targets[name]))
                             for name, path in wanted.items()))
    targets.update(_back(node, set(node.files) - set(wanted)))     # what only an older series changed
    result.update(series=series.id, base=series.base,
                  drift=sorted(sum((target.drift for target in targets.values()), [])))
    known = sum((entry['drift'] for entry in node.record['files'].values()), [])
    if set(result['drift']) - set(known):
        node.note('Taken although it is not the release\'s, and recorded as such: %s.'
                  % '; '.join(result['drift']))
    _carry_out(node, targets, record)


def _note_overwritten(node):
    """Say in so many words that patches are not there any more, and what that looks like."""
    lost, record, installed = node.result['overwritten'], node.record, node.result['version']
    count = '%d of %d files of series %s' % (len(lost), len(node.files), record['series'])
    if installed != record['version']:
        node.note('A package upgrade has overwritten the patches: %s %s was patched, %s is installed now '
                  '(%s).' % (node.project, record['version'], installed, count))
    elif all(same(node.files[name].now, node.files[name].entry['before']) for name in lost):
        node.note('The package was installed again, which has overwritten the patches (%s).' % count)
    else:
        node.note('Somebody has changed %s since it was applied.' % count)


def _entry(file, path, target):
    """What is recorded of a file. Backups have the names of their SHA-256."""
    return dict(tree=path, real=file.real, link=file.link, before=file.pristine, drift=target.drift,
                after=_sha256(target.content), compiled=file.compiled)


def _sha256(content):
    return None if content is None else digest(content)


def _place(node, series):
    """{name: path in the tree} of the files of the series that this node has a place for."""
    places = Places(node.root, node.module.params['places'])
    wanted, reals = {}, {}
    for path in sorted(series.files):
        name = places.installed(path)
        if name is None:
            node.result['left_out'].append(path)
            continue
        if name not in node.files:
            node.files[name] = Installed(node.view, name, None)
        wanted[name] = path
        other = reals.setdefault(node.files[name].real, path)
        if other != path:
            raise Refused('%s and %s are one file on this node: %s' % (
                other, path, node.files[name].real))
    return wanted


def _judge_all(node, series, wanted):
    """{name: Target} of the files of the series; Refused names every file that cannot be taken."""
    targets, refused = {}, []
    for name in sorted(wanted):
        try:
            targets[name] = _judge(node, series, wanted[name], node.files[name])
        except Refused as refusal:
            refused.append('%s %s' % (name, refusal))
    if refused:
        raise Refused(
            '%s %s in %s is not what series %s was made for: %s. Undo the changes or install the package '
            'again' % (
                node.project, node.result['version'], node.root, series.id, '; '.join(refused)))
    return targets


def _judge(node, series, path, file):
    """The Target of one file; Refused says what is wrong with it."""
    before, after, mode = series.files[path]
    mode = 0o755 if mode == '100755' else 0o644
    if file.pristine and 'sha256' not in file.pristine:
        raise Refused('is not a file')
    content, changes = node.pristine(file), series.changes[path]
    found = _sha256(content)
    if before is None and (found or file.link):
        if found == after:
            return Target(content, [], mode)
        raise Refused('exists already')
    if found == before:
        applied = apply(content, changes)
        if applied.refused or _sha256(applied.content) != after:
            raise series.damaged('its patches do not make of %s what its manifest says' % path)
        return Target(applied.content, [], mode)
    if found is None:
        raise Refused('is missing')
    if found == after:
        raise Refused('is as the series makes it already, and no record says what it was: install the '
                      'package again first')
    return _judge_drift(node, series, file, apply(content, changes, moving=True))


def _judge_drift(node, series, file, applied):
    lost = file.entry and not file.ours
    if applied.refused and lost and node.result['version'] == node.record['version']:
        raise Refused('was changed by somebody since series %s was applied' % node.record['series'])
    if applied.refused:
        raise Refused('differs, and does not take ' + ', '.join(applied.refused))
    taken = file.ours and file.entry['drift'] and node.record['series'] == series.id
    if not node.module.params['allow_drift'] and not taken:
        raise Refused('differs, but takes every hunk: patched_tree_allow_drift: true would take it')
    return Target(applied.content, ['%s: %s' % (file.name, moved) for moved in applied.moved]
                  or ['%s: differs from the base' % file.name], None)


def _carry_out(node, targets, record):
    """Bring the files to their targets, and the record; in check mode say what that would be."""
    changed = [name for name in sorted(targets)
               if _sha256(targets[name].content) != (node.files[name].now or {}).get('sha256')]
    made, gone = _folders(node, targets)
    if record is not None:
        record['folders'] = sorted(set(node.record['folders']) - set(gone) | set(made))
    plan = Plan(targets, changed, made, gone, record, int(time.time()))
    compiled = _compile(node, plan)
    node.result['files'] = changed
    node.diff = [_shown(node, node.files[name], targets[name]) for name in changed]
    if changed:
        node.result['restart'] = True
    if changed or dict(record or _NOTHING, when='') != dict(node.record, when=''):
        node.result['changed'] = True
        if not node.module.check_mode:
            _replace(node, plan, compiled)


def _shown(node, file, target):
    before, after = (to_text(content or b'', errors='replace')
                     for content in (node.view.content(file.real), target.content))
    return dict(before_header=file.name, after_header=file.name, before=before, after=after)


def _folders(node, targets):
    """Folders that have to be made, and those made for a series that nothing needs any more."""
    made, needed = set(), [name for name in targets if targets[name].content is not None]
    for name in needed:
        folder = os.path.dirname(name)
        while node.view.state(folder) is None:
            made.add(folder)
            folder = os.path.dirname(folder)
    gone = [folder for folder in node.record['folders']
            if not any(name.startswith(folder + '/') for name in needed)]
    return sorted(made), sorted(gone, reverse=True)     # in the order in which it can be done


def _replace(node, plan, compiled):
    """Carry out the plan on the disk."""
    steps = [Step(folder, dict(_owner(folder), folder=True, mode=0o755), None) for folder in plan.made]
    for name in plan.changed:
        steps += _steps(node, node.files[name], plan.targets[name], compiled.get(name), plan.when)
    steps += [Step(folder, None, None) for folder in plan.gone]
    steps.append(_record(node, plan))
    marked = bool(plan.changed) and node.leave_mark()
    try:
        node.transaction.run(steps)
    except TransactionError:
        if marked and not node.transaction.interrupted():
            os.unlink(node.module.params['mark'])
        raise
    for folder in plan.gone:
        if os.path.isdir(folder):
            node.note('%s was made for a series and stays, because other files are in it.' % folder)


def _record(node, plan):
    """The Step that records what is applied; what it will be rolled back to is kept."""
    if plan.record is None:
        return node.transaction.record(None)
    for name in plan.record['files']:
        _back_up(node, node.files[name])
    record = dict(plan.record, when=time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(plan.when)))
    text = json.dumps(record, sort_keys=True, indent=1, separators=(',', ': ')) + '\n'
    return node.transaction.record(text.encode('ascii'))


def _back_up(node, file):
    """Keep what the file was before any series, unless it is kept already."""
    if not file.ours:
        for path in [file.real] + sorted(file.compiled):
            content = node.view.content(path)
            if content is not None:
                node.transaction.add(content)


def _owner(path):
    """Owner and group of the nearest folder above."""
    folder = os.path.dirname(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    found = os.stat(folder)
    return dict(uid=found.st_uid, gid=found.st_gid)


def _steps(node, file, target, compiled, when):
    """The Steps that bring one file to its target, with its link and its compiled files."""
    if _sha256(target.content) == (file.pristine or {}).get('sha256'):
        state, made = file.pristine, file.compiled
    else:
        fresh = dict(mtime=when * 10 ** 9)
        state, made = None, dict.fromkeys(file.compiled)
        if target.content is not None:
            owner = file.pristine or dict(_owner(file.real), mode=target.mode)
            state = dict(owner, sha256=node.transaction.add(target.content), **fresh)
        if compiled is not None:
            owner = file.compiled[file.name + 'c'] or dict(state, mode=state['mode'] & ~0o111)
            made[file.name + 'c'] = dict(owner, sha256=node.transaction.add(compiled), **fresh)
    link = file.link if target.content is not None else None
    steps = [Step(file.real, state, None)]
    if file.link and not same(node.view.state(file.name), link):
        steps.append(Step(file.name, link, None))
    return steps + [Step(path, made[path], file.real) for path in sorted(made)
                    if node.view.state(path) != made[path]]


def _compile(node, plan):
    """{name: compiled} of the sources that get a compiled file, before anything is changed."""
    python = node.module.params['python']
    names = [name for name in plan.changed
             if python and _is_compiled(node.files[name], plan.targets[name])]
    if not names:
        return {}
    if not os.access(python, os.X_OK):
        raise Refused('%s cannot be run to compile what the series makes; set patched_tree_python to the '
                      'interpreter that runs %s, or to nothing' % (python, node.project))
    stage, arguments = tempfile.mkdtemp(dir=node.module.tmpdir), []
    try:
        for number, name in enumerate(names):
            source = os.path.join(stage, '%d.py' % number)
            with open(source, 'wb') as out:
                out.write(plan.targets[name].content)
            os.utime(source, (plan.when, plan.when))    # which is noted in the compiled file
            arguments += [source, source + 'c', name]
        code, _, err = node.module.run_command([python, '-Es', '-c', _COMPILE] + arguments)
        if code:
            raise Refused('%s does not compile what the series makes: %s' % (
                python, ' '.join(err.split('PyCompileError:')[-1].split())))
        return dict((name, read(compiled)) for name, compiled in zip(names, arguments[1::3]))
    finally:
        shutil.rmtree(stage)


def _is_compiled(file, target):
    """Whether a compiled file belongs beside it: as before, or for a new one as beside its neighbours."""
    if target.content is None or not file.compiled:
        return False
    if file.pristine:
        return bool(file.compiled[file.name + 'c']) and digest(target.content) != file.pristine['sha256']
    folder = os.path.dirname(file.name)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return any(name.endswith('.pyc') for name in os.listdir(folder))


def _attempt(node):
    """Do what the state says; None, or why it was not done."""
    state, check = node.module.params['state'], node.module.check_mode
    try:
        node.transaction.lock(make=state == 'present' and not check)
        try:
            node.begin()
            {'inspect': _inspect, 'present': _present, 'absent': _absent}[state](node)
        finally:
            if state != 'inspect' and not check:
                node.clean()
    except (Refused, PatchError, TransactionError) as error:
        return str(error)
    except EnvironmentError as error:
        return '%s; every file is as it was' % describe(error)


def main():
    module = AnsibleModule(supports_check_mode=True, argument_spec=dict(
        project=dict(type='str', choices=['nova', 'quantum'], required=True),
        state=dict(type='str', choices=['inspect', 'present', 'absent'], required=True),
        # Not a secret, but long: it has no business in a log.
        series=dict(type='str', no_log=True),
        root=dict(type='path', default=''), search=dict(type='list', elements='path', default=[]),
        places=dict(type='list', elements='dict', options=_PLACE, default=[]),
        allow_drift=dict(type='bool', default=False), keep_changed=dict(type='bool', default=False),
        python=dict(type='path', default=''),
        state_folder=dict(type='path', default='/var/lib/mdproxy/patches'), mark=dict(type='path')))
    os.umask(0o022)     # whatever root's is: the services have to read what is made
    node = Node(module)
    refusal = _attempt(node)
    result, mark = node.result, module.params['mark']
    if refusal:
        result.update(changed=False, restart=False, files=[])
    result['changed'] = result['changed'] or node.undone
    result['restart'] = result['restart'] or node.undone or bool(mark) and os.path.exists(mark)
    if refusal:
        module.fail_json(msg=refusal, **result)
    if result['notes']:
        result['msg'] = ' '.join(result['notes'])
    module.exit_json(diff=node.diff, **result)


if __name__ == '__main__':
    main()
