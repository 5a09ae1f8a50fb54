#!/usr/bin/python
"""Ansible module: jobs of the node's service manager, with the files they run from, as one state."""
from __future__ import absolute_import, division, print_function

DOCUMENTATION = r"""
module: mdproxy_jobs
short_description: Keep jobs and their files as they should be, on systemd and on upstart
description:
  - Writes the files that differ, enables every job, and starts or restarts those that are not
    running, run another release, were started before their files changed, or whose check fails.
  - Which jobs need a restart is read from the node, not from what changed in this run. Before a
    file is changed a mark is left under I(run_dir) and removed after the restart, so a run that was
    cut short is made good by the next one.
  - On systemd the number of commands does not grow with the number of jobs, but for checks and waiting.
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
      - Each has C(name), its C(files), a C(check) command that exits 0 while the running job is
        whole, and C(ready), what must answer after a start. That is C(socket), a unix socket, or
        C(netns) and C(port), a listener in a namespace.
    type: list
    elements: dict
    required: true
  secrets:
    description: Contents of those files of I(jobs) that hold a secret, by path. They have no
      C(content) there, because that is written to the node's log and to the controller's output.
    type: dict
    default: {}
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
"""

import os
import re
import socket
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.text.converters import to_bytes, to_native

_FILE = dict(path=dict(type='path', required=True), content=dict(type='str'),
             mode=dict(type='str', default='0644'), owner=dict(type='str', default='root'),
             group=dict(type='str', default='root'))
_READY = dict(socket=dict(type='path'), netns=dict(type='str'), port=dict(type='int'))
_JOB = dict(name=dict(type='str', required=True),
            files=dict(type='list', elements='dict', options=_FILE, required=True),
            check=dict(type='list', elements='str', default=[]),
            ready=dict(type='dict', options=_READY, required=True,
                       required_one_of=[('socket', 'netns')], required_together=[('netns', 'port')]))
_LISTEN = '0A'      # state of a listening socket in /proc/net/tcp
_GRACE = 3.0        # seconds in which a job that the service manager has just started may be silent
_STARTING = 0.5     # seconds that one more job to start adds to the wait for all


class Systemd(object):
    """What the module asks of systemd."""

    log_hint = 'journalctl -u %s'

    def __init__(self, module):
        self.module = module

    def states(self, names):
        """{name: (pid or 0, enabled)} of the named jobs, also of those that do not exist."""
        out = self._systemctl('show', '-p', 'MainPID,UnitFileState', *self._units(names))
        states = {}
        for name, block in zip(names, out.strip().split('\n\n')):
            values = dict(line.split('=', 1) for line in block.splitlines() if '=' in line)
            states[name] = int(values.get('MainPID', 0)), values.get('UnitFileState') == 'enabled'
        return states

    def reload(self):
        self._systemctl('daemon-reload')

    def enable(self, names):
        self._systemctl('enable', '--quiet', *self._units(names))

    def restart(self, names):
        self._systemctl('reset-failed', *self._units(names))
        self._systemctl('restart', *self._units(names))

    def log_of(self, name):
        return self.module.run_command(['journalctl', '-n', '15', '-o', 'cat', '-u', name])[1]

    def _units(self, names):
        return [name + '.service' for name in names]

    def _systemctl(self, *words):
        code, out, err = self.module.run_command(['systemctl'] + list(words))
        if code and words[0] not in ('restart', 'reset-failed'):    # what came of it is asked after
            self.module.fail_json(msg='systemctl %s: %s' % (' '.join(words), err.strip()))
        return out


class Upstart(object):
    """What the module asks of upstart; a job that it has read is enabled, unless set to manual."""

    log_hint = 'less /var/log/upstart/%s.log'
    override = '/etc/init/%s.override'

    def __init__(self, module):
        self.module = module
        self.refusals = {}      # what `start` said of the jobs that it could not start

    def states(self, names):
        """{name: (pid or 0, enabled)} of the named jobs, also of those that do not exist."""
        listed = self._initctl('list')
        known = set(re.findall(r'^(\S+) (?:start|stop)/', listed, re.MULTILINE))
        # Only in this state is the process that is shown the job's main one, and not a post-stop.
        running = dict(re.findall(r'^(\S+) start/running, process (\d+)$', listed, re.MULTILINE))
        return dict((name, (int(running.get(name, 0)),
                            name in known and not any(map(_is_manual, self._override(name)))))
                    for name in names)

    def reload(self):
        self._initctl('reload-configuration')

    def enable(self, names):
        """Take `manual` out of the operator's override files; the rest of them stays."""
        for name in names:
            lines = self._override(name)
            if any(map(_is_manual, lines)):
                with open(self.override % name, 'w') as override:
                    override.writelines(line for line in lines if not _is_manual(line))
        self.reload()

    def restart(self, names):
        for name in names:
            # `restart` would run the job as it was loaded when it started: stop and start reload it.
            self.module.run_command(['initctl', 'stop', name])
            code, out, err = self.module.run_command(['initctl', 'start', name])
            if code:        # what came of it is asked after, when every job had its turn
                self.refusals[name] = err.strip()

    def log_of(self, name):
        out = self.module.run_command(['tail', '-n', '15', '/var/log/upstart/%s.log' % name])[1]
        return '%s\n%s' % (self.refusals.get(name, ''), out)

    def _override(self, name):
        # Not `show-config`: upstart shows a running job as it was when it started.
        try:
            with open(self.override % name) as override:
                return override.readlines()
        except IOError:
            return []

    def _initctl(self, *words):
        code, out, err = self.module.run_command(['initctl'] + list(words))
        if code:
            self.module.fail_json(msg='initctl %s: %s' % (' '.join(words), err.strip()))
        return out


def _is_manual(line):
    return line.split('#')[0].split() == ['manual']


class Files(object):
    """The files that differ, and what the difference looks like without showing a secret."""

    def __init__(self, module):
        self.module, self.secrets = module, module.params['secrets']
        self.before, self.after = [], []

    def content(self, entry):
        """The bytes that the file should hold."""
        content = self.secrets.get(entry['path'], entry['content'])
        if content is None:
            self.module.fail_json(msg='%s: no content, neither there nor in secrets' % entry['path'])
        return to_bytes(content)

    def differs(self, entry):
        """True when the file's content is not what it should be; the difference is noted."""
        try:
            with open(entry['path'], 'rb') as current:
                now = current.read()
        except IOError:
            now = None
        wanted = self.content(entry)
        if now == wanted:
            return False
        for side, text, word in ((self.before, now, 'old'), (self.after, wanted, 'new')):
            if text is not None:
                shown = to_native(text, errors='surrogate_or_replace')
                if entry['path'] in self.secrets:
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
            out.write(self.content(entry))
        arguments = self.module.load_file_common_arguments(entry, path=temporary)
        self.module.set_fs_attributes_if_different(arguments, False)
        os.rename(temporary, entry['path'])


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

    def remove(self, name):
        if self.has(name):
            os.unlink(os.path.join(self.folder, name))


def _command_line(pid):
    try:
        with open('/proc/%d/cmdline' % pid) as cmdline:
            return cmdline.read().split('\0')
    except IOError:
        return []


def _reason(module, job, pid, stale):
    """Why the job must be started or restarted, or None."""
    if not pid:
        return 'not running'
    if stale:
        return 'its files changed'
    release = os.path.realpath(module.params['release']) + '/'     # as the launcher finds itself
    if not any(word.startswith(release) for word in _command_line(pid)):
        return 'runs another release'
    if job['check']:
        code, out, err = module.run_command(job['check'])
        if code:
            return (err or out).strip().splitlines()[-1] if (err or out).strip() else 'check failed'
    if not _silent(module, [job], _GRACE):
        return None
    return 'does not answer'


def _answers(module, ready):
    if ready['socket']:
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            probe.connect(ready['socket'])
            return True
        except (socket.error, OSError):
            return False
        finally:
            probe.close()
    out = module.run_command(['ip', 'netns', 'exec', ready['netns'],
                              'cat', '/proc/net/tcp', '/proc/net/tcp6'])[1]
    rows = [line.split() for line in out.splitlines()]
    return any(len(row) > 3 and row[3] == _LISTEN and row[1].endswith(':%04X' % ready['port'])
               for row in rows)


def _silent(module, jobs, seconds):
    """The jobs that do not answer within so many seconds."""
    deadline = time.time() + seconds
    silent = [job for job in jobs if not _answers(module, job['ready'])]
    while silent and time.time() < deadline:
        time.sleep(0.1)
        silent = [job for job in silent if not _answers(module, job['ready'])]
    return silent


def _refuse_silent(module, manager, silent):
    """Fail the module: all that do not answer, and the log of the first."""
    name = silent[0]['name']
    module.fail_json(
        msg='job %s was started and does not answer after %d s; see `%s`. Its last lines: %s'
            % (', '.join(job['name'] for job in silent), module.params['wait'],
               manager.log_hint % name, manager.log_of(name).strip() or '(none)'))


def main():
    module = AnsibleModule(supports_check_mode=True, argument_spec=dict(
        service_manager=dict(type='str', required=True, choices=['systemd', 'upstart']),
        release=dict(type='str', required=True),
        jobs=dict(type='list', elements='dict', options=_JOB, required=True),
        secrets=dict(type='dict', default={}, no_log=True),
        run_dir=dict(type='path', default='/run/mdproxy-jobs'),
        wait=dict(type='int', default=15)))
    os.umask(0o022)     # whatever root's is: the user that serves has to reach its files
    manager = {'systemd': Systemd, 'upstart': Upstart}[module.params['service_manager']](module)
    files, marks = Files(module), Marks(module.params['run_dir'])
    jobs = module.params['jobs']
    names = [job['name'] for job in jobs]

    to_write, stale = [], set(name for name in names if marks.has(name))
    for job in jobs:
        own = [entry for entry in job['files'] if files.differs(entry)]
        to_write += own
        if own:
            stale.add(job['name'])

    if stale and not module.check_mode:
        marks.leave(stale)
        for entry in to_write:
            files.write(entry)
        manager.reload()        # also when a run that was cut short wrote the files
    touched = any([files.attributes(entry) for job in jobs for entry in job['files']])

    states = manager.states(names) if names else {}
    disabled = [name for name in names if not states[name][1]]
    restarts = {}
    for job in jobs:
        reason = _reason(module, job, states[job['name']][0], job['name'] in stale)
        if reason:
            restarts[job['name']] = reason
    if not module.check_mode:
        if disabled:
            manager.enable(disabled)
        started = [job for job in jobs if job['name'] in restarts]
        if started:
            manager.restart([job['name'] for job in started])
        # They start side by side and share the node's processors.
        silent = _silent(module, started, module.params['wait'] + _STARTING * len(started))
        for job in started:
            if job not in silent:
                marks.remove(job['name'])
        if silent:
            _refuse_silent(module, manager, silent)

    for name in sorted(restarts):
        files.before.append('job %s: %s\n' % (name, restarts[name]))
        files.after.append('job %s: running\n' % name)
    for name in disabled:
        files.before.append('job %s: not started at boot\n' % name)
        files.after.append('job %s: started at boot\n' % name)
    module.exit_json(changed=bool(to_write or touched or disabled or restarts), restarted=restarts,
                     diff=dict(before='\n'.join(files.before), after='\n'.join(files.after)))


if __name__ == '__main__':
    main()
