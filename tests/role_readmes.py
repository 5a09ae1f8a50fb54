"""roles/<role>/README.md out of the role's meta/argument_specs.yml, meta/main.yml and tasks/main.yml.

`make readmes` writes them; tests/unit/test_role_readmes.py fails when one is not what this makes.
"""
import io
import json
import os
import re
import sys

import yaml

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROLES = os.path.join(ROOT, 'roles')
_MARKUP = [(re.compile(r'\bC\(([^)]*)\)'), r'`\1`'), (re.compile(r'\bB\(([^)]*)\)'), r'**\1**'),
           (re.compile(r'\bI\(([^)]*)\)'), r'*\1*')]
_EXAMPLES = {
    'backport': '- hosts: localhost\n  gather_facts: false\n  roles:\n    - role: backport\n  vars:\n'
                '    nova_source: /src/nova\n    quantum_source: /src/neutron\n',
    'lab': '- hosts: localhost\n  gather_facts: false\n  tasks:\n    - ansible.builtin.include_role:\n'
           '        name: lab\n        tasks_from: create\n',
    'mdproxy': '- hosts: network_nodes\n  become: true\n  roles:\n    - role: mdproxy\n',
    'metadata_agent': '- hosts: metadata_agents:network_nodes\n  become: true\n  roles:\n'
                      '    - role: metadata_agent\n  vars:\n'
                      '    metadata_shared_secret: "{{ vaulted_metadata_secret }}"\n'
                      '    metadata_agent_auth_url: http://keystone:5000/v3\n'
                      '    metadata_agent_admin_password: "{{ vaulted_agent_password }}"\n'
                      '    metadata_agent_nova_metadata_ip: 10.0.0.5\n',
    'metadata_api': '- hosts: metadata_api\n  become: true\n  roles:\n    - role: metadata_api\n  vars:\n'
                    '    metadata_shared_secret: "{{ vaulted_metadata_secret }}"\n',
    'patched_tree': '- hosts: network_nodes\n  become: true\n  roles:\n    - role: patched_tree\n  vars:\n'
                    '    patched_tree_project: quantum\n',
    'router_proxy': '- hosts: network_nodes\n  become: true\n  roles:\n    - role: router_proxy\n  vars:\n'
                    '    mdproxy_routers: discover\n',
    'precheck': '- hosts: metadata_api:metadata_agents:network_nodes\n  become: true\n'
                '  roles:\n    - role: precheck\n',
    'verify': '- hosts: network_nodes\n  become: true\n  roles:\n    - role: verify\n',
}


def names():
    """The roles, sorted."""
    return sorted(name for name in os.listdir(ROLES)
                  if os.path.exists(os.path.join(ROLES, name, 'meta', 'argument_specs.yml')))


def path(role):
    """Where a role's README is."""
    return os.path.join(ROLES, role, 'README.md')


def text(role):
    """What it has to say. Raises KeyError of a role without an example."""
    specs = _load(role, 'meta/argument_specs.yml')['argument_specs']
    about = _load(role, 'meta/main.yml')['galaxy_info']
    lines = ['<!-- Made by `make readmes` out of meta/argument_specs.yml; change that. -->', '# ' + role, '',
             about['description'] + '.', '']
    for paragraph in _paragraphs(specs.get('main', {}).get('description', ())):
        lines += [paragraph, '']
    lines += _entry_points(specs) + _variables(specs) + _tags(role)
    lines += ['## Example', '', '```yaml', _EXAMPLES[role].rstrip(), '```', '']
    users = _playbooks(role)
    if users:
        lines += ['In this repository it is used by %s.' % ', '.join(
            '[%s](../../%s)' % (user, user) for user in users), '']
    return '\n'.join(lines)


def example(role):
    """A play that uses the role, YAML."""
    return _EXAMPLES[role]


def markdown(words):
    """Ansible's C(), B() and I() as markdown, in one line that a table can hold."""
    for pattern, replacement in _MARKUP:
        words = pattern.sub(replacement, words)
    return ' '.join(words.split()).replace('|', '\\|')


def _entry_points(specs):
    if list(specs) == ['main']:
        return []
    lines = ['## Entry points', '', '| `tasks_from` | |', '|---|---|']
    return lines + ['| `%s` | %s |' % (name, markdown(spec['short_description']))
                    for name, spec in specs.items()] + ['']


def _variables(specs):
    """One table for all entry points that have the same variables."""
    groups = []
    for name in specs:
        options = specs[name].get('options', {})
        for entry_points, others in groups:
            if others == options:
                entry_points.append(name)
                break
        else:
            groups.append(([name], options))
    lines = ['## Variables', '']
    for entry_points, options in groups:
        if len(groups) > 1:
            lines += ['Of %s:' % ', '.join('`%s`' % name for name in entry_points), '']
        lines += ['| variable | type | default | meaning |', '|---|---|---|---|']
        lines += ['| `%s` | %s | %s | %s |' % (name, _type(option), _default(option), _meaning(option))
                  for name, option in options.items()] + ['']
    return lines


def _type(option):
    elements = option.get('elements')
    return option['type'] + (' of ' + elements if elements else '')


def _default(option):
    if option.get('required'):
        return '**required**'
    if 'default' not in option:
        return ''
    value = option['default']
    shown = value if isinstance(value, str) and value else json.dumps(value)
    return '`%s`' % shown.replace('|', '\\|')


def _meaning(option):
    meaning = ' '.join(_paragraphs(option['description']))
    if option.get('choices'):
        meaning += ' One of %s.' % ', '.join('`%s`' % choice for choice in option['choices'])
    return meaning


def _paragraphs(description):
    return [markdown(words) for words in ([description] if isinstance(description, str) else description)]


def _tags(role):
    try:
        tasks = _load(role, 'tasks/main.yml')
    except IOError:
        return []
    found = [tag for task in tasks for tag in task.get('tags', ())]
    found = sorted(set(found), key=found.index)
    return ['## Tags', '', ', '.join('`%s`' % tag for tag in found) + '.', ''] if found else []


def _playbooks(role):
    """Playbooks that name the role, as paths from the root."""
    naming = re.compile(r'^\s*(?:- )?(?:role|name): %s$' % role, re.MULTILINE)
    found = []
    for folder, _, files in os.walk(os.path.join(ROOT, 'playbooks')):
        for name in files:
            with io.open(os.path.join(folder, name), encoding='utf-8') as source:
                if name.endswith('.yml') and naming.search(source.read()):
                    found.append(os.path.relpath(os.path.join(folder, name), ROOT))
    return sorted(found)


def _load(role, part):
    with io.open(os.path.join(ROLES, role, part), encoding='utf-8') as source:
        return yaml.safe_load(source)


def main():
    """Write them all."""
    for role in names():
        with io.open(path(role), 'w', encoding='utf-8') as out:
            out.write(text(role))


if __name__ == '__main__':
    sys.exit(main())
