#!/usr/bin/python
"""Ansible module: options in an oslo configuration file, everything else left byte for byte."""
from __future__ import absolute_import, division, print_function

DOCUMENTATION = r"""
module: nova_options
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
  secrets:
    description: Further names and values, which are shown neither in a log nor in a diff.
    type: dict
    default: {}
  mark:
    description:
      - A file that is there from before a change until the one who restarts what reads the options
        removes it, so that a run that was cut short between the two is made good by the next.
    type: path
author: mdproxy maintainers
"""

RETURN = r"""
restart:
  description: Whether something changed since the mark was last removed.
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


def _write(module, path, text):
    """Replace the file in one step, with the owner and mode that it has."""
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix='.nova-options-')
    with os.fdopen(descriptor, 'wb') as out:
        out.write(text.encode('latin-1'))
    module.atomic_move(temporary, path)


def main():
    module = AnsibleModule(supports_check_mode=True, argument_spec=dict(
        path=dict(type='path', required=True), section=dict(type='str', default='DEFAULT'),
        options=dict(type='dict', default={}),
        secrets=dict(type='dict', default={}, no_log=True), mark=dict(type='path')))
    path, secrets = module.params['path'], module.params['secrets']
    options = dict((name, _as_read(value))
                   for name, value in dict(module.params['options'], **secrets).items())
    try:
        with open(path, 'rb') as source:
            before = source.read().decode('latin-1')
    except IOError as error:
        module.fail_json(msg='%s: cannot be read: %s' % (path, error.strerror))
    # Only at line feeds, so that what else may end a line stays where it is.
    old = before[:-1].split('\n') if before.endswith('\n') else before.split('\n')
    lines = old
    for name in sorted(options):
        lines = _set(lines, module.params['section'], name, options[name])
    after = '\n'.join(lines) + '\n'
    changed = lines != old
    mark = module.params['mark']
    if changed and not module.check_mode:
        if mark:
            open(mark, 'w').close()
        _write(module, path, after)
    shown_before, shown_after = (
        _shown(side, module.params['section'], options, secrets) if changed else ''
        for side in (old, lines))
    if changed and shown_before == shown_after:
        shown_after += '# (another secret)\n'
    restart = changed or bool(mark) and os.path.exists(mark)
    module.exit_json(changed=changed, restart=restart,
                     diff=dict(before_header=path, after_header=path,
                               before=shown_before, after=shown_after))


if __name__ == '__main__':
    main()
