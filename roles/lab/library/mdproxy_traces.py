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
ruled_by_agent:
  description: Namespaces where the l3 agent's own chains lead guests to a proxy, or guard its port.
  returned: always
  type: list
listening:
  description: For each namespace, how many sockets listen on port 9697, or on 80 of the metadata address.
  returned: always
  type: dict
held_by:
  description: For each namespace, pids of the processes that have those sockets.
  returned: always
  type: dict
sockets:
  description: Names of socket and other files in the folders that processes of ours have while they run.
  returned: always
  type: list
pid_files:
  description: Of proxies that an l3 agent started, for each router the pid in its pid file, if there is one.
  returned: always
  type: dict
jobs:
  description: Names of the job files.
  returned: always
  type: list
"""

import glob
import os
import re

from ansible.module_utils import guest_listeners
from ansible.module_utils.basic import AnsibleModule

_OURS = re.compile(r'/mdproxy(/bin/\S+)? (serve|proxy|agent|drop-in) |-(ns-metadata-proxy|metadata-agent) ')
_PID_FILES = '/var/lib/quantum/external/pids/*.pid'
_RULE_OF_AGENT = re.compile('-A quantum-l3-agent-.* (--to-ports|--dport) 9697')


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


def pid_files():
    """{router: pid}, of those that are not empty."""
    pids = {}
    for path in glob.glob(_PID_FILES):
        with open(path) as found:
            pid = found.read()
        if pid:
            pids[os.path.basename(path)[:-len('.pid')]] = int(pid)
    return pids


def main():
    module = AnsibleModule(supports_check_mode=True, argument_spec={})
    names = sorted(os.path.basename(path) for path in glob.glob('/var/run/netns/q*'))
    rules = dict((name, module.run_command(['ip', 'netns', 'exec', name, 'iptables-save'])[1])
                 for name in names)
    sockets = dict((name, guest_listeners.listening_sockets(name)) for name in names)
    holders = guest_listeners.holders()
    files = [path for pattern in ('/run/mdproxy/*', '/run/mdproxy/status/*', '/run/mdproxy-jobs/*')
             for path in glob.glob(pattern) if not os.path.isdir(path)]
    jobs = glob.glob('/etc/systemd/system/mdproxy-*') + glob.glob('/etc/init/mdproxy-*')
    found = processes()
    module.exit_json(
        changed=False, processes=[line for line, _ in found], pids=[pid for _, pid in found],
        ruled=[name for name in names if 'mdproxy-' in rules[name]],
        ruled_by_agent=[name for name in names if _RULE_OF_AGENT.search(rules[name])],
        listening=dict((name, len(sockets[name])) for name in names),
        held_by=dict((name, sorted(pid for socket in sockets[name] for pid in holders.get(socket, ())))
                     for name in names),
        sockets=sorted(files), pid_files=pid_files(),
        jobs=sorted(map(os.path.basename, jobs)))


if __name__ == '__main__':
    main()
