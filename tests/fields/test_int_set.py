"""Sets of simulation numbers, against Python's own sets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surrogate_flow.fields.int_set import IntSet

NUMBERS = st.one_of(st.integers(0, 40), st.integers(1000, 2100), st.just(10**6))


@given(st.lists(st.tuples(st.booleans(), NUMBERS), max_size=60))
def test_is_a_set(changes):
    """Whatever is added and removed, it holds what a set holds, in order."""
    ours, peer = IntSet(), set()
    for add, number in changes:
        (ours.add if add else ours.discard)(number)
        (peer.add if add else peer.discard)(number)
        assert (number in ours) == add
        assert len(ours) == len(peer)
    assert list(ours) == sorted(peer)
    assert list(IntSet(ours.ranges)) == sorted(peer)
    for (_, end), (start, _) in zip(ours.ranges, ours.ranges[1:], strict=False):
        assert end < start, "ranges that touch are one"


@pytest.mark.parametrize("ranges", [[(3, 3)], [(0, 4), (4, 6)], [(5, 9), (0, 2)]])
def test_ranges_ascend_with_gaps(ranges):
    """Others were not written by this class."""
    with pytest.raises(ValueError, match="ascending ranges with gaps"):
        IntSet(ranges)


def test_long_ranges_are_exact():
    """A range of a million is as exact as one of two."""
    numbers = IntSet([(1_000, 1_000_000)])
    assert len(numbers) == 999_000
    assert numbers.ranges == [(1_000, 1_000_000)]
    assert 999 not in numbers
    assert 999_999 in numbers
    assert 1_000_000 not in numbers
