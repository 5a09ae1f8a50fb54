"""Writes the configuration with which neutron's l3 agent runs haproxy; run by neutron's virtualenv:

    neutron_haproxy.py ROUTER_ID SOCKET USER GROUP FOLDER

It listens on port 9697 and sends to the agent's socket. Its path is printed.
"""
import sys

from neutron.agent.metadata import driver
from neutron.common import config as common
from neutron.conf.agent.metadata import config
from oslo_config import cfg


def main(router_id, socket, user, group, folder):
    common.register_common_config_options()
    cfg.CONF([])
    config.register_meta_conf_opts(config.METADATA_RATE_LIMITING_OPTS, group=config.RATE_LIMITING_GROUP)
    config.register_meta_conf_opts(config.METADATA_HAPROXY_OPTS, group=config.HAPROXY_GROUP)
    made = driver.HaproxyConfigurator(
        None, router_id, socket, '0.0.0.0', 9697, user, group, folder, folder + '/haproxy.pid',
        cfg.CONF.metadata_rate_limiting, cfg.CONF.metadata_haproxy)
    made.create_config_file()
    print(made.cfg_path)


if __name__ == '__main__':
    main(*sys.argv[1:])
