#!/usr/bin/python
"""Ansible module: jobs of the node's service manager, with the files they run from, as one state."""
from __future__ import absolute_import, division, print_function

DOCUMENTATION = r"""
module: mdproxy_jobs
short_description: Keep jobs and their files as they should be, on systemd and on upstart
description:
  - Stops and removes jobs that should not be there, writes the files that differ, enables every job,
    and starts or restarts those that are not running, run another release, were started before their
    files changed, are not alone, or whose check fails.
  - Which jobs need a restart is read from the node, not from what changed in this run. Before a
    file is changed a mark is left under I(run_dir) and removed after the restart, so a run that was
    cut short is made good by the next one.
  - The number of commands does not grow with the number of jobs on systemd; upstart starts and stops
    one after the other.
options:
  service_manager:
    description: The node's service manager, as the fact C(service_mgr) says.
    type: str
    choices: [systemd, upstart]
    required: true
  release:
    description: Path of the release that every job must run, looked for in its command line.
    type: str
    required: true
  jobs:
    description:
      - Each has C(name), its C(files), and C(ready), what must answer after a start. That is C(socket),
        a unix socket, or C(netns) and C(port), a listener in a namespace.
      - With C(items) an entry stands for a job of each, and C({item}) in the strings of the entry for
        the item. Other braces stay as they are.
      - C(check) is a command that exits 0 while the running job is whole. It is run once for all jobs
        of the entry with the C(check_arguments) of each after it. Else it prints C(KEY:reason) for
        each job that is not; the key is the first of the job's C(check_arguments).
      - C(hand_over) is a signal at which the job's main process ends alone and what it has started goes
        on until the next one is there. On systemd a job that only has to be another one is sent it,
        in the place of a restart.
      - C(strays) are a command of mdproxy and further words (or with = at the end their beginnings),
        which all are in the command line of a process that is in the job's way, unless it is the job's
        own. Such a process is ended.
    type: list
    elements: dict
    default: []
  prune:
    description:
      - Jobs that should not be there unless they are among I(jobs). Each has C(name), C(files), what
        is removed with the job, and C(strays), processes that the job may leave behind.
      - C({item}) in C(name) and C(files) is any UUID.
    type: list
    elements: dict
    default: []
  listeners:
    description:
      - Listeners that somebody else starts and that are waited for at the end; each has C(netns) and
        C(port), and C(items) as I(jobs) have.
      - With C(interface) a namespace that has no interface whose name begins so has no guests either, and
        may be silent, as long as not all are.
    type: list
    elements: dict
    default: []
  secrets:
    description: Contents of those files of I(jobs) that hold a secret, by path, with C({item}) as
      there. They have no C(content) there, because that is written to the node's log and to the
      controller's output.
    type: dict
    default: {}
  keep:
    description:
      - Where the configuration is kept as it was before a run changed the first thing of it, for
        C(mdproxy_rollback). C(folder), C(run) (a name; they sort as the runs' times do), C(runs) (how many
        stay), C(paths) (folders, and shell patterns of files) and C(links) (to the release).
    type: dict
  run_dir:
    description: Folder for the marks; emptied by a reboot.
    type: str
    default: /run/mdproxy-jobs
  wait:
    description: Seconds that a started job may take until it answers; more when many are started.
    type: int
    default: 15
author: mdproxy maintainers
"""

RETURN = r"""
restarted:
  description: Names of the jobs that were (in check mode, would be) started or restarted, and why.
  returned: always
  type: dict
removed:
  description: Names of the jobs that were (would be) removed.
  returned: always
  type: list
silent:
  description: Namespaces of I(listeners) where nobody listens; in check mode nobody is waited for.
  returned: always
  type: list
counts:
  description: How many C(jobs) there are, files were C(written), jobs C(started) and C(removed).
  returned: always
  type: dict
"""

import os
import re
import tempfile

from ansible.module_utils import job_listeners, job_managers, job_servers, kept_configuration
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.text.converters import to_bytes, to_native

_FILE = dict(path=dict(type='path', required=True), content=dict(type='str'),
             mode=dict(type='str', default='0644'), owner=dict(type='str', default='root'),
             group=dict(type='str', default='root'))
_READY = dict(socket=dict(type='path'), netns=dict(type='str'), port=dict(type='int'))
_JOB = dict(name=dict(type='str', required=True),
            items=dict(type='list', elements='str'),
            files=dict(type='list', elements='dict', options=_FILE, required=True),
            check=dict(type='list', elements='str', default=[]),
            check_arguments=dict(type='list', elements='str', default=[]),
            strays=dict(type='list', elements='str', default=[]),
            hand_over=dict(type='str'),
            ready=dict(type='dict', options=_READY, required=True,
                       required_one_of=[('socket', 'netns')], required_together=[('netns', 'port')]))
_PRUNE = dict(name=dict(type='str', required=True),
              files=dict(type='list', elements='path', default=[]),
              strays=dict(type='list', elements='str', default=[]))
_LISTENER = dict(netns=dict(type='str', required=True), port=dict(type='int', required=True),
                 items=dict(type='list', elements='str'), interface=dict(type='str', default=''))
_ITEM = '{item}'
_UUID = '[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}'
_GRACE = 3.0        # seconds in which a job that the service manager has just started may be silent
_FILES_CHANGED, _OTHER_RELEASE = 'its files changed', 'runs another release'
_STARTING = 0.5     # seconds that one more job to start adds to the wait for all
_NAMED = 10         # how many jobs a message names


def _filled(value, item):
    """The value with the item for every {item} in its strings, at any depth."""
    if isinstance(value, dict):
        return dict((name, _filled(inner, item)) for name, inner in value.items())
    if isinstance(value, list):
        return [_filled(inner, item) for inner in value]
    return value.replace(_ITEM, item) if hasattr(value, 'replace') else value


def _expanded(entries):
    """A dict for each item of each entry; an entry without `items` as it is."""
    expanded = []
    for entry in entries:
        if entry['items'] is None:
            expanded.append(entry)
        else:
            plain = dict(entry, items=None)
            expanded += [_filled(plain, item) for item in entry['items']]
    return expanded


def _jobs(module):
    """The jobs one by one; their files know whether they hold a secret."""
    secrets = module.params['secrets']
    for entry in module.params['jobs']:
        for wanted in entry['files']:
            wanted['secret'] = wanted['path'] in secrets
            if wanted['secret']:
                wanted['content'] = secrets[wanted['path']]
            elif wanted['content'] is None:
                module.fail_json(msg='%s: no content, neither there nor in secrets' % wanted['path'])
    return _expanded(module.params['jobs'])


class Files(object):
    """The files that differ, and what the difference looks like without showing a secret."""

    def __init__(self, module):
        self.module = module
        self.before, self.after = [], []

    def differs(self, entry):
        """True when the file's content is not what it should be; the difference is noted."""
        try:
            with open(entry['path'], 'rb') as current:
                now = current.read()
        except IOError:
            now = None
        wanted = to_bytes(entry['content'])
        if now == wanted:
            return False
        for side, text, word in ((self.before, now, 'old'), (self.after, wanted, 'new')):
            if text is not None:
                shown = to_native(text, errors='surrogate_or_replace')
                if entry['secret'] or text is now and not _is_for_all(entry['path']):
                    shown = '(the %s content is not shown: it holds a secret)' % word
                side.append('# %s\n%s\n' % (entry['path'], shown.rstrip('\n')))
        return True

    def attributes(self, entry):
        """Bring owner, group and mode to what they should be; True when they were not."""
        if not os.path.exists(entry['path']):
            return False        # in check mode: the file itself is already counted
        arguments = self.module.load_file_common_arguments(entry)
        return self.module.set_fs_attributes_if_different(arguments, False)

    def write(self, entry):
        """Put the content in place in one step, never readable by more than it should be."""
        folder = os.path.dirname(entry['path'])
        if not os.path.isdir(folder):
            os.makedirs(folder, 0o755)
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix='.mdproxy-')
        with os.fdopen(descriptor, 'wb') as out:
            out.write(to_bytes(entry['content']))
        arguments = self.module.load_file_common_arguments(entry, path=temporary)
        self.module.set_fs_attributes_if_different(arguments, False)
        os.rename(temporary, entry['path'])


def _is_for_all(path):
    """Whether everybody may read a file; one that held a secret may be about to hold none."""
    return bool(os.stat(path).st_mode & 0o004)


class Marks(object):
    """Jobs whose files were changed and which have not been restarted since."""

    def __init__(self, folder):
        self.folder = folder

    def has(self, name):
        return os.path.exists(os.path.join(self.folder, name))

    def leave(self, names):
        if not os.path.isdir(self.folder):
            os.makedirs(self.folder, 0o700)
        for name in names:
            open(os.path.join(self.folder, name), 'w').close()

    def remove(self, names):
        for name in names:
            _unlink(os.path.join(self.folder, name))


def _unlink(path):
    try:
        os.unlink(path)
    except OSError:
        if os.path.lexists(path):
            raise


class Surplus(object):
    """Jobs of ours that should not be there, with what they leave behind."""

    def __init__(self, module, manager, wanted):
        self.manager = manager
        self.files, self.strays = {}, []        # {name: paths}
        entries = module.params['prune']
        if not entries:
            return
        known = manager.known([entry['name'].replace(_ITEM, '*') for entry in entries])
        servers = job_servers.running() if any(entry['strays'] for entry in entries) else []
        for entry in entries:
            self._find(entry, known, servers, wanted)

    def _find(self, entry, known, servers, wanted):
        shape, found = _shape(entry['name']), {}
        for match in filter(None, map(shape.match, known)):
            found[match.group(0)] = []
        for pattern in entry['files']:
            for path, item in _matching(pattern):
                found.setdefault(_filled(entry['name'], item), []).append(path)
        strays = job_servers.select(servers, entry['strays']) if entry['strays'] else []
        if strays and entry['name'] not in wanted:
            found.setdefault(entry['name'], [])
            self.strays += strays
        for name in found:
            if name not in wanted:
                own = [path for path in self.manager.files(name) if os.path.exists(path)]
                self.files[name] = found[name] + own

    def pids(self):
        """Pids of those that still run."""
        return [pid for pid, _ in self.manager.states(sorted(self.files)).values() if pid]

    def remove(self, marks):
        """Stop the jobs, and remove every trace; returns the names of those that do not stop.

        In this order, so that a run that is cut short leaves what the next one finds.
        """
        names = sorted(self.files)
        self.manager.stop(names)
        states = self.manager.states(names)
        going_on = [name for name in names if states[name][0]]
        if going_on:
            return going_on
        job_servers.end(self.strays)
        self.manager.disable(names)
        for name in names:
            for path in self.files[name]:
                _unlink(path)
        marks.remove(names)
        self.manager.reload()
        self.manager.forget(names)
        return []


def _shape(pattern):
    """The regular expression of a pattern: {item} is a UUID, which is group 1."""
    return re.compile(re.escape(pattern).replace(re.escape(_ITEM), '(%s)' % _UUID, 1)
                      .replace(re.escape(_ITEM), r'\1') + '$')


def _matching(pattern):
    """[(path, item)] of the files that a pattern with {item} in its last part means."""
    folder, name = os.path.split(pattern)
    if _ITEM not in name:
        return [(pattern, '')] if os.path.lexists(pattern) else []
    shape = _shape(name)
    entries = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [(os.path.join(folder, match.group(0)), match.group(1))
            for match in filter(None, map(shape.match, entries))]


class Diagnosis(object):
    """Which jobs must be started or restarted, and why: `restarts`, {name: reason}."""

    def __init__(self, module, jobs, states, stale, leaving):
        self.module, self.restarts = module, {}
        self.strays, self.leaving = [], leaving
        self.release = os.path.realpath(module.params['release']) + '/'     # as the launcher finds itself
        servers = job_servers.running() if any(job['strays'] for job in jobs) else []
        for job in jobs:
            reason = self._plain(job, states[job['name']][0], job['name'] in stale, servers)
            if reason:
                self.restarts[job['name']] = reason
        self._check(jobs)
        readies = dict((job['name'], job['ready']) for job in jobs if job['name'] not in self.restarts)
        for name in job_listeners.silent(readies, _GRACE, _GRACE):
            self.restarts[name] = 'does not answer'

    def _plain(self, job, pid, stale, servers):
        """What needs no command to be found."""
        own = self.leaving + [pid]
        strays = job_servers.select(servers, job['strays'], own) if job['strays'] else []
        self.strays += strays
        if strays:
            return 'another proxy served it'
        if not pid:
            return 'not running'
        if stale:
            return _FILES_CHANGED
        if not any(word.startswith(self.release) for word in job_servers.command_line(pid)):
            return _OTHER_RELEASE

    def _check(self, jobs):
        """Run the check of those that seem well, once for all that have the same."""
        checks = {}
        for job in jobs:
            if job['check'] and job['name'] not in self.restarts:
                checks.setdefault(tuple(job['check']), []).append(job)
        for check in checks:
            for some in job_managers.batches(checks[check]):
                self._run_check(list(check), some)

    def _run_check(self, check, jobs):
        code, out, err = self.module.run_command(
            check + [argument for job in jobs for argument in job['check_arguments']])
        if not code:
            return
        names = dict((job['check_arguments'][0], job['name']) for job in jobs if job['check_arguments'])
        told = [line.partition(':') for line in out.splitlines()]
        said = (err or out).strip().splitlines() or ['check failed']
        reasons = dict((names[key], reason.strip()) for key, _, reason in told if key in names)
        if not reasons and len(jobs) == 1:
            reasons = {jobs[0]['name']: said[-1]}
        if not reasons:     # then it is the check that is not well, and no reason to restart them all
            self.module.fail_json(msg='%s fails and names no job: %s' % (' '.join(check), said[-1]))
        self.restarts.update(reasons)


def _refuse(module, names, what, manager):
    """Fail the module: the jobs, and the log of the first."""
    more = ' and %d more' % (len(names) - _NAMED) if len(names) > _NAMED else ''
    module.fail_json(msg='job %s%s %s; see `%s`. Its last lines: %s' % (
        ', '.join(names[:_NAMED]), more, what, manager.log_hint % names[0],
        manager.log_of(names[0]).strip() or '(none)'))


class Run(object):
    """One run of the module, step by step."""

    def __init__(self, module):
        self.module = module
        self.manager = job_managers.of(module, module.params['service_manager'])
        self.files, self.marks = Files(module), Marks(module.params['run_dir'])
        self.jobs = _jobs(module)
        self.names = [job['name'] for job in self.jobs]
        self.changed, self.leaving = False, []      # pids that a run in check mode leaves running
        self.counts = dict(jobs=len(self.jobs), written=0, started=0, removed=0)

    def keep(self):
        if self.module.params['keep']:
            kept_configuration.keep(self.module, self.module.params['keep'])

    def prune(self):
        """Remove what should not be there, which may be in the way of what should; returns the names."""
        surplus = Surplus(self.module, self.manager, set(self.names))
        removed = sorted(surplus.files)
        for name in removed:
            self.files.before.append('job %s: there\n%s' % (name, ''.join(
                '# %s\n' % path for path in surplus.files[name])))
        if removed and self.module.check_mode:
            self.leaving = surplus.pids()
        elif removed:
            self.keep()
            going_on = surplus.remove(self.marks)
            if going_on:
                _refuse(self.module, going_on, 'does not stop', self.manager)
        self.counts['removed'] = len(removed)
        self.changed |= bool(removed)
        return removed

    def write(self):
        """Bring the files to what they should be; returns the names of jobs that run from older ones."""
        to_write, stale = [], set(name for name in self.names if self.marks.has(name))
        for job in self.jobs:
            own = [entry for entry in job['files'] if self.files.differs(entry)]
            to_write += own
            if own:
                stale.add(job['name'])
        if stale and not self.module.check_mode:
            if to_write:
                self.keep()
            self.marks.leave(stale)
            for entry in to_write:
                self.files.write(entry)
            self.manager.reload()       # also when a run that was cut short wrote the files
        touched = any([self.files.attributes(entry) for job in self.jobs for entry in job['files']])
        self.counts['written'] = len(to_write)
        self.changed |= bool(to_write or touched)
        return stale

    def start(self, stale):
        """Enable and start what is not as it should be; returns {name: reason} of what was started."""
        states = self.manager.states(self.names) if self.names else {}
        disabled = [name for name in self.names if not states[name][1]]
        diagnosis = Diagnosis(self.module, self.jobs, states, stale, self.leaving)
        restarts = diagnosis.restarts
        if not self.module.check_mode:
            if disabled:
                self.manager.enable(disabled)
            job_servers.end(diagnosis.strays)
            self._restart([job for job in self.jobs if job['name'] in restarts], restarts, states)
        for name in sorted(restarts):
            self.files.before.append('job %s: %s\n' % (name, restarts[name]))
            self.files.after.append('job %s: running\n' % name)
        for name in disabled:
            self.files.before.append('job %s: not started at boot\n' % name)
            self.files.after.append('job %s: started at boot\n' % name)
        self.counts['started'] = len(restarts)
        self.changed |= bool(restarts or disabled)
        return restarts

    def _restart(self, jobs, reasons, states):
        """Start the jobs, or have them hand over, and wait until they answer."""
        if not jobs:
            return
        handing = [job for job in jobs if job['hand_over'] and states[job['name']][0]
                   and reasons[job['name']] in (_FILES_CHANGED, _OTHER_RELEASE)]
        handed = [job['name'] for job in handing if self.manager.hand_over(
            job['name'], job['hand_over'], states[job['name']][0])]
        self.manager.restart([job['name'] for job in jobs if job['name'] not in handed])
        silent = self._wait(dict((job['name'], job['ready']) for job in jobs))
        self.marks.remove([job['name'] for job in jobs if job['name'] not in silent])
        if silent:
            _refuse(self.module, silent, 'was started and does not answer after %d s'
                    % self._patience(len(jobs)), self.manager)

    def await_others(self):
        """Wait for what others start; returns the namespaces where nobody listens."""
        others = dict((entry['netns'], entry) for entry in _expanded(self.module.params['listeners']))
        silent = [] if self.module.check_mode else self._wait(others)
        if len(silent) == len(others):
            return silent
        interfaces = dict((name, others[name]['interface']) for name in silent)
        used = job_listeners.with_interface(set(interfaces.items()))
        return [name for name in silent if not interfaces[name] or (name, interfaces[name]) in used]

    def _wait(self, readies):
        return job_listeners.silent(readies, self._patience(len(readies)), self.module.params['wait'])

    def _patience(self, number):
        # They start side by side and share the node's processors.
        return self.module.params['wait'] + _STARTING * max(0, number - 1)

    def diff(self):
        return dict(before='\n'.join(self.files.before), after='\n'.join(self.files.after))


def main():
    module = AnsibleModule(supports_check_mode=True, argument_spec=dict(
        service_manager=dict(type='str', required=True, choices=['systemd', 'upstart']),
        release=dict(type='str', required=True),
        jobs=dict(type='list', elements='dict', options=_JOB, default=[]),
        prune=dict(type='list', elements='dict', options=_PRUNE, default=[]),
        listeners=dict(type='list', elements='dict', options=_LISTENER, default=[]),
        secrets=dict(type='dict', default={}, no_log=True),
        keep=dict(type='dict', options=kept_configuration.ARGUMENTS),
        run_dir=dict(type='path', default='/run/mdproxy-jobs'),
        wait=dict(type='int', default=15)))
    os.umask(0o022)     # whatever root's is: the user that serves has to reach its files
    run = Run(module)
    removed = run.prune()
    restarted = run.start(run.write())
    silent = run.await_others()
    module.exit_json(changed=run.changed, restarted=restarted, removed=removed, silent=silent,
                     counts=run.counts, **(dict(diff=run.diff()) if module._diff else {}))


if __name__ == '__main__':
    main()
