"""mdproxy_bundle: the same inputs give the same bundle, and nothing of the controller is in it."""
import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import ansible_module  # noqa: E402

ansible_module.needs_ansible()
if subprocess.call([sys.executable, '-m', 'pip', '--version'], stdout=subprocess.PIPE,
                   stderr=subprocess.PIPE):
    pytest.skip('needs pip', allow_module_level=True)

_WHEEL = [('tiny.py', 'ANSWER = 42\n'),
          ('tiny-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n'),
          ('tiny-1.0.dist-info/WHEEL',
           'Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py2.py3-none-any\n')]


class Controller(object):
    """A controller with a package, a lock, and wheels in a folder in place of an index."""

    def __init__(self, tmpdir):
        self.tmpdir, self.source, self.lock = tmpdir, tmpdir.join('src', 'mdproxy'), tmpdir.join('lock.txt')
        self.source.join('__init__.py').write("'''x'''\n__version__ = '1.2'\n", ensure=True)
        self.source.join('sub', 'part.py').write('x = 1\n', ensure=True)
        self.source.join('__pycache__', 'part.py').write('stale', ensure=True)
        self.source.join('notes.txt').write('not a source')
        self.lock.write('# what is needed\n\ntiny==1.0\n')
        wheel = tmpdir.mkdir('wheels').join('tiny-1.0-py2.py3-none-any.whl')
        with zipfile.ZipFile(str(wheel), 'w') as archive:
            names = [name for name, _ in _WHEEL] + ['tiny-1.0.dist-info/RECORD']
            for name, content in _WHEEL + [(names[-1], ''.join(name + ',,\n' for name in names))]:
                archive.writestr(name, content)
        self.environment = dict(PIP_NO_INDEX='1', PIP_FIND_LINKS=str(tmpdir.join('wheels')),
                                PIP_CONFIG_FILE=os.devnull)

    def run(self, major=3, check=False, dest='dest'):
        return ansible_module.run('mdproxy_bundle', dict(
            source=str(self.source), lock=str(self.lock), python_major=major,
            dest=str(self.tmpdir.join(dest))), check=check, environment=self.environment)


@pytest.fixture
def controller(tmpdir):
    return Controller(tmpdir)


def digest(path):
    with open(path, 'rb') as content:
        return hashlib.sha256(content.read()).hexdigest()


@pytest.mark.parametrize('major', [2, 3])
def test_a_bundle_holds_the_package_and_the_lock_and_nothing_else(controller, major):
    result = controller.run(major)
    assert result['changed'] and result['built'] and result['release'].startswith('1.2-')
    assert os.path.basename(result['bundle']) == 'mdproxy-%s-py%d.tgz' % (result['release'], major)
    archive = tarfile.open(result['bundle'])
    names = set(member.name for member in archive.getmembers() if member.isfile())
    archive.close()
    assert set(name for name in names if 'dist-info' not in name) == set([
        'lib/mdproxy/__init__.py', 'lib/mdproxy/sub/part.py', 'lib/tiny.py'])
    assert os.listdir(str(controller.tmpdir.join('dest'))) == [os.path.basename(result['bundle'])]


def test_the_same_inputs_give_the_same_bytes_wherever_they_are_built(controller):
    bundles = [controller.run(dest=dest)['bundle'] for dest in ('one', 'two')]
    assert digest(bundles[0]) == digest(bundles[1])
    archive = tarfile.open(bundles[0])
    for member in archive.getmembers():
        assert (member.uid, member.gid, member.uname, member.mtime) == (0, 0, 'root', 0)
        assert member.mode == (0o755 if member.isdir() else 0o644)
        if member.isfile():
            assert str(controller.tmpdir).encode() not in archive.extractfile(member).read(), member.name
    archive.close()


def test_a_bundle_that_is_there_is_not_built_again(controller):
    bundle = controller.run()['bundle']
    controller.environment['PIP_FIND_LINKS'] = '/nonexistent'
    result = controller.run()
    assert not result['changed'] and result['built'] and result['bundle'] == bundle


@pytest.mark.parametrize('change', [
    lambda c: c.source.join('sub', 'part.py').write('x = 2\n'),
    lambda c: c.source.join('sub', 'part.py').rename(c.source.join('sub', 'other.py')),
    lambda c: c.source.join('more.py').write(''),
    lambda c: c.lock.write('# another comment\ntiny==1.0\n')])
def test_another_input_is_another_release(controller, change):
    release = controller.run(check=True)['release']
    change(controller)
    assert controller.run(check=True)['release'] != release


def test_each_python_has_its_own_release(controller):
    assert controller.run(2, check=True)['release'] != controller.run(3, check=True)['release']


def test_check_mode_builds_nothing_and_says_so(controller):
    result = controller.run(check=True)
    assert result['changed'] and not result['built']
    assert not controller.tmpdir.join('dest').check()


def test_a_dependency_that_cannot_be_had_is_named_and_leaves_nothing(controller):
    controller.lock.write('tiny==2.0\n')
    result = controller.run()
    assert result['failed'] and 'pip download' in result['msg'] and 'tiny==2.0' in result['msg']
    assert os.listdir(str(controller.tmpdir.join('dest'))) == []
