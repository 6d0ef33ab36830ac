"""The heat equation on a plate with a hole against exact solutions on a ring."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import j0, y0

from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.fields.window import Direct
from surrogate_flow.nn import FullyConnected
from surrogate_flow.report.pictures.picture import picture
from surrogate_flow.solvers import HeatPlate
from surrogate_flow.surrogate.surrogate import Surrogate
from surrogate_flow.testing import check_solver

TEMPERATURES = {
    "initial": 450.0,
    "left": 120.0,
    "right": 340.0,
    "bottom": 210.0,
    "top": 480.0,
    "hole": 260.0,
}
RING = {**dict.fromkeys(TEMPERATURES, 150.0), "initial": 300.0, "hole": 450.0}


def run(solver: HeatPlate, parameters: dict) -> xr.DataArray:
    """All steps of a simulation."""
    return xr.concat(solver.solve(parameters), "time").temperature


def slope(widths: list[float], errors: list[float]) -> float:
    """Measured order of convergence."""
    return np.polyfit(np.log(widths), np.log(errors), 1)[0]


def size_of(error: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(error))))


def exact_ring(
    solver: HeatPlate, parameters: dict, step: int, *, euler: bool = False
) -> np.ndarray:
    """The exact temperature at the nodes of a round plate with walls all alike.

    It is A + B ln r plus the sum over k of c_k φ_k decay, with the modes
    φ = J0(λr) Y0(λa) - J0(λa) Y0(λr), which vanish on the hole r = a, and the λ with
    which they vanish on the outline r = b. A mode decays as exp(-Dλ²t), or, under
    implicit Euler in time with exact derivatives in space, as (1 + Dλ²Δt)⁻ᵏ.
    """
    a, b = solver.hole, solver.size / 2

    def mode(k: float, r: np.ndarray) -> np.ndarray:
        return j0(k * r) * y0(k * a) - j0(k * a) * y0(k * r)

    def steady(r: np.ndarray) -> np.ndarray:
        share = np.log(r / a) / np.log(b / a)
        return parameters["hole"] + share * (parameters["left"] - parameters["hole"])

    grid = np.linspace(0.1, 60.5, 4000) * np.pi / (b - a)
    values = mode(grid, b)
    roots = [
        brentq(mode, grid[i], grid[i + 1], args=(b,))
        for i in np.flatnonzero(values[1:] * values[:-1] < 0)
    ]
    nodes, weights = np.polynomial.legendre.leggauss(400)
    s = a + (nodes + 1) * (b - a) / 2
    x, y = (np.array(c.values) for c in solver.spec.coordinates)
    r = np.hypot(x, y)
    out = steady(r)
    for k in roots:
        phi = mode(k, s)
        weight = weights * s * phi
        c = (weight @ (parameters["initial"] - steady(s))) / (weight @ phi)
        rate = solver.diffusivity * solver.time_step * k**2
        out += c * mode(k, r) * ((1 + rate) ** -step if euler else np.exp(-rate * step))
    return out


def steady_ring(solver: HeatPlate, walls: dict) -> np.ndarray:
    """The solution of Laplace's equation on a ring with four different quarters.

    The outline's temperature is a Fourier series in the angle; its term n goes inwards
    as ((r/a)ⁿ - (a/r)ⁿ) / ((b/a)ⁿ - (a/b)ⁿ).
    """
    a, b = solver.hole, solver.size / 2
    x, y = (np.array(c.values) for c in solver.spec.coordinates)
    r, angle = np.hypot(x, y), np.arctan2(y, x)
    mean = np.mean([walls[w] for w in ("left", "right", "bottom", "top")])
    out = walls["hole"] + np.log(r / a) / np.log(b / a) * (mean - walls["hole"])
    for name, middle in (("right", 0.0), ("top", 0.5), ("left", 1.0), ("bottom", -0.5)):
        for n in range(1, 300):
            ratio = (r / b) ** n * (1 - (a / r) ** (2 * n)) / (1 - (a / b) ** (2 * n))
            wave = 2 / (np.pi * n) * np.sin(n * np.pi / 4)
            out += walls[name] * wave * np.cos(n * (angle - np.pi * middle)) * ratio
    return out


@pytest.mark.parametrize("outline", ["square", "circle"])
def test_solver_laws(outline: str) -> None:
    """Shapes, times, the same fields every time and after pickling."""
    check_solver(HeatPlate((16, 3), outline=outline, steps=4), TEMPERATURES)


def test_second_order_in_space() -> None:
    """Against the ring's modes under implicit Euler, the error falls with h²."""
    around, errors = (32, 64, 128), []
    for n in around:
        solver = HeatPlate((n, n * 3 // 16), outline="circle", steps=4)
        field = run(solver, RING)[-1].values
        errors.append(size_of(field - exact_ring(solver, RING, 4, euler=True)))
    assert slope([1 / n for n in around], errors) == pytest.approx(2, abs=0.1)
    assert errors[-1] < 0.2  # K, of 300


def test_first_order_in_time() -> None:
    """Against the exact solution at one time, the error falls with Δt."""
    counts, errors = (5, 10, 20, 40), []
    for steps in counts:
        solver = HeatPlate(
            (96, 18), outline="circle", steps=steps, time_step=1.0 / steps
        )
        field = run(solver, RING)[-1].values
        errors.append(size_of(field - exact_ring(solver, RING, steps)))
    assert slope([1 / n for n in counts], errors) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("around", [32, 64])
def test_steady_state_of_a_ring(around: int) -> None:
    """In the end the start is forgotten and the four quarters and the hole are left."""
    solver = HeatPlate(
        (around, around * 3 // 16), outline="circle", steps=20, time_step=10.0
    )
    fields = [run(solver, {**TEMPERATURES, "initial": t})[-1] for t in (100.0, 500.0)]
    np.testing.assert_allclose(*fields, rtol=1e-6)
    truth = steady_ring(solver, TEMPERATURES)
    # Away from the four points of the outline where the temperature jumps.
    x, y = fields[0].x.values, fields[0].y.values
    inside = np.hypot(x, y) < 0.035
    assert np.abs(fields[0].values - truth)[inside].max() < 4 * (32 / around) ** 2


def test_a_harmonic_function_on_the_square() -> None:
    """ln r + xy, given on hole and walls, is found inside, with an error that falls with h²."""
    around, errors = (32, 64, 128), []
    for n in around:
        solver = HeatPlate((n, n * 3 // 16), time_step=1e9)
        lu, _, stiffness = solver._system
        (x, y), inner = solver.mesh.points.T, solver.mesh.inner
        truth = np.log(np.hypot(x, y)) + 1e3 * x * y
        rate = solver.diffusivity * solver.time_step
        found = lu.solve(-rate * (stiffness @ np.where(inner, 0, truth)))
        errors.append(size_of(found - truth[inner]))
    assert slope([1 / n for n in around], errors) == pytest.approx(2, abs=0.2)


@given(
    temperatures=st.tuples(*[st.floats(100, 500)] * 6),
    time_step=st.floats(1e-6, 10),
    cells=st.tuples(st.sampled_from([16, 24, 40, 64]), st.integers(1, 8)),
    hole=st.floats(0.002, 0.025),
    outline=st.sampled_from(["square", "circle"]),
)
@settings(max_examples=60, deadline=None)
def test_maximum_principle(
    temperatures: tuple, time_step: float, cells: tuple, hole: float, outline: str
) -> None:
    """No node is colder than the coldest or hotter than the hottest temperature given."""
    solver = HeatPlate(cells, hole=hole, outline=outline, steps=4, time_step=time_step)
    temperature = run(solver, dict(zip(TEMPERATURES, temperatures, strict=True)))
    rounding = 2e-7 * max(temperatures)
    assert temperature.min() >= min(temperatures) - rounding
    assert temperature.max() <= max(temperatures) + rounding


@given(
    cells=st.tuples(st.sampled_from([16, 24, 40, 64]), st.integers(1, 8)),
    hole=st.floats(0.002, 0.025),
    outline=st.sampled_from(["square", "circle"]),
)
@settings(max_examples=60, deadline=None)
def test_the_triangles_fill_the_plate(cells: tuple, hole: float, outline: str) -> None:
    """Every node is in a triangle, none is turned over, their area is the plate's."""
    mesh = HeatPlate(cells, hole=hole, outline=outline).mesh
    a, b, c = (mesh.points[mesh.triangles[:, k]] for k in range(3))
    (ux, uy), (vx, vy) = (b - a).T, (c - a).T
    area = (ux * vy - uy * vx) / 2
    assert (area > 0).all()
    assert np.unique(mesh.triangles).tolist() == list(range(len(mesh.points)))
    polygon = cells[0] / 2 * np.sin(2 * np.pi / cells[0])
    outer = 0.1**2 if outline == "square" else polygon * 0.05**2
    assert area.sum() == pytest.approx(outer - polygon * hole**2, rel=1e-9)


@pytest.mark.parametrize(
    ("wall", "x", "y"),
    [("left", -1, 0), ("right", 1, 0), ("bottom", 0, -1), ("top", 0, 1)],
)
def test_each_wall_is_where_it_says(wall: str, x: int, y: int) -> None:
    """A hot wall is hot from corner to corner, and half so in the corners."""
    (step, *_) = HeatPlate().solve({**dict.fromkeys(TEMPERATURES, 100.0), wall: 500.0})
    field = step.temperature[0]
    on_wall = np.isclose(x * field.x + y * field.y, 0.05)
    corner = on_wall & np.isclose(np.abs(y * field.x + x * field.y), 0.05)
    assert int(on_wall.sum()) == 17
    assert field.values[on_wall & ~corner] == pytest.approx(500)
    assert field.values[corner] == pytest.approx(300)
    away = field[~on_wall]
    hottest = away[int(away.values.argmax())]
    assert float(hottest) < 499
    assert float(x * hottest.x + y * hottest.y) > 0.04


def test_the_hole_is_where_it_says() -> None:
    """A hot hole is hot all around and nowhere else."""
    (step, *_) = HeatPlate().solve(
        {**dict.fromkeys(TEMPERATURES, 100.0), "hole": 500.0}
    )
    field = step.temperature[0]
    on_hole = np.isclose(np.hypot(field.x, field.y), 0.02)
    assert int(on_hole.sum()) == 64
    assert field.values[on_hole] == pytest.approx(500)
    assert field.values[~on_hole].max() < 499


def test_the_picture_is_of_the_plate() -> None:
    """Solver, surrogate and difference as maps of the triangles, with units and bars."""
    solver = HeatPlate((16, 3), steps=2)
    spec = solver.spec
    held_out = ValidationSet(spec, Direct(), 2, 0, 1)
    fields = run(solver, TEMPERATURES).values[:, None]
    held_out.offer(0, 0, fields, spec.vector(TEMPERATURES))
    figure = picture(Surrogate(spec, FullyConnected), held_out)
    drawn = [axis for axis in figure.axes if axis.get_title()]
    bars = [axis.get_ylabel() for axis in figure.axes if not axis.get_title()]
    assert bars == ["temperature [K]", "temperature [K]", "difference [K]"]
    for axis in drawn:
        # The first stands for the panels beside it.
        beside = "y [m]" if axis is drawn[0] else ""
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("x [m]", beside)
        (mesh,) = axis.collections
        assert len(mesh.get_paths()) == len(spec.cells) == 96
    colours = drawn[0].collections[0].get_array()
    np.testing.assert_allclose(colours, fields[0, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cells": (12, 4)}, r"cells\[0\]: .*multiple of 8, got 12"),
        ({"cells": (16, 0)}, r"cells\[1\]: .*got 0"),
        ({"cells": (16,)}, r"got \(16,\)"),
        ({"cells": (8, 12), "outline": "circle"}, r"too flat.*got \(8, 12\)"),
        ({"hole": 0.06}, "hole: expected 2 hole < size = 0.1 m, got 0.06"),
        ({"hole": 0.0}, "hole: .* got 0.0"),
        ({"size": float("inf")}, "size: .* got inf"),
        ({"outline": "star"}, "got 'star'"),
        ({"steps": 1.5}, "steps: .* got 1.5"),
        ({"time_step": 0.0}, r"time_step: .* got 0.0\. Give it in s"),
        ({"diffusivity": -1.0}, "diffusivity: .* got -1.0"),
        ({"low": 500.0, "high": 100.0}, "low < high"),
    ],
)
def test_arguments_are_checked(arguments: dict, message: str) -> None:
    """A wrong argument is refused at once, with its value."""
    with pytest.raises(ValueError, match=f"HeatPlate: .*{message}"):
        HeatPlate(**arguments)
