#!/usr/bin/python2.7
"""Puts a node's tap devices into their networks' bridges: linuxbridge URL-OF-QUANTUM BRIDGE-TO-THE-OUTSIDE

In the place of quantum's linuxbridge agent, which talks to quantum over a message bus, and there is none
here. Devices and bridges have the names that it gives them.
"""
import json
import os
import subprocess
import sys
import time

import urllib2

NET = '/sys/class/net'


def loose_taps():
    return [name for name in os.listdir(NET)
            if name.startswith('tap') and not os.path.exists(os.path.join(NET, name, 'master'))]


def bridge_of(port, outside):
    return outside if port['device_owner'] == 'network:router_gateway' else 'brq' + port['network_id'][:11]


def plug(tap, bridge):
    if not os.path.exists(os.path.join(NET, bridge)):
        subprocess.check_call(['ip', 'link', 'add', bridge, 'type', 'bridge'])
        subprocess.check_call(['ip', 'link', 'set', bridge, 'up'])
    subprocess.check_call(['ip', 'link', 'set', tap, 'master', bridge, 'up'])


def plug_all(quantum, outside):
    taps = loose_taps()
    ports = json.load(urllib2.urlopen(quantum + '/v2.0/ports.json', timeout=5))['ports'] if taps else []
    for port in ports:
        tap = 'tap' + port['id'][:11]
        if tap in taps:
            plug(tap, bridge_of(port, outside))


def main(quantum, outside):
    while True:
        try:
            plug_all(quantum, outside)
        except (EnvironmentError, ValueError, subprocess.CalledProcessError) as error:
            sys.stderr.write('%s\n' % error)    # the device may be gone again, or the API not there yet
        time.sleep(0.2)


if __name__ == '__main__':
    main(*sys.argv[1:])
