"""Runs an Ansible module as a node would: a process of its own, arguments in, JSON out."""
import glob
import json
import os
import subprocess
import sys
import types

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LIBRARIES = dict((name, os.path.join(ROOT, 'roles', role, 'library', name + '.py')) for role, name in (
    ('mdproxy', 'mdproxy_bundle'), ('mdproxy', 'mdproxy_jobs'), ('mdproxy', 'mdproxy_release'),
    ('mdproxy', 'mdproxy_rollback'), ('mdproxy', 'oslo_options'), ('verify', 'verify_guests'),
    ('precheck', 'precheck_host'), ('lab', 'lab_containers'),
    ('patched_tree', 'patched_tree'), ('backport', 'folsom_series')))
# Ansible ships what is in these folders with a module, as a part of ansible.module_utils.
_UTILITIES = sorted(glob.glob(os.path.join(ROOT, 'roles', '*', 'module_utils')))
_START = '''
import runpy, sys
import ansible.module_utils
ansible.module_utils.__path__ += sys.argv[2:]
sys.argv = sys.argv[1:2]
runpy.run_path(sys.argv[0], run_name='__main__')
'''


def needs_ansible():
    """Skip the test file where there is no ansible-core, which is Python 2.7 on most machines."""
    pytest.importorskip('ansible.module_utils.basic')


class Result(dict):
    """What a module returned; `text` is all that it said, for what must not be in there."""

    text = ''


def command(name):
    """The command that runs a module; it reads its arguments from standard input."""
    return [sys.executable, '-c', _START, LIBRARIES[name]] + _UTILITIES


def run(name, arguments, check=False, path=None, environment=None):
    """The Result of a module. check: in check mode. path: a folder whose commands come first.

    A module that ends without a result fails the test with what it said instead.
    """
    arguments = dict(arguments, _ansible_check_mode=check, _ansible_diff=True, _ansible_no_log=False)
    environment = dict(os.environ, **(environment or {}))
    if path:
        environment['PATH'] = str(path) + os.pathsep + environment['PATH']
    process = subprocess.Popen(command(name), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=environment)
    out, err = process.communicate(json.dumps({'ANSIBLE_MODULE_ARGS': arguments}).encode('utf-8'))
    try:
        result = Result(json.loads(out.decode('utf-8')))
    except ValueError:
        pytest.fail('%s: %s' % (name, (out + err).decode('utf-8', 'replace')))
    result.text = (out + err).decode('utf-8')
    assert bool(process.returncode) == bool(result.get('failed')), result.text
    return result


def imported(name):
    """The module as a Python module, to test what is in it without running it."""
    import ansible.module_utils
    ansible.module_utils.__path__ += [folder for folder in _UTILITIES
                                      if folder not in ansible.module_utils.__path__]
    scope = {'__name__': name, '__file__': LIBRARIES[name]}
    with open(LIBRARIES[name]) as source:
        exec(compile(source.read(), LIBRARIES[name], 'exec'), scope)
    return scope


def run_here(name, arguments, tmpdir):
    """Run a module in this process, which it ends: for a child that is to be broken off."""
    from ansible.module_utils import basic
    arguments = dict(arguments, _ansible_tmpdir=str(tmpdir))
    basic._ANSIBLE_ARGS = json.dumps({'ANSIBLE_MODULE_ARGS': arguments}).encode('utf-8')
    basic._ANSIBLE_PROFILE = 'legacy'       # newer ones ask how the arguments are written
    imported(name)['main']()


def utility(name):
    """What is in a role's module_utils/NAME.py, as a Python module; it needs no ansible-core."""
    path, = [path for path in (os.path.join(folder, name + '.py') for folder in _UTILITIES)
             if os.path.exists(path)]
    # Kept, because Python 2.7 empties a module that is not.
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__ = path
    with open(path) as source:
        exec(compile(source.read(), path, 'exec'), module.__dict__)
    return module
