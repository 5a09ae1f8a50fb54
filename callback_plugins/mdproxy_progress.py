"""What a long task is at: one line every ten seconds, and one when it has ended.

Rules kept:

- To standard error, so what goes to standard output (a table, JSON) is what it would be without. Each line is
  complete and written at once: it may go to a terminal or to a log.
- A task that is quicker than the interval says nothing.
- A module cannot speak while it runs. One on the controller may leave a note, `N of M, what`, in the folder
  that MDPROXY_PROGRESS names; of others it is known which hosts have not answered yet, and at the end the
  `counts` that they return.
"""
from __future__ import annotations

import atexit
import glob
import os
import shutil
import sys
import tempfile
import threading
import time

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: mdproxy_progress
type: notification
short_description: What a long task is at, how many hosts or items are done, and how long it took
description:
  - Writes to standard error a line for each interval that a task goes on, and one at its end.
requirements: [enabled in ansible.cfg]
options:
  seconds:
    description: The interval. With 0 nothing is said.
    type: float
    default: 10
    env: [{name: MDPROXY_PROGRESS_SECONDS}]
    ini: [{section: callback_mdproxy_progress, key: seconds}]
"""

_NAMED = 3          # hosts that a line names
_FOLDER = 'MDPROXY_PROGRESS'


class Task:
    """A task that is under way. began; last: when a host answered; told: when a line was written."""

    def __init__(self, name, now):
        self.name, self.began, self.last, self.told = name, now, now, now
        self.hosts, self.done = [], 0           # names of those that have not answered yet; how many have
        self.items, self.label = 0, ''
        self.counts = {}                        # what modules have counted, by host

    def line(self, now, notes):
        """What it is at."""
        parts = list(notes)
        if self.items:
            parts.append('%s done, the last %s' % (many(self.items, 'item'), self.label))
        if self.done:
            parts.append('%s done' % many(self.done, 'host'))
        parts.append('waiting for ' + _named(self.hosts))
        return '%s so far: %s (%s)' % (span(now - self.began), self.name, '; '.join(parts))

    def end(self):
        """How long it took, and of how much."""
        counted = [host + ' ' + ', '.join('%d %s' % (number, name) for name, number in counts if number)
                   for host, counts in sorted(self.counts.items())]
        if len(counted) > _NAMED:
            counted[_NAMED:] = ['and %s more' % many(len(counted) - _NAMED, 'host')]
        told = '; '.join(counted) or many(self.done, 'host')
        return '%s in all: %s (%s)' % (span(self.last - self.began), self.name, told)


def _named(names):
    more = ' and %d others' % (len(names) - _NAMED) if len(names) > _NAMED else ''
    return ', '.join(sorted(names)[:_NAMED]) + more


def many(number, noun):
    return '%d %s%s' % (number, noun, '' if number == 1 else 's')


def span(seconds):
    """A duration for a person."""
    minutes, seconds = divmod(int(seconds), 60)
    return '%d min %02d s' % (minutes, seconds) if minutes else '%d s' % seconds


class CallbackModule(CallbackBase):
    """Ansible's side of it."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = 'notification'
    CALLBACK_NAME = 'mdproxy_progress'
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._lock, self._ended = threading.Lock(), threading.Event()
        # By the task's id: its name as it was announced; those that are under way.
        self._names, self._tasks = {}, {}
        self._began, self._folder, self._playbook, self._every = time.monotonic(), '', '', 0

    def v2_playbook_on_start(self, playbook):
        self._every = self.get_option('seconds')
        if self._every <= 0:
            self.disabled = True
            return
        self._playbook = os.path.basename(playbook._file_name)
        self._folder = os.environ[_FOLDER] = tempfile.mkdtemp(prefix='mdproxy-progress-')
        atexit.register(self._forget, os.getpid())      # also when it is broken off
        threading.Thread(target=self._tell, daemon=True).start()

    def v2_playbook_on_play_start(self, play):
        self._end()

    def v2_playbook_on_task_start(self, task, is_conditional):
        self._end()
        self._names[task._uuid] = task.get_name().strip()       # its words are filled in now, and not later

    def v2_playbook_on_handler_task_start(self, task):
        self.v2_playbook_on_task_start(task, False)

    def v2_playbook_on_stats(self, stats):
        self._end()
        self._ended.set()
        taken = time.monotonic() - self._began
        if taken >= self._every:
            self._write('%s in all: %s' % (span(taken), self._playbook))
        self._forget(os.getpid())

    def v2_runner_on_start(self, host, task):
        with self._lock:
            if task._uuid not in self._tasks:
                name = self._names.get(task._uuid, task.get_name().strip())
                self._tasks[task._uuid] = Task(name, time.monotonic())
            self._tasks[task._uuid].hosts.append(host.get_name())

    def v2_runner_on_ok(self, result):
        with self._lock:
            task = self._tasks.get(result._task._uuid)
            if not task:
                return
            name, counts = result._host.get_name(), result._result.get('counts')
            task.last, task.done = time.monotonic(), task.done + 1
            task.hosts[:] = [host for host in task.hosts if host != name]
            if isinstance(counts, dict) and any(counts.values()):
                task.counts[name] = sorted(counts.items())

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self.v2_runner_on_ok(result)

    v2_runner_on_skipped = v2_runner_on_unreachable = v2_runner_on_ok

    def v2_runner_item_on_ok(self, result):
        with self._lock:
            task = self._tasks.get(result._task._uuid)
            if task:
                task.items, task.label = task.items + 1, result._result.get('_ansible_item_label', '')

    v2_runner_item_on_failed = v2_runner_item_on_skipped = v2_runner_item_on_ok

    def _end(self):
        with self._lock:
            for task in self._tasks.values():
                if task.last - task.began >= self._every:
                    self._write(task.end())
            self._tasks.clear()
            self._names.clear()
            for path in self._notes():
                os.unlink(path)

    def _tell(self):
        """In a thread: say from time to time what goes on."""
        while not self._ended.wait(min(1.0, self._every / 2)):
            with self._lock:
                now = time.monotonic()
                for task in self._tasks.values():
                    if task.hosts and now - task.told >= self._every:
                        task.told = now
                        self._write(task.line(now, self._said()))

    def _notes(self):
        return sorted(glob.glob(os.path.join(glob.escape(self._folder), 'note-*'))) if self._folder else []

    def _said(self):
        said = []
        for path in self._notes():
            try:
                with open(path, encoding='utf-8', errors='replace') as note:
                    said.append(' '.join(note.read().split())[:200])
            except OSError:
                pass
        return said

    def _forget(self, owner):
        if os.getpid() == owner:        # and not a worker that has its memory
            shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, text):
        # Not through Display, whose lock a worker that is forked meanwhile would find taken.
        try:
            os.write(sys.stderr.fileno(), ('    ' + text + '\n').encode('utf-8', 'replace'))
        except (OSError, ValueError):
            self._ended.set()       # nobody listens any more
