"""Processes of mdproxy on the node, known by their command lines: .../mdproxy COMMAND WORD...

One that serves what a job is about to serve is in the job's way: an l3 agent started it, or a process
that is gone left it behind.
"""
from __future__ import absolute_import, division, print_function

import os
import signal
import time

_DRAIN = 12.0       # seconds to end: a server answers what is under way for 10
_PROGRAM = '/mdproxy'
_FIRST_WORDS = 6    # interpreter and its flags come before the program


class Server(object):
    """A process; pid and start time together are no other's."""

    def __init__(self, pid, words):
        self.pid, self.command, self.words = pid, words[0], frozenset(words[1:])
        self.started, self.parent = _stat(pid)[:2]

    def is_alive(self):
        started, _, state = _stat(self.pid)
        return started == self.started and state != 'Z'

    def signal(self, number):
        if self.is_alive():
            try:
                os.kill(self.pid, number)
            except OSError:
                pass        # it has just ended


def running():
    """Every Server that runs, of this node's: a container's on the same kernel are not."""
    servers = []
    for entry in os.listdir('/proc'):
        if entry.isdigit():
            words = _words_after_program(command_line(int(entry)))
            if words and _is_of_this_node(entry):
                servers.append(Server(int(entry), words))
    return servers


def select(servers, words, own=()):
    """Those whose command is the first word and among whose others are all the rest, except the
    processes with the pids `own` and what they started. A word that ends with = is the beginning of one."""
    return [server for server in servers if server.command == words[0]
            and all(_has(server, word) for word in words[1:])
            and not set(own).intersection(_lineage(server))]


def _has(server, word):
    return word in server.words or word.endswith('=') and any(
        one.startswith(word) for one in server.words)


def end(servers):
    """End them and wait until they are gone, which they are at the latest after 12 seconds."""
    for number, patience in ((signal.SIGTERM, _DRAIN), (signal.SIGKILL, 2.0)):
        servers = [server for server in servers if server.is_alive()]
        for server in servers:
            server.signal(number)
        deadline = time.time() + patience
        while any(server.is_alive() for server in servers) and time.time() < deadline:
            time.sleep(0.05)


def command_line(pid):
    """The words of a process's command line; none when it is gone."""
    try:
        with open('/proc/%d/cmdline' % pid) as cmdline:
            return cmdline.read().split('\0')[:-1]
    except (IOError, UnicodeDecodeError):
        return []


def _words_after_program(words):
    for number, word in enumerate(words[:_FIRST_WORDS]):
        if word.endswith(_PROGRAM):
            return words[number + 1:]
    return []


def _is_of_this_node(pid):
    try:
        return os.readlink('/proc/%s/ns/pid' % pid) == os.readlink('/proc/self/ns/pid')
    except OSError:
        return True         # a kernel before 3.8 does not tell


def _lineage(server):
    """Its pid and those of its ancestors."""
    pids, pid = [server.pid], server.parent
    while pid:
        pids.append(pid)
        pid = _stat(pid)[1]
    return pids


def _stat(pid):
    """(start time, parent's pid, state) of a process; of one that is gone (None, 0, 'Z')."""
    try:
        with open('/proc/%d/stat' % pid) as stat:
            fields = stat.read().rsplit(')', 1)[1].split()      # the name may hold anything
    except (IOError, IndexError, UnicodeDecodeError):
        return None, 0, 'Z'
    return fields[19], int(fields[1]), fields[0]
