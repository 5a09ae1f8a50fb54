#!/usr/bin/python
"""Ansible module: how many listened in each router's namespace, from one task to another."""
from __future__ import absolute_import, division, print_function

DOCUMENTATION = r"""
module: listener_history
short_description: Watch how many sockets listen for guests in each namespace, while other tasks run
description:
  - A process looks at every router's and network's namespace ten times a second and notes each number that is
    not the last one. It ends when it is told to, or after I(life) seconds.
options:
  state:
    description: C(started) begins anew, C(stopped) ends and returns what was seen.
    type: str
    choices: [started, stopped]
    required: true
  life:
    description: Seconds after which nobody seems to ask any more.
    type: int
    default: 900
author: mdproxy maintainers
"""

RETURN = r"""
history:
  description: >-
    For each namespace the numbers of listeners that were seen, one after the other, without repetitions.
    0 is also what a namespace has that is not there.
  returned: when stopped
  type: dict
looks:
  description: How many times was looked.
  returned: when stopped
  type: int
"""

import glob
import json
import os
import signal
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.guest_listeners import listening_sockets

_FOLDER = '/run/listener-history'
_PAUSE = 0.1


class History(object):
    """What was seen; kept in a file that is whole at any time."""

    def __init__(self):
        self.seen, self.looks = {}, 0

    def look(self):
        names = set(os.path.basename(path) for path in glob.glob('/var/run/netns/q*'))
        for name in names.union(self.seen):
            number = len(listening_sockets(name)) if name in names else 0
            numbers = self.seen.setdefault(name, [])
            if numbers[-1:] != [number]:
                numbers.append(number)
        self.looks += 1

    def write(self):
        with open(_path('new'), 'w') as out:
            json.dump({'history': self.seen, 'looks': self.looks}, out)
        os.rename(_path('new'), _path('seen'))


def _path(name):
    return os.path.join(_FOLDER, name)


def _pid():
    """Pid of the process that watches, or None."""
    try:
        with open(_path('pid')) as found:
            pid = int(found.read())
        os.kill(pid, 0)
        return pid
    except (IOError, OSError, ValueError):
        return None


def start(life):
    """Begin to watch, in a process that lives on; the first look is done when this returns."""
    if not os.path.isdir(_FOLDER):
        os.mkdir(_FOLDER, 0o755)
    history = History()
    history.look()
    history.write()
    if os.fork():
        return
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    with open(_path('pid'), 'w') as out:
        out.write('%d\n' % os.getpid())
    asked = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    end = time.time() + life
    while not asked and time.time() < end:
        time.sleep(_PAUSE)
        history.look()
    history.write()
    os.unlink(_path('pid'))
    os._exit(0)


def stop():
    """End who watches, and wait until it has written."""
    pid = _pid()
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    while os.path.exists(_path('pid')):
        time.sleep(_PAUSE)
    return True


def main():
    module = AnsibleModule(argument_spec=dict(
        state=dict(type='str', choices=['started', 'stopped'], required=True),
        life=dict(type='int', default=900)))
    watched = stop()
    if module.params['state'] == 'started':
        start(module.params['life'])
        module.exit_json(changed=True)
    if not watched:
        module.fail_json(msg='nobody watches: not started, or longer than its life ago')
    with open(_path('seen')) as found:
        module.exit_json(changed=True, **json.load(found))


if __name__ == '__main__':
    main()
