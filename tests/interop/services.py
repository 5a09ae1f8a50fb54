"""Today's neutron and nova from the package index, as processes on loopback with SQLite.

NOVA_VENV and NEUTRON_VENV are their virtualenvs, made by `make interop`; without them tests are
skipped. Nobody plays Keystone: neutron takes requests without a token, nova asks it without one.
"""
import json
import os
import re
import subprocess
import urllib.error
import urllib.request

import equipment
import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
NOVA, NEUTRON = (os.environ.get(name, '') for name in ('NOVA_VENV', 'NEUTRON_VENV'))
START = 90.0            # seconds that a service may take to listen
_PORT = re.compile(r'listens on port (\d+)\.')

_NEUTRON_CONF = """
[DEFAULT]
core_plugin = ml2
service_plugins = router
auth_strategy = noauth
transport_url = fake://
state_path = {folder}
api_paste_config = {venv}/etc/neutron/api-paste.ini
notify_nova_on_port_status_changes = False
notify_nova_on_port_data_changes = False
[database]
connection = sqlite:///{folder}/neutron.sqlite
[ml2]
type_drivers = local,flat,vxlan
project_network_types = local
mechanism_drivers =
[oslo_concurrency]
lock_path = {folder}
"""
_NOVA_CONF = """
[DEFAULT]
transport_url = fake://
state_path = {folder}
[database]
connection = sqlite:///{folder}/cell1.sqlite
[api_database]
connection = sqlite:///{folder}/api.sqlite
[neutron]
auth_type = none
endpoint_override = {neutron}
service_metadata_proxy = True
metadata_proxy_shared_secret = {secret}
[oslo_concurrency]
lock_path = {folder}
"""


def requirements():
    """Skip, in a word, where there are no virtualenvs."""
    if not (NOVA and NEUTRON):
        pytest.skip('NOVA_VENV and NEUTRON_VENV name no virtualenvs; make interop has them')


def run(*words, **kwargs):
    """Run a command of a service; what it printed. Fails the test with what it said."""
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)
    assert done.returncode == 0, '%s: %s' % (' '.join(words), done.stdout)
    return done.stdout


class _Service:
    """A WSGI application in a folder of its own, which is there. url: where it is."""

    def __init__(self, folder, venv, module, **environment):
        self.process = equipment.Process(
            folder, argv=[venv + '/bin/python', HERE + '/wsgi_service.py', module],
            cwd=folder, environment=dict(environment, PYTHONPATH='', HOME=folder))
        try:
            found = self.process.wait_for(lambda: _PORT.search(self.log), module + ' listens', START)
        except BaseException:
            self.stop()
            raise
        self.port = int(found.group(1))
        self.url = 'http://127.0.0.1:%d' % self.port

    @property
    def log(self):
        """All that it said so far."""
        return self.process.log

    def stop(self):
        """End it."""
        self.process.kill()


class Neutron(_Service):
    """The network API. What it answers is not what a test wanted: the test fails with its words."""

    def __init__(self, folder):
        os.makedirs(folder)
        with open(folder + '/neutron.conf', 'w') as out:
            out.write(_NEUTRON_CONF.format(folder=folder, venv=NEUTRON))
        run(NEUTRON + '/bin/python', HERE + '/neutron_tables.py', 'sqlite:///%s/neutron.sqlite' % folder)
        super().__init__(folder, NEUTRON, 'neutron.wsgi.api',
                         OS_NEUTRON_CONFIG_DIR=folder, OS_NEUTRON_CONFIG_FILES='neutron.conf')

    def call(self, method, path, body=None):
        """The answer's object."""
        request = urllib.request.Request(
            self.url + '/v2.0' + path, method=method, data=body and json.dumps(body).encode(),
            headers={'Content-Type': 'application/json'})
        try:
            with urllib.request.urlopen(request, timeout=START) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError('%s %s: %s' % (method, path, error.read().decode())) from None

    def create(self, kind, **attributes):
        """Make a network, subnet, router or port; what was made."""
        return self.call('POST', '/%ss' % kind, {kind: attributes})[kind]


class Nova(_Service):
    """The metadata API, with instances of its own making. secret: what it shares with agents."""

    def __init__(self, folder, neutron, secret, instances):
        os.makedirs(folder)
        self._conf = folder + '/nova.conf'
        with open(self._conf, 'w') as out:
            out.write(_NOVA_CONF.format(folder=folder, neutron=neutron.url, secret=secret))
        for words in (['api_db', 'sync'],
                      ['cell_v2', 'map_cell0', '--database_connection', 'sqlite:///%s/cell0.sqlite' % folder],
                      ['db', 'sync'],
                      ['cell_v2', 'create_cell', '--name', 'cell1']):
            run(NOVA + '/bin/nova-manage', '--config-file', self._conf, *words)
        run(NOVA + '/bin/python', HERE + '/nova_instances.py', self._conf, input=json.dumps(instances))
        super().__init__(folder, NOVA, 'nova.wsgi.metadata', OS_NOVA_DISABLE_EVENTLET_PATCHING='1',
                         OS_NOVA_CONFIG_DIR=folder,
                         OS_NOVA_CONFIG_FILES='%s/etc/nova/api-paste.ini;nova.conf' % NOVA)
