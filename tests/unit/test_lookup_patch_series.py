"""patch_series: a folder that is what its manifest says becomes one string, any other an error."""
import base64
import json
import os
import sys
import zlib

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from ansible_module import ROOT  # noqa: E402
from patchmaker import Series  # noqa: E402

pytest.importorskip('ansible.plugins.lookup')
if sys.version_info < (3, 11):
    pytest.skip('runs on the controller', allow_module_level=True)

from ansible.errors import AnsibleError  # noqa: E402
from ansible.parsing.dataloader import DataLoader  # noqa: E402
from ansible.plugins.loader import lookup_loader  # noqa: E402

TREE = {'nova/x.py': b'# \xe9\nx = 1\n'}
STEPS = [{'nova/x.py': b'# \xe9\nx = 2\n'}, {'nova/y.py': b'y\n'}]


@pytest.fixture
def folder(tmpdir):
    folder = tmpdir.join('build', 'folsom', '2012.2.1', 'nova')
    write(folder, Series(TREE, *STEPS))
    return folder


def write(folder, series):
    folder.ensure(dir=True)
    folder.join('manifest.json').write(json.dumps(series.manifest))
    for name, content in series.patches.items():
        folder.join(name).write_binary(content)


def look(*folders, **where):
    loader = DataLoader()
    loader.set_basedir(str(where.get('basedir', '/')))
    lookup_loader.add_directory(os.path.join(ROOT, 'roles', 'patched_tree', 'lookup_plugins'))
    return lookup_loader.get('patch_series', loader=loader).run([str(folder) for folder in folders], {})


def refusal(folder):
    with pytest.raises(AnsibleError) as error:
        look(folder)
    assert '\n' not in error.value.message
    assert error.value.message.endswith('; make one with playbooks/backport.yml -e folsom_base=2012.2.1')
    return error.value.message


def test_a_folder_becomes_a_string_that_holds_all_of_it(folder):
    packed, = look(folder)
    series = json.loads(zlib.decompress(base64.b64decode(packed)))
    expected = Series(TREE, *STEPS)
    assert series['manifest'] == expected.manifest
    assert {name: text.encode('latin-1') for name, text in series['patches'].items()} == expected.patches


def test_the_same_series_gives_the_same_string(folder, tmpdir):
    manifest = json.loads(folder.join('manifest.json').read())
    other = tmpdir.join('other')
    write(other, Series(TREE, *STEPS))
    other.join('manifest.json').write(json.dumps(dict(reversed(list(manifest.items()))), indent=3))
    assert look(folder) == look(other)


def test_a_folder_may_be_named_from_where_the_playbook_is(folder, tmpdir):
    assert look('build/folsom/2012.2.1/nova', basedir=tmpdir) == look(folder)
    with pytest.raises(AnsibleError) as error:
        look('build/folsom/2012.2.1/quantum', basedir=tmpdir)
    assert error.value.message == ('build/folsom/2012.2.1/quantum holds no series; '
                                   'make one with playbooks/backport.yml -e folsom_base=2012.2.1')


def test_a_folder_without_a_manifest_holds_no_series(folder):
    folder.join('manifest.json').remove()
    assert refusal(folder).startswith('%s holds no series; ' % folder)


@pytest.mark.parametrize('text', ['', '[]', '{"schema": 1}', '{', 'null'])
def test_a_damaged_manifest_is_named(folder, text):
    folder.join('manifest.json').write(text)
    assert refusal(folder).startswith('%s is damaged; ' % folder.join('manifest.json'))


@pytest.mark.parametrize('entry, value', [('schema', 2), ('project', 'cinder'), ('patches', []),
                                          ('files', {}), ('series', None), ('base', 2012)])
def test_a_manifest_of_another_kind_is_named(folder, entry, value):
    write(folder, Series(TREE, *STEPS, **{entry: value}))
    assert str(folder.join('manifest.json')) + ' is not of schema 1' in refusal(folder)


def test_a_patch_that_is_missing_changed_or_too_much_is_named(folder):
    name = folder.join('0002-step.patch')
    content = name.read_binary()
    name.write_binary(content + b'\n')
    assert '%s is damaged' % name in refusal(folder)
    name.remove()
    assert '%s is missing' % name in refusal(folder)
    name.write_binary(content)
    folder.join('0003-stray.patch').write('x')
    assert '0003-stray.patch is not in the manifest' in refusal(folder)


def test_one_string_for_each_folder(folder):
    assert look(folder, folder) == look(folder) * 2
