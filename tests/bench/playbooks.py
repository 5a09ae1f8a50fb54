"""How long routers.yml takes: playbooks.py [--quick] [--json FILE]

On one node with ever more routers and on ever more nodes, in both modes: the first run, which deploys and
starts, the run after it, which finds nothing to do, and that of one router. Nodes are the lab's containers,
all on this machine; each case has nodes of its own, which are removed in the end. Run by the controller's
Python, as root; `make bench` does.
"""
import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
INVENTORY = os.path.join(ROOT, 'build', 'bench', 'nodes')
# (nodes, routers of each)
_CASES = ((1, 1), (1, 10), (1, 100), (1, 500), (1, 20), (4, 20), (16, 20))
_QUICK = ((1, 1), (1, 10), (1, 20), (2, 20))
_FORKS = '4'        # nodes that are worked on at once: here all have the same two cores
_MODES = {'per_router': 'local', 'shared': 'builtin'}
_RECAP = re.compile(r'^(node\d+) +: .*changed=(\d+) +unreachable=(\d+) +failed=(\d+)', re.MULTILINE)
# One node's routers, as the l3 agent would name them; ids come on standard input.
_MAKE = '''
while read -r id; do
    ip netns add qrouter-$id
    ip -n qrouter-$id link set lo up
    ip -n qrouter-$id link add qr-$(echo $id | cut -c1-11) type veth peer name guest
done
'''
_COUNT = '''
for name in $(ls /run/netns | grep ^qrouter-); do
    ip netns exec $name ss -Hltn 'sport = :9697' | head -n 1
done | wc -l
'''


class BenchError(Exception):
    """A playbook failed; the message says which and its last lines."""


def run(argv, text=None):
    """What a command says; BenchError when it fails."""
    environment = dict(os.environ, MDPROXY_LAB='bench', ANSIBLE_NOCOLOR='1', ANSIBLE_FORCE_COLOR='0',
                       ANSIBLE_CONFIG=os.path.join(ROOT, 'ansible.cfg'))
    done = subprocess.run(argv, cwd=ROOT, env=environment, input=text, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise BenchError('%s: %s' % (' '.join(argv[:6]), ' | '.join(done.stdout.strip().splitlines()[-8:])))
    return done.stdout


def playbook(name, mode, *words):
    """(seconds, what it said) of a playbook on the nodes."""
    argv = ['ansible-playbook', '-i', INVENTORY, '-f', _FORKS, 'playbooks/' + name,
            '-e', 'mdproxy_mode=' + mode, '-e', 'mdproxy_agent_location=' + _MODES[mode]] + list(words)
    begun = time.monotonic()
    said = run(argv)
    return time.monotonic() - begun, said


def router_id(node, number):
    """The same in every run."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, 'router-%d.node%d' % (number, node)))


class Nodes(object):
    """So many nodes with so many routers each, made anew."""

    def __init__(self, nodes, routers):
        self._nodes, self._routers = nodes, routers

    def __enter__(self):
        self._write_inventory()
        try:
            self.remove()
            run(['ansible-playbook', '-i', INVENTORY, 'playbooks/lab.yml'])
            for node in range(1, self._nodes + 1):
                ids = ''.join(router_id(node, number) + '\n' for number in range(self._routers))
                run(['ssh', '-F', os.path.join(ROOT, 'build', 'lab', 'bench', 'ssh_config'), 'node%d' % node,
                     'sudo sh -ec ' + _quoted(_MAKE)], ids)
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_):
        try:
            self.remove()
        except BenchError as error:     # the next ones begin with it, and what was measured counts
            sys.stderr.write('bench: %s\n' % error)

    @staticmethod
    def remove():
        """Take the containers away."""
        run(['ansible-playbook', '-i', INVENTORY, 'playbooks/lab_destroy.yml'])

    def served(self):
        """How many routers have a listener for their guests."""
        said = run(['ansible', 'network_nodes', '-i', INVENTORY, '-b', '-o', '-m', 'ansible.builtin.shell',
                    '-a', _COUNT])
        return sum(int(count) for count in re.findall(r'\(stdout\) *(\d+)', said))

    def _write_inventory(self):
        names = ['node%d' % number for number in range(1, self._nodes + 1)]
        os.makedirs(os.path.join(INVENTORY, 'group_vars'), exist_ok=True)
        shutil.copy(os.path.join(ROOT, 'tests', 'bench', 'nodes.yml'),
                    os.path.join(INVENTORY, 'group_vars', 'all.yml'))
        hosts = dict((name, {'lab_networks': ['management', 'internal'], 'mdproxy_routers': 'discover',
                             'ansible_python_interpreter': '/usr/bin/python3'}) for name in names)
        local = {'ansible_connection': 'local', 'ansible_python_interpreter': sys.executable}
        api = {'lab_networks': ['internal'], 'ansible_python_interpreter': '/usr/bin/python3'}
        with open(os.path.join(INVENTORY, 'hosts.json'), 'w') as out:
            json.dump({'all': {'hosts': {'localhost': local}, 'children': {
                'metadata_api': {'hosts': {'api1': api}}, 'metadata_agents': {},
                'network_nodes': {'hosts': hosts}}}}, out)


def measure(mode, nodes, routers):
    """One case, a dict as the JSON has it."""
    with Nodes(nodes, routers) as made:
        if mode == 'per_router':
            playbook('agents.yml', mode)
        first, said = playbook('routers.yml', mode)
        served = made.served()
        again, said_again = playbook('routers.yml', mode)
        one = None
        if mode == 'per_router':
            one = playbook('routers.yml', mode, '-e', 'router_id=' + router_id(1, 0), '-l', 'node1')[0]
    if served != nodes * routers:
        raise BenchError('%s, %d nodes of %d routers: %d are served' % (mode, nodes, routers, served))
    return {'mode': mode, 'nodes': nodes, 'routers': routers, 'first': first, 'again': again, 'one': one,
            'served': served, 'changed_again': sum(int(found[1]) for found in _RECAP.findall(said_again)),
            'failed': sum(int(found[2]) + int(found[3]) for found in _RECAP.findall(said))}


def _quoted(text):
    return "'%s'" % text.replace("'", "'\\''")


def main():
    parser = argparse.ArgumentParser(description='Takes the time of routers.yml.')
    parser.add_argument('--quick', action='store_true', help='few routers and nodes')
    parser.add_argument('--json', metavar='FILE', help='default: build/bench/playbooks.json')
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))     # by way of __exit__
    path = options.json or os.path.join(ROOT, 'build', 'bench', 'playbooks.json')
    result, status = {'playbooks': []}, 0
    for nodes, routers in _QUICK if options.quick else _CASES:
        for mode in _MODES:
            sys.stderr.write('%s: %d nodes of %d routers\n' % (mode, nodes, routers))
            try:
                found = measure(mode, nodes, routers)
            except BenchError as error:
                sys.stderr.write('bench: %s\n' % error)
                status = 1
                continue
            sys.stderr.write('    first %(first).1f s, again %(again).1f s, %(changed_again)d changed\n'
                             % found)
            result['playbooks'].append(found)
            with open(path, 'w') as out:
                json.dump(result, out, indent=1)
    return status


if __name__ == '__main__':
    sys.exit(main())
