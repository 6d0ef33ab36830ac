"""The picture of a field on a line: maps over space and time."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.fields.spec import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.fields.window import Direct
from surrogate_flow.nn import FullyConnected
from surrogate_flow.report.pictures.axes import across_up_and_cut
from surrogate_flow.report.pictures.picture import picture
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
        vector = np.array([p.at(share) for p in spec.parameters])
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
    assert figure.subfigs[0].get_supylabel().startswith("simulation 0\n")
    figure.savefig(tmp_path / "prediction.png")
    assert (tmp_path / "prediction.png").stat().st_size > 10_000


def test_a_line_with_one_step_is_a_curve():
    """Without a second time there is no map: a curve, and its time in the title."""
    figure = picture(*held_out(steps=1))
    line, _ = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xdata(), np.arange(1, 16, 2))
    assert figure.subfigs[0].get_supylabel().startswith("simulation 0 at 0.5 s\n")


@pytest.mark.parametrize(
    ("dims", "drawn"),
    [
        ("y x", "x y"),
        ("x y", "x y"),
        ("z y x", "x y z"),
        ("x y z", "x y z"),
        ("k j i", "i j k"),
        ("west_east south_north", "west_east south_north"),
        ("easting northing", "easting northing"),
        ("nx ny", "nx ny"),
        ("ix iy", "ix iy"),
        ("yc xc", "xc yc"),
        ("lon_2 grid_latitude", "lon_2 grid_latitude"),
        ("a b", "b a"),
    ],
)
def test_x_is_horizontal_and_y_vertical(dims, drawn):
    """By the names of the dims, or as an image; what is left is cut."""
    field = xr.DataArray(np.zeros([2] * len(dims.split())), dims=dims.split())
    assert " ".join(across_up_and_cut(field)) == drawn


def test_coordinates_say_what_is_horizontal():
    """Where the dims do not: by their names, or their units."""
    for across, up in (
        (xr.Variable("a", [0, 1]), xr.Variable("b", [0, 1])),
        (
            xr.Variable("a", [0, 1], {"units": "degrees_east"}),
            xr.Variable("b", [0, 1], {"units": "degrees_north"}),
        ),
    ):
        names = ("p", "q") if across.attrs else ("lon", "lat")
        coords = dict(zip(names, (across, up), strict=True))
        field = xr.DataArray(np.zeros((2, 2)), coords, dims=("a", "b"))
        assert across_up_and_cut(field) == ["a", "b"]


def maps(x: tuple[float, ...], y: tuple[float, ...]) -> Figure:
    """Two variables of two simulations, the second one ten times as large."""
    spec = FieldSpec(
        parameters=(Parameter("height", 0.5, 2.0),),
        variables=(Variable("u"), Variable("v")),
        dims=("y", "x"),
        shape=(len(y), len(x)),
        times=(0.1,),
        coordinates=(Coordinate("x", "x", x), Coordinate("y", "y", y)),
    )
    surrogate = Surrogate(spec, partial(FullyConnected, widths=(4,)))
    surrogate.normalisation.freeze(np.zeros(2), np.full(2, 1e-9))
    kept = ValidationSet(spec, Direct(), 4, 0, 2)
    for number, size in enumerate((1.0, 10.0)):
        fields = np.full((1, 2, *spec.shape), size, np.float32)
        fields[:, 1] *= -3
        kept.offer(number, 0, fields, np.array([1.0]))
    return picture(surrogate, kept)


def test_differences_of_a_variable_have_one_scale():
    """Over all simulations, so that the rows can be compared by their colours."""
    axes = [axis for axis in maps((0, 1, 2), (0, 1, 2)).axes if axis.get_title()]
    widths = [axis.collections[0].get_clim() for axis in axes[2::3]]
    np.testing.assert_allclose(widths, np.outer([10, 30] * 2, [-1, 1]), rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "drawn"), [(3, 1, "equal"), (1, 3, "equal"), (1, 400, "auto")]
)
def test_titles_stand_beside_their_panels(x, y, drawn):
    """Rows are as high as their domain needs, and one that is too long is stretched."""
    line = np.linspace(0, 1, 4)
    figure = maps(tuple(x * line), tuple(y * line))
    figure.canvas.draw()
    for part in figure.subfigs:
        title = part._supylabel.get_window_extent()
        panels = [axis for axis in part.axes if axis.get_title()]
        for axis in panels:
            assert axis.get_aspect() == (1 if drawn == "equal" else "auto")
            assert title.x1 < axis.get_tightbbox().x0
            ticks = [t.get_window_extent() for t in axis.get_xticklabels()]
            ticks = [t for t in ticks if axis.bbox.x0 - 9 < t.x0 < axis.bbox.x1 + 9]
            assert all(a.x1 < b.x0 for a, b in pairwise(ticks))
