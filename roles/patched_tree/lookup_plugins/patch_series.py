"""Ansible lookup, for the controller: a folder with a patch series as one string for patched_tree."""
from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

DOCUMENTATION = r"""
name: patch_series
author: mdproxy maintainers
short_description: A patch series as one string
description:
  - Packs the manifest and the patches of a series, as the backport made them, for the module
    C(patched_tree). The same series gives the same string.
  - A folder that is not exactly what its manifest says is an error.
options:
  _terms:
    description: Folders with a manifest.json and the patches it names.
    required: true
"""

RETURN = r"""
_raw:
  description: One string for each folder.
  type: list
  elements: str
"""

_SCHEMA = 1
_PROJECTS = ('nova', 'quantum')


def _remedy(folder):
    """The command that makes the series; its folder is build/folsom/BASE/PROJECT."""
    base = os.path.basename(os.path.dirname(os.path.normpath(folder)))
    return 'make one with playbooks/backport.yml -e folsom_base=%s' % base


def _read(path):
    with open(path, 'rb') as source:
        return source.read()


def _manifest(folder, path):
    """The manifest of a series, checked as far as this and the node's module rely on it."""
    if not os.path.isfile(os.path.join(path, 'manifest.json')):
        raise AnsibleLookupError('%s holds no series; %s' % (folder, _remedy(folder)))
    named = os.path.join(folder, 'manifest.json')
    try:
        manifest = json.loads(_read(os.path.join(path, 'manifest.json')))
        schema, project = manifest['schema'], manifest['project']
        wanted = {patch['file']: patch['sha256'] for patch in manifest['patches']}
        files = [(spec['before'], spec['after']) for spec in manifest['files'].values()]
        complete = all(isinstance(manifest[key], str) for key in ('series', 'base')) and wanted and files
    except (AttributeError, KeyError, TypeError, ValueError):
        raise AnsibleLookupError('%s is damaged; %s' % (named, _remedy(folder)))
    if schema != _SCHEMA or project not in _PROJECTS or not complete:
        raise AnsibleLookupError('%s is not of schema %s for %s; %s' % (
            named, _SCHEMA, ' or '.join(_PROJECTS), _remedy(folder)))
    return manifest, wanted


def pack(folder, path):
    """The string for the series in a folder at a path; errors call the folder by its name."""
    manifest, wanted = _manifest(folder, path)
    there = {name for name in os.listdir(path) if name.endswith('.patch')}
    for name in sorted(there ^ set(wanted)):
        raise AnsibleLookupError('%s/%s is %s; %s' % (
            folder, name, 'missing' if name in wanted else 'not in the manifest', _remedy(folder)))
    patches = {name: _read(os.path.join(path, name)) for name in wanted}
    for name, content in sorted(patches.items()):
        if hashlib.sha256(content).hexdigest() != wanted[name]:
            raise AnsibleLookupError('%s/%s is damaged, its checksum is not the manifest\'s; %s' % (
                folder, name, _remedy(folder)))
    series = {'manifest': manifest,
              'patches': {name: content.decode('latin-1') for name, content in patches.items()}}
    text = json.dumps(series, sort_keys=True, separators=(',', ':'))
    return base64.b64encode(zlib.compress(text.encode('ascii'), 9)).decode('ascii')


class LookupModule(LookupBase):

    def run(self, terms, variables=None, **kwargs):
        return [pack(term, self._loader.path_dwim(term)) for term in terms]
