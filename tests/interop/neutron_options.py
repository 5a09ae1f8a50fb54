"""Options of neutron's metadata agent, as its own command has them; imported by neutron's virtualenv."""
from neutron.common import cache_utils, config
from neutron.conf.agent import common
from neutron.conf.agent.metadata import config as metadata
from oslo_config import cfg


def register():
    """Before the configuration is read."""
    config.register_common_config_options()
    for options in (metadata.SHARED_OPTS, metadata.UNIX_DOMAIN_METADATA_PROXY_OPTS,
                    metadata.METADATA_PROXY_HANDLER_OPTS):
        metadata.register_meta_conf_opts(options)
    cache_utils.register_oslo_configs(cfg.CONF)
    common.register_agent_state_opts_helper(cfg.CONF)
