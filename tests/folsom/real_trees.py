"""The series of the real trees, and trees with it, for the tests of this folder.

NOVA_SOURCE and QUANTUM_SOURCE are clones of nova and neutron, FOLSOM_PYTHON is a Python 2.7 with nose and
what the trees import. Whoever imports this is skipped without the clones.
"""
import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SOURCES = {'nova': os.environ.get('NOVA_SOURCE'), 'quantum': os.environ.get('QUANTUM_SOURCE')}
PYTHON = os.environ.get('FOLSOM_PYTHON')
BASES = ('2012.2', '2012.2.1', '2012.2.3', '2012.2.4')

if not all(SOURCES.values()):
    pytest.skip('NOVA_SOURCE and QUANTUM_SOURCE name no clones', allow_module_level=True)


def playbook(name, *words, **variables):
    command = [os.path.join(os.path.dirname(sys.executable), 'ansible-playbook'),
               os.path.join(ROOT, 'playbooks', name)] + list(words)
    for variable in variables.items():
        command += ['-e', '%s=%s' % variable]
    process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out = process.stdout.decode('utf-8')
    assert process.returncode == 0, out
    return out


def make(folder, base, tested=True):
    """Make the series of both projects for a base; `tested` with the trees' own tests, where they can run."""
    variables = dict(nova_source=SOURCES['nova'], quantum_source=SOURCES['quantum'], folsom_base=base,
                     backport_folder=folder)
    if PYTHON and tested:
        variables['backport_test_python'] = PYTHON
    return playbook('backport.yml', **variables)


def tree(series, base, project, patches, folder):
    """Check the first so many patches of a series out to a folder; None means all."""
    store = os.path.join(series, 'git', base, project + '.git')
    subprocess.check_call(['git', 'clone', '--quiet', '--branch', 'mdproxy/' + base, store, folder])
    if patches is not None:
        commits = subprocess.check_output(['git', '-C', folder, 'rev-list', '--reverse',
                                           'refs/tags/%s..HEAD' % base]).decode().split()
        subprocess.check_call(['git', '-C', folder, 'checkout', '--quiet', commits[patches - 1]])
    return folder
