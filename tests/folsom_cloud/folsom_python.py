"""What Folsom's services import, built for the lab's Python 2.7: `folsom_python.py PINS FOLDER`, as root.

FOLDER/site.tgz is for unpacking at /. Much of it is C, and it was released as source alone, so it is built
in a root filesystem of its own, FOLDER/builder, which has a compiler and is removed in the end. pip gets its
packages from wherever pip of this machine does.
"""
import ast
import os
import shutil
import subprocess
import sys
import zipfile

SUITE = 'bullseye'      # as the lab's image
PACKAGES = ('python2.7-dev', 'gcc', 'libc6-dev', 'libxml2-dev', 'libxslt1-dev', 'libssl-dev', 'libffi-dev',
            'zlib1g-dev', 'ca-certificates')
# The last for 2.7; but of pip the last that takes 2012h for a version. Folsom imports setuptools, too.
SETUPTOOLS = 'setuptools==44.1.1'
TOOLS = ('pip==20.1.1', SETUPTOOLS, 'wheel==0.37.1')
INSTALLED = 'usr/local/lib/python2.7/dist-packages'
# In the root filesystem. What is there already is /tools, which stays behind.
PIP = ('env', '-i', 'PATH=/usr/sbin:/usr/bin:/sbin:/bin', 'HOME=/root', 'PYTHONPATH=/tools', 'LC_ALL=C.UTF-8',
       'python2.7', '-m', 'pip', 'install', '--quiet', '--no-warn-script-location', '--no-deps',
       '--no-build-isolation', '--ignore-installed', SETUPTOOLS, '-r', '/pins.txt')


def pip_settings():
    """Settings of this machine's pip, from its files and the environment, by name."""
    out = subprocess.check_output([sys.executable, '-m', 'pip', 'config', 'list'], text=True)
    settings = {}
    for line in out.splitlines():
        name, _, value = line.partition('=')
        section, _, option = name.rpartition('.')
        if section in ('global', 'install', ':env:'):
            settings[option] = ast.literal_eval(value)
    return settings


def make_builder(builder, pins):
    """A root filesystem with a compiler, the tools in /tools, and pip set up as on this machine."""
    subprocess.check_call(['mmdebstrap', '--quiet', '--variant=minbase', '--include=' + ','.join(PACKAGES),
                           SUITE, builder])
    tools = os.path.join(builder, 'tools')
    subprocess.check_call([sys.executable, '-m', 'pip', 'download', '--quiet', '--disable-pip-version-check',
                           '--no-deps', '--only-binary=:all:', '--python-version', '27', '--platform', 'any',
                           '--implementation', 'py', '--abi', 'none', '--dest', tools] + list(TOOLS))
    for wheel in os.listdir(tools):
        with zipfile.ZipFile(os.path.join(tools, wheel)) as packed:
            packed.extractall(tools)
    settings = pip_settings()
    if 'cert' in settings:
        shutil.copy(settings['cert'], os.path.join(builder, 'etc', 'pip-cert.pem'))
        settings['cert'] = '/etc/pip-cert.pem'
    settings.pop('constraint', None)        # a path of this machine, and not meant for these
    with open(os.path.join(builder, 'etc', 'pip.conf'), 'w') as out:
        out.write('[global]\n')
        for option, value in settings.items():
            out.write('%s = %s\n' % (option, value.replace('\n', '\n    ')))
    shutil.copy('/etc/resolv.conf', os.path.join(builder, 'etc', 'resolv.conf'))
    shutil.copy(pins, os.path.join(builder, 'pins.txt'))


def main(pins, folder):
    builder, site = os.path.join(folder, 'builder'), os.path.join(folder, 'site.tgz')
    shutil.rmtree(builder, ignore_errors=True)
    os.makedirs(folder, exist_ok=True)
    try:
        make_builder(builder, pins)
        subprocess.check_call(['unshare', '--mount', '--pid', '--fork', 'sh', '-ec',
                               'mount -t proc proc "$0/proc"; exec chroot "$0" "$@"', builder] + list(PIP))
        subprocess.check_call(['tar', '-czf', site + '.new', '-C', builder, INSTALLED])
    finally:
        shutil.rmtree(builder, ignore_errors=True)
    os.rename(site + '.new', site)


if __name__ == '__main__':
    main(*sys.argv[1:])
