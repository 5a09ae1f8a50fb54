"""Neutron's metadata agent, in one process with neutron's RPC server; run by neutron's virtualenv:

    neutron_agent.py --config-file FILE

Both are neutron's own. They are in one process because they talk over a message bus, here the one that
is in memory (transport_url = fake://).
"""
import sys

import neutron_options
from neutron import manager
from neutron.agent.metadata import agent
from neutron.api import extensions
from neutron.common import config
from neutron.conf import service
from neutron_lib.api import attributes
from neutron_lib.plugins import directory
from oslo_config import cfg


def main():
    neutron_options.register()
    service.register_service_opts(service.RPC_EXTRA_OPTS, cfg.CONF)
    config.init(sys.argv[1:])
    config.setup_logging()
    manager.init()
    extensions.PluginAwareExtensionManager.get_instance().extend_resources('2.0', attributes.RESOURCES)
    directory.get_plugin().start_rpc_listeners()
    agent.UnixDomainMetadataProxy(cfg.CONF).run()


if __name__ == '__main__':
    main()
