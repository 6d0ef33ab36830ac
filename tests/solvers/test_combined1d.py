"""The combined equation against exact solutions: waves, shocks, solitons."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from surrogate_flow.sampling import Design, Uniform
from surrogate_flow.solvers import Combined1D
from surrogate_flow.solvers.combined1d import evolve, godunov, weno5
from surrogate_flow.testing import check_solver

WAVES = {
    **{f"A_{j}": a for j, a in enumerate((0.4, -0.3, 0.5, 0.1, -0.2), 1)},
    **{f"omega_{j}": w for j, w in enumerate((-0.4, 0.1, 0.3, 0.0, 0.25), 1)},
    **{f"phi_{j}": p for j, p in enumerate((0.0, 1.0, 2.5, 4.0, 6.0), 1)},
    **{f"l_{j}": n for j, n in enumerate((1, 1, 2, 2, 2), 1)},
}
E2 = {"beta": (0.0, 0.2)}
E3 = {"alpha": (0.0, 6.0), "beta": (0.1, 0.4), "gamma": (0.0, 1.0)}
COEFFICIENTS = {"alpha": 3.0, "beta": 0.2, "gamma": 0.5}


def run(solver: Combined1D, parameters: dict) -> xr.DataArray:
    """All steps of a simulation."""
    return xr.concat(solver.solve(parameters), "time").u


def faces(cells: int, length: float) -> np.ndarray:
    """The ends of all cells."""
    return np.linspace(0, length, cells + 1)


def averages(primitive: Callable, cells: int, length: float) -> np.ndarray:
    """Exact averages over the cells, from an integral of the field."""
    return np.diff(primitive(faces(cells, length))) * cells / length


def last(start: np.ndarray, time: float, parts: int = 1, **options: object):
    """The averages at one time, with as many inner steps as parts, or more."""
    times = time * np.arange(1, parts + 1) / parts
    *_, end = evolve(start, times, **options)
    return end


def slope(sizes: list[float], errors: list[float]) -> float:
    """Measured order of convergence."""
    return np.polyfit(np.log(sizes), np.log(errors), 1)[0]


def burgers(time: float) -> Callable:
    """An integral of the exact solution of Burgers' equation from 0.3 + sin x.

    Along a characteristic x = ξ + t u0(ξ) the state is that of its foot ξ, so that the
    integral over x of u is that over ξ of u0 (1 + t u0'), U0 + t u0²/2.
    """

    def primitive(x: np.ndarray) -> np.ndarray:
        foot = x.copy()
        for _ in range(50):
            excess = foot + time * (0.3 + np.sin(foot)) - x
            foot -= excess / (1 + time * np.cos(foot))
        state = 0.3 + np.sin(foot)
        return 0.3 * foot - np.cos(foot) + time * state**2 / 2

    return primitive


@pytest.mark.parametrize(
    ("solver", "coefficients"),
    [
        (Combined1D(cells=20, fine_cells=40, steps=5), ()),
        (Combined1D(cells=8, fine_cells=8, steps=4, time_step=0.1, **E2), ("beta",)),
        (Combined1D(cells=5, fine_cells=45, length=3.0, steps=3, **E3), COEFFICIENTS),
        (Combined1D(cells=1, fine_cells=3, steps=1, time_step=4.0), ()),
    ],
    ids=["E1", "E2", "E3", "one cell"],
)
def test_laws(solver: Combined1D, coefficients: tuple) -> None:
    """The solver keeps the laws of all solvers."""
    check_solver(solver, {**WAVES, **{c: COEFFICIENTS[c] for c in coefficients}})


def test_fifth_order_in_space() -> None:
    """Half the width, a 32nd of the error, before Burgers' equation makes a shock.

    The inner steps shrink so that their error of third order stays below. On coarser
    grids the weights, which lose an order at a crest, leave 4.4.
    """
    cells, errors = [80, 160, 320], []
    for n in cells:
        start = averages(burgers(0.0), n, 2 * np.pi)
        parts = math.ceil(48 * (n / 80) ** (5 / 3))
        end = last(start, 0.4, parts, length=2 * np.pi, courant=math.inf)
        errors.append(np.abs(end - averages(burgers(0.4), n, 2 * np.pi)).mean())
    assert slope([1 / n for n in cells], errors) == pytest.approx(5, abs=0.4)
    assert errors[-1] < 2e-9


def test_reconstruction_is_of_fifth_order() -> None:
    """Both states at a face are the value there, up to the fifth power of the width."""
    cells, errors = [40, 80, 160], []
    for n in cells:
        start = averages(lambda x: np.exp(np.sin(x)) * np.sin(2 * x), n, 2 * np.pi)
        x = faces(n, 2 * np.pi)[1:]
        exact = np.exp(np.sin(x)) * (np.cos(x) * np.sin(2 * x) + 2 * np.cos(2 * x))
        errors.append([np.abs(state - exact).mean() for state in weno5(start)])
    for side in np.transpose(errors):
        assert slope([1 / n for n in cells], side) == pytest.approx(5, abs=0.4)


def test_third_order_in_time() -> None:
    """Half the inner step, an eighth of the error, with all terms switched on."""
    n, length = 64, 2 * np.pi
    start = averages(burgers(0.0), n, length)
    angles = 2 * np.pi * np.arange(n) / n
    options = {
        "length": length,
        "source": lambda t: np.sin(angles + 3 * t),
        "courant": math.inf,
        **{"alpha": 1.0, "beta": 0.05, "gamma": 0.02},
    }
    reference = last(start, 0.5, 1500, **options)
    parts = [20, 40, 80, 160]
    errors = [np.abs(last(start, 0.5, p, **options) - reference).max() for p in parts]
    assert slope([1 / p for p in parts], errors) == pytest.approx(3, abs=0.2)


def test_a_shock_and_a_rarefaction() -> None:
    """A step of height 1 moves at speed 1/2; behind it a fan u = x/t opens."""
    n, length, time = 400, 4.0, 1.0
    x = faces(n, length)
    start = (x[:-1] < 2).astype(float)
    end = last(start, time, 10, length=length)

    def primitive(x: np.ndarray) -> np.ndarray:
        return np.clip(x, 0, 1) ** 2 / 2 + np.clip(x - 1, 0, 1.5)

    expected = averages(primitive, n, length)
    assert np.abs(end - expected).mean() < 2e-3
    crossing = x[np.flatnonzero((end > 0.5) & (x[:-1] > 1))[-1] + 1]
    assert crossing == pytest.approx(2.5, abs=0.01)
    assert end.min() > -1e-3
    assert end.max() < 1 + 1e-3


def test_a_fan_through_the_sonic_point() -> None:
    """Where the speed changes its sign no wrong shock of expansion stays behind.

    The shock of the same strength on the other side stands still.
    """
    n, length = 200, 4.0
    x = faces(n, length)
    start = np.where(x[:-1] < 2, -1.0, 1.0)
    end = last(start, 0.5, 5, length=length)

    def primitive(x: np.ndarray) -> np.ndarray:
        away = np.abs(x - 2)
        return np.where(away < 0.5, away**2 / (2 * 0.5), away - 0.25)

    assert np.abs(end - averages(primitive, n, length)).mean() < 4e-3
    assert np.abs(end).max() < 1 + 1e-3
    assert (end[0], end[-1]) == pytest.approx((-1, 1), abs=1e-3)


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_godunov_flux(left: float, right: float) -> None:
    """It is the least flux between two states in a fan, the largest in a shock."""
    between = np.append(
        np.linspace(left, right, 1001), np.clip(0, *sorted((left, right)))
    )
    extreme = np.min if left <= right else np.max
    flux = godunov(np.array([left]), np.array([right]))
    np.testing.assert_allclose(flux, [extreme(between**2 / 2)], rtol=1e-12)


@given(seed=st.integers(0, 1000), gamma=st.floats(-1, 1), beta=st.floats(0, 1))
@settings(max_examples=15, deadline=None)
def test_the_mean_is_kept(seed: int, gamma: float, beta: float) -> None:
    """Without a source nothing is lost or made, to rounding, shocks or not."""
    start = np.random.default_rng(seed).uniform(-2, 2, 50)
    coefficients = {"alpha": 2.0, "beta": beta, "gamma": gamma}
    for u in evolve(start, [0.1, 0.3, 1.0], length=16.0, **coefficients):
        assert u.mean() == pytest.approx(start.mean(), abs=1e-14)


def test_a_mirror_turns_the_field_around() -> None:
    """u(x) -> -u(-x) leaves advection and diffusion as they are and flips dispersion."""
    start = np.random.default_rng(0).uniform(-2, 2, 51)
    end = last(start, 1.0, length=16.0, alpha=2.0, beta=0.1, gamma=0.3)
    mirror = last(-start[::-1], 1.0, length=16.0, alpha=2.0, beta=0.1, gamma=-0.3)
    np.testing.assert_allclose(mirror, -end[::-1], atol=1e-11)


@pytest.mark.parametrize("cells", [24, 25])
@pytest.mark.parametrize("number", [1, 5])
def test_linear_waves_are_exact(cells: int, number: int) -> None:
    """Without advection a wave decays as exp(-βk²t) and runs at the speed -γk²."""
    k, time, beta, gamma = 2 * np.pi * number / 16, 3.0, 0.2, 0.7

    def primitive(x: np.ndarray, t: float) -> np.ndarray:
        return math.exp(-beta * k**2 * t) * np.sin(k * (x + gamma * k**2 * t)) / k

    end = last(
        averages(lambda x: primitive(x, 0), cells, 16),
        *(time, 3),
        **{"length": 16, "alpha": 0, "beta": beta, "gamma": gamma},
    )
    expected = averages(lambda x: primitive(x, time), cells, 16)
    np.testing.assert_allclose(end, expected, atol=1e-13)


def test_advection_and_diffusion() -> None:
    """The transform of Cole and Hopf, u = -2β ∂(ln φ)/∂x, where φ solves the heat equation."""
    n, length, beta, time = 100, 16.0, 0.3, 4.0
    k = 2 * np.pi / length

    def primitive(t: float) -> Callable:
        decay = 0.95 * math.exp(-beta * k**2 * t)
        return lambda x: -2 * beta * np.log(1 + decay * np.cos(k * x))

    start = averages(primitive(0), n, length)
    end = last(start, time, length=length, beta=beta)
    expected = averages(primitive(time), n, length)
    assert np.abs(start - expected).max() > 0.1
    assert np.abs(end - expected).max() < 5e-5


def test_a_soliton_keeps_its_shape() -> None:
    """Advection and dispersion balance in u = 3c/α sech²(√(c/γ) (x - ct) / 2)."""
    n, length, alpha, gamma, speed = 400, 40.0, 6.0, 1.0, 2.0

    def primitive(t: float) -> Callable:
        root = math.sqrt(speed / gamma) / 2
        height = 3 * speed / alpha / root
        return lambda x: height * np.tanh(root * (x - 15 - speed * t))

    coefficients = {"alpha": alpha, "gamma": gamma}
    end = last(averages(primitive(0), n, length), 4.0, length=length, **coefficients)
    assert np.abs(end - averages(primitive(4.0), n, length)).max() < 2e-3


def test_a_source_made_for_a_known_solution() -> None:
    """u = sin(kx - t), with the δ that the equation asks for."""
    n, length, alpha, beta, gamma = 100, 16.0, 3.0, 0.2, 0.5
    k = 4 * np.pi / length

    def flow(t: float) -> np.ndarray:
        return averages(lambda x: -np.cos(k * x - t) / k, n, length)

    def source(t: float) -> np.ndarray:
        def primitive(x: np.ndarray) -> np.ndarray:
            u, slope = np.sin(k * x - t), k * np.cos(k * x - t)
            return -u / k + alpha * u**2 / 2 - beta * slope - gamma * k**2 * u

        return averages(primitive, n, length)

    coefficients = {"alpha": alpha, "beta": beta, "gamma": gamma}
    end = last(flow(0.0), 2.0, 20, length=length, source=source, **coefficients)
    assert np.abs(end - flow(2.0)).max() < 1e-4


@pytest.mark.parametrize("drawn", [False, True], ids=["given", "drawn"])
def test_the_source_is_what_its_parameters_say(drawn: bool) -> None:
    """Without the other terms u = δ(0, x) + ∫ δ dt, averaged, of what a network sees."""
    solver = Combined1D(cells=10, fine_cells=30, alpha=(0.0, 0.0), time_step=0.1)
    t = solver.spec.times[-1]
    parameters = dict(WAVES)
    if drawn:
        design = Design(solver.spec.parameters, Uniform(seed=3), held_out=0)
        parameters = dict(next(iter(design)).parameters)
    # A batch has them in single precision.
    seen = solver.spec.vector(parameters).astype(np.float32).tolist()
    waves = dict(zip(WAVES, seen, strict=True))
    x = (np.arange(10 * 400) + 0.5) * 16 / 4000
    exact = np.zeros_like(x)
    for j in range(1, 6):
        a, w, p, number = (waves[f"{name}_{j}"] for name in ("A", "omega", "phi", "l"))
        angle = 2 * np.pi * number * x / 16 + p
        exact += a * np.sin(angle)
        exact += a * (
            (np.cos(angle) - np.cos(w * t + angle)) / w if w else t * np.sin(angle)
        )
    expected = exact.reshape(10, 400).mean(axis=1)
    np.testing.assert_allclose(run(solver, parameters)[-1], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["alpha", "beta", "gamma"])
def test_a_fixed_coefficient_is_no_parameter(name: str) -> None:
    """A coefficient does the same, drawn from its range or given once for all."""
    fixed = {n: (v, v) for n, v in COEFFICIENTS.items()}
    one = Combined1D(cells=20, fine_cells=20, steps=5, **fixed)
    other = Combined1D(cells=20, fine_cells=20, steps=5, **{**fixed, name: (0.0, 9.0)})
    assert [p.name for p in one.spec.parameters] == list(WAVES)
    assert [p.name for p in other.spec.parameters] == [name, *WAVES]
    drawn = run(other, {**WAVES, name: COEFFICIENTS[name]})
    np.testing.assert_array_equal(run(one, WAVES), drawn)
    changed = run(other, {**WAVES, name: 2 * COEFFICIENTS[name]})
    assert np.abs(changed - drawn).max() > 1e-4


def test_cells_are_means_of_fine_ones() -> None:
    """The same computation, brought down; a coarse one is near it."""
    arguments = {"steps": 50, "time_step": 0.04, **E2}
    parameters = {**WAVES, "beta": 0.2}
    fine = run(Combined1D(200, 200, **arguments), parameters)
    down = run(Combined1D(50, 200, **arguments), parameters)
    coarse = run(Combined1D(50, 50, **arguments), parameters)
    means = fine.values.reshape(50, 50, 4).mean(axis=2)
    np.testing.assert_allclose(down, means, atol=1e-6)
    assert 1e-4 < np.abs(down - coarse).max() < 0.2
    np.testing.assert_allclose(down.x, fine.x.values.reshape(50, 4).mean(axis=1))


def test_positions_and_times() -> None:
    """Cells are named by their centres, steps by their ends, all with their units."""
    solver = Combined1D(4, 8, length=2.0, steps=3, time_step=0.5, **E3)
    for k, step in enumerate(solver.solve({**WAVES, **COEFFICIENTS})):
        np.testing.assert_allclose(step.x, [0.25, 0.75, 1.25, 1.75])
        np.testing.assert_allclose(step.time, [0.5 * (k + 1)])
        units = [step[c].attrs["units"] for c in ("x", "time", "u", "A_1", "beta")]
        assert units == ["m", "s", "m/s", "m/s2", "m2/s"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cells": 0}, "cells: .* got 0"),
        ({"fine_cells": 2.5}, "fine_cells: .* got 2.5"),
        ({"cells": 60}, "fine_cells: .* multiple of cells, .* with cells=60, got 200"),
        ({"cells": 1, "fine_cells": 2}, "3 at least, .*got 2"),
        ({"steps": 0}, "steps: .* got 0"),
        ({"length": 0.0}, r"length: .* got 0.0.* in m\."),
        ({"time_step": float("nan")}, r"time_step: .* got nan.* in s\."),
        ({"alpha": (-1.0, 1.0)}, r"alpha: .* low >= 0, got \(-1.0, 1.0\)"),
        ({"beta": (0.4, 0.1)}, r"beta: .* low <= high.* got \(0.4, 0.1\)"),
        ({"gamma": (0.0, float("inf"))}, r"gamma: .* finite.* got \(0.0, inf\)"),
        ({"gamma": (1.0,)}, r"gamma: .* two .*got \(1.0,\)"),
    ],
)
def test_arguments_are_checked(arguments: dict, message: str) -> None:
    """A wrong argument is refused at once, with its name and value."""
    with pytest.raises(ValueError, match=f"Combined1D: .*{message}"):
        Combined1D(**arguments)


def test_parameters_are_checked() -> None:
    """A misspelt wave is refused with the right name, a negative diffusivity too."""
    with pytest.raises(ValueError, match="mean 'omega_1'"):
        next(Combined1D().solve({**WAVES, "omeg_1": 1.0}))
    with pytest.raises(ValueError, match=r"got alpha=1\.0 and beta=-0\.1"):
        next(Combined1D(**E2).solve({**WAVES, "beta": -0.1}))
