"""Runs an Ansible module as a node would: a process of its own, arguments in, JSON out."""
import json
import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LIBRARIES = dict((name, os.path.join(ROOT, 'roles', role, 'library', name + '.py')) for role, name in (
    ('mdproxy', 'mdproxy_bundle'), ('mdproxy', 'mdproxy_jobs'), ('mdproxy', 'mdproxy_release'),
    ('mdproxy', 'oslo_options'), ('verify', 'verify_guests'), ('lab', 'lab_containers')))


def needs_ansible():
    """Skip the test file where there is no ansible-core, which is Python 2.7 on most machines."""
    pytest.importorskip('ansible.module_utils.basic')


class Result(dict):
    """What a module returned; `text` is all that it said, for what must not be in there."""

    text = ''


def run(name, arguments, check=False, path=None, environment=None):
    """The Result of a module. check: in check mode. path: a folder whose commands come first.

    A module that ends without a result fails the test with what it said instead.
    """
    arguments = dict(arguments, _ansible_check_mode=check, _ansible_diff=True, _ansible_no_log=False)
    environment = dict(os.environ, **(environment or {}))
    if path:
        environment['PATH'] = str(path) + os.pathsep + environment['PATH']
    process = subprocess.Popen([sys.executable, LIBRARIES[name]], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
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
    scope = {'__name__': name, '__file__': LIBRARIES[name]}
    with open(LIBRARIES[name]) as source:
        exec(compile(source.read(), LIBRARIES[name], 'exec'), scope)
    return scope
