"""Neutron's tables in an empty SQLite database, from its models; run by neutron's virtualenv:

    neutron_tables.py URL

Its migrations do not pass on SQLite.
"""
import sys

import sqlalchemy
from neutron.db.migration.models import head

if __name__ == '__main__':
    head.get_metadata().create_all(sqlalchemy.create_engine(sys.argv[1]))
