"""neutron's metadata agent as it is, but for the RPC for ports:

    neutron_lookup.py SHARED --config-file FILE

Run by neutron's virtualenv. Every router has one network, and every address there one port. The file
SHARED has the seconds that a call takes, and the number of calls so far (LAYOUT).
"""
import mmap
import os
import struct
import sys
import threading
import time

from neutron.agent.metadata import agent
from neutron.common import config
from oslo_config import cfg

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'interop'))

import neutron_options  # noqa: E402

LAYOUT = '<dq'
NETWORK, INSTANCE, PROJECT = ('%08d-0000-4000-8000-000000000000' % number for number in (1, 2, 3))


class Lookups:
    """Stands for neutron.agent.metadata.agent.MetadataPluginAPI."""

    shared, lock = None, threading.Lock()

    def __init__(self, topic):
        pass

    def get_ports(self, context, filters):
        with self.lock:
            seconds, count = struct.unpack_from(LAYOUT, self.shared)
            struct.pack_into(LAYOUT, self.shared, 0, seconds, count + 1)
        if seconds:
            time.sleep(seconds)
        if 'device_id' in filters:
            return [{'network_id': NETWORK}]
        return [{'device_id': INSTANCE, 'project_id': PROJECT}]


def main(shared, *arguments):
    with open(shared, 'r+b') as opened:
        Lookups.shared = mmap.mmap(opened.fileno(), struct.calcsize(LAYOUT))
    agent.MetadataPluginAPI = Lookups
    neutron_options.register()
    config.init(list(arguments))
    config.setup_logging()
    agent.UnixDomainMetadataProxy(cfg.CONF).run()


if __name__ == '__main__':
    main(*sys.argv[1:])
