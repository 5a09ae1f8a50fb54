"""Our proxy before neutron's own metadata agent, and neutron's haproxy before our agent."""
import functools
import json
import os

import services
from equipment import METADATA, SECRET, USER, get, ip, is_open

META_DATA = b'/openstack/latest/meta_data.json'
_NEUTRON_AGENT = """
[DEFAULT]
metadata_proxy_socket = {folder}/neutron-agent/metadata_proxy
metadata_proxy_shared_secret = {secret}
nova_metadata_host = 127.0.0.1
nova_metadata_port = {nova}
metadata_workers = 2
"""


def asks_as_its_own_instance(router, guest):
    """A guest of the router is answered for its own instance, and what nova does not have is 404."""
    status, body = get(guest, META_DATA)
    assert status == 200, body
    assert json.loads(body)['uuid'] == router.instance
    assert get(guest, b'/latest/meta-data/no-such-thing')[0] == 404


def test_our_proxies_before_neutron_s_metadata_agent(cloud):
    folder = os.path.join(cloud.folder, 'neutron-agent')
    os.makedirs(folder)
    config = folder + '/metadata_agent.ini'
    with open(config, 'w') as out:
        out.write(_NEUTRON_AGENT.format(folder=cloud.folder, secret=SECRET, nova=cloud.nova.port))
    agent = cloud.run(argv=[services.NEUTRON + '/bin/python', services.HERE + '/neutron_agent.py',
                            '--config-file', cloud.folder + '/neutron/neutron.conf', '--config-file', config],
                      cwd=folder, environment={'PYTHONPATH': '', 'HOME': folder})

    agent.wait_for(lambda: os.path.exists(folder + '/metadata_proxy'), 'the agent listens', services.START)
    # As haproxy's user, neutron's, would be let in; neutron 29 does not honour metadata_proxy_socket_mode.
    os.chmod(folder + '/metadata_proxy', 0o666)
    for router in cloud.routers:
        with cloud.elsewhere(router) as other:
            proxy = cloud.serve(other, 'neutron-agent')
            asks_as_its_own_instance(router, other.guest)
            assert proxy.stop() == 0


def test_neutron_s_haproxy_before_our_agent(cloud):
    for router in cloud.routers:
        with cloud.elsewhere(router) as other:
            path = services.run(
                services.NEUTRON + '/bin/python', services.HERE + '/neutron_haproxy.py', router.id,
                cloud.folder + '/agent/metadata_proxy', USER, 'nogroup', cloud.folder).splitlines()[-1]
            ip('netns', 'exec', other.netns, 'iptables-restore', '--noflush', cloud.rules(other))
            haproxy = cloud.run(argv=['ip', 'netns', 'exec', other.netns, 'haproxy', '-db', '-f', path])
            # Port 9697 itself is closed to everything that was not redirected.
            haproxy.wait_for(functools.partial(is_open, other.guest, METADATA, 80), 'haproxy listens')
            asks_as_its_own_instance(router, other.guest)
            haproxy.stop()
