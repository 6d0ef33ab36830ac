"""The picture of a field on a line: maps over space and time."""

from functools import partial

import numpy as np
import pytest

from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.fields.window import Direct
from surrogate_flow.nn import FullyConnected
from surrogate_flow.report.picture import _across_up_and_cut, picture
from surrogate_flow.solvers import Combined1D
from surrogate_flow.surrogate.surrogate import Surrogate


def held_out(steps: int) -> tuple[Surrogate, ValidationSet]:
    """A surrogate that was not trained, and two simulations of Burgers' equation."""
    solver = Combined1D(8, 8, steps=steps, time_step=0.5)
    spec = solver.spec
    surrogate = Surrogate(spec, partial(FullyConnected, widths=(4,)))
    surrogate.normalisation.freeze(np.zeros(1), np.ones(1))
    kept = ValidationSet(spec, Direct(), 4, 0, 2)
    for number, share in enumerate((0.1, 0.9)):
        vector = spec.low + share * (spec.high - spec.low)
        names = [p.name for p in spec.parameters]
        course = solver.solve(dict(zip(names, vector, strict=True)))
        for step, fields in enumerate(course):
            kept.offer(number, step, fields.u.values[:, np.newaxis], vector)
    return surrogate, kept


def test_a_line_is_drawn_over_space_and_time(tmp_path):
    """Solver, surrogate and difference are maps of all steps, time to the right."""
    surrogate, kept = held_out(steps=5)
    figure = picture(surrogate, kept)
    maps = [axis for axis in figure.axes if axis.get_title()]
    titles = [axis.get_title() for axis in maps]
    assert titles == ["solver", "surrogate", "surrogate - solver"] * 2
    for row, (solver, guess, difference) in enumerate((maps[:3], maps[3:])):
        field, predicted, error = (
            np.reshape(axis.collections[0].get_array(), (8, 5))
            for axis in (solver, guess, difference)
        )
        np.testing.assert_array_equal(field, kept.fields[row, :, 0].T)
        np.testing.assert_allclose(error, predicted - field, atol=1e-6)
        assert solver.get_xlabel().startswith("time")
        assert solver.get_ylabel().startswith("x")
        assert solver.get_xlim() == pytest.approx((0.25, 2.75))
        assert solver.get_ylim() == pytest.approx((0, 16))
        assert solver.get_aspect() == "auto"
    assert " at " not in figure.subfigs[0].get_suptitle().split("(")[0]
    figure.savefig(tmp_path / "prediction.png")
    assert (tmp_path / "prediction.png").stat().st_size > 10_000


def test_a_line_with_one_step_is_a_curve():
    """Without a second time there is no map: a curve, and its time in the title."""
    figure = picture(*held_out(steps=1))
    line, _ = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xdata(), np.arange(1, 16, 2))
    assert figure.subfigs[0].get_suptitle().startswith("simulation 0 at 0.5 s (")


@pytest.mark.parametrize(
    ("dims", "drawn"),
    [("yx", "xy"), ("xy", "xy"), ("zyx", "xyz"), ("xyz", "xyz"), ("kji", "ijk")],
)
def test_x_is_horizontal_and_y_vertical(dims, drawn):
    """By the names of the dims, or as an image; what is left is cut."""
    assert "".join(_across_up_and_cut(list(dims))) == drawn
