"""Every command that README.md and docs/ show is one that exists, as far as that can be known without a
cloud: ansible-playbook's are run with --syntax-check, mdproxy's parsed by its own parser, make's looked up.
And what the documents link to or name as a path is there."""
import glob
import io
import os
import re
import shlex
import subprocess
import sys

import pytest

yaml = pytest.importorskip('yaml')

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

from mdproxy import cli  # noqa: E402

DOCUMENTS = ['README.md'] + sorted(
    os.path.relpath(path, ROOT) for pattern in ('docs/*.md', 'docs/*/*.md')
    for path in glob.glob(os.path.join(ROOT, pattern)))
UUID = '850e53d1-46ee-516f-9a1c-60ef1d553ec4'
# What stands for something else in a shown command.
PLACEHOLDERS = {'UUID': UUID, 'ROUTER': UUID, 'ROUTER...': UUID, 'ID': UUID, '<router>': UUID,
                'IP': '10.0.0.3', 'fe80::...': 'fe80::1', 'MAC': 'fa:16:3e:00:00:01'}
# Paths of a node that are not ours, or are made by another: what is read there, or by whom it is made.
FOREIGN = ('/proc/', '/var/log/upstart/', '/usr/local/bin', '/etc/cron.d/', '/etc/logrotate.d/',
           '/var/lib/node_exporter', '/etc/quantum/', '/src/', '/dev/', '/usr/')
# Made by a process of ours, not by a role.
OURS = ('/run/mdproxy/',)
# Not in the repository on purpose: what an operator makes, and what make does.
MADE = ('inventories/mine', 'build/')


def read(path):
    with io.open(os.path.join(ROOT, path), encoding='utf-8') as source:
        return source.read()


def pieces(document):
    """(number of the line, code) of a document: indented and fenced lines, and spans of a paragraph."""
    found, fenced, paragraph, began = [], False, [], 1
    for number, line in enumerate(read(document).split('\n') + [''], 1):
        if line.startswith('```'):
            fenced = not fenced
        elif fenced or line.startswith('    '):
            found.append((number, line.strip()))
        elif line.strip():
            began = began if paragraph else number
            paragraph.append(line)
            continue
        text = '\n'.join(paragraph)
        for span in re.finditer('`([^`]+)`', text):
            found.append((began + text.count('\n', 0, span.start()), ' '.join(span.group(1).split())))
        paragraph = []
    return sorted(found)


def commands(program):
    """[('DOCUMENT:LINE: COMMAND', words after the program)] of all that is shown with arguments."""
    found = []
    for document in DOCUMENTS:
        for line, code in pieces(document):
            code = re.sub(r'\s+#.*', '', code)
            if '   ' in code:
                continue        # a picture or a table
            for part in re.split(r'\s*(?:&&|;|\|)\s*', code):
                part = re.sub(r'^.*\d (?:\* )+root |^sudo ', '', part)
                words = part.split(' ', 1)
                if words[0] == program and len(words) == 2:
                    given = shlex.split(re.sub(r'\s>.*', '', words[1]).replace('[', '').replace(']', ''))
                    found.append(('%s:%d: %s' % (document, line, part), [
                        PLACEHOLDERS.get(word, word) for word in given if word != '...']))
    return found


def specified():
    """Every variable that a role describes, or a playbook asks for; and the defaults that are paths."""
    names, paths = set(), set()
    for path in glob.glob(os.path.join(ROOT, 'roles', '*', 'meta', 'argument_specs.yml')):
        for entry_point in yaml.safe_load(read(path))['argument_specs'].values():
            for name, option in entry_point['options'].items():
                names.add(name)
                if option['type'] == 'path' and str(option.get('default')).startswith('/'):
                    paths.add(option['default'])
    for path in glob.glob(os.path.join(ROOT, 'playbooks', '*.yml')) + glob.glob(
            os.path.join(ROOT, 'playbooks', 'tasks', '*.yml')):
        names.update(re.findall(r'\b(\w+) (?:\| default|is (?:not )?defined)', read(path)))
    return names, paths


VARIABLES, NODE_PATHS = specified()


def playbook_runs():
    """{words: where} of distinct ansible-playbook commands."""
    found = {}
    for where, words in commands('ansible-playbook'):
        found.setdefault(tuple(words), where)
    return sorted((where, words) for words, where in found.items())


def test_there_are_commands_to_be_checked():
    for program, at_least in (('ansible-playbook', 10), ('make', 5), ('mdproxy', 8)):
        assert len(commands(program)) >= at_least, program


@pytest.mark.parametrize('where, words', playbook_runs(),
                         ids=lambda value: value if isinstance(value, str) else '')
def test_a_shown_playbook_is_one_that_ansible_takes(where, words):
    pytest.importorskip('ansible')
    given = [word.replace('inventories/mine', 'inventories/example') for word in words]
    process = subprocess.Popen(
        [os.path.join(os.path.dirname(sys.executable), 'ansible-playbook'), '--syntax-check'] + given,
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=dict(os.environ, ANSIBLE_CONFIG=os.path.join(ROOT, 'ansible.cfg')))
    out = process.communicate()[0].decode('utf-8')
    assert process.returncode == 0, '%s\n%s' % (where, out)
    for option, value in zip(words, words[1:]):
        if option in ('-e', '--extra-vars'):
            assert value.split('=')[0] in VARIABLES, '%s: nothing knows a variable %s' % (where, value)


@pytest.mark.parametrize('where, words', commands('make'))
def test_a_shown_target_of_make_is_there(where, words):
    makefile = read('Makefile')
    targets = set(re.search(r'^\.PHONY: (help .*)', makefile, re.MULTILINE).group(1).split())
    for word in words:
        name, _, value = word.partition('=')
        if value:
            assert re.search(r'\b%s\b' % name, makefile), '%s: make knows no %s' % (where, name)
        else:
            assert word in targets, '%s: make has no target %s' % (where, word)


@pytest.mark.parametrize('where, words', commands('mdproxy'))
def test_a_shown_command_of_mdproxy_is_one_that_it_takes(where, words, capsys):
    # In prose the name of a command stands for it, without what it needs.
    if words[0] in ('proxy', 'resolve') and not set(words) & {'--router-id', '--network-id', '--discover'}:
        words = words + ['--router-id', UUID]
    if words[0] == 'resolve' and words[-1] == UUID:
        words = words + ['10.0.0.3']
    try:
        cli._parser().parse_args(words)
    except SystemExit as ended:
        assert not ended.code, '%s: %s' % (where, capsys.readouterr().err)


@pytest.mark.parametrize('document', DOCUMENTS)
def test_a_shown_path_is_there(document):
    inside = re.compile(r'(?:playbooks|roles|tests|docs|inventories|molecule|build)/[\w./*-]*'
                        r'|[\w-]+\.(?:yml|txt|cfg)$')
    for line, code in pieces(document):
        for word in re.split(r'[\s,]+', code.split('::')[0]):
            where = '%s:%d: %s' % (document, line, word)
            if inside.match(word) and '<' not in word and not word.startswith(MADE):
                # Playbooks, series and what lies beside the document may be called by their names alone.
                places = ('', os.path.dirname(document), 'playbooks', 'roles/backport/vars')
                there = any(glob.glob(os.path.join(ROOT, place, word)) for place in places)
                assert there, '%s: there is no such file' % where
            elif re.match(r'/[a-z]+/', word) and not word.startswith(FOREIGN):
                ours = any((word + '/').startswith((path + '/', os.path.dirname(path) + '/mdproxy'))
                           for path in NODE_PATHS) or word.startswith(OURS)
                assert ours, '%s: no role makes that' % where


@pytest.mark.parametrize('document', DOCUMENTS)
def test_a_link_leads_somewhere(document):
    for target, anchor in re.findall(r'\]\(([^)#:]*)(?:#([^)]*))?\)', read(document)):
        path = os.path.normpath(os.path.join(os.path.dirname(document), target)) if target else document
        assert os.path.exists(os.path.join(ROOT, path)), '%s: %s is not there' % (document, path)
        if anchor:
            anchors = [re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-')
                       for heading in re.findall(r'^#+ (.*)', read(path), re.MULTILINE)]
            assert anchor in anchors, '%s: %s has no heading for #%s' % (document, path, anchor)


def shown_tests():
    return sorted(set((document, code) for document in DOCUMENTS for _, code in pieces(document)
                      if re.match(r'tests/[\w/]+\.py::\w+$', code)))


@pytest.mark.parametrize('document, name', shown_tests())
def test_a_test_that_is_said_to_prove_something_is_there(document, name):
    path, _, function = name.partition('::')
    assert re.search(r'^def %s\(' % function, read(path), re.MULTILINE), '%s: no %s' % (document, name)


def words_of_ours():
    """All that the package and the roles' modules can say, parts of one text put together."""
    paths = [path for pattern in ('mdproxy/*.py', 'roles/*/library/*.py', 'roles/*/module_utils/*.py')
             for path in glob.glob(os.path.join(ROOT, pattern))]
    text = re.sub(r"'\s*\n\s*'", '', '\n'.join(read(path) for path in sorted(paths)))
    return re.sub(r"'\s*\n\s*% \(.*|\\'", '', text)


def test_what_troubleshooting_says_you_see_is_what_is_said():
    said, checked = words_of_ours(), 0
    known = re.compile('mdproxy|ansible|playbooks/|metadata_shared|[a-z]+$|--|link_window|/|Mdproxy|No space')
    for line, code in pieces('docs/troubleshooting.md'):
        if ' ' in code and not known.match(code):
            for part in filter(None, (part.strip(' :') for part in code.split(u'\u2026'))):
                assert part in said, 'docs/troubleshooting.md:%d: nobody says "%s"' % (line, part)
                checked += 1
    assert checked > 25
