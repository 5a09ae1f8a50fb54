"""Whether a namespace is still the one that it was when the listener was opened in it.

Theory of operation: an agent that deletes a namespace tells nobody. But a name is a mount, and the
kernel tells whoever holds /proc/self/mountinfo that mounts have changed (EPOLLPRI, proc(5)). Then
the name is looked at. So a server that nobody disturbs does nothing; to look every 0.4 s took 0.4 ms
of every second, and there are hundreds of servers.

The listener goes on listening in the namespace that was deleted. A socket keeps its namespace alive,
so nobody else gets its inode's number meanwhile: what has the name now is the same by its number or
it is not.
"""
import logging
import os
import select

from . import namespaces

_MOUNTS = '/proc/self/mountinfo'
_CALM = 0.2             # seconds: an agent that starts deletes all of its namespaces, one after another

_log = logging.getLogger('mdproxy.watch')


def until_gone(loop, netns, inode, end):
    """Call end() once, half a second after the named namespace is another or none at the latest.

    inode: that of the listener's namespace, as namespaces.inode gives it.
    """
    mounts = os.open(_MOUNTS, os.O_RDONLY)

    def changed(_events):
        loop.unregister(mounts)
        loop.call_later(_CALM, look)

    def look():
        loop.register(mounts, select.EPOLLPRI, changed)     # before the look, so that no change is missed
        there = namespaces.inode(netns)
        if there != inode:
            loop.unregister(mounts)
            os.close(mounts)
            _log.warning('namespace %s %s: the proxy ends', netns,
                         'is gone' if there is None else 'was made anew')
            end()

    loop.call_later(_CALM, look)        # it may have changed before there was anybody to be told
