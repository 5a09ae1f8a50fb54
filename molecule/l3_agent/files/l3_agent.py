"""Stands for Folsom's l3 agent with the series: what it does about metadata, and nothing else.

At start, for every router whose namespace is there, it makes or takes away the rules, in chains of its
own, and runs the proxy's command unless a process that it holds for the proxy is alive. At SIGUSR1 it
destroys every proxy, as for routers that are removed. It ends without a word to the proxies.

It may run as root what rootwrap's filters let it, and nothing else. What it did for each router is in
REPORT when it is done: `alive`, `spawned`, `killed`, `none`, or what went wrong.
"""
import glob
import json
import os
import signal
import subprocess
import sys

try:
    import configparser
except ImportError:
    import ConfigParser as configparser

CONFIG = '/etc/quantum/l3_agent.ini'
FILTERS = '/etc/quantum/rootwrap.d/*.filters'
STATE = '/var/lib/quantum'
REPORT = '/run/quantum-l3-agent.json'
NETNS = '/var/run/netns/qrouter-*'
EMPTY = '*%s\n:quantum-l3-agent-%s - [0:0]\n'
REDIRECT = ('-A quantum-l3-agent-PREROUTING -i qr-+ -d 169.254.169.254/32 -p tcp -m tcp --dport 80 '
            '-j REDIRECT --to-port {0}\n')
ONLY_REDIRECTED = (
    '-A quantum-l3-agent-INPUT -i qr-+ -p tcp -m tcp --dport {0} -m conntrack '
    '--ctorigdst 169.254.169.254 --ctorigdstport 80 -j ACCEPT\n'
    '-A quantum-l3-agent-INPUT -p tcp -m tcp --dport {0} -j DROP\n')


class Refused(Exception):
    """A command that failed, or that rootwrap would not run."""


def run(words, given=''):
    """Run a command until nobody has its output open any more, as the agent does."""
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out = process.communicate(given.encode())[0].decode()
    if process.returncode:
        raise Refused('%s: %s' % (' '.join(words), out))


def filters(kind):
    """The fields of those of rootwrap's filters that are of a kind."""
    found = []
    for path in glob.glob(FILTERS):
        parser = configparser.RawConfigParser()
        parser.read(path)
        fields = [[field.strip() for field in value.split(',')] for _, value in parser.items('Filters')]
        found += [entry[1:] for entry in fields if entry[0] == kind]
    return found


class Router(object):
    """A router whose namespace is there; conf: the options of the l3 agent."""

    def __init__(self, netns, conf):
        self.netns, self.id, self.conf = netns, netns[len('qrouter-'):], conf
        self.pid_file = os.path.join(STATE, 'external', 'pids', self.id + '.pid')

    def inside(self, *words, **kwargs):
        run(('ip', 'netns', 'exec', self.netns) + words, **kwargs)

    def active(self):
        """Pid of the process that is held for the proxy, or None."""
        try:
            with open(self.pid_file) as found:
                pid = int(found.read())
            with open('/proc/%d/cmdline' % pid) as words:
                return pid if self.id in words.read() else None
        except (IOError, OSError, ValueError):
            return None

    def rules(self):
        """Make the rules, or leave the chains without any."""
        port = self.conf['metadata_port']
        for table, chain, rules in (('nat', 'PREROUTING', REDIRECT), ('filter', 'INPUT', ONLY_REDIRECTED)):
            text = EMPTY % (table, chain) + (rules.format(port) if enabled(self.conf) else '') + 'COMMIT\n'
            self.inside('iptables-restore', '--noflush', given=text)
            jump = (chain, '-j', 'quantum-l3-agent-' + chain)
            try:
                self.inside('iptables', '-t', table, '-C', *jump)
            except Refused:
                self.inside('iptables', '-t', table, '-A', *jump)

    def spawn(self):
        if self.active():
            return 'alive'
        command = self.conf['metadata_proxy_command']
        paths = [entry[0] for entry in filters('CommandFilter')]
        if os.path.basename(command) not in map(os.path.basename, paths):
            raise Refused('rootwrap does not know %s' % command)
        if not os.path.isdir(os.path.dirname(self.pid_file)):
            os.makedirs(os.path.dirname(self.pid_file), 0o755)
        self.inside(command, '--pid_file=' + self.pid_file, '--router_id=' + self.id, '--state_path=' + STATE,
                    '--metadata_port=' + self.conf['metadata_port'])
        return 'spawned'

    def destroy(self):
        pid = self.active()
        if not pid:
            return 'none'
        if ['root', os.readlink('/proc/%d/exe' % pid), '-9'] not in filters('KillFilter'):
            raise Refused('rootwrap kills no %s' % os.readlink('/proc/%d/exe' % pid))
        self.inside('kill', '-9', str(pid))
        return 'killed'

    def added(self):
        self.rules()
        return self.spawn() if enabled(self.conf) else 'none'


def options():
    parser = configparser.RawConfigParser()
    parser.read(CONFIG)
    return dict(parser.items('DEFAULT'))


def enabled(conf):
    return conf['enable_metadata_proxy'] == 'True'


def for_each(conf, what):
    """Do something for each router and write the report."""
    report = {}
    for path in sorted(glob.glob(NETNS)):
        router = Router(os.path.basename(path), conf)
        try:
            report[router.id] = what(router)
        except Refused as error:
            report[router.id] = str(error)
    with open(REPORT + '.new', 'w') as out:
        json.dump(report, out)
    os.rename(REPORT + '.new', REPORT)


def main():
    conf = options()
    signal.signal(signal.SIGUSR1, lambda number, frame: for_each(conf, Router.destroy))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    for_each(conf, Router.added)
    while True:
        signal.pause()


if __name__ == '__main__':
    main()
