"""The node's service manager as a module sees it: systemd or upstart.

Both take any number of jobs in a call. Systemd gets them in few commands and starts them side by side;
upstart starts one after the other.
"""
from __future__ import absolute_import, division, print_function

import re
import time

_HANDING_OVER = 10.0    # seconds
_BATCH = 1000       # names in one command: 60 kB of the 128 kB that an old kernel takes


def of(module, name):
    """The manager that the fact `service_mgr` names."""
    return {'systemd': Systemd, 'upstart': Upstart}[name](module)


def batches(values):
    """The list in parts that fit into a command line."""
    return [values[start:start + _BATCH] for start in range(0, len(values), _BATCH)]


class Systemd(object):
    """What the module asks of systemd."""

    log_hint = 'journalctl -u %s'

    def __init__(self, module):
        self.module = module

    def states(self, names):
        """{name: (pid or 0, enabled)} of the named jobs, also of those that do not exist."""
        states = dict((name, (0, False)) for name in names)
        for some in batches(names):
            out = self._systemctl('show', '-p', 'Id,MainPID,UnitFileState', *_units(some))
            for block in out.strip().split('\n\n'):
                values = dict(line.split('=', 1) for line in block.splitlines() if '=' in line)
                states[_job(values['Id'])] = (int(values.get('MainPID', 0)),
                                              values.get('UnitFileState') == 'enabled')
        return states

    def known(self, patterns):
        """Names of the jobs that it has, of those that match one of the shell patterns."""
        out = self._systemctl('list-units', '--all', '--plain', '--no-legend', '--no-pager',
                              *_units(patterns))
        # Older ones put a dot before what failed.
        rows = re.findall(r'^\W*(\S+)\.service +(\S+) +(\S+)', out, re.MULTILINE)
        # One that another unit names and that does not exist is listed too.
        return [name for name, loaded, active in rows if loaded != 'not-found' or active == 'active']

    def files(self, name):
        """What belongs to a job beside its job file, and would outlive it."""
        return []

    def reload(self):
        self._systemctl('daemon-reload')

    def enable(self, names):
        for some in batches(names):
            self._systemctl('enable', '--quiet', *_units(some))

    def disable(self, names):
        for some in batches(names):
            self._try('disable', '--quiet', *_units(some))

    def restart(self, names):
        self.forget(names)
        for some in batches(names):
            self._try('restart', *_units(some))

    def hand_over(self, name, signal, pid):
        """Send a signal to the job's main process, pid, and wait until another has taken its place; true
        when one has."""
        self._try('kill', '--kill-who=main', '--signal=' + signal, *_units([name]))
        end = time.time() + _HANDING_OVER
        while time.time() < end:
            if self.states([name])[name][0] not in (0, pid):
                return True
            time.sleep(0.1)
        return False

    def stop(self, names):
        for some in batches(names):
            self._try('stop', *_units(some))

    def forget(self, names):
        """Forget that they have failed."""
        for some in batches(names):
            self._try('reset-failed', *_units(some))

    def log_of(self, name):
        return self.module.run_command(['journalctl', '-n', '15', '-o', 'cat', '-u', name])[1]

    def _systemctl(self, *words):
        code, out, err = self._try(*words)
        if code:
            self.module.fail_json(msg='systemctl %s: %s' % (words[0], err.strip()))
        return out

    def _try(self, *words):
        """For what may fail for one of many; what came of it is asked after."""
        return self.module.run_command(['systemctl'] + list(words))


def _units(names):
    return [name + '.service' for name in names]


def _job(unit):
    return unit[:-len('.service')] if unit.endswith('.service') else unit


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
        known = set(_listed(listed))
        # Only in this state is the process that is shown the job's main one, and not a post-stop.
        running = dict(re.findall(r'^(\S+) start/running, process (\d+)$', listed, re.MULTILINE))
        return dict((name, (int(running.get(name, 0)),
                            name in known and not any(map(_is_manual, self._override(name)))))
                    for name in names)

    def known(self, patterns):
        """Names of the jobs that it has; more than those that match the patterns."""
        return _listed(self._initctl('list'))

    def files(self, name):
        """What belongs to a job beside its job file, and would outlive it."""
        return [self.override % name]

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

    def disable(self, names):
        """A job without its file does not start."""

    def restart(self, names):
        for name in names:
            # `restart` would run the job as it was loaded when it started: stop and start reload it.
            self.stop([name])
            code, out, err = self.module.run_command(['initctl', 'start', name])
            if code:        # what came of it is asked after, when every job had its turn
                self.refusals[name] = err.strip()

    def hand_over(self, name, signal, pid):
        """False: what upstart starts again by itself runs as it was loaded when the job was started."""
        return False

    def stop(self, names):
        for name in names:
            self.module.run_command(['initctl', 'stop', name])

    def forget(self, names):
        """It remembers nothing."""

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


def _listed(text):
    return re.findall(r'^(\S+) (?:start|stop)/', text, re.MULTILINE)


def _is_manual(line):
    return line.split('#')[0].split() == ['manual']
