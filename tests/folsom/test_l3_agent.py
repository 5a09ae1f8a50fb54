"""The drop-in in the hands of the real l3 agent's code, with the series and through the real rootwrap.

What is needed is what test_real_trees.py needs: clones, a Python 2.7 for the trees, root.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import jinja2
import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), 'integration'),
                os.path.join(os.path.dirname(os.path.dirname(HERE)), 'roles', 'mdproxy', 'library')]

from real_trees import BASES, PYTHON, ROOT, make, tree  # noqa: E402

if not PYTHON:
    pytest.skip('FOLSOM_PYTHON names no Python 2.7 for the trees', allow_module_level=True)

import equipment  # noqa: E402

equipment.requirements()

import mdproxy_release  # noqa: E402

FILTERS = os.path.join(ROOT, 'roles', 'patched_tree', 'templates', 'mdproxy.filters.j2')
Module = namedtuple('Module', 'params')


def write(path, text, mode=0o644):
    with open(path, 'w') as out:
        out.write(text)
    os.chmod(path, mode)
    return path


def release(folder, python):
    """Path of the drop-in's launcher, in a release that is this checkout's package."""
    os.makedirs(os.path.join(folder, 'lib'))
    os.mkdir(os.path.join(folder, 'bin'))
    os.symlink(os.path.join(ROOT, 'mdproxy'), os.path.join(folder, 'lib', 'mdproxy'))
    texts = dict(mdproxy_release._launchers(Module({'python': python})))
    name = 'quantum-ns-metadata-proxy'
    return write(os.path.join(folder, 'bin', name), texts[name], 0o755)


def rootwrap(folder, tree, command, python):
    """The root helper's command line, with the filters that are on a node: the base's and ours."""
    os.mkdir(os.path.join(folder, 'rootwrap.d'))
    base = subprocess.check_output(
        ['git', '-C', tree, 'show', 'refs/tags/%s:etc/quantum/rootwrap.d/l3.filters' % BASES[-1]])
    write(os.path.join(folder, 'rootwrap.d', 'l3.filters'), base.decode())
    with open(FILTERS) as source:
        template = jinja2.Template(source.read(), undefined=jinja2.StrictUndefined)
    ours = template.render(patched_tree_l3_agent_options={'metadata_proxy_command': command},
                           patched_tree_interpreter={'stat': {'lnk_source': os.path.realpath(python)}},
                           ansible_facts={'python': {'executable': python}})
    write(os.path.join(folder, 'rootwrap.d', 'mdproxy.filters'), ours + '\n')
    configuration = write(os.path.join(folder, 'rootwrap.conf'),
                          '[DEFAULT]\nfilters_path=%s/rootwrap.d\n' % folder)
    return ' '.join((PYTHON, os.path.join(tree, 'bin', 'quantum-rootwrap'), configuration))


class Agent(object):
    """l3 agents of one router, one after the other."""

    def __init__(self, folder, tree, router):
        self.tree, self.router = tree, router
        python = os.path.join(folder, 'python')     # a link, as /usr/bin/python is one
        os.symlink(equipment._python()[0], python)
        self.state = os.path.join(folder, 'state')
        os.mkdir(self.state)
        shutil.chown(self.state, equipment.USER)
        command = release(os.path.join(folder, 'release'), python)
        self.options = dict(state_path=self.state, metadata_proxy_command=command,
                            root_helper=rootwrap(folder, tree, command, python))

    def run(self, do):
        """Pid of the process that the agent holds for the living proxy afterwards, or None."""
        argv = [PYTHON, os.path.join(HERE, 'l3_agent.py'), do, self.router.id]
        argv += ['%s=%s' % item for item in self.options.items()]
        out = subprocess.check_output(argv, cwd=self.tree, env=dict(os.environ, PYTHONDONTWRITEBYTECODE='1'))
        told = json.loads(out)
        return told['pid'] if told['active'] else None

    def proxies(self):
        """Pids of the processes that serve the router."""
        found = []
        for pid in filter(str.isdigit, os.listdir('/proc')):
            try:
                with open('/proc/%s/cmdline' % pid) as words:
                    if 'router=' + self.router.id in words.read().split('\0'):
                        found.append(int(pid))
            except (IOError, OSError):
                pass        # it has just ended
        return found

    def pid_file(self):
        with open(os.path.join(self.state, 'external', 'pids', self.router.id + '.pid')) as found:
            return found.read()

    def gone(self):
        equipment.wait_until(lambda: not self.proxies(), 'end of the proxy')

    def answers(self):
        """Whether the guest is answered, through the agent's rules; it is the proxy's own answer."""
        return equipment.get(self.router.guest, b'/')[0] == 502


@pytest.fixture(scope='module')
def quantum(tmp_path_factory):
    folder = tmp_path_factory.mktemp('quantum')
    make(str(folder / 'series'), BASES[-1], tested=False)
    return tree(str(folder / 'series'), BASES[-1], 'quantum', None, str(folder / 'tree'))


@pytest.fixture
def agent(quantum):
    # Where no router of the machine's is seen.
    with equipment.private_folder_of_namespaces(), equipment.working_folder() as folder:
        router = equipment.Router('r')
        router.make()
        made = Agent(folder, quantum, router)
        try:
            yield made
        finally:
            for pid in made.proxies():
                os.kill(pid, signal.SIGKILL)
            made.gone()
            router.remove()


def test_it_starts_one_that_serves_guests_and_no_second(agent):
    pid = agent.run('added')
    assert agent.proxies() == [pid] and agent.answers()
    assert agent.run('added') == pid
    assert agent.proxies() == [pid] and agent.answers()


def test_it_ends_it_and_starts_another(agent):
    pid = agent.run('added')
    assert agent.run('destroyed') is None
    agent.gone()
    assert not equipment.is_open(agent.router.netns, '127.0.0.1', 9697)
    another = agent.run('added')
    assert agent.proxies() == [another] != [pid] and agent.answers()


def test_it_starts_another_in_a_namespace_that_was_made_anew(agent):
    agent.run('added')
    agent.router.lose()
    agent.router.make()
    agent.gone()
    assert agent.pid_file() == ''       # in a folder of the agent's
    another = agent.run('added')
    assert agent.proxies() == [another] and agent.answers()
