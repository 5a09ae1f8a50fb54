#!/usr/bin/python
"""Ansible module: options in an oslo configuration file, everything else left byte for byte."""
from __future__ import absolute_import, division, print_function

DOCUMENTATION = r"""
module: oslo_options
short_description: Set options of one section of an oslo configuration file
description:
  - An option that is there is set where it stands; of several the last one, which is the one that
    counts, and the others go. One that is not there goes to the end of the section's first block.
  - Comments, order and spacing of all other lines stay. Owner, mode and links stay.
options:
  path:
    description: The file; it must exist.
    type: path
    required: true
  section:
    description: Name of the section.
    type: str
    default: DEFAULT
  options:
    description: Names and values.
    type: dict
    default: {}
  absent:
    description: Names of options that must not be there.
    type: list
    elements: str
    default: []
  secrets:
    description: Further names and values, which are shown neither in a log nor in a diff.
    type: dict
    default: {}
  mark:
    description:
      - A file that is there from before a change until the one who restarts what reads the options
        removes it, so that a run that was cut short between the two is made good by the next.
    type: path
  backup:
    description:
      - Where the file as it was before the first change is kept, readable by its owner alone.
    type: path
  keep_backup:
    description: Whether the backup stays when the options are reverted.
    type: bool
    default: false
  state:
    description:
      - C(reverted) puts the backup back, byte for byte, if nothing but these options has changed in the
        file since. Otherwise it puts back these options alone, and C(edited) says so. The backup goes.
    type: str
    choices: [present, reverted]
    default: present
author: mdproxy maintainers
"""

RETURN = r"""
restart:
  description: Whether something changed since the mark was last removed.
  returned: always
  type: bool
removed:
  description: Those of C(absent) that were there.
  returned: always
  type: list
edited:
  description: Whether others have changed the file too, so that only the options were reverted.
  returned: always
  type: bool
"""

import os
import re
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.text.converters import to_bytes, to_text

_SECTION = re.compile(r'\s*\[([^\]]+)\]')


def _entries(lines, section, name):
    """Yield (first, end) of each place where the option is set; more lines of a value begin with a space."""
    entry = re.compile(r'%s\s*[=:]' % re.escape(name))
    current = None
    for number, line in enumerate(lines):
        header = _SECTION.match(line)
        current = header.group(1) if header else current
        if current == section and entry.match(line):
            end = number + 1
            while end < len(lines) and lines[end][:1] in (' ', '\t') and lines[end].strip():
                end += 1
            yield number, end


def _end_of_section(lines, section):
    """Number of the line after the section's first block, blank lines at its end aside; None without one."""
    current, end = None, None
    for number, line in enumerate(lines):
        header = _SECTION.match(line)
        if header and current == section:
            break
        current = header.group(1) if header else current
        if current == section and line.strip():
            end = number + 1
    return end


def _set(lines, section, name, value):
    """The lines with the option set; `lines` have no line ends. Sections may come more than once."""
    wanted, places = ['%s = %s' % (name, value)], list(_entries(lines, section, name))
    if not places:
        end = _end_of_section(lines, section)
        if end is None:
            return lines + ([''] if lines and lines[-1].strip() else []) + ['[%s]' % section] + wanted
        return lines[:end] + wanted + lines[end:]
    first, end = places[-1]
    if [part.strip() for part in re.split('[=:]', '\n'.join(lines[first:end]), maxsplit=1)] == [name, value]:
        wanted = lines[first:end]
    kept = lines[:first] + wanted + lines[end:]
    for first, end in reversed(places[:-1]):
        kept[first:end] = []
    return kept


def _without(lines, section, name):
    """The lines less those that set the option."""
    kept = list(lines)
    for first, end in reversed(list(_entries(lines, section, name))):
        kept[first:end] = []
    return kept


def _wanted(module, before):
    """The file's text with the options as they should be."""
    section = module.params['section']
    options = dict((name, _as_read(value)) for name, value in
                   dict(module.params['options'], **module.params['secrets']).items())
    # Only at line feeds, so that what else may end a line stays where it is.
    lines = _lines(before)
    for name in sorted(options):
        lines = _set(lines, section, name, options[name])
    for name in module.params['absent']:
        lines = _without(lines, section, name)
    return before if lines == _lines(before) else '\n'.join(lines) + '\n'


def _lines(text):
    return text[:-1].split('\n') if text.endswith('\n') else text.split('\n')


def _shown(lines, section, names, secrets):
    """The lines of these options for a diff. No others: the file holds more secrets than ours."""
    shown = {}
    for name in names:
        for first, end in _entries(lines, section, name):
            shown[first] = [name + ' = (not shown)'] if name in secrets else lines[first:end]
    text = ['[%s]' % section] + [line for first in sorted(shown) for line in shown[first]]
    return to_text(('\n'.join(text) + '\n').encode('latin-1'))


def _as_read(value):
    """A value as the file's text is held: a character for each byte, whatever the encoding."""
    return to_bytes(to_text(value)).decode('latin-1')


def _read(module, path):
    """The file's text, a character for each byte."""
    try:
        with open(path, 'rb') as source:
            return source.read().decode('latin-1')
    except IOError as error:
        module.fail_json(msg='%s: cannot be read: %s' % (path, error.strerror))


def _written(path, text):
    """A new file beside the path, for its owner alone, with this text; its path."""
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix='.oslo-options-')
    with os.fdopen(descriptor, 'wb') as out:
        out.write(text.encode('latin-1'))
    return temporary


def _write(module, path, text):
    """Replace the file in one step, with the owner and mode that it has."""
    module.atomic_move(_written(path, text), path)


def _keep(path, text):
    """Write the backup, whole or not at all; one that is there stays."""
    if os.path.exists(path):
        return
    if not os.path.isdir(os.path.dirname(path)):
        os.makedirs(os.path.dirname(path), 0o755)
    os.rename(_written(path, text), path)


def _after(module, before):
    """(text that the file should have, whether others have changed it too since the backup)."""
    backup = module.params['backup']
    if module.params['state'] == 'present':
        return _wanted(module, before), False
    if not backup or not os.path.exists(backup):
        return before, False
    original = _read(module, backup)
    if _others(module, before) == _others(module, original):
        return original, False
    return _taken_back(module, before, original), True


def _taken_back(module, before, original):
    """The file's text with the options alone as they were in the original, and what others did kept."""
    section, lines, old = module.params['section'], _lines(before), _lines(original)
    for name in _names(module):
        places = list(_entries(old, section, name))
        lines = _without(lines, section, name)
        if places:
            first, end = places[-1]
            at = _end_of_section(lines, section)
            lines = lines[:at] + old[first:end] + lines[at:] if at is not None else (
                lines + ['[%s]' % section] + old[first:end])
    return '\n'.join(lines) + '\n'


def _others(module, text):
    """The lines that are no business of this module's."""
    lines = _lines(text)
    for name in _names(module):
        lines = _without(lines, module.params['section'], name)
    return [line for line in lines if line.strip()]


def _names(module):
    return list(module.params['options']) + list(module.params['secrets']) + module.params['absent']


def main():
    module = AnsibleModule(supports_check_mode=True, argument_spec=dict(
        path=dict(type='path', required=True), section=dict(type='str', default='DEFAULT'),
        options=dict(type='dict', default={}), absent=dict(type='list', elements='str', default=[]),
        secrets=dict(type='dict', default={}, no_log=True), mark=dict(type='path'),
        backup=dict(type='path'), keep_backup=dict(type='bool', default=False),
        state=dict(type='str', choices=['present', 'reverted'], default='present')))
    section, secrets, absent, mark, backup = (module.params[name] for name in (
        'section', 'secrets', 'absent', 'mark', 'backup'))
    path = os.path.realpath(module.params['path'])      # a link stays one
    reverted = module.params['state'] == 'reverted'
    before = _read(module, path)
    after, edited = _after(module, before)
    changed = after != before
    if not module.check_mode:
        if changed:
            if backup and not reverted:
                _keep(backup, before)
            if mark:
                open(mark, 'w').close()
            _write(module, path, after)
        if reverted and backup and os.path.exists(backup) and not module.params['keep_backup']:
            os.unlink(backup)
    shown_before, shown_after = (
        _shown(_lines(side), section, _names(module), secrets) if changed else '' for side in (before, after))
    if changed and shown_before == shown_after:
        shown_after += '# (another secret)\n'
    lines = _lines(before)
    module.exit_json(changed=changed, restart=changed or bool(mark) and os.path.exists(mark), edited=edited,
                     removed=[name for name in absent if lines != _without(lines, section, name)],
                     diff=dict(before_header=path, after_header=path,
                               before=shown_before, after=shown_after))


if __name__ == '__main__':
    main()
