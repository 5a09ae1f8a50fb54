"""A patch series as the lookup patch_series packed it, and the installed paths of what it changes."""
from __future__ import absolute_import, division, print_function

import base64
import collections
import json
import os
import zlib

from ansible.module_utils.series_patch import apply, checked_path, read_patch

# Makes the series for the version that is installed.
BACKPORT = 'ansible-playbook playbooks/backport.yml -e folsom_base=%s'


class Refused(Exception):
    """Why nothing was changed, in a sentence."""


class Series(object):
    """A series as the lookup packed it: which files it changes, and how."""

    def __init__(self, packed, project):
        try:
            series = json.loads(zlib.decompress(base64.b64decode(packed)).decode('ascii'))
            manifest, texts = series['manifest'], series['patches']
            self.id, self.base, found = manifest['series'], manifest['base'], manifest['project']
            self.files = dict((checked_path(str(path)), (spec['before'], spec['after'], spec.get('mode')))
                              for path, spec in manifest['files'].items())
            names = [str(patch['file']) for patch in manifest['patches']]
            patches = [(name, texts[name].encode('latin-1')) for name in names]
        except (KeyError, TypeError, ValueError, zlib.error):
            raise Refused('series is not what the lookup patch_series returns')
        if found != project:
            raise Refused('the series is for %s, not for %s' % (found, project))
        self.changes = collections.defaultdict(list)
        for name, data in patches:
            for change in read_patch(name, data):
                self.changes[change.path].append(change)
        self._drop_passing()

    def _drop_passing(self):
        """Forget files that one patch makes and a later one removes."""
        for path in set(self.changes) - set(self.files):
            if apply(None, self.changes[path]) != (None, [], []):
                raise self.damaged('%s is changed and not in the manifest' % path)
        for path, spec in list(self.files.items()):
            if spec[:2] == (None, None):
                del self.files[path]

    def damaged(self, problem):
        return Refused('series %s is damaged: %s; make it again: %s'
                       % (self.id, problem, BACKPORT % self.base))


class Places(object):
    """Where the git tree's paths are installed."""

    def __init__(self, root, places):
        self._root, self._places = root, []
        for place in places:
            prefix = checked_path(place['prefix'].rstrip('/'))
            if '..' in place['to'].split('/'):
                raise Refused('place of %s: %s must not have .. in it' % (prefix, place['to']))
            self._places.append((prefix, place['to'], place['optional']))
        self._places.sort(key=lambda place: len(place[0]), reverse=True)

    def installed(self, path):
        """The installed path, with no links in its folders; None for a path that is left out."""
        for prefix, to, optional in self._places:
            if path == prefix or path.startswith(prefix + '/'):
                to = os.path.normpath(os.path.join(self._root, to))
                if optional and not os.path.exists(to):
                    return None
                to += path[len(prefix):]
                return os.path.join(os.path.realpath(os.path.dirname(to)), os.path.basename(to))
        return None
