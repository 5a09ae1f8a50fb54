"""Small nova and quantum in git, with tags, conflicts and a later layout, and their series as data.

They have the shape of the real ones, so that what the roles do with those can be tried anywhere:
`python small_trees.py DEST` makes DEST/nova and DEST/quantum (repositories), DEST/first and DEST/second
(what backport_data takes; the second has one more entry for each project), and DEST/installed/<version>/
(archives of each project as Ubuntu 12.04 installs it: files in pyshared, links in dist-packages).
"""
import io
import json
import os
import subprocess
import sys
import tarfile
import textwrap

VERSIONS = ('2012.2', '2012.2.1', '2012.2.4')
ENVIRONMENT = dict(
    {name: value for name, value in os.environ.items() if not name.startswith('GIT_')},
    GIT_CONFIG_NOSYSTEM='1', GIT_CONFIG_GLOBAL=os.devnull, GIT_AUTHOR_NAME='A. Author',
    GIT_AUTHOR_EMAIL='author@example.com', GIT_COMMITTER_NAME='A. Author',
    GIT_COMMITTER_EMAIL='author@example.com', TZ='UTC')

HANDLER = '''
    # A small nova.
    #
    # As long as a licence is, so that
    # what changes the first line is far
    # from what changes the others.
    """Answers an instance by the address that it asks from."""
    import os

    import flags

    FLAGS = flags.FLAGS


    def answer(path, address):
        if os.path.normpath('/' + path) == '/':
            return 'latest'
        return 'the instance at %s' % address
'''
L3_AGENT = '''
    # A small quantum.
    #
    # As long as a licence is, so that
    # what changes the first line is far
    # from what changes the others.
    """Makes routers."""
    OPTIONS = {
        'metadata_ip': '',
        'metadata_port': 8775,
        # Folsom: a switch
        'send_arp_for_ha': True,
    }


    def router_added(router):
        print 'added', router
'''


class Repository(object):
    """A repository whose commits have the same ids each time that they are made."""

    def __init__(self, folder):
        self.folder, self.clock = folder, 1349000000
        os.makedirs(folder)
        self.git('init', '--quiet', '--initial-branch=master')

    def git(self, *words):
        date = '%d +0000' % self.clock
        return subprocess.check_output(
            ('git', '-C', self.folder) + words,
            env=dict(ENVIRONMENT, GIT_AUTHOR_DATE=date, GIT_COMMITTER_DATE=date)).decode().strip()

    def commit(self, message, files=(), edits=(), moves=()):
        """Write and edit files, (path, text) and (path, old, new), and commit; the commit's id."""
        self.clock += 3600
        for old, new in moves:
            os.renames(os.path.join(self.folder, old), os.path.join(self.folder, new))
        for path, text in dict(files).items():
            path = os.path.join(self.folder, path)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, 'w') as out:
                out.write(textwrap.dedent(text).lstrip('\n'))
            if '/bin/' in path:
                os.chmod(path, 0o755)
        for path, old, new in edits:
            path = os.path.join(self.folder, path)
            with open(path) as source:
                text = source.read()
            assert text.count(old) == 1, (path, old)
            with open(path, 'w') as out:
                out.write(text.replace(old, new))
        self.git('add', '--all')
        self.git('commit', '--quiet', '--message', message)
        return self.git('rev-parse', 'HEAD')

    def release(self, project, version):
        numbers = (version.split('.') + [None])[:3]
        text = '%s_VERSION = %r\n' % (project.upper(), numbers)
        self.commit(version, files={'%s/version.py' % project: text})
        self.git('tag', version)


def nova(folder):
    """The repository of nova, and its series."""
    tree = Repository(folder)
    tree.commit('nova', files={
        'nova/__init__.py': '', 'nova/flags.py': 'FLAGS = {}\n', 'nova/api/__init__.py': '',
        'nova/api/metadata/__init__.py': '', 'nova/api/metadata/handler.py': HANDLER,
        'nova/tests/__init__.py': '', 'nova/tests/test_metadata.py': '"""Tests."""\n',
        'setup.py': '# setup\n'})
    for version in VERSIONS:
        tree.release('nova', version)
    tree.git('checkout', '--quiet', '-b', 'later', '2012.2')
    handler, test = 'nova/api/metadata/handler.py', 'nova/tests/test_metadata.py'
    tree.commit('Options are CONF', edits=[
        (handler, 'import flags\n\nFLAGS = flags.FLAGS\n', 'import cfg\n\nCONF = cfg.CONF\n')])
    feature = tree.commit(
        'Answer an instance by its id\n\nblueprint metadata-overlapping-networks\n\n'
        'Change-Id: I0123456789abcdef0123456789abcdef01234567',
        edits=[(handler, 'CONF = cfg.CONF\n', 'CONF = cfg.CONF\nCONF.register("proxy")\n'),
               (handler, "    return 'the",
                "    if CONF.proxy:\n        return 'the instance itself'\n    return 'the"),
               (test, '"""Tests."""\n', '"""Tests."""\nimport handler\n')])
    fix = tree.commit('Know the tenant\n\nChange-Id: Iffffffffffffffffffffffffffffffffffffffff',
                      edits=[(handler, 'by the address that it', 'of the tenant by the address that it')])
    tree.commit('Tests are units', moves=[(test, 'nova/tests/unit/test_metadata.py')])
    moved = tree.commit('Test it', edits=[
        ('nova/tests/unit/test_metadata.py', 'import handler\n',
         'import handler\nprint handler.answer("/x", "y")\n')])
    tree.git('checkout', '--quiet', 'master')
    return tree, [
        {'commit': feature, 'fixes': ['blueprint'], 'why': 'The feature.', 'resolve': [
            {'file': handler, 'take': ['theirs'], 'edits': [
                {'find': 'CONF = cfg.CONF\n', 'with': 'FLAGS = flags.FLAGS\n', 'times': 1},
                {'find': 'CONF.', 'with': 'FLAGS.', 'times': 2}]}]},
        {'commit': fix, 'fixes': ['CVE-2013-0000'], 'why': 'The tenant.'},
        {'patch': 'log.patch', 'fixes': ['log'], 'why': 'Ours.'},
        {'commit': moved, 'fixes': ['test'], 'why': 'A test.', 'paths': {'nova/tests/unit/': 'nova/tests/'}},
    ]


def quantum(folder):
    """The repository of quantum, and its series."""
    tree = Repository(folder)
    agent = 'quantum/agent/l3_agent.py'
    tree.commit('quantum', files={
        'quantum/__init__.py': '', 'quantum/agent/__init__.py': '', agent: L3_AGENT, 'setup.py': '# setup\n',
        'bin/quantum-l3-agent': '#!/usr/bin/env python\n', 'etc/l3_agent.ini': '# metadata_ip =\n'})
    for version in VERSIONS:
        tree.release('quantum', version)
    tree.git('checkout', '--quiet', '-b', 'later', '2012.2')
    tree.commit('A number', edits=[
        (agent, "# Folsom: a switch\n    'send_arp_for_ha': True", "'send_arp_for_ha': 3")])
    feature = tree.commit(
        'Run proxies\n\nChange-Id: I89abcdef0123456789abcdef0123456789abcdef',
        files={'quantum/agent/metadata/__init__.py': '', 'quantum/agent/metadata/agent.py': 'import os\n',
               'bin/quantum-ns-metadata-proxy': '#!/usr/bin/env python\n'},
        edits=[(agent, "    'metadata_ip': '',\n", ''),
               (agent, "    'metadata_port': 8775,\n", "    'metadata_port': 9697,\n"),
               (agent, "    print 'added', router\n", "    print 'added', router\n    print 'proxy'\n"),
               ('etc/l3_agent.ini', '# metadata_ip =\n', '# metadata_port = 9697\n')])
    tree.commit('neutron', moves=[('quantum', 'neutron')])
    daemon = tree.commit('A daemon', files={'neutron/agent/daemon.py': 'import signal\n'},
                         edits=[('neutron/agent/metadata/agent.py', 'import os\n',
                                 'import os\nimport daemon\n')])
    tree.git('checkout', '--quiet', 'master')
    return tree, [
        {'commit': feature, 'fixes': ['blueprint'], 'why': 'The feature.', 'resolve': [
            {'file': agent, 'take': ['ours'], 'edits': [
                {'find': "    'metadata_ip': '',\n", 'with': '', 'times': 1},
                {'find': '8775', 'with': '9697', 'times': 1}]}]},
        {'patch': 'switch.patch', 'fixes': ['switch'], 'why': 'Ours.'},
        {'commit': daemon, 'fixes': ['daemon'], 'why': 'A daemon.', 'paths': {'neutron/': 'quantum/'}},
    ]


PATCHES = {
    'nova/log.patch': '''
        From: mdproxy maintainers <maintainers@mdproxy.invalid>
        Date: Mon, 05 Nov 2012 12:00:00 +0000
        Subject: Say who asks

        Nobody knew.
        ---
        diff --git a/nova/api/metadata/handler.py b/nova/api/metadata/handler.py
        --- a/nova/api/metadata/handler.py
        +++ b/nova/api/metadata/handler.py
        @@ -14,4 +14,5 @@

         def answer(path, address):
        +    print 'asked by', address
             if os.path.normpath('/' + path) == '/':
                 return 'latest'
    ''',
    'quantum/switch.patch': '''
        From: mdproxy maintainers <maintainers@mdproxy.invalid>
        Date: Mon, 05 Nov 2012 12:00:00 +0000
        Subject: Leave proxies to others

        With a switch.
        ---
        diff --git a/quantum/agent/l3_agent.py b/quantum/agent/l3_agent.py
        --- a/quantum/agent/l3_agent.py
        +++ b/quantum/agent/l3_agent.py
        @@ -14,3 +14,4 @@
         def router_added(router):
             print 'added', router
        -    print 'proxy'
        +    if OPTIONS.get('enable_metadata_proxy'):
        +        print 'proxy'
    ''',
}


def _write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'w') as out:
        out.write(text)


def data(folder, projects):
    """Write what backport_data takes; projects: {name: series}. YAML is JSON's superset."""
    for name, series in projects.items():
        _write('%s/vars/%s.yml' % (folder, name), json.dumps(
            {'backport_tests': [], 'backport_tests_folder': '.', 'backport_series': series}, indent=1) + '\n')
    for name, text in PATCHES.items():
        _write(os.path.join(folder, 'files', name), textwrap.dedent(text).lstrip('\n'))


def installed(tree, project, version, path):
    """Write an archive of a version as Ubuntu 12.04's packages install it."""
    folders = [project] + (['bin'] if project == 'quantum' else [])
    raw = subprocess.check_output(['git', '-C', tree.folder, 'archive', version] + folders, env=ENVIRONMENT)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tarfile.open(path, 'w:gz') as out, tarfile.open(fileobj=io.BytesIO(raw)) as source:
        for member in source:
            name = member.name
            member.mode = 0o755 if member.isdir() or name.startswith('bin/') else 0o644
            if name.split('/')[0] == 'bin':
                member.name = 'usr/' + name
            elif member.isdir():
                member.name = 'usr/lib/python2.7/dist-packages/' + name
            else:
                member.name = 'usr/share/pyshared/' + name
                link = tarfile.TarInfo('usr/lib/python2.7/dist-packages/' + name)
                link.type, link.linkname = tarfile.SYMTYPE, '/usr/share/pyshared/' + name
                out.addfile(link)
            out.addfile(member, source.extractfile(member) if member.isfile() else None)


def make(dest):
    """Make everything under dest; ({name: Repository}, {name: series})."""
    trees, series = {}, {}
    for name, maker in (('nova', nova), ('quantum', quantum)):
        trees[name], series[name] = maker(os.path.join(dest, name))
        for version in VERSIONS:
            installed(trees[name], name, version, os.path.join(dest, 'installed', version, name + '.tgz'))
    data(os.path.join(dest, 'first'), {name: entries[:-1] for name, entries in series.items()})
    data(os.path.join(dest, 'second'), series)
    return trees, series


if __name__ == '__main__':
    make(sys.argv[1])
