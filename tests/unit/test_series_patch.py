"""series_patch: what is read is whole, and what applies gives the bytes that git would give."""
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import ansible_module  # noqa: E402
from patchmaker import diff, patch  # noqa: E402

series_patch = ansible_module.utility('series_patch')
apply, read_patch, PatchError = series_patch.apply, series_patch.read_patch, series_patch.PatchError

PATH = 'nova/api/x.py'
BEFORE = b''.join(b'line %d\n' % number for number in range(1, 31))
AFTER = BEFORE.replace(b'line 5\n', b'five\n').replace(b'line 20\n', b'line 20\nline 20.5\n')
FIRST, SECOND = 'p: nova/api/x.py @@ -2,7 +2,7 @@', 'p: nova/api/x.py @@ -18,6 +18,7 @@'


def changes(before, after, **arguments):
    return read_patch('p', patch([diff(PATH, before, after, **arguments)]))


def applied(before, after, content, moving=True):
    return apply(content, changes(before, after), moving)


def body(*lines):
    """A patch of one file that ends in these lines."""
    head = ['diff --git a/nova/api/x.py b/nova/api/x.py', 'index 1..2 100644']
    return ('From 1\n\n' + ''.join(line + '\n' for line in head + list(lines))).encode('latin-1')


def hunk(*lines):
    return body('--- a/nova/api/x.py', '+++ b/nova/api/x.py', *lines)


@pytest.mark.parametrize('before, after', [
    (BEFORE, AFTER), (None, BEFORE), (BEFORE, None), (None, b''), (b'', None), (b'', BEFORE), (BEFORE, b''),
    (b'a\nb', b'a\nb\n'), (b'a\nb\n', b'a\nb'), (b'a\nb', b'a\nc'), (b'a', b'b'), (None, b'a'), (b'a', None),
    (b'\xe9\x85\x00\r\x0c\n', b'\xff\r\n\x0b\n'), (b'a\r\nb\r\n', b'a\nb\n')])
def test_a_change_gives_what_was_meant(before, after):
    assert apply(before, changes(before, after)) == (after, [], [])
    assert apply(before, changes(before, after), moving=True) == (after, [], [])


def test_patches_apply_one_after_the_other():
    last = AFTER.replace(b'five\n', b'5\n')
    assert apply(BEFORE, changes(BEFORE, AFTER) + changes(AFTER, last)).content == last


def test_a_patch_may_change_many_files_and_says_which():
    found = read_patch('p', patch([diff('a', None, b'x\n'), diff('b/c', b'x\n', None),
                                   diff('d', b'1\n', b'2\n')]))
    assert [(change.path, change.created, change.deleted) for change in found] == [
        ('a', True, False), ('b/c', False, True), ('d', False, False)]


def test_a_change_of_mode_alone_changes_no_content():
    found = read_patch('p', b'\ndiff --git a/bin/x b/bin/x\nold mode 100644\nnew mode 100755\n')
    assert [change.path for change in found] == ['bin/x'] and apply(b'x', found) == (b'x', [], [])


def test_a_path_may_have_a_space():
    found, = read_patch('p', b'diff --git a/a b b/a b\nnew file mode 100644\nindex 0..1\n'
                             b'--- /dev/null\n+++ b/a b\t\n@@ -0,0 +1 @@\n+x\n')
    assert found.path == 'a b' and apply(None, [found]).content == b'x\n'


def test_counts_of_one_may_be_left_out():
    assert apply(b'a\n', read_patch('p', hunk('@@ -1 +1,2 @@', ' a', '+b'))).content == b'a\nb\n'


def test_what_git_says_of_the_place_is_not_part_of_a_hunks_name():
    found, = read_patch('0001-x.patch', hunk('@@ -1 +1 @@ def f():', '-a', '+b'))
    assert found.hunks[0].name == '0001-x.patch: nova/api/x.py @@ -1 +1 @@'


@pytest.mark.parametrize('data, problem', [
    (b'From 1\n\nno diff\n', 'changes no file'),
    (hunk('@@ -1 +1 @@', '-a', '+b')[:-1], 'cut short'),
    (hunk('@@ -1 +1,2 @@', '-a', '+b'), 'cut short'),
    (hunk('@@ -1,2 +1 @@', '-a', '+b', '@@ -9 +9 @@', '-a', '+b'), 'a line of the hunk'),
    (hunk('@@ -1 +1 @@', '-a', '+b', '+c'), 'does not belong'),
    (hunk('@@ -1 +1 @@', '-a', '+b', ''), 'does not belong'),
    (hunk('@@ -1 +1 @@', '-a', '+b', '-- ', '2.39.2'), 'does not belong'),
    (hunk('@@ -1,2 +1,2 @@', ' a', '', '+b'), 'a line of the hunk'),
    (hunk('@@ -1,2 +1 @@', '-a', '-b', ' c'), 'other lines than its header'),
    (hunk('@@ -0,1 +1 @@', '-a', '+b'), 'other lines than its header'),
    (hunk('@@ -1,2 +1 @@', '-a', '\\ No newline at end of file', '-b', '+c'), 'other lines than its header'),
    (hunk('@@ -1 1 @@', '-a', '+b'), 'header of a hunk'),
    (hunk('+a'), 'hunk was expected'), (hunk(), 'cut short'),
    (body('--- a/nova/api/y.py', '+++ b/nova/api/x.py', '@@ -1 +1 @@', '-a', '+b'), '"--- a/nova/api/x.py"'),
    (body('--- a/nova/api/x.py', '+++ /dev/null', '@@ -1 +0,0 @@', '-a'), '"+++ b/nova/api/x.py"'),
    (body('new file mode 100644', '--- a/nova/api/x.py', '+++ b/nova/api/x.py'), '"--- /dev/null"'),
    (body('GIT binary patch', 'literal 3'), 'binary'),
    (body('Binary files a/nova/api/x.py and b/nova/api/x.py differ'), 'binary'),
    (body('new file mode 120000'), 'not a regular file'),
    (body('new mode 160000'), 'not a regular file'),
    (body('similarity index 100%', 'rename from a', 'rename to b'), 'does not belong'),
    (b'diff --git a/a b/b\nindex 1..2 100644\n', 'same on both sides'),
    (b'diff --git "a/\\303\\244" "b/\\303\\244"\nnew file mode 100644\n', 'no quotes'),
    (b'diff --git a/../x b/../x\nnew file mode 100644\n', 'not a path inside'),
    (b'diff --git a//etc/x b//etc/x\nnew file mode 100644\n', 'not a path inside'),
    (b'diff --git a/a/./x b/a/./x\nnew file mode 100644\n', 'not a path inside'),
    (b'diff --git a/\xe4 b/\xe4\nnew file mode 100644\n', 'not a path inside'),
])
def test_what_is_not_understood_is_an_error_that_names_the_patch(data, problem):
    with pytest.raises(PatchError) as error:
        read_patch('0001-x.patch', data)
    assert '0001-x.patch: ' in str(error.value) and problem in str(error.value)


def test_no_line_can_be_cut_off_a_patch_unnoticed():
    whole = patch([diff(PATH, BEFORE, AFTER), diff('new', None, b'a\nb')])
    lines = whole.split(b'\n')
    for end in range(len(lines) - 1):
        part = b'\n'.join(lines[:end]) + b'\n'
        try:
            found = read_patch('p', part)
        except PatchError:
            continue
        # What is left is all of a file's hunks, or all of the first file.
        assert len(found) == 1 or not found[1].hunks or lines[end].startswith(b'\\')


@pytest.mark.parametrize('path', ['/etc/x', '../x', 'a/../x', 'a//x', 'a/', '', '.', 'a/./x'])
def test_a_path_that_leads_out_of_a_tree_is_refused(path):
    with pytest.raises(PatchError):
        series_patch.checked_path(path)


def test_a_hunk_stays_where_it_is_unless_it_may_move():
    assert applied(BEFORE, AFTER, b'more\n' + BEFORE, moving=False).refused == [FIRST, SECOND]


def test_hunks_do_not_share_a_line():
    both = read_patch('p', hunk('@@ -1,2 +1,2 @@', '-a', '+A', ' b', '@@ -2 +2 @@', '-b', '+B'))
    for moving in (False, True):
        assert apply(b'a\nb\n', both, moving).refused == ['p: nova/api/x.py @@ -2 +2 @@']


def test_a_hunk_moves_with_all_of_its_context():
    result = applied(BEFORE, AFTER, b'more\n' + BEFORE)
    assert result.content == b'more\n' + AFTER and result.refused == []
    assert result.moved == [FIRST + ' applies at line 3', SECOND + ' applies at line 19']


def test_a_changed_line_between_hunks_moves_nothing():
    content = BEFORE.replace(b'line 12\n', b'twelve\n')
    assert applied(BEFORE, AFTER, content) == (AFTER.replace(b'line 12\n', b'twelve\n'), [], [])


@pytest.mark.parametrize('line', [b'line 2\n', b'line 5\n', b'line 8\n'])
def test_no_line_of_a_hunk_may_differ(line):
    result = applied(BEFORE, AFTER, BEFORE.replace(line, b'other\n', 1))
    assert result.refused == [FIRST] and b'20.5' in result.content


def test_of_two_other_places_none_is_taken():
    content = b'more\n' + BEFORE + b'between\n' + BEFORE
    assert applied(BEFORE, AFTER, content).refused == [FIRST, SECOND]


def test_the_expected_place_is_taken_although_there_is_another():
    content = BEFORE + b'more\n' + BEFORE
    assert applied(BEFORE, AFTER, content) == (AFTER + b'more\n' + BEFORE, [], [])


def test_a_later_hunk_is_expected_as_far_away_as_an_earlier_one_was():
    # Two copies of where the second hunk belongs: the one that moved as the first hunk did is it.
    tail = b''.join(BEFORE.splitlines(True)[16:])
    result = applied(BEFORE, AFTER, b'more\n' + BEFORE + b'again\n' + tail)
    assert result.refused == [] and result.content == b'more\n' + AFTER + b'again\n' + tail


def test_a_hunk_is_not_put_before_an_earlier_one():
    lines = BEFORE.splitlines(True)
    content = b''.join(lines[16:25] + lines[:10])
    assert applied(BEFORE, AFTER, content).refused == [SECOND]


def test_what_was_added_at_the_end_is_not_added_amid_a_longer_file():
    result = applied(BEFORE, BEFORE + b'end\n', BEFORE + b'more\n')
    assert result.refused == ['p: nova/api/x.py @@ -28,3 +28,4 @@']


def test_a_last_line_without_an_end_does_not_run_into_another():
    assert applied(b'a\nb\n', b'a\nb', b'a\nb\nc\n').refused == ['p: nova/api/x.py @@ -1,2 +1,2 @@']


def test_what_was_added_at_the_start_is_not_added_below_it():
    assert applied(BEFORE, b'top\n' + BEFORE, b'more\n' + BEFORE).refused == [
        'p: nova/api/x.py @@ -1,3 +1,4 @@']


def test_a_file_that_has_more_in_it_is_not_removed():
    result = applied(BEFORE, None, BEFORE + b'more\n')
    assert result.content == BEFORE + b'more\n' and len(result.refused) == 2
    assert applied(b'', None, b'more\n').refused == ['p: nova/api/x.py (has more in it than is removed)']


def test_a_file_that_is_made_must_not_exist_and_one_that_is_changed_must():
    assert applied(None, AFTER, b'x\n') == (b'x\n', [], ['p: nova/api/x.py (exists already)'])
    assert applied(BEFORE, AFTER, None) == (None, [], ['p: nova/api/x.py (is missing)'])
