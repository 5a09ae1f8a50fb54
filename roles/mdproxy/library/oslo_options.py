#!/usr/bin/python
"""Ansible module: options in an oslo configuration file, everything else left byte for byte."""
from __future__ import absolute_import, division, print_function

DOCUMENTATION = r"""
module: oslo_options
short_description: Set options of one section of an oslo configuration file
description:
  - An option that is there is set where it stands; of several the last one, which is the one that
    counts, and the others go. One that is not there goes to the end of the section's first block.
  - Comments, order and spacing of all other lines stay. Owner and mode stay.
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
  state:
    description:
      - C(reverted) puts the backup back, byte for byte, and removes it, if nothing but these options has
        changed in the file since. Otherwise file and backup stay and C(edited) says so.
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
  description: Whether a file was not reverted because others have changed it too.
  returned: always
  type: bool
"""

import os
import re
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.text.converters import to_bytes, to_text

_SECTION = re.compile(r'\s*\[([^\]]+)\]')


def _set(lines, section, name, value):
    """The lines with the option set; `lines` have no line ends. Sections may come more than once."""
    entry = re.compile(r'%s\s*[=:]' % re.escape(name))
    wanted = '%s = %s' % (name, value)
    current, places, last, closed = None, [], None, False
    for number, line in enumerate(lines):
        header = _SECTION.match(line)
        if header:
            closed = closed or current == section
            current = header.group(1)
        if current == section:
            if entry.match(line):
                places.append(number)
            # The last line of substance: blank lines before the next section stay where they are.
            if line.strip() and not closed:
                last = number
    if places:
        keep = places[-1]
        if [part.strip() for part in re.split('[=:]', lines[keep], maxsplit=1)] == [name, value]:
            wanted = lines[keep]
        return [wanted if number == keep else line for number, line in enumerate(lines)
                if number == keep or number not in places]
    if last is None:
        return lines + ([''] if lines and lines[-1].strip() else []) + ['[%s]' % section, wanted]
    return lines[:last + 1] + [wanted] + lines[last + 1:]


def _without(lines, section, name):
    """The lines less those that set the option."""
    entry = re.compile(r'%s\s*[=:]' % re.escape(name))
    current, kept = None, []
    for line in lines:
        header = _SECTION.match(line)
        current = header.group(1) if header else current
        if current != section or not entry.match(line):
            kept.append(line)
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
    entry = re.compile(r'(%s)\s*[=:]' % '|'.join(re.escape(name) for name in sorted(names)))
    current, shown = None, ['[%s]' % section]
    for line in lines:
        header, match = _SECTION.match(line), entry.match(line)
        current = header.group(1) if header else current
        if current == section and match:
            shown.append(match.group(0) + ' (not shown)' if match.group(1) in secrets else line)
    return to_text(('\n'.join(shown) + '\n').encode('latin-1'))


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


def _write(module, path, text):
    """Replace the file in one step, with the owner and mode that it has."""
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix='.oslo-options-')
    with os.fdopen(descriptor, 'wb') as out:
        out.write(text.encode('latin-1'))
    module.atomic_move(temporary, path)


def _keep(path, text):
    """Write the backup, whole or not at all; one that is there stays."""
    if os.path.exists(path):
        return
    if not os.path.isdir(os.path.dirname(path)):
        os.makedirs(os.path.dirname(path), 0o755)
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix='.oslo-options-')
    with os.fdopen(descriptor, 'wb') as out:
        out.write(text.encode('latin-1'))
    os.rename(temporary, path)


def _after(module, before):
    """(text that the file should have, whether others' changes keep it from being reverted)."""
    backup = module.params['backup']
    if module.params['state'] == 'present':
        return _wanted(module, before), False
    if not backup or not os.path.exists(backup):
        return before, False
    original = _read(module, backup)
    edited = _others(module, before) != _others(module, original)
    return before if edited else original, edited


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
        backup=dict(type='path'),
        state=dict(type='str', choices=['present', 'reverted'], default='present')))
    path, section, secrets, absent, mark, backup = (module.params[name] for name in (
        'path', 'section', 'secrets', 'absent', 'mark', 'backup'))
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
        if reverted and backup and not edited and os.path.exists(backup):
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
