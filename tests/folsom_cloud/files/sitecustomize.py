"""SQLite as it was: since 3.26 a renamed table takes references along, at which migration 103 fails."""
import sqlite3

_connect = sqlite3.dbapi2.connect


def connect(*args, **kwargs):
    connection = _connect(*args, **kwargs)
    connection.execute('PRAGMA legacy_alter_table=ON')
    return connection


sqlite3.connect = sqlite3.dbapi2.connect = connect
