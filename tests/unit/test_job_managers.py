"""job_managers: what is made of the words of systemctl and initctl."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import ansible_module  # noqa: E402

job_managers = ansible_module.utility('job_managers')

UNITS = """\
  mdproxy-proxy-a.service loaded    active   running Metadata proxy of router a
* mdproxy-proxy-b.service loaded    failed   failed  Metadata proxy of router b
  mdproxy-proxy-c.service not-found inactive dead    mdproxy-proxy-c.service
  mdproxy-proxy-d.service not-found active   running mdproxy-proxy-d.service
"""
JOBS = """\
mdproxy-proxy-a start/running, process 11
mdproxy-proxy-b stop/waiting
mdproxy-proxy-c stop/post-stop, process 12
rc stop/waiting
"""


class Module(object):
    """Answers every command with the same text and notes the commands."""

    def __init__(self, out=''):
        self.out, self.commands = out, []

    def run_command(self, words):
        self.commands.append(words)
        return 0, self.out, ''


def test_systemd_has_jobs_that_failed_and_such_that_run_without_their_file():
    module = Module(UNITS)
    known = job_managers.of(module, 'systemd').known(['mdproxy-proxy-*'])
    assert known == ['mdproxy-proxy-' + letter for letter in 'abd']
    assert module.commands[0][-1] == 'mdproxy-proxy-*.service'


def test_systemd_is_asked_by_name_and_answers_in_its_own_order():
    module = Module('MainPID=0\nId=b.service\n\nMainPID=7\nUnitFileState=enabled\nId=a.service\n')
    assert job_managers.of(module, 'systemd').states(['a', 'b']) == {'a': (7, True), 'b': (0, False)}


def test_so_many_jobs_as_a_command_line_takes_are_in_one_command():
    module = Module()
    job_managers.of(module, 'systemd').enable(['job-%04d' % number for number in range(1001)])
    assert [len(words) for words in module.commands] == [3 + 1000, 3 + 1]


def test_upstart_has_the_jobs_that_it_lists_and_only_those_that_run_have_a_pid():
    manager = job_managers.of(Module(JOBS), 'upstart')
    assert 'mdproxy-proxy-b' in manager.known([])
    states = manager.states(['mdproxy-proxy-a', 'mdproxy-proxy-c', 'mdproxy-proxy-x'])
    assert states == {'mdproxy-proxy-a': (11, True), 'mdproxy-proxy-c': (0, True),
                      'mdproxy-proxy-x': (0, False)}


def test_upstart_loads_a_job_anew_by_stop_and_start_one_after_the_other():
    module = Module()
    job_managers.of(module, 'upstart').restart(['a', 'b'])
    assert module.commands == [['initctl', 'stop', 'a'], ['initctl', 'start', 'a'],
                               ['initctl', 'stop', 'b'], ['initctl', 'start', 'b']]
