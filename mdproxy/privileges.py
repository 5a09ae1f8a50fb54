"""Giving up root, for good, before the first byte of a guest is read (LP 1187107)."""
from __future__ import unicode_literals

import errno
import grp
import os
import pwd
from contextlib import contextmanager

_PR_SET_NO_NEW_PRIVS = 38


class PrivilegeError(Exception):
    """The serving user or a folder for it cannot be had; the message says which and why."""


def ids(user, group=None):
    """(uid, gid) of a user by name or number; of its own group unless one is given the same way.

    Raises PrivilegeError for an unknown user or group, and for root.
    """
    uid, gid = _number(user), _number(group)
    try:
        entry = pwd.getpwnam(str(user)) if uid is None else pwd.getpwuid(uid)
        uid, gid = entry.pw_uid, entry.pw_gid if group is None else gid
    except KeyError:
        # A number without a name is somebody all the same, as long as the group is known.
        if uid is None or group is None:
            raise PrivilegeError('user %s does not exist; create it or set [mdproxy] user' % user)
    try:
        gid = grp.getgrnam(str(group)).gr_gid if gid is None else gid
    except KeyError:
        raise PrivilegeError('group %s does not exist' % group)
    if uid == 0 or gid == 0:
        raise PrivilegeError('%s is root, which must not serve; set [mdproxy] user'
                             % ('user %s' % user if uid == 0 else 'group of %s' % user))
    return uid, gid


def become(user, group=None):
    """Take on the user's ids, without other groups and without new privileges through exec.

    Does nothing for a process that is not root. Raises PrivilegeError as `ids`.
    """
    if os.geteuid() != 0:
        return
    import ctypes  # here: servers need no more of this module than make_folder
    uid, gid = ids(user, group)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)          # from root to another: the kernel drops every capability
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


@contextmanager
def acting_as(user, group=None):
    """Do something with the user's rights and in the user's name, when root. Raises PrivilegeError.

    Where the user can write, root must not make a file and give it away: in between, its name may come
    to mean any other. Where the user cannot, whoever made us choose the name could choose any.
    """
    if os.geteuid() != 0:
        yield
        return
    uid, gid = ids(user, group)
    own_groups, own_gid = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(own_gid)
        os.setgroups(own_groups)


def kill(pid, number, user):
    """Send a signal to a process of root or of the user; CAP_KILL, which is for anybody's, is not needed."""
    try:
        os.kill(pid, number)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        with acting_as(user):
            os.kill(pid, number)


def make_folder(folder, user, group=None):
    """Make a folder that belongs to the user and only its group may enter, when root and needed.

    A service manager without runtime folders (upstart) leaves this to us, and many start at once: the
    folder has its owner before it has its name. Raises PrivilegeError.
    """
    if os.geteuid() != 0 or os.path.isdir(folder):
        return
    uid, gid = ids(user, group)
    new = '%s.%d' % (folder, os.getpid())
    try:
        os.mkdir(new, 0o750)
        os.lchown(new, uid, gid)    # no link that somebody put there meanwhile
        os.rename(new, folder)
    except OSError as error:
        if os.path.isdir(new):
            os.rmdir(new)
        if not os.path.isdir(folder):       # nor did another make it meanwhile
            raise PrivilegeError('folder %s cannot be made: %s' % (folder, error.strerror))


def _number(name):
    return int(name) if name is not None and str(name).isdigit() else None
