#!/bin/sh
# guest NAME PORT_ID MAC FIXED_IP: plugs a guest into its port, as nova-compute does. A namespace is the guest.
set -eu
tap=tap$(echo "$2" | cut -c 1-11)
ip netns add "guest-$1"
ip link add "$tap" type veth peer name eth0 netns "guest-$1"
ip link set "$tap" up
ip -n "guest-$1" link set lo up
ip -n "guest-$1" link set eth0 address "$3" up
ip -n "guest-$1" address add "$4/24" dev eth0
# Folsom's BridgeInterfaceDriver gives a router's interface another MAC whenever it plugs it. A guest finds out
# when its ARP entry has gone stale and does not answer any more, which it does sooner here.
neigh=/proc/sys/net/ipv4/neigh/eth0
ip netns exec "guest-$1" sh -ec "echo 1000 >$neigh/base_reachable_time_ms; echo 1 >$neigh/delay_first_probe_time
    echo 100 >$neigh/retrans_time_ms"
ip -n "guest-$1" route add default via 10.0.0.1
