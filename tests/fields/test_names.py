"""What errors say of two values that differ."""

import pytest

from surrogate_flow.fields.names import first_difference

LONG = [0.1234567890123] * 40


@pytest.mark.parametrize(
    ("has", "asked", "said"),
    [
        (
            {"x": [LONG, [*LONG, 1]]},
            {"x": [LONG, [*LONG, 2]]},
            "x[1][40] = 1, asked for is 2",
        ),
        ({"x": LONG}, {"x": LONG[1:]}, "40 values of x, asked for are 39"),
        ({"n": [8, 8]}, {"n": [8, 8, 8]}, "n = [8, 8], asked for is [8, 8, 8]"),
        ({"n": 1}, {"n": "1"}, "n = 1, asked for is '1'"),
        (
            {"n": "a" * 99},
            {"n": "a" * 98 + "b"},
            f"n = ...{'a' * 41}, asked for is ...{'a' * 40}b",
        ),
        ({"n": 1}, {}, "n = 1, asked for is None"),
        (2, 3, "2, asked for is 3"),
    ],
)
def test_what_is_shown_differs(has, asked, said):
    """However long the values are, and wherever in them the difference is."""
    assert first_difference(has, asked) == f"it has {said}"
