"""The cloud's stand-in of the lab: Keystone, the Quantum/Neutron ports API and nova's metadata API.

Test equipment. Three processes, one per service, each with its own systemd unit on the lab's API
host:

    python3 -m cloudstub keystone --state FILE --listen ADDR:PORT --records DIR
    python3 -m cloudstub quantum  --state FILE --listen ADDR:PORT --records DIR
    python3 -m cloudstub nova     --state FILE --listen ADDR:PORT --records DIR --nova-conf FILE

Each answers as the real service of a patched Folsom cloud does (what was read from the real trees
is said where it is kept) and appends every request it got to DIR/<service>.jsonl (see records.py).
A start that fails is one line on stderr and exit status 2; SIGTERM ends with status 0.

Modules, each importing only from those before it: `http` (the server and its messages), `records`,
`state` (what is in the cloud), `tokens`, then one per service: `keystone`, `ports`, `nova`.

The state file
==============
JSON, written by Ansible, reread when it changes. A state that is wrong at start refuses to start;
one that becomes wrong later is reported on stderr once and the last good one stays in force.
`?` marks what may be left out, with its default.

    region          name of the region in the catalog
    endpoint_host   host name in the catalog's URLs
    admin           {user, password, tenant}: the one user, who has the admin role in the one tenant
    token_lifetime? seconds (3600), fractions allowed
    identity_url?   (http://ENDPOINT_HOST:5000)      network_url? (http://ENDPOINT_HOST:9696)
    family?         "quantum" or "neutron": the name of the port API in the catalog and the shape
                    of its errors ("quantum")
    password_max?   bytes that nova takes as an instance's password (255). nova took 256 when the
                    feature was new and 1020 from its commit aa2dea35c6 (January 2013) on
    routers         list of {id, tenant_id, name?, networks, gateway?}
                    gateway: {port_id, network_id, ip}, a port with the owner network:router_gateway
    routers[].networks, and networks? on top for those that no router serves: list of
                    {id, cidr, gateway_ip?, port_id (with a router only), tenant_id?, name?, mac?,
                    subnet_id? (made from id and cidr), dhcp?: {port_id, ip, device_id?}}
                    The router's interface on it is port_id at gateway_ip. One id with two cidrs is
                    one network of two subnets; one id under two routers is a shared network.
    instances       list of {uuid, ec2_id, name, tenant_id, network_id, port_id, fixed_ip, mac,
                    user_data_base64? (none), hostname? (from the name), availability_zone?
                    ("nova"), key_name? and key_data? (no public-keys without), metadata? ({}),
                    image_id? ("ami-00000001"), instance_type? ("m1.tiny"), launch_index? (0),
                    reservation_id? (from the uuid), security_groups? (["default"]), public_ip?
                    (""), device_owner? ("compute:nova")}
    extra_ports?    list of port dicts, served as they are

Beside it live, with mode 0600: `token.key`, which signs tokens (delete it and every token given
before is worthless), and `passwords.json`, what instances posted to nova (delete it to forget
them).
"""
