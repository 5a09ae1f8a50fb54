"""Which namespaces there are to serve, and the word that others have come or gone.

`qrouter-<uuid>` is a router's namespace; `qdhcp-<uuid>` a network's, in which guests are served that
no router leads anywhere. inotify(7) tells of changes; what it does not tell (too many watches, a folder
that is not there yet) is found by looking again.
"""
import ctypes
import errno
import logging
import os

from . import eventloop, namespaces, trust

RESCAN = 1.0            # seconds between two looks that nobody asked for
_SETTLE = 0.01          # seconds in which more changes count as one
_FLAGS = os.O_NONBLOCK | 0o2000000      # IN_CLOEXEC, which 2.7 has no name for
_CHANGES = 0x100 | 0x200 | 0x40 | 0x80 | 0x01000000     # create, delete, moved from, to; only a folder

_log = logging.getLogger('mdproxy.discovery')


def identity_of(name):
    """The trust.Identity whose guests are behind a namespace of this name, or None."""
    for kind, prefix in namespaces.PREFIXES.items():
        if name.startswith(prefix) and trust.is_uuid(name[len(prefix):]):
            return trust.Identity(kind, name[len(prefix):].lower())


def find(isolated_networks):
    """{name: trust.Identity} of the namespaces to serve. isolated_networks: networks' too.

    Raises OSError when that cannot be found out, which does not mean that there are none.
    """
    try:
        names = os.listdir(namespaces.FOLDER)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        names = ()                      # before the first namespace of all
    identities = ((name, identity_of(name)) for name in names)
    return dict((name, identity) for name, identity in identities
                if identity and (identity.kind == 'router' or isolated_networks))


class Watch(object):
    """Calls changed() when a name in the folder has come or gone, and every RESCAN seconds."""

    def __init__(self, loop, changed):
        self._loop, self._changed = loop, changed
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._soon = False
        self._descriptor = self._libc.inotify_init1(_FLAGS)
        if self._descriptor < 0:
            _log.warning('no word of new namespaces (inotify: %s); looking every %g s',
                         os.strerror(ctypes.get_errno()), RESCAN)
        else:
            loop.register(self._descriptor, eventloop.EPOLLIN, self._on_event)
        self._look_again()

    def _look_again(self):
        self._loop.call_later(RESCAN, self._look_again)
        if self._descriptor >= 0:
            # The folder may have been made only now; to watch one twice is to watch it once.
            self._libc.inotify_add_watch(self._descriptor, namespaces.FOLDER.encode(), _CHANGES)
        self._changed()

    def _on_event(self, _events):
        try:
            os.read(self._descriptor, 65536)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                raise
        if not self._soon:
            self._soon = True
            self._loop.call_later(_SETTLE, self._tell)

    def _tell(self):
        self._soon = False
        self._changed()
