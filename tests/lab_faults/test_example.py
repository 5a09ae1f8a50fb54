"""The example inventory, filled in and vaulted as the README says, for the lab: precheck takes it."""
import json
import os
import shutil
import subprocess

from test_named import LAB, ROOT

# What an operator fills in: the lab's hosts under the example's names, and its cloud.
HOSTS = '''
all:
  vars: {ansible_ssh_common_args: -F %(state)s/ssh_config}
  children:
    metadata_api: {hosts: {controller.example.com: {ansible_host: api1}}}
    network_nodes: {hosts: {network-1.example.com: {ansible_host: network1}}}
'''
CLOUD = (('ansible_user: operator', 'ansible_user: ops'), ('RegionOne', 'lab'),
         ('controller.example.com', 'api1'))


def test_it_is_accepted_with_its_secrets_encrypted(tmpdir):
    state = os.path.join(ROOT, 'build', 'lab', LAB)
    mine = tmpdir.join('mine')
    shutil.copytree(os.path.join(ROOT, 'inventories', 'example'), str(mine))
    with open(os.path.join(state, 'shared_secret')) as secret:
        shared = secret.read()
    vaulted = mine.join('group_vars', 'all', 'secrets.yml')
    vaulted.write('metadata_shared_secret: %s\nmetadata_agent_admin_password: lab-only-password\n' % shared)
    password, overlay = tmpdir.join('password'), tmpdir.join('lab.yml')
    password.write('of the vault\n')
    overlay.write(HOSTS % {'state': state})
    cloud = mine.join('group_vars', 'all', 'cloud.yml')
    for old, new in CLOUD:
        assert old in cloud.read()
        cloud.write(cloud.read().replace(old, new))
    vault = ['--vault-password-file', str(password)]
    subprocess.check_call(['ansible-vault', 'encrypt'] + vault + [str(vaulted)])
    assert vaulted.read().startswith('$ANSIBLE_VAULT')
    words = ['-i', str(mine), '-i', str(overlay)] + vault
    reached = ['-l', 'all:!network-2.example.com']
    for command in (['playbooks/precheck.yml'] + reached, ['site.yml', '--syntax-check']):
        process = subprocess.run(['ansible-playbook'] + command + words, cwd=ROOT, universal_newlines=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.returncode == 0, process.stdout
        assert shared not in process.stdout and 'lab-only-password' not in process.stdout
    with open(os.path.join(ROOT, 'build', 'report', 'precheck.json')) as found:
        rows = [(row['host'], row['level']) for row in json.load(found)]
    assert ('controller.example.com', 'ok') in rows and ('network-1.example.com', 'stop') not in rows, rows
