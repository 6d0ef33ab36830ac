"""What errors say of two values that differ."""

import pytest

from surrogate_flow.fields.names import first_difference

LONG = [0.1234567890123] * 40


@pytest.mark.parametrize(
    ("mine", "theirs", "said"),
    [
        ({"x": [LONG, [*LONG, 1]]}, {"x": [LONG, [*LONG, 2]]}, "x[1][40] = 1, got 2"),
        ({"x": LONG}, {"x": LONG[1:]}, "40 values of x, got 39"),
        ({"n": [8, 8]}, {"n": [8, 8, 8]}, "n = [8, 8], got [8, 8, 8]"),
        ({"n": 1}, {"n": "1"}, "n = 1, got '1'"),
        (
            {"n": "a" * 99},
            {"n": "a" * 98 + "b"},
            f"n = ...{'a' * 41}, got ...{'a' * 40}b",
        ),
        ({"n": 1}, {}, "n = 1, got None"),
    ],
)
def test_what_is_shown_differs(mine, theirs, said):
    """However long the values are, and wherever in them the difference is."""
    assert first_difference(mine, theirs) == said
