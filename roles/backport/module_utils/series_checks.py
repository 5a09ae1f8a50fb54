"""What a series must pass before it is written: it compiles, it applies, the tree's own tests pass."""
import json
import os
import re
import subprocess
import tempfile
import xml.etree.ElementTree

from ansible.module_utils.git_store import GitError
from ansible.module_utils.progress_note import note
from ansible.module_utils.series_build import SeriesError

# Reads {name: source} and prints {name: error} of those that do not compile.
_COMPILE = '''
import json, sys
wrong = {}
for name, source in json.load(sys.stdin).items():
    try:
        compile(source.encode('latin-1'), name.encode('utf-8'), 'exec', 0, 1)
    except SyntaxError as error:
        wrong[name] = 'line %s: %s' % (error.lineno, error.msg)
assert sys.version_info[:2] == (2, 7), 'it is Python %d.%d' % sys.version_info[:2]
json.dump(wrong, sys.stdout)
'''
# nose, on a SQLite of today: since 3.26 renaming a table renames it in others' foreign keys as well,
# which Folsom's migrations (nova's 103) do not survive. Older ones take no notice of the pragma.
_NOSE = '''
import sqlite3, nose
def connect(*words, **names):
    connection = plain(*words, **names)
    connection.execute('PRAGMA legacy_alter_table = ON')
    return connection
plain = sqlite3.dbapi2.connect
sqlite3.connect = sqlite3.dbapi2.connect = connect
nose.main()
'''


def sources(build, paths):
    """{path: bytes} of those files of the series that are Python, by their name or by their first line."""
    found = {}
    for path in paths:
        content = build.store.content(build.head, path)
        if path.endswith('.py') or re.match(br'#!.*python', content):
            found[path] = content
    return found


def compiles(sources, python27):
    """Compile the sources, {path: bytes}, with a Python 2.7; without one parse them by its grammar.

    The grammar lets some of Python 3's pass as well, so that is the weaker check. Returns which of the
    two was done. Raises SeriesError with the file and line of what does not pass.
    """
    if python27:
        wrong = _compile(sources, python27)
    else:
        wrong = {name: error for name, error in ((name, _parse(source)) for name, source in sources.items())
                 if error}
    if wrong:
        raise SeriesError('not Python 2.7: %s' % '; '.join(
            '%s %s' % (name, wrong[name]) for name in sorted(wrong)))
    return 'compiled' if python27 else 'parsed'


def _compile(sources, python27):
    given = json.dumps({name: source.decode('latin-1') for name, source in sources.items()})
    try:
        process = subprocess.run([python27, '-Es', '-c', _COMPILE], input=given.encode('utf-8'),
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        raise SeriesError('%s cannot be run as Python 2.7: %s' % (python27, error.strerror))
    if process.returncode:
        said = process.stderr.decode('utf-8', 'replace').strip().splitlines() or ['']
        raise SeriesError('%s cannot be run as Python 2.7: %s' % (python27, said[-1]))
    return json.loads(process.stdout)


def _parse(source):
    try:
        from fissix import pygram, pytree
        from fissix.pgen2 import driver, parse, tokenize
    except ImportError:
        raise SeriesError('the controller\'s Python lacks fissix, which reads the grammar of Python 2: '
                          'install requirements.txt, or give a Python 2.7 (backport_python27)')
    parser = driver.Driver(pygram.python_grammar, convert=pytree.convert)
    try:
        parser.parse_string(source.decode('utf-8') + '\n')
    except (parse.ParseError, tokenize.TokenError, UnicodeDecodeError) as error:
        return str(error)
    return None


def applies(build, folder, names):
    """Apply the written patches to the pristine base; the tree must be the series' own."""
    store = build.store
    store.start(build.root)
    for name in names:
        with open(os.path.join(folder, name), 'rb') as source:
            try:
                store.apply(source.read())
            except GitError as error:
                raise SeriesError('%s does not apply after those before it: %s' % (name, error))
    tree = store.tree()
    if tree != store.find('%s^{tree}' % build.head):
        raise SeriesError('the patches as written give another tree than the series (%s)' % tree)
    return tree


def tests(build, python, modules, folder):
    """Run the tree's own tests of the touched modules, in a passing copy of the whole tree.

    Returns {module: {tests, failures, errors, skipped}}. Raises SeriesError when one fails.
    """
    counts = {}
    with tempfile.TemporaryDirectory(prefix='backport-tests-') as work:
        tree = os.path.join(work, 'tree')
        build.store.checkout(build.head, tree)
        for number, module in enumerate(modules, 1):
            note('%d of %d modules of tests, %s' % (number, len(modules), module))
            report = os.path.join(work, 'report.xml')
            counts[module] = _run(python, module, os.path.join(tree, folder), report)
    return counts


def _run(python, module, folder, report):
    environment = dict(os.environ, PYTHONDONTWRITEBYTECODE='1', LC_ALL='C')
    command = [python, '-c', _NOSE, '--nologcapture', '--with-xunit', '--xunit-file', report, module]
    try:
        process = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        raise SeriesError('%s cannot be run (backport_test_python): %s' % (python, error.strerror))
    said = process.stdout.decode('utf-8', 'replace')
    if not os.path.exists(report):
        raise SeriesError('%s could not be run with %s: %s' % (module, python, _end(said)))
    suite = xml.etree.ElementTree.parse(report).getroot()
    os.unlink(report)
    counts = {name: int(suite.get(given, 0)) for name, given in (
        ('tests', 'tests'), ('failures', 'failures'), ('errors', 'errors'), ('skipped', 'skip'))}
    if process.returncode or counts['failures'] or counts['errors'] or not counts['tests']:
        raise SeriesError('%s fails with the series (%d tests, %d failures, %d errors):\n%s' % (
            module, counts['tests'], counts['failures'], counts['errors'], _end(said)))
    return counts




def _end(text):
    """The last lines of what was said, which say most."""
    return '\n'.join(text.strip().splitlines()[-60:])
