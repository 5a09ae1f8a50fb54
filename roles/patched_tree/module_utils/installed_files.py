"""What is installed: the node's files as a series finds them, and as they were before any."""
from __future__ import absolute_import, division, print_function

import os

from ansible.module_utils.tree_transaction import parse, read, state_of


class View(object):
    """The node's files, as they will be once an interrupted change is taken back."""

    def __init__(self, transaction, restored):
        self._transaction, self._restored = transaction, restored

    def state(self, path):
        return self._restored[path] if path in self._restored else state_of(path)

    def content(self, path):
        state = self.state(path)
        if state is None or 'sha256' not in state:
            return None
        if path in self._restored:
            return self._transaction.content(state['sha256'])
        return read(path)

    def real(self, path):
        """Where a path leads, through links."""
        state = self.state(path)
        if state and 'link' in state:
            return os.path.realpath(os.path.join(os.path.dirname(path), state['link']))
        return path

    def record(self):
        """What is recorded as applied, or None."""
        path = self._transaction.record_path
        content = self.content(path)
        return None if content is None else parse(path, content)


class Installed(object):
    """A file of a series: what is there now, and what was there before any series was applied.

    name: its path. real: the file that the name leads to. link: state of the link, if it is one.
    ours: whether it is as the recorded series left it. compiled: {path: pristine state}.
    """

    def __init__(self, view, name, entry):
        self.name, self.entry = name, entry
        self.link = view.state(name)
        self.real = view.real(name)
        self.ours = bool(entry) and self._is_ours(view)
        if self.ours:
            self.real, self.link, self.pristine = entry['real'], entry['link'], entry['before']
            self.compiled = entry['compiled']
        else:
            if not self.link or 'link' not in self.link:
                self.link = None
            self.pristine = view.state(self.real)
            compiled = [name + 'c', name + 'o'] if name.endswith('.py') else []
            self.compiled = dict((path, view.state(path)) for path in compiled)
        self.now = view.state(self.real)

    def _is_ours(self, view):
        if self.entry['after'] is None:
            return (self.link is None and view.state(self.entry['real']) is None
                    and os.path.isdir(os.path.dirname(self.name)))
        now = view.state(self.real) or {}
        return self.real == self.entry['real'] and now.get('sha256') == self.entry['after']
