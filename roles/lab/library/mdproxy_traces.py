#!/usr/bin/python
"""Ansible module: all that mdproxy has on a node, to find what is left over."""
from __future__ import absolute_import, division, print_function

DOCUMENTATION = r"""
module: mdproxy_traces
short_description: Find processes, chains, listeners, sockets, pid files and jobs of mdproxy on a node
author: mdproxy maintainers
"""

RETURN = r"""
processes:
  description: Command lines of the processes.
  returned: always
  type: list
pids:
  description: Their pids.
  returned: always
  type: list
ruled:
  description: Namespaces that have a chain of ours.
  returned: always
  type: list
listening:
  description: For each namespace, how many sockets listen on port 9697, or on 80 of the metadata address.
  returned: always
  type: dict
sockets:
  description: Names of socket and other files in the folders that processes of ours have while they run.
  returned: always
  type: list
pid_files:
  description: Pid files of proxies that an l3 agent started.
  returned: always
  type: list
jobs:
  description: Names of the job files.
  returned: always
  type: list
"""

import ctypes
import glob
import os
import re

from ansible.module_utils.basic import AnsibleModule

_CLONE_NEWNET = 0x40000000
_OURS = re.compile(r'/mdproxy(/bin/\S+)? (serve|proxy|agent|drop-in) |-(ns-metadata-proxy|metadata-agent) ')
_LISTENS = ('00000000:25E1', 'FEA9FEA9:0050')       # as /proc/net/tcp writes them on a little-endian machine


def processes():
    """(command line, pid) of each, in order."""
    found = []
    for pid in os.listdir('/proc'):
        try:
            with open('/proc/%s/cmdline' % pid) as cmdline:
                line = cmdline.read().replace('\0', ' ')
        except (IOError, OSError):
            continue
        if _OURS.search(line):
            found.append((line.strip(), int(pid)))
    return sorted(found)


def listeners(netns):
    """How many sockets listen for guests in a namespace."""
    libc, home = ctypes.CDLL(None), os.open('/proc/self/ns/net', os.O_RDONLY)
    there = os.open('/var/run/netns/' + netns, os.O_RDONLY)
    try:
        libc.setns(there, _CLONE_NEWNET)
        with open('/proc/self/net/tcp') as table:
            rows = [line.split() for line in table]
    finally:
        libc.setns(home, _CLONE_NEWNET)
        os.close(home)
        os.close(there)
    return sum(1 for row in rows if row[1] in _LISTENS and row[3] == '0A')


def main():
    module = AnsibleModule(supports_check_mode=True, argument_spec={})
    names = sorted(os.path.basename(path) for path in glob.glob('/var/run/netns/q*'))
    ruled = [name for name in names if 'mdproxy-' in module.run_command(
        ['ip', 'netns', 'exec', name, 'iptables-save'])[1]]
    files = [path for pattern in ('/run/mdproxy/*', '/run/mdproxy/status/*', '/run/mdproxy-jobs/*')
             for path in glob.glob(pattern) if not os.path.isdir(path)]
    jobs = glob.glob('/etc/systemd/system/mdproxy-*') + glob.glob('/etc/init/mdproxy-*')
    found = processes()
    module.exit_json(
        changed=False, processes=[line for line, _ in found], pids=[pid for _, pid in found], ruled=ruled,
        listening=dict((name, listeners(name)) for name in names), sockets=sorted(files),
        pid_files=sorted(glob.glob('/var/lib/quantum/external/pids/*.pid')),
        jobs=sorted(map(os.path.basename, jobs)))


if __name__ == '__main__':
    main()
