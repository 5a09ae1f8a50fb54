"""Processes of a run, and what the kernel tells of them."""
import os
import subprocess
import time

DEADLINE = 15.0         # seconds after which what is waited for counts as failed
LONG = 90.0             # the same of what has hundreds to begin, or much to import
_QUIET = 0.2            # seconds without CPU time of those who have nothing to do
_TICK = float(os.sysconf('SC_CLK_TCK'))


class BenchError(Exception):
    """The run cannot go on; the message says why."""


class Missing(BenchError):
    """The run cannot begin: the machine lacks what the message says."""


class Process(object):
    """A command that runs until `stop`; what it says goes to the file `log_path`."""

    def __init__(self, argv, log_path, **kwargs):
        self.argv, self.log_path = argv, log_path
        with open(log_path, 'ab') as log:
            self._said_before = log.tell()
            self._process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT,
                                             stdin=subprocess.DEVNULL, **kwargs)
        self.pid = self._process.pid

    @property
    def log(self):
        """What it said so far."""
        with open(self.log_path, 'rb') as log:
            log.seek(self._said_before)
            return log.read().decode('utf-8', 'replace')

    def last_words(self):
        """What it said last, for a message."""
        return ' | '.join(self.log.strip().splitlines()[-3:])

    def until(self, text):
        """Wait until it has said this; what it said. BenchError when it ends or keeps silent."""
        wait_until(lambda: text in self.log or self._ended(), '%r of %s' % (text, self.log_path))
        if text not in self.log:
            self.check()
        return self.log

    def check(self):
        """Raise BenchError if it does not run any more."""
        if self._ended():
            raise BenchError('%s ended with %d: %s' % (' '.join(self.argv), self._process.returncode,
                                                       self.last_words()))

    def stop(self):
        """End it, by force if it does not listen."""
        if not self._ended():
            self._process.terminate()
            try:
                self._process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _ended(self):
        return self._process.poll() is not None


def run(argv, text=None):
    """Output of a command that ends by itself; BenchError with what it said when it fails."""
    done = subprocess.run(argv, input=text, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True)
    if done.returncode:
        raise BenchError('%s: %s' % (' '.join(argv), (done.stderr or done.stdout).strip()))
    return done.stdout


def wait_until(condition, what, deadline=DEADLINE):
    """Wait for a condition; BenchError when it does not come true in time."""
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise BenchError('not within %g s: %s' % (deadline, what))
        time.sleep(0.01)


def until_quiet(processes):
    """Wait until they do nothing any more, but not for long."""
    end, before = time.monotonic() + DEADLINE, -1
    while time.monotonic() < end:
        now = cpu_seconds(processes)
        if now == before:
            return
        before = now
        time.sleep(_QUIET)


def cpu_seconds(processes):
    """User and system time so far of processes and their descendants, threads included."""
    return sum(int(value) for pid in tree(processes) for value in _stat(pid)[11:13]) / _TICK


def cores():
    """(idle, stolen): seconds that this machine's cores had no work, and that a hypervisor has given to
    others although they had."""
    values = [int(value) / _TICK for value in _lines('stat')[0].split()[1:]]
    return values[3] + values[4], values[7]


def tree(processes):
    """Pids of processes and of all their descendants."""
    parents = {}
    for name in filter(str.isdigit, os.listdir('/proc')):
        try:
            parents.setdefault(int(_stat(name)[1]), []).append(int(name))
        except (FileNotFoundError, ProcessLookupError):
            pass        # ended meanwhile
    pids = [process.pid for process in processes]
    for pid in pids:
        pids += parents.get(pid, [])
    return pids


def pss(processes):
    """kB of processes and of all their descendants."""
    return sum(int(line.split()[1]) for pid in tree(processes) for line in _lines('%d/smaps_rollup' % pid)
               if line.startswith('Pss:'))


def open_files(processes):
    """How many files processes and all their descendants have open."""
    return sum(len(os.listdir('/proc/%d/fd' % pid)) for pid in tree(processes))


def memory(pid, is_shared_only_here):
    """kB of a process: `pss` as the kernel tells it, `rss`, and `alone`.

    alone: the PSS that it would have without others of the same interpreter, whose number here is
    the bench's doing: files for which is_shared_only_here(path) count whole.
    """
    total = {'pss': 0, 'rss': 0, 'alone': 0}
    path = ''
    with open('/proc/%d/smaps' % pid) as lines:
        for line in lines:
            words = line.split()
            if not words[0].endswith(':'):
                path = words[5] if len(words) > 5 else ''
            elif words[0] in ('Pss:', 'Rss:'):
                name, size = words[0][:-1].lower(), int(words[1])
                total[name] += size
                if name == ('rss' if is_shared_only_here(path) else 'pss'):
                    total['alone'] += size
    return total


def _lines(name):
    with open('/proc/' + name) as lines:
        return lines.readlines()


def _stat(pid):
    """Fields of /proc/PID/stat from the third (state) on."""
    with open('/proc/%s/stat' % pid) as stat:
        return stat.read().rpartition(')')[2].split()
