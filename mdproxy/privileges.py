"""Giving up root, for good, before the first byte of a guest is read (LP 1187107)."""
from __future__ import unicode_literals

import ctypes
import os
import pwd

_PR_SET_NO_NEW_PRIVS = 38


class PrivilegeError(Exception):
    """The serving user or a folder for it cannot be had; the message says which and why."""


def become(user):
    """Take on the user's ids, without other groups and without new privileges through exec.

    Does nothing for a process that is not root. Raises PrivilegeError for an unknown user and for root.
    """
    if os.geteuid() != 0:
        return
    entry = _entry(user)
    if entry.pw_uid == 0:
        raise PrivilegeError('user %s is root, which must not serve; set [mdproxy] user' % user)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)         # from root to another: the kernel drops every capability
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def make_folder(folder, user):
    """Make a folder that belongs to the user and that only its group may enter, when root and needed.

    A service manager without runtime folders (upstart) leaves this to us. Raises PrivilegeError.
    """
    if os.geteuid() != 0 or os.path.isdir(folder):
        return
    entry = _entry(user)
    try:
        os.mkdir(folder, 0o750)
        os.chown(folder, entry.pw_uid, entry.pw_gid)
    except OSError as error:
        raise PrivilegeError('folder %s cannot be made: %s' % (folder, error.strerror))


def _entry(user):
    try:
        return pwd.getpwnam(str(user))
    except KeyError:
        raise PrivilegeError('user %s does not exist; create it or set [mdproxy] user' % user)
