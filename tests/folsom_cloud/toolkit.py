"""This toolkit in a cloud of Folsom's, in one of its lifecycles."""
import re

from folsom_cloud import run

# As docs/folsom-backport.md says.
_STOP_JOBS = ("systemctl list-unit-files --no-legend 'mdproxy-*' | cut -d' ' -f1 |"
              " xargs --no-run-if-empty systemctl disable --now")


class Toolkit:
    """What site.yml made of a Cloud. lifecycle: mdproxy_lifecycle; said: by site.yml."""

    def __init__(self, cloud, lifecycle):
        self.cloud, self.lifecycle, self._is_rolled_back = cloud, lifecycle, False
        self.said = self.playbook('site.yml')

    def playbook(self, path, **variables):
        return self.cloud.playbook(path, mdproxy_lifecycle=self.lifecycle, **variables)

    def proxies(self):
        """The routers' ids by pid of the proxies that serve."""
        processes = run('network1', 'ps', '-e', '-o', 'pid=,args=')
        return dict(re.findall(r'^ *(\d+) .* serve router=(\S+) ', processes, re.MULTILINE))

    def known_pid(self, router_id):
        """The pid that the one who runs the proxies has for a router's."""
        if self.lifecycle == 'jobs':
            told = run('network1', 'systemctl', 'show', '--property=MainPID', 'mdproxy-proxy-' + router_id)
            return told.strip().partition('=')[2]
        return run('network1', 'cat', '/var/lib/quantum/external/pids/%s.pid' % router_id).strip()

    def roll_back(self):
        """Take the patches back and stop the jobs, once."""
        if not self._is_rolled_back:
            self.playbook('playbooks/rollback.yml', rollback='patches')
            run('network1', 'sh', '-c', _STOP_JOBS)
            self._is_rolled_back = True
