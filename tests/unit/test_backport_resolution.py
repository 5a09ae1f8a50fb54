"""resolution: fits a change to another text of the file, by data that must fit, or says where it does not."""
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import ansible_module  # noqa: E402

ansible_module.needs_ansible()
resolution = ansible_module.utility('resolution')

BEFORE = b'import os\nimport sys\n\nCONF = 1\n\ndef f():\n    pass\n'
THEIRS = b'import os\nimport sys\nimport hmac\n\nCONF = 1\n\ndef f():\n    return 1\n'
OURS = b'import os\nfrom copy import copy\n\nFLAGS = 1\n\ndef f():\n    pass\n'


def test_what_only_one_side_changed_merges_without_a_conflict():
    theirs = THEIRS.replace(b'import hmac\n', b'')
    merged = resolution.merge(BEFORE.replace(b'CONF', b'FLAGS'), BEFORE, theirs)
    assert resolution.conflicts(merged) == []
    assert merged == b'import os\nimport sys\n\nFLAGS = 1\n\ndef f():\n    return 1\n'


@pytest.mark.parametrize('choice, lines', [
    ('ours', b'from copy import copy\n'),
    ('theirs', b'import sys\nimport hmac\n'),
    ('added', b'from copy import copy\nimport hmac\n'),
])
def test_a_conflict_is_resolved_as_chosen(choice, lines):
    merged = resolution.merge(OURS, BEFORE, THEIRS)
    first = resolution.conflicts(merged)[0]
    taken = resolution.take(first, [choice])
    assert taken == lines


def test_choices_are_taken_from_the_top_of_the_file_down():
    merged = resolution.merge(b'1\nx\n2\n3\n4\n5\ny\n6\n', b'1\n2\n3\n4\n5\n6\n', b'1\na\n2\n3\n4\n5\nb\n6\n')
    assert resolution.take(merged, ['ours', 'theirs']) == b'1\nx\n2\n3\n4\n5\nb\n6\n'


@pytest.mark.parametrize('choices', [[], ['ours', 'ours', 'ours']])
def test_a_number_of_conflicts_that_was_not_expected_is_an_error_that_shows_them(choices):
    merged = resolution.merge(OURS, BEFORE, THEIRS)
    with pytest.raises(resolution.ResolutionError) as error:
        resolution.take(merged, choices)
    assert 'conflict' in str(error.value) and 'resolves %d' % len(choices) in str(error.value)
    assert 'from copy import copy' in str(error.value) and 'import hmac' in str(error.value)


def test_a_heading_is_no_end_of_a_side():
    merged = resolution.merge(b'Ours\n==========\n', b'Title\n==========\n', b'Theirs\n~~~~~~~~~~\n')
    assert resolution.take(merged, ['theirs']) == b'Theirs\n~~~~~~~~~~\n'
    assert resolution.take(merged, ['ours']) == b'Ours\n==========\n'


def test_added_is_refused_where_upstream_changed_lines_too():
    merged = resolution.merge(b'x = 0\n', b'x = 1\n', b'x = 2\n')
    with pytest.raises(resolution.ResolutionError) as error:
        resolution.take(merged, ['added'])
    assert 'changed lines as well' in str(error.value) and 'x = 2' in str(error.value)


def test_an_edit_replaces_every_place_that_it_counts_on():
    assert resolution.edit(b'CONF.a\nCONF.b\n', b'CONF.', b'FLAGS.', 2) == b'FLAGS.a\nFLAGS.b\n'


def test_an_edit_that_matches_elsewhere_is_an_error_that_shows_the_places():
    text = b'one\nCONF.a\nthree\nfour\nfive\nsix\nseven\nCONF.b\n'
    with pytest.raises(resolution.ResolutionError) as error:
        resolution.edit(text, b'CONF.', b'FLAGS.', 1)
    said = str(error.value)
    assert said.startswith('2 places where an edit counts on 1, of\n    CONF.\n')
    assert 'at line 2:\n    one\n    CONF.a\n' in said and 'at line 8:' in said


def test_an_edit_that_matches_nowhere_is_an_error_that_shows_it():
    with pytest.raises(resolution.ResolutionError) as error:
        resolution.edit(b'text\n', b'CONF.', b'FLAGS.', 1)
    assert str(error.value) == 'no places where an edit counts on 1, of\n    CONF.'


def test_markers_of_conflicts_are_found_and_headings_are_not_taken_for_them():
    assert resolution.marked(b'a\n<<<<<<< ours\nb\n')
    assert not resolution.marked(b'Title\n=======\n')
