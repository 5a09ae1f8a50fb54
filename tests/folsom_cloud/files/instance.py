#!/usr/bin/python2.7
"""Writes an instance into nova's database with nova's own code, as its scheduler and nova-compute do.

JSON in: `uuid`, `project_id`, `hostname`, and `user_data` in base64. Out: the EC2 id, by which a guest
knows itself.
"""
import gettext
import json
import sys

gettext.install('nova', unicode=1)

from nova import context, db, flags  # noqa: E402
from nova.api.ec2 import ec2utils  # noqa: E402

OF_ALL = {'display_name': 'guest', 'host': 'compute1', 'image_ref': '155d900f-4e14-4e4c-a73d-069cbf4541e6',
          'launch_index': 0, 'reservation_id': 'r-folsom', 'user_id': 'nobody', 'vm_state': 'active'}


def main():
    flags.parse_args(['instance', '--config-file', '/etc/nova/nova.conf'])
    asked = dict((str(name), value) for name, value in json.load(sys.stdin).items())
    admin = context.get_admin_context()
    flavor = db.instance_type_get_by_name(admin, 'm1.tiny')['id']
    db.instance_create(admin, dict(OF_ALL, instance_type_id=flavor, **asked))
    sys.stdout.write(ec2utils.id_to_ec2_inst_id(asked['uuid']))


if __name__ == '__main__':
    main()
