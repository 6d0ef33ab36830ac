"""The heat equation against its exact solution and against its own discretisation."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.integrate import solve_ivp
from scipy.optimize import fsolve
from scipy.sparse.linalg import splu

from surrogate_flow.sampling import Uniform
from surrogate_flow.solvers import Heat2D
from surrogate_flow.testing import check_solver

TEMPERATURES = {
    "initial": 450.0,
    "left": 120.0,
    "right": 340.0,
    "bottom": 210.0,
    "top": 480.0,
}
SYMMETRIC = {**dict.fromkeys(TEMPERATURES, 200.0), "initial": 400.0}


def run(solver: Heat2D, parameters: dict) -> xr.DataArray:
    """All steps of a simulation."""
    return xr.concat(solver.solve(parameters), "time").temperature


def steady(
    x: np.ndarray, y: np.ndarray, size: tuple[float, float], walls: dict, modes: int
) -> np.ndarray:
    """The solution of Laplace's equation, a sinh series for each wall.

    With one wall x = 0 at temperature T and the others at zero it is the sum over odd n
    of 4T/(πn) sin(πny/Ly) sinh(πn(Lx - x)/Ly) / sinh(πnLx/Ly), which converges
    exponentially away from that wall. The other walls follow by symmetry.
    """
    n = np.arange(1, modes, 2)

    def one_wall(distance: np.ndarray, along: np.ndarray, depth: float, width: float):
        k = np.pi * n / width
        away = distance[:, np.newaxis]
        # sinh k(depth - away) / sinh k depth, in numbers that do not overflow
        ratio = np.exp(-k * away) * np.expm1(-2 * k * (depth - away))
        ratio /= np.expm1(-2 * k * depth)
        return (4 / (np.pi * n) * ratio) @ np.sin(k * along[:, np.newaxis]).T

    lx, ly = size
    return (
        walls["left"] * one_wall(x, y, lx, ly)
        + walls["right"] * one_wall(lx - x, y, lx, ly)
        + walls["bottom"] * one_wall(y, x, ly, lx).T
        + walls["top"] * one_wall(ly - y, x, ly, lx).T
    )


def exact(
    solver: Heat2D, parameters: dict, step: int, *, euler: bool = False
) -> np.ndarray:
    """The exact temperature at the centres of the cells after some steps.

    It is the steady part plus the sum over m, n of c[m, n] φ decay, with the modes
    φ = sin(πmx/Lx) sin(πny/Ly), whose eigenvalues are λ = (πm/Lx)² + (πn/Ly)², and
    c = 4/(LxLy) ∫∫ (initial - steady) φ. Green's identity turns the integral of the
    steady part into one along the walls, -1/λ ∮ u ∂φ/∂normal.

    A mode decays as exp(-aλt), or, under implicit Euler in time with exact derivatives
    in space, as (1 + aλΔt)⁻ᵏ after k steps.
    """
    x, y = (np.array(c.values) for c in solver.spec.coordinates)
    lx, ly = solver.size
    m = np.arange(1, 400)[:, np.newaxis]
    n = np.arange(1, 400)[np.newaxis, :]
    p, q = np.pi * m / lx, np.pi * n / ly
    eigenvalue = p**2 + q**2
    # ∫ sin over the side, and the signs of the slopes of sin at its two ends
    along_x, along_y = (1 - (-1.0) ** m) / p, (1 - (-1.0) ** n) / q
    of_initial = parameters["initial"] * along_x * along_y
    of_steady = p * along_y * (parameters["left"] - (-1.0) ** m * parameters["right"])
    of_steady += q * along_x * (parameters["bottom"] - (-1.0) ** n * parameters["top"])
    coefficients = 4 / (lx * ly) * (of_initial - of_steady / eigenvalue)
    rate = solver.diffusivity * solver.time_step * eigenvalue
    decay = (1 + rate) ** -float(step) if euler else np.exp(-rate * step)
    transient = (
        np.sin(p[:, 0] * x[:, np.newaxis])
        @ (coefficients * decay)
        @ np.sin(q[0][:, np.newaxis] * y)
    )
    modes = 40 * max(solver.cells) * math.ceil(max(lx / ly, ly / lx))
    return transient + steady(x, y, solver.size, parameters, modes)


def discrete(solver: Heat2D, parameters: dict) -> Iterator[np.ndarray]:
    """The steps of the same discretisation, from a sparse direct solver."""
    (nx, ny), (hx, hy) = solver.cells, np.divide(solver.size, solver.cells)

    def laplacian(n: int, h: float) -> sparse.sparray:
        diagonal = np.full(n, -2.0)
        # the ghost cell 2 u_wall - u takes one more u from the cell beside the wall
        diagonal[0] -= 1
        diagonal[-1] -= 1
        off = np.ones(n - 1)
        return sparse.diags_array([off, diagonal, off], offsets=[-1, 0, 1]) / h**2

    operator = sparse.kron(laplacian(nx, hx), sparse.eye_array(ny))
    operator += sparse.kron(sparse.eye_array(nx), laplacian(ny, hy))
    source = np.zeros(solver.cells)
    source[0] += 2 * parameters["left"] / hx**2
    source[-1] += 2 * parameters["right"] / hx**2
    source[:, 0] += 2 * parameters["bottom"] / hy**2
    source[:, -1] += 2 * parameters["top"] / hy**2
    rate = solver.diffusivity * solver.time_step
    system = splu((sparse.eye_array(nx * ny) - rate * operator).tocsc())
    temperature = np.full(nx * ny, parameters["initial"])
    for _ in range(solver.steps):
        temperature = system.solve(temperature + rate * source.ravel())
        yield temperature.reshape(solver.cells)


def slope_of(widths: list[float], errors: list[float]) -> float:
    """Measured order of convergence."""
    return np.polyfit(np.log(widths), np.log(errors), 1)[0]


@pytest.mark.parametrize(
    "solver",
    [
        Heat2D(cells=(10, 10), steps=5),
        Heat2D(cells=(7, 4), size=(2.0, 0.5), steps=3, time_step=0.1),
        Heat2D(cells=(1, 3), steps=1),
        Heat2D(cells=(6, 9), steps=3, conductivity_slope=0.004),
    ],
    ids=["square", "rectangle", "one step", "not linear"],
)
def test_laws(solver: Heat2D) -> None:
    """The heat solver keeps the laws of all solvers."""
    check_solver(solver, TEMPERATURES)


@pytest.mark.parametrize(
    "solver",
    [
        Heat2D(cells=(6, 6), steps=4),
        Heat2D(cells=(9, 5), size=(2.0, 0.7), steps=6, time_step=0.02, diffusivity=0.3),
        Heat2D(cells=(20, 30), steps=1000, time_step=1e-6),
        Heat2D(cells=(1, 1), steps=2),
        Heat2D(cells=(1, 8), size=(0.1, 3.0), steps=3, time_step=2.0),
    ],
    ids=["square", "rectangle", "many steps", "one cell", "one column"],
)
def test_it_solves_the_discrete_equation(solver: Heat2D) -> None:
    """The transforms give what a sparse direct solver gives, to single round-off.

    Rounding errors do not grow with the number of steps.
    """
    pairs = zip(
        run(solver, TEMPERATURES).values, discrete(solver, TEMPERATURES), strict=True
    )
    for temperature, expected in pairs:
        np.testing.assert_allclose(temperature, expected, rtol=0, atol=2e-6 * 500)


@pytest.mark.parametrize(
    ("cells", "size"), [((64, 64), (1.0, 1.0)), ((96, 40), (1.5, 0.5))]
)
def test_exact_solution(cells: tuple, size: tuple) -> None:
    """With short steps the whole course follows the exact solution.

    Beside a corner, where two walls of different temperature meet, no finite difference
    converges; the third of a side between the outer thirds is far enough from it.
    """
    solver = Heat2D(cells, size, steps=1000, time_step=5e-5)
    temperature = run(solver, TEMPERATURES)
    inner = tuple(slice(n // 3, -(n // 3)) for n in cells)
    for step in (200, 1000):
        difference = temperature[step - 1].values - exact(solver, TEMPERATURES, step)
        assert np.abs(difference[inner]).max() < 0.25
        assert np.sqrt(np.mean(difference**2)) < 0.4


def test_first_order_in_time() -> None:
    """Half the step, half the error at the same time."""
    steps, errors = [10, 20, 40, 80], []
    for count in steps:
        solver = Heat2D((128, 128), steps=count, time_step=0.04 / count)
        *_, last = solver.solve(SYMMETRIC)
        difference = last.temperature[0].values - exact(solver, SYMMETRIC, count)
        errors.append(np.abs(difference).max())
    assert slope_of([1 / n for n in steps], errors) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("parameters", "inner"),
    [
        pytest.param(SYMMETRIC, False, id="equal walls, everywhere"),
        pytest.param(TEMPERATURES, True, id="unequal walls, away from corners"),
    ],
)
def test_second_order_in_space(parameters: dict, inner: bool) -> None:
    """Half the width, a quarter of the error; the error in time is left out."""
    cells, errors = [12, 24, 48, 96], []
    for n in cells:
        solver = Heat2D((n, n), (1.0, 1.3), steps=6, time_step=0.01)
        *_, last = solver.solve(parameters)
        truth = exact(solver, parameters, 6, euler=True)
        difference = np.abs(last.temperature[0].values - truth)
        part = slice(n // 3, -(n // 3)) if inner else slice(None)
        errors.append(np.sqrt(np.mean(difference[part, part] ** 2)))
    assert slope_of([1 / n for n in cells], errors) == pytest.approx(2, abs=0.1)


def test_steady_state() -> None:
    """In the end the initial temperature is forgotten and the walls alone are left."""
    solver = Heat2D((60, 40), (1.5, 1.0), steps=30, time_step=1.0)
    fields = [run(solver, {**TEMPERATURES, "initial": t})[-1] for t in (100.0, 500.0)]
    np.testing.assert_allclose(*fields, rtol=1e-6)
    x, y = fields[0].x.values, fields[0].y.values
    truth = steady(x, y, solver.size, TEMPERATURES, modes=4000)
    assert np.abs(fields[0].values - truth)[20:40, 13:27].max() < 0.05


@given(
    temperatures=st.tuples(*[st.floats(100, 500)] * 5),
    time_step=st.floats(1e-6, 10),
    cells=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    slope=st.sampled_from([0.0, 1e-12, -0.0049, 0.0049]),
)
@settings(max_examples=40, deadline=None)
def test_maximum_principle(
    temperatures: tuple, time_step: float, cells: tuple, slope: float
) -> None:
    """No point is colder than the coldest or hotter than the hottest temperature given.

    That is also what walls and start of one temperature need in order to stay there.
    """
    solver = Heat2D(
        cells, (1.0, 2.0), steps=4, time_step=time_step, conductivity_slope=slope
    )
    temperature = run(solver, dict(zip(TEMPERATURES, temperatures, strict=True)))
    rounding = 2e-6 * max(temperatures)
    assert temperature.min() >= min(temperatures) - rounding
    assert temperature.max() <= max(temperatures) + rounding


@pytest.mark.parametrize(
    ("swapped", "dim"), [(("left", "right"), "x"), (("bottom", "top"), "y")]
)
def test_mirrored_walls_mirror_the_field(swapped: tuple, dim: str) -> None:
    """Exchanging two opposite walls turns the field around along their axis."""
    solver = Heat2D((12, 7), (2.0, 1.0), steps=3)
    one, other = swapped
    mirrored = {
        **TEMPERATURES,
        one: TEMPERATURES[other],
        other: TEMPERATURES[one],
    }
    expected = run(solver, TEMPERATURES).isel({dim: slice(None, None, -1)})
    np.testing.assert_allclose(run(solver, mirrored), expected, rtol=2e-6)


def test_exchanged_axes_exchange_the_field() -> None:
    """A rectangle on its side gives the field on its side."""
    upright = Heat2D((12, 7), (2.0, 1.0), steps=3)
    lying = Heat2D((7, 12), (1.0, 2.0), steps=3)
    exchanged = {
        "initial": TEMPERATURES["initial"],
        "left": TEMPERATURES["bottom"],
        "right": TEMPERATURES["top"],
        "bottom": TEMPERATURES["left"],
        "top": TEMPERATURES["right"],
    }
    expected = run(upright, TEMPERATURES).values.transpose(0, 2, 1)
    np.testing.assert_allclose(run(lying, exchanged), expected, rtol=2e-6)


@pytest.mark.parametrize(
    ("wall", "dim", "position"),
    [("left", "x", 0), ("right", "x", 8), ("bottom", "y", 0), ("top", "y", 4)],
)
def test_each_wall_is_where_it_says(wall: str, dim: str, position: int) -> None:
    """One hot wall warms the cells beside it most, on the axis that it closes."""
    solver = Heat2D((9, 5), (1.8, 1.0), steps=1, time_step=1e-3)
    (step,) = solver.solve({**dict.fromkeys(TEMPERATURES, 100.0), wall: 500.0})
    temperature = step.temperature[0]
    other = "y" if dim == "x" else "x"
    hottest = temperature.mean(other).argmax(dim)
    assert temperature.sizes == {"x": 9, "y": 5}
    assert int(hottest) == position
    assert float(temperature.isel({dim: position}).min()) > 100.5


def test_positions_and_times() -> None:
    """Cells are named by their centres, steps by their ends, both in SI units."""
    solver = Heat2D((4, 2), (2.0, 3.0), steps=3, time_step=0.5)
    for k, step in enumerate(solver.solve(TEMPERATURES)):
        np.testing.assert_allclose(step.x, [0.25, 0.75, 1.25, 1.75])
        np.testing.assert_allclose(step.y, [0.75, 2.25])
        np.testing.assert_allclose(step.time, [0.5 * (k + 1)])
        assert [step[c].attrs["units"] for c in ("x", "y", "time")] == ["m", "m", "s"]
        assert step.temperature.attrs["units"] == "K"
    names = [p.name for p in solver.spec.parameters]
    assert names == ["initial", "left", "right", "bottom", "top"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cells": (0, 10)}, r"cells\[0\]: .* got 0"),
        ({"cells": (10, 2.5)}, r"cells\[1\]: .* got 2.5"),
        ({"cells": (10, 10, 10)}, r"cells: .* got \(10, 10, 10\)"),
        ({"size": (1.0,)}, r"size: .* got \(1.0,\)"),
        ({"size": (1.0, -1.0)}, r"size\[1\]: .* got -1.0.* in m\."),
        ({"size": (float("nan"), 1.0)}, r"size\[0\]: .* got nan"),
        ({"steps": 0}, "steps: .* got 0"),
        ({"steps": "a"}, "steps: expected numbers, got 'a'"),
        ({"time_step": 10**400}, "time_step: expected numbers, got 1000"),
        ({"cells": 10}, "cells: expected two values, got 10"),
        ({"cells": "ab"}, r"cells\[0\]: expected numbers, got 'a'"),
        ({"low": "a"}, "low and high: expected numbers, got 'a'"),
        ({"diffusivity": None}, "diffusivity: expected numbers, got None"),
        ({"conductivity_slope": "a"}, "conductivity_slope: expected numbers, got 'a'"),
        ({"time_step": 0.0}, "time_step: .* got 0.0.* in s"),
        ({"diffusivity": float("inf")}, "diffusivity: .* got inf"),
        ({"low": 500.0, "high": 100.0}, r"low < high, got \(500.0, 100.0\)"),
        ({"low": float("nan")}, r"low and high: .* got \(nan, 500.0\)"),
        (
            {"conductivity_slope": 0.005},
            "more at 100 K, got 0.005.*up to 0.00495 per K",
        ),
        ({"conductivity_slope": -0.01}, "more at 500 K, got -0.01"),
        ({"conductivity_slope": float("nan")}, "conductivity_slope: .* got nan"),
    ],
)
def test_arguments_are_checked(arguments: dict, message: str) -> None:
    """A wrong argument is refused at once, with its name and value."""
    with pytest.raises(ValueError, match=f"Heat2D: .*{message}"):
        Heat2D(**arguments)


def test_parameters_are_checked() -> None:
    """A misspelt wall is refused with the right name."""
    with pytest.raises(ValueError, match="mean 'bottom'"):
        next(Heat2D().solve({**TEMPERATURES, "botom": 1.0}))
    with pytest.raises(ValueError, match="more at 10 K"):
        next(Heat2D(conductivity_slope=0.004).solve({**TEMPERATURES, "left": 10.0}))


@pytest.mark.parametrize("conductivity_slope", [0.0, 0.004])
def test_five_simulations_superposed(conductivity_slope: float) -> None:
    """They give all others where the diffusivity is constant, and only there."""
    solver = Heat2D(cells=(20, 20), steps=20, conductivity_slope=conductivity_slope)
    drawn = Uniform(seed=0).ask(0, 15, solver.spec.parameters)
    fields = [run(solver, dict(zip(TEMPERATURES, p, strict=True))) for p in drawn]
    weights = np.linalg.solve(drawn[:5].T, drawn[5:].T).T
    guess = np.tensordot(weights, np.array(fields[:5], dtype=np.float64), 1)
    truth = np.array(fields[5:])
    error = np.linalg.norm(guess - truth) / np.linalg.norm(truth)
    assert error > 0.1 if conductivity_slope else error < 2e-6


def flow(u: np.ndarray, temperatures: dict, slope: float) -> np.ndarray:
    """Return du/dt of cells of 1 m x 0.5 m from the fluxes between them."""
    rate = np.zeros(u.shape)
    hx, hy = 1 / u.shape[0], 0.5 / u.shape[1]
    for axis, h, low, high in ((0, hx, "left", "right"), (1, hy, "bottom", "top")):
        w = np.moveaxis(u, axis, 0)
        walls = [np.full_like(w[:1], temperatures[n]) for n in (low, high)]
        all_u = np.concatenate([walls[0], w, walls[1]])
        width = np.full((len(all_u) - 1, 1), h)
        width[[0, -1]] = h / 2
        mean = 1 + slope * ((all_u[1:] + all_u[:-1]) / 2 - 300)
        flux = mean * np.diff(all_u, axis=0) / width
        rate += np.moveaxis(np.diff(flux, axis=0) / h, 0, axis)
    return rate


@pytest.mark.parametrize("slope", [0.004, -0.004, 0.00494])
def test_a_step_solves_its_equation(slope: float) -> None:
    """Where the diffusivity all but vanishes, too: to 1e-6 of the range, by Newton."""
    temperatures = {**dict.fromkeys(TEMPERATURES, 500.0), "initial": 100.0}
    if slope < 0:
        temperatures = {**dict.fromkeys(TEMPERATURES, 100.0), "initial": 500.0}
    solver = Heat2D((4, 5), (1.0, 0.5), steps=2, conductivity_slope=slope)
    before, after = run(solver, temperatures).values.astype(np.float64)

    def residual(flat: np.ndarray) -> np.ndarray:
        u = flat.reshape(before.shape)
        return (u - before - 0.01 * flow(u, temperatures, slope)).ravel()

    found = fsolve(residual, after.ravel(), xtol=1e-8).reshape(before.shape)
    assert np.abs(after - found).max() < 4e-4


def test_the_heat_flows_by_the_mean_conductivity_between_two_cells() -> None:
    """In time of first order towards the same cells integrated to 1e-8, by flux."""
    slope, cells = 0.004, (6, 5)

    def rate(_: float, flat: np.ndarray) -> np.ndarray:
        return flow(flat.reshape(cells), TEMPERATURES, slope).ravel()

    start = np.full(math.prod(cells), TEMPERATURES["initial"])
    exact = solve_ivp(rate, (0, 0.02), start, "LSODA", rtol=1e-8, atol=1e-8)
    truth = exact.y[:, -1].reshape(cells)
    counts, errors = [20, 40, 80, 160], []
    for count in counts:
        solver = Heat2D(
            cells,
            (1.0, 0.5),
            steps=count,
            time_step=0.02 / count,
            conductivity_slope=slope,
        )
        errors.append(np.abs(run(solver, TEMPERATURES)[-1].values - truth).max())
    assert slope_of(counts, errors) == pytest.approx(-1, abs=0.1)
    assert errors[-1] < 1


def test_in_the_end_the_middle_has_the_mean_of_the_walls() -> None:
    """Of v = w + s w²/2, w = u - 300 K, which is harmonic then: by symmetry, exactly."""
    solver = Heat2D((15, 15), steps=40, time_step=0.1, conductivity_slope=0.0049)
    walls = np.array(list(TEMPERATURES.values()))[1:] - 300
    v = (walls + 0.0049 / 2 * walls**2).mean()
    middle = 300 + (np.sqrt(1 + 2 * 0.0049 * v) - 1) / 0.0049
    assert float(run(solver, TEMPERATURES)[-1, 7, 7]) == pytest.approx(middle, abs=1e-3)
