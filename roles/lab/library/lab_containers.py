#!/usr/bin/python
"""Ansible module: the lab's containers and networks, whole or made anew."""
from __future__ import absolute_import, division, print_function

DOCUMENTATION = r"""
module: lab_containers
short_description: Make the lab's networks and containers, or remove them
description:
  - A lab is used again only when nothing speaks against it, which is when the last creation ended,
    it was made from the same image and hosts, and every container runs. Else it is removed and made
    anew, because a lab of which a part was lost proves nothing.
  - Containers and networks carry the lab's id and the id of the run that made them as labels. What
    carries the lab's id and another run's goes away.
  - Networks are internal, so no packet filter rule is made on this machine. Podman switches on IPv4
    forwarding of the machine nevertheless, which is put back to what it was.
options:
  state:
    description: Whether the lab is there; C(restarted) boots the containers of I(hosts) again.
    type: str
    choices: [present, restarted, absent]
    default: present
  lab_id:
    description: Tells this checkout's lab from others on the machine; goes into names and labels.
    type: str
    required: true
  folder:
    description: The lab's state folder.
    type: path
    required: true
  conf:
    description: The containers.conf that podman is run with.
    type: path
    required: true
  image:
    description: The image of all hosts.
    type: str
  hosts:
    description: Each with C(name), C(networks) and C(masked), paths that do not exist for it.
    type: list
    elements: dict
    default: []
  authorized_keys:
    description: Public key file that opens the hosts, put at /etc/ssh/lab_authorized_keys.
    type: path
author: mdproxy maintainers
"""

RETURN = r"""
reason:
  description: Why the lab was made anew.
  returned: when it was
  type: str
addresses:
  description: For each host, its address in each of its networks, first the one to reach it by.
  returned: when present
  type: dict
run_id:
  description: Id of the run that made the lab.
  returned: when present
  type: str
"""

import fcntl
import hashlib
import json
import os
import shutil
import uuid

from ansible.module_utils.basic import AnsibleModule

_FORWARD = '/proc/sys/net/ipv4/ip_forward'
_FIRST_HOST = 11
_REMOVALS = 3       # tries
# systemd boots and namespaces, mounts and packet filters work, without --privileged.
_RUN = ['--detach', '--systemd=always',
        '--cap-add=SYS_ADMIN,NET_ADMIN,NET_RAW,SYS_PTRACE,AUDIT_WRITE',
        '--security-opt=seccomp=unconfined', '--security-opt=apparmor=unconfined',
        '--security-opt=unmask=/proc/sys']


class Lab(object):
    """One lab as podman has it."""

    def __init__(self, module):
        self.module, self.params = module, module.params
        self.label = 'mdproxy.lab=' + self.params['lab_id']
        self.record = os.path.join(self.params['folder'], 'containers.json')
        self.keys = os.path.join(self.params['folder'], 'authorized_keys')

    def podman(self, *words):
        """Output of a podman command; a failure ends the module."""
        code, out, err = self.try_podman(*words)
        if code:
            self.module.fail_json(msg='podman %s: %s' % (words[0], (err or out).strip()))
        return out

    def try_podman(self, *words):
        """(status, output, error) of a podman command."""
        return self.module.run_command(
            ['podman'] + list(words), environ_update={'CONTAINERS_CONF': self.params['conf']})

    def full_name(self, name):
        return 'mdproxy-%s-%s' % (self.params['lab_id'], name)

    def containers(self):
        return json.loads(self.podman('ps', '--all', '--filter', 'label=' + self.label,
                                      '--format', 'json') or '[]')

    def networks(self):
        return json.loads(self.podman('network', 'ls', '--filter', 'label=' + self.label,
                                      '--format', 'json') or '[]')

    def wanted(self):
        """What the lab is made from, as one digest."""
        parts = [self.podman('image', 'inspect', '--format', '{{.Id}}', self.params['image'])]
        with open(self.params['authorized_keys']) as key:
            parts += [key.read(), json.dumps(self.params['hosts'], sort_keys=True), repr(_RUN)]
        return hashlib.sha256('\0'.join(parts).encode()).hexdigest()

    def recorded(self):
        try:
            with open(self.record) as record:
                return json.load(record)
        except (IOError, ValueError):
            return None

    def fault(self, record, wanted):
        """What speaks against using the lab that is there, or None."""
        found = self.containers()
        if record is None:
            return 'the last creation did not end' if found else 'there was none'
        if record['wanted'] != wanted:
            return 'image, key or hosts changed'
        running = set(entry['Names'][0] for entry in found if entry['State'] == 'running'
                      and entry['Labels'].get('mdproxy.run') == record['run_id'])
        for host in self.params['hosts']:
            if self.full_name(host['name']) not in running:
                return 'container %s does not run' % host['name']
        if len(found) != len(running):
            return 'containers of another run are there'
        return None

    def remove(self):
        """Take away all that carries the lab's id or one of its names."""
        names = set(entry['Names'][0] for entry in self.containers())
        names |= set(self.full_name(host['name']) for host in self.params['hosts'])
        if names:
            self.remove_containers(sorted(names))
        for network in self.networks():
            self.podman('network', 'rm', '--force', network['name'])
            # Podman killed between making the bridge and noting it leaves the bridge behind.
            self.module.run_command(['ip', 'link', 'delete', network['network_interface']])
        if os.path.exists(self.record):
            os.unlink(self.record)

    def remove_containers(self, names):
        """Remove the named ones. On a busy machine one may take longer to die than podman waits."""
        words = ['rm', '--force', '--ignore', '--time', '2', '--volumes'] + names
        for _ in range(_REMOVALS - 1):
            if not self.try_podman(*words)[0]:
                return
        self.podman(*words)

    def create(self, wanted):
        run_id = uuid.uuid4().hex[:12]
        # sshd believes a file of root's alone; the key may be an ordinary user's.
        if os.path.exists(self.keys):
            os.unlink(self.keys)
        shutil.copyfile(self.params['authorized_keys'], self.keys)
        os.chmod(self.keys, 0o644)      # sshd reads it as the one who comes in
        labels = ['--label', self.label, '--label', 'mdproxy.run=' + run_id]
        prefixes = {}
        for network in sorted(set(n for host in self.params['hosts'] for n in host['networks'])):
            full = self.full_name(network)
            self.podman('network', 'create', '--internal', *(labels + [full]))
            subnet = json.loads(self.podman('network', 'inspect', full))[0]['subnets'][0]['subnet']
            prefixes[network] = subnet.rsplit('.', 1)[0]
        addresses = {}
        for number, host in enumerate(self.params['hosts'], _FIRST_HOST):
            addresses[host['name']] = ['%s.%d' % (prefixes[network], number)
                                       for network in host['networks']]
        for host in self.params['hosts']:
            self.start(host, addresses, labels)
        record = dict(run_id=run_id, wanted=wanted, addresses=addresses)
        with open(self.record + '.new', 'w') as out:
            json.dump(record, out)
        os.rename(self.record + '.new', self.record)
        return record

    def start(self, host, addresses, labels):
        words = ['run', '--name', self.full_name(host['name']), '--hostname', host['name']]
        words += _RUN + labels
        for network, address in zip(host['networks'], addresses[host['name']]):
            words += ['--network', '%s:ip=%s' % (self.full_name(network), address)]
        for other in self.params['hosts']:
            for network, address in zip(other['networks'], addresses[other['name']]):
                if other is not host and network == 'internal' and network in host['networks']:
                    words += ['--add-host', '%s:%s' % (other['name'], address)]
        words += ['--security-opt=mask=' + path for path in host.get('masked', ())]
        words += ['--volume', self.keys + ':/etc/ssh/lab_authorized_keys:ro', self.params['image']]
        self.podman(*words)


class Forwarding(object):
    """The machine's IPv4 forwarding, put back to what it was; also what a run that was cut short found.

    One run of the machine at a time, or one would take for the machine's what another has changed.
    """

    def __init__(self, folder):
        self.note = os.path.join(folder, 'ip_forward')

    def __enter__(self):
        self.switch = open(_FORWARD, 'r+')
        fcntl.flock(self.switch, fcntl.LOCK_EX)
        if not os.path.exists(self.note):
            with open(self.note + '.new', 'w') as note:
                note.write(self.switch.read())
            os.rename(self.note + '.new', self.note)

    def __exit__(self, *_):
        with open(self.note) as note:
            found = note.read()
        self.switch.seek(0)
        if self.switch.read() != found:
            self.switch.seek(0)
            self.switch.write(found)
        self.switch.close()
        os.unlink(self.note)


def main():
    module = AnsibleModule(supports_check_mode=True, argument_spec=dict(
        state=dict(type='str', choices=['present', 'restarted', 'absent'], default='present'),
        lab_id=dict(type='str', required=True), folder=dict(type='path', required=True),
        conf=dict(type='path', required=True), image=dict(type='str'),
        hosts=dict(type='list', elements='dict', default=[]),
        authorized_keys=dict(type='path')))
    lab = Lab(module)
    if module.params['state'] == 'restarted':
        with Forwarding(module.params['folder']):
            lab.podman('restart', '--time', '5',
                       *[lab.full_name(host['name']) for host in module.params['hosts']])
        module.exit_json(changed=True)
    if module.params['state'] == 'absent':
        there = bool(lab.containers() or lab.networks())
        if not module.check_mode:
            with Forwarding(module.params['folder']):
                lab.remove()
        module.exit_json(changed=there)
    wanted, record = lab.wanted(), lab.recorded()
    fault = lab.fault(record, wanted)
    if fault and not module.check_mode:
        with Forwarding(module.params['folder']):
            lab.remove()
            record = lab.create(wanted)
    module.exit_json(changed=bool(fault), **dict(record or {}, reason=fault))


if __name__ == '__main__':
    main()
