#!/bin/sh
# The world outside of the routers, which is this node itself: the bridge that gateways are plugged into.
set -eu
ip link add br-ex type bridge
ip address add 203.0.113.1/24 dev br-ex
ip link set br-ex up
sysctl -q -w net.ipv4.ip_forward=1
