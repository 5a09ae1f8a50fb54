"""Promises about all patches, checked on contents that hypothesis makes up, with difflib as the maker."""
import os
import sys

import pytest

hypothesis = pytest.importorskip('hypothesis')
st = pytest.importorskip('hypothesis.strategies')

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import ansible_module  # noqa: E402
from patchmaker import diff, patch  # noqa: E402

series_patch = ansible_module.utility('series_patch')
EXAMPLES = int(os.environ.get('MDPROXY_EXAMPLES', '300'))


def prop(**strategies):
    """A test of EXAMPLES examples; slow machines are no failure."""
    def decorate(test):
        test = hypothesis.given(**strategies)(test)
        return hypothesis.settings(max_examples=EXAMPLES, deadline=None, database=None,
                                   suppress_health_check=[hypothesis.HealthCheck.too_slow])(test)
    return decorate


# Few different lines, so that hunks find more than one place.
line = st.sampled_from([b'a\n', b'b\n', b'\n', b'--- a\n', b'+++ b\n', b'@@ -1 +1 @@\n', b'\\ No\n', b'\r\n',
                        b'\xe9\x85\n', b'\x0c\x1c\n', b'diff --git a/x b/x\n'])
contents = st.builds(lambda lines, last: b''.join(lines) + last, st.lists(line, max_size=30),
                     st.sampled_from([b'', b'', b'end', b'\xff']))


@st.composite
def edited(draw, content):
    """A content with a few lines of it replaced."""
    lines = content.split(b'\n')
    for _ in range(draw(st.integers(0, 4))):
        place, new = draw(st.integers(0, len(lines))), b''.join(draw(st.lists(line, max_size=3)))
        lines[place:place + draw(st.integers(0, 3))] = new.split(b'\n')
    return b'\n'.join(lines)


pairs = contents.flatmap(lambda content: st.tuples(st.just(content), edited(content)))


def changes(before, after, context=3):
    return series_patch.read_patch('p', patch([diff('x', before, after, context=context)]))


@prop(pair=pairs, context=st.integers(0, 5))
def test_a_diff_applied_to_its_origin_gives_its_target(pair, context):
    before, after = pair
    assert series_patch.apply(before, changes(before, after, context)) == (after, [], [])


@prop(pair=pairs, context=st.integers(1, 5))
def test_a_hunk_that_may_move_does_not_where_it_fits(pair, context):
    before, after = pair
    assert series_patch.apply(before, changes(before, after, context), moving=True) == (after, [], [])


@prop(content=contents, other=contents, context=st.integers(0, 3))
def test_files_are_made_replaced_and_removed_whole(content, other, context):
    for before, after in ((None, content), (content, other), (content, None)):
        found = series_patch.apply(before, changes(before, after, context))
        assert found == (after, [], [])


@prop(pair=pairs, drifted=contents.flatmap(edited))
def test_a_hunk_that_does_not_fit_leaves_no_trace(pair, drifted):
    before, after = pair
    result = series_patch.apply(drifted, changes(before, after), moving=True)
    if not result.moved and len(result.refused) == len(changes(before, after)[0].hunks):
        assert result.content == drifted


@prop(data=st.one_of(st.binary(max_size=60), pairs.map(lambda pair: diff('x', *pair))),
      places=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3)), max_size=2))
def test_any_bytes_are_changes_or_one_error(data, places):
    for place, insert in places:
        data = data[:place] + insert + data[place + len(insert):]
    try:
        assert series_patch.read_patch('p', data)
    except series_patch.PatchError as error:
        assert str(error).startswith('p: ')
