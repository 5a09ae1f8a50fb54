"""job_servers: which processes are in a job's way, and how they end."""
import os
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import ansible_module  # noqa: E402

job_servers = ansible_module.utility('job_servers')

PROGRAM = '''
import os, signal, sys
signal.alarm(60)
if 'stubborn' in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if 'parent' in sys.argv and not os.fork():
    os.execv(sys.executable, [sys.executable, sys.argv[0], 'serve', 'router=child'])
sys.stdout.write('up\\n')
sys.stdout.flush()
signal.pause()
'''


@pytest.fixture
def spawn(tmpdir):
    """Start a process of mdproxy with these words; all of them are ended after the test."""
    processes = []
    program = tmpdir.join('mdproxy')
    program.write(PROGRAM)

    def start(*words):
        process = subprocess.Popen([sys.executable, str(program)] + list(words), stdout=subprocess.PIPE)
        processes.append(process)
        process.stdout.readline()
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def pids(servers):
    return sorted(server.pid for server in servers)


def test_servers_are_chosen_by_command_and_all_words(spawn):
    one, other = spawn('serve', 'router=a', 'listen-fd=3'), spawn('serve', 'router=b')
    spawn('proxy', 'router=a')
    servers = job_servers.running()
    assert pids(job_servers.select(servers, ['serve', 'router=a'])) == [one.pid]
    assert set([one.pid, other.pid]) <= set(pids(job_servers.select(servers, ['serve'])))
    assert job_servers.select(servers, ['serve', 'router=a', 'router=b']) == []


def test_a_word_that_ends_with_its_equals_sign_stands_for_all_that_begin_so(spawn):
    router, network = spawn('serve', 'router=a'), spawn('serve', 'network=b')
    found = pids(job_servers.select(job_servers.running(), ['serve', 'router=']))
    assert router.pid in found and network.pid not in found


def test_a_job_and_what_it_started_are_not_in_its_way(spawn):
    job = spawn('serve', 'router=child', 'parent')
    stray = spawn('serve', 'router=child')

    def found():
        return job_servers.select(job_servers.running(), ['serve', 'router=child'])

    while len(found()) < 3:     # the job's child, which ends with the alarm at the latest
        assert job.poll() is None
    servers = job_servers.running()
    assert pids(job_servers.select(servers, ['serve', 'router=child'], [job.pid])) == [stray.pid]
    job_servers.end(found())


def test_one_that_does_not_end_is_killed(spawn, monkeypatch):
    monkeypatch.setattr(job_servers, '_DRAIN', 0.1)
    stubborn = spawn('serve', 'router=a', 'stubborn')
    job_servers.end(job_servers.select(job_servers.running(), ['serve', 'router=a']))
    assert stubborn.wait() == -9


def test_a_pid_that_another_process_has_by_now_is_left_alone(spawn):
    process = spawn('serve', 'router=a')
    server, = job_servers.select(job_servers.running(), ['serve', 'router=a'])
    server.started = 'earlier'
    job_servers.end([server])
    assert process.poll() is None
