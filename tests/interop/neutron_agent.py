"""Neutron's metadata agent, in one process with neutron's RPC server; run by neutron's virtualenv:

    neutron_agent.py --config-file FILE

Both are neutron's own. They are in one process because they talk over a message bus, here the one that
is in memory (transport_url = fake://).
"""
import sys

from neutron import manager
from neutron.agent.metadata import agent
from neutron.api import extensions
from neutron.common import cache_utils, config
from neutron.conf import service
from neutron.conf.agent import common
from neutron.conf.agent.metadata import config as metadata
from neutron_lib.api import attributes
from neutron_lib.plugins import directory
from oslo_config import cfg


def main():
    config.register_common_config_options()
    for options in (metadata.SHARED_OPTS, metadata.UNIX_DOMAIN_METADATA_PROXY_OPTS,
                    metadata.METADATA_PROXY_HANDLER_OPTS):
        metadata.register_meta_conf_opts(options)
    cache_utils.register_oslo_configs(cfg.CONF)
    common.register_agent_state_opts_helper(cfg.CONF)
    service.register_service_opts(service.RPC_EXTRA_OPTS, cfg.CONF)
    config.init(sys.argv[1:])
    config.setup_logging()
    manager.init()
    extensions.PluginAwareExtensionManager.get_instance().extend_resources('2.0', attributes.RESOURCES)
    directory.get_plugin().start_rpc_listeners()
    agent.UnixDomainMetadataProxy(cfg.CONF).run()


if __name__ == '__main__':
    main()
