#!/usr/bin/python
"""Ansible module: a node's jobs, configuration and release as they were before a run."""
from __future__ import absolute_import, division, print_function

DOCUMENTATION = r"""
module: mdproxy_rollback
short_description: Put back what a run changed, byte for byte, and run the jobs from it
description:
  - What a node was before a run is kept by C(mdproxy_jobs) and C(mdproxy_release) when they change the
    first thing of it. Files that came since go, with their jobs; the others get the bytes, owner and mode
    that they had.
  - Jobs are restarted that run from something that changed; one that can hands over. Whether guests are
    served then is for the caller to ask.
  - When all is as it was before the run, nothing is changed. The run that was gone back to is remembered
    until another one changes something, so this can be repeated.
options:
  service_manager:
    description: The node's service manager, as the fact C(service_mgr) says.
    type: str
    choices: [systemd, upstart]
    required: true
  what:
    description:
      - C(releases) switches to the release that C(previous) leads to and leaves every file as it is.
        C(configuration) puts files back and leaves the release. C(all) does both, with the release that
        the files ran with.
    type: str
    choices: [releases, configuration, all]
    required: true
  before:
    description: The run whose changes are taken back; by default the last one that changed I(what).
    type: str
    default: ""
  keep:
    description: What is kept where, as C(mdproxy_jobs) has it.
    type: dict
    required: true
  undo:
    description: >-
      Where what there is now is kept first, in the same form. Without it this is the end of a change that
      failed, and nothing is remembered.
    type: dict
  root:
    description: Folder that holds C(releases/), C(current) and C(previous).
    type: path
    default: /opt/mdproxy
  job_folders:
    description: Where the service managers look for files of jobs.
    type: list
    elements: path
    default: [/etc/systemd/system, /etc/init]
  run_dir:
    description: Folder for the marks of C(mdproxy_jobs).
    type: path
    default: /run/mdproxy-jobs
author: mdproxy maintainers
"""

RETURN = r"""
nothing:
  description: Why there is nothing to go back to; then nothing is changed.
  returned: when there is nothing
  type: str
before:
  description: The run whose changes were (would be) taken back; empty with I(what=releases).
  returned: always
  type: str
jobs:
  description: Names of the jobs that there are (would be) afterwards.
  returned: always
  type: list
release:
  description: Name of the release that is (would be) the current one; empty when there is none.
  returned: always
  type: str
restarted:
  description: Names of the jobs that were (would be) started or restarted.
  returned: always
  type: list
removed:
  description: Names of the jobs that were (would be) removed.
  returned: always
  type: list
"""

import os
import re
import time

from ansible.module_utils import job_managers, job_servers, kept_configuration
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.text.converters import to_native

# Of the services one is not a job: its timer starts it (roles/router_proxy/tasks/probe.yml).
_JOB = re.compile(r'(mdproxy-(?!probe\.)[^/]+)\.(?:service|conf)$')
_TIMER = re.compile(r'mdproxy-[^/]+\.timer$')
_PATH = re.compile(r'/[^\s=]+')
_ONE_FOR_ALL, _HAND_OVER = 'mdproxy-proxies', 'USR2'     # roles/router_proxy/vars/main.yml
_PROCESSES = {_ONE_FOR_ALL: ['proxy', '--discover']}    # what a job may leave behind
_STARTING = 10.0    # seconds for a job's process to be there


class Nothing(Exception):
    """There is nothing to go back to; the text says why."""


class Rollback(object):
    """From what there is now to what there was."""

    def __init__(self, module):
        self.module, self.params = module, module.params
        self.manager = job_managers.of(module, module.params['service_manager'])
        self.kept = kept_configuration.Kept(module.params['keep'])
        self.current = os.path.join(module.params['root'], 'current')
        self.now = self.kept.present()
        self.before, self.then = self._goal()
        self.differing = sorted(path for path in set(self.now) | set(self.then)
                                if self.now.get(path) != self.then.get(path))

    def _goal(self):
        """(run, {path: Entry}) of what is to be there afterwards."""
        if self.params['what'] == 'releases':
            return '', self._with_release(self.now, self._previous())
        run = self._run()
        before = self._chosen(self.kept.before(run), self.now)
        missing = self.current in before and not os.path.isdir(os.path.join(
            self.params['root'], before[self.current].content))
        if missing:
            self.module.fail_json(msg='the release %s, which ran before %s, is not on this node any more; '
                                  'with rollback=configuration the present one stays'
                                  % (os.path.basename(before[self.current].content), run))
        return run, before

    def _chosen(self, entries, others):
        """The entries; when it is the files alone that count, the links of the others with them."""
        if self.params['what'] == 'all':
            return entries
        return dict([item for item in entries.items() if not item[1].is_link]
                    + [item for item in others.items() if item[1].is_link])

    def _run(self):
        """The run that was asked for; else the last one that changed what is to be put back."""
        runs, asked = self.kept.runs(), self.params['before']
        if asked and asked in runs:
            return asked
        if asked:
            raise Nothing('nothing is kept of %s, only of %s' % (asked, ', '.join(runs) or 'no run'))
        restored = self.kept.restored(self.params['what'])
        if restored:
            return restored
        after = self.now
        for run in runs:
            before = self.kept.before(run)
            if self._chosen(before, after) != after:
                return run
            after = before
        raise Nothing('no run has changed a configuration on this node that is kept in %s' % self.kept.folder)

    def _previous(self):
        previous = os.path.join(self.params['root'], 'previous')
        if not os.path.isdir(previous):
            raise Nothing('%s leads nowhere: there is no release before the present one' % previous)
        return os.readlink(previous)

    def _with_release(self, entries, target):
        return dict(entries, **{self.current: entries[self.current]._replace(content=target)})

    def jobs(self, entries):
        """{name: path} of the jobs whose files are among the entries."""
        jobs = {}
        for path in entries:
            match = _JOB.match(os.path.basename(path))
            if match and os.path.dirname(path) in self.params['job_folders']:
                jobs[match.group(1)] = path
        return jobs

    def surplus(self):
        return sorted(set(self.jobs(self.now)) - set(self.jobs(self.then)))

    def stale(self):
        """Names of the jobs that run from something that differs, or that a run cut short did not restart."""
        differing, jobs = set(self.differing), self.jobs(self.then)
        if self.current in differing:
            return sorted(jobs)
        return sorted(
            name for name in jobs if jobs[name] in differing or os.path.exists(self._mark(name))
            or differing.intersection(_PATH.findall(to_native(
                self.then[jobs[name]].content, errors='surrogate_or_replace'))))

    def apply(self):
        surplus, stale = self.surplus(), self.stale()
        if self.params['undo']:
            kept_configuration.keep(self.module, self.params['undo'])
        running = self.manager.states(stale)
        self._leave_marks(stale)
        self._timers('disable', '--now', [path for path in self.now if path not in self.then])
        self._remove(surplus)
        for path in self.differing:
            if path in self.then:
                kept_configuration.put(path, self.then[path])
            elif os.path.lexists(path):
                os.unlink(path)
        self.manager.reload()
        self.manager.forget(surplus)
        self._start(stale, running)
        self._timers('enable', '--now', [path for path in self.differing if path in self.then])
        if self.before and self.params['undo']:
            self.kept.note_restored(self.params['what'], self.before)

    def _mark(self, name):
        return os.path.join(self.params['run_dir'], name)

    def _leave_marks(self, names):
        """So that the next run, of this or of the roles, restarts them if this one is cut short."""
        if names and not os.path.isdir(self.params['run_dir']):
            os.makedirs(self.params['run_dir'], 0o700)
        for name in names:
            open(self._mark(name), 'w').close()

    def _remove(self, names):
        self.manager.stop(names)
        states = self.manager.states(names)
        going_on = [name for name in names if states[name][0]]
        if going_on:
            self.module.fail_json(msg='job %s does not stop; see `%s`' % (
                going_on[0], self.manager.log_hint % going_on[0]))
        left = [server for name in names if name in _PROCESSES
                for server in job_servers.select(job_servers.running(), _PROCESSES[name])]
        job_servers.end(left)
        self.manager.disable(names)
        for name in names:
            for path in self.manager.files(name):
                if os.path.exists(path):
                    os.unlink(path)

    def _start(self, names, running):
        """Enable and start the jobs, or have them hand over; wait until each has a process."""
        if not names:
            return
        states = self.manager.states(names)
        self.manager.enable([name for name in names if not states[name][1]])
        handed = [name for name in names if name == _ONE_FOR_ALL and running[name][0]
                  and self.manager.hand_over(name, _HAND_OVER, running[name][0])]
        self.manager.restart([name for name in names if name not in handed])
        deadline = time.time() + _STARTING
        while time.time() < deadline and not all(pid for pid, _ in self.manager.states(names).values()):
            time.sleep(0.2)
        dead = sorted(name for name, (pid, _) in self.manager.states(names).items() if not pid)
        if dead:
            self.module.fail_json(
                msg='job %s does not run with what was put back; see `%s`. Its last lines: %s' % (
                    dead[0], self.manager.log_hint % dead[0],
                    self.manager.log_of(dead[0]).strip() or '(none)'))
        for name in names:
            os.unlink(self._mark(name))

    def _timers(self, command, option, paths):
        names = sorted(os.path.basename(path) for path in paths if _TIMER.match(os.path.basename(path)))
        if names:
            self.module.run_command(['systemctl', command, option] + names)

    def diff(self):
        """Which files differ, and where links lead; no content, of which some is secret."""
        sides = []
        for entries in (self.now, self.then):
            lines = []
            for path in self.differing:
                entry = entries.get(path)
                is_or_was = 'as it is' if entries is self.now else 'as it was'
                lines.append('%s %s\n' % (path, '(absent)' if entry is None else '-> ' + entry.content
                                          if entry.is_link else is_or_was))
            sides.append(''.join(lines))
        return dict(before=sides[0], after=sides[1])


def main():
    keep = kept_configuration.ARGUMENTS
    module = AnsibleModule(supports_check_mode=True, argument_spec=dict(
        service_manager=dict(type='str', required=True, choices=['systemd', 'upstart']),
        what=dict(type='str', required=True, choices=['releases', 'configuration', 'all']),
        before=dict(type='str', default=''),
        keep=dict(type='dict', required=True, options=keep), undo=dict(type='dict', options=keep),
        root=dict(type='path', default='/opt/mdproxy'),
        job_folders=dict(type='list', elements='path', default=['/etc/systemd/system', '/etc/init']),
        run_dir=dict(type='path', default='/run/mdproxy-jobs')))
    os.umask(0o022)
    try:
        rollback = Rollback(module)
    except Nothing as reason:
        module.exit_json(changed=False, nothing=str(reason), before='', release='', jobs=[], restarted=[],
                         removed=[])
    release = rollback.then.get(rollback.current)
    told = dict(before=rollback.before, release=os.path.basename(release.content) if release else '',
                jobs=sorted(rollback.jobs(rollback.then)), restarted=rollback.stale(),
                removed=rollback.surplus())
    changed = bool(rollback.differing or told['restarted'])
    if changed and not module.check_mode:
        rollback.apply()
    module.exit_json(changed=changed, diff=rollback.diff(), **told)


if __name__ == '__main__':
    main()
