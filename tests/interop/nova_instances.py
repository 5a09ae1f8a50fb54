"""Instances in nova's databases, made with nova's own objects; run by nova's virtualenv:

    nova_instances.py CONFIG_FILE <INSTANCES

Standard input is a JSON list of objects with uuid, project, hostname, user_data (base64) and what their
port is: port, network, mac, fixed_ip. They are in the cell that `nova-manage cell_v2 create_cell` made.
"""
import json
import sys

from nova import config, context, objects
from nova.network import model


def network_info(instance):
    """What nova-compute would have noted of the instance's port."""
    address = model.FixedIP(address=instance['fixed_ip'])
    subnet = model.Subnet(cidr=instance['cidr'], ips=[address], dns=[], routes=[],
                          gateway=model.IP(address=instance['gateway'], type='gateway'))
    network = model.Network(id=instance['network'], bridge='br-int', label='inside', subnets=[subnet])
    return model.NetworkInfo([model.VIF(id=instance['port'], address=instance['mac'], network=network,
                                        type='ovs', devname='tap' + instance['port'][:11], active=True)])


def create(ctxt, cell, wanted):
    """An active instance, its mapping to the cell and its network info."""
    objects.InstanceMapping(ctxt, instance_uuid=wanted['uuid'], project_id=wanted['project'],
                            cell_mapping=cell, queued_for_delete=False).create()
    with context.target_cell(ctxt, cell) as inside:
        instance = objects.Instance(
            inside, uuid=wanted['uuid'], project_id=wanted['project'], user_id='user',
            hostname=wanted['hostname'], display_name=wanted['hostname'], user_data=wanted['user_data'],
            host='compute1', node='compute1', compute_id=1, vm_state='active', image_ref='', launch_index=0,
            root_device_name='/dev/vda', metadata={}, system_metadata={},
            flavor=objects.Flavor(id=1, flavorid='1', name='small', memory_mb=512, vcpus=1, root_gb=1,
                                  ephemeral_gb=0, swap=0, rxtx_factor=1.0, is_public=True, disabled=False,
                                  extra_specs={}))
        instance.create()
        instance.info_cache.network_info = network_info(wanted)
        instance.info_cache.save()


def main(config_file):
    config.parse_args([sys.argv[0]], default_config_files=[config_file])
    objects.register_all()
    ctxt = context.get_admin_context()
    cell, = [cell for cell in objects.CellMappingList.get_all(ctxt) if not cell.is_cell0()]
    for wanted in json.load(sys.stdin):
        create(ctxt, cell, wanted)


if __name__ == '__main__':
    main(*sys.argv[1:])
