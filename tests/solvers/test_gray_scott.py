"""The reaction of Gray and Scott against exact and ordinary differential equations."""

import math

import numpy as np
import pytest
import xarray as xr
from scipy.integrate import simpson, solve_ivp

from surrogate_flow.solvers import GrayScott2D
from surrogate_flow.solvers.gray_scott import evolve
from surrogate_flow.testing import check_solver

RATES = {"feed": 0.04, "kill": 0.06}
SPOT = {"w": 0.05, "x_1": 0.3, "y_1": 0.55}
OPTIONS = {"size": 1.0, "diffusivities": (2e-5, 1e-5), **RATES}


def run(solver: GrayScott2D, parameters: dict) -> xr.Dataset:
    """All steps of a simulation."""
    return xr.concat(solver.solve(parameters), "time")


def start(cells: int = 32) -> np.ndarray:
    """Smooth, uneven concentrations of two numbers of cells that differ."""
    x = 2 * np.pi * np.arange(cells)[:, np.newaxis] / cells
    y = 2 * np.pi * np.arange(cells - 4) / (cells - 4)
    wave = np.cos(x + 0.3) * np.sin(y) + 0.5 * np.cos(2 * y - x)
    return np.stack((0.6 + 0.2 * wave, 0.3 - 0.1 * wave))


@pytest.mark.parametrize(
    ("solver", "places"),
    [
        (GrayScott2D(cells=16, steps=3), (0.1, 0.2, 0.5, 0.6, 1.0, 0.0)),
        (GrayScott2D(9, 2.0, steps=2, time_step=0.3, spots=1), (1.2, 0.3)),
        (GrayScott2D(1, steps=1, spots=2), (0.5, 0.5, 0.0, 0.0)),
    ],
    ids=["three spots", "odd", "one cell"],
)
def test_laws(solver: GrayScott2D, places: tuple) -> None:
    """The solver keeps the laws of all solvers."""
    names = [p.name for p in solver.spec.parameters]
    check_solver(solver, dict(zip(names, (0.04, 0.06, 0.05, *places), strict=True)))


def test_without_space_it_is_an_ordinary_differential_equation() -> None:
    """A state that is the same everywhere stays so, and follows scipy's solution."""
    fields = np.ones((2, 8, 6)) * np.reshape((0.5, 0.3), (2, 1, 1))
    times = [10.0, 50.0, 200.0]
    course = list(evolve(fields, times, longest=0.05, **OPTIONS))

    def reaction(_: float, state: np.ndarray) -> list[float]:
        u, v = state
        return [-u * v**2 + 0.04 * (1 - u), u * v**2 - 0.1 * v]

    truth = solve_ivp(
        reaction, (0, 200), (0.5, 0.3), t_eval=times, rtol=1e-10, atol=1e-12
    )
    assert abs(truth.y[:, 0] - 0.5).max() > 0.1
    for state, expected in zip(course, truth.y.T, strict=True):
        np.testing.assert_allclose(state[:, 0, 0], expected, atol=1e-5)
        np.testing.assert_allclose(
            state, state[:, :1, :1] * np.ones((8, 6)), atol=1e-13
        )


@pytest.mark.parametrize("waves", [(1, 0), (0, 3), (2, 5)])
def test_diffusion_is_exact(waves: tuple) -> None:
    """Without v and feed each wave of u decays as exp(-Dk²t), along both axes."""
    p, q = waves
    x = 2 * np.pi * np.arange(16)[:, np.newaxis] / 16
    y = 2 * np.pi * np.arange(12) / 12
    wave = np.cos(p * x + q * y + 0.4)
    options = {**OPTIONS, "size": 0.5, "feed": 0.0, "kill": 0.0}
    (u, v) = next(evolve(np.stack((wave, 0 * wave)), [60.0], **options))
    decay = math.exp(-2e-5 * (p**2 + q**2) * (4 * np.pi) ** 2 * 60.0)
    assert decay < 0.9
    np.testing.assert_allclose(u, decay * wave, atol=1e-13)
    np.testing.assert_array_equal(v, 0)


def test_the_removed_substance_decays_and_diffuses() -> None:
    """Without u and feed v decays as exp(-kt) while its waves spread with its own D."""
    wave = np.cos(2 * np.pi * np.arange(16) / 16)[:, np.newaxis] * np.ones(16)
    fields = np.stack((0 * wave, 1 + wave))
    options = {**OPTIONS, "size": 0.2, "feed": 0.0, "longest": 0.02}
    _, v = next(evolve(fields, [20.0], **options))
    decay = math.exp(-1e-5 * (10 * np.pi) ** 2 * 20.0)
    expected = math.exp(-0.06 * 20.0) * (1 + decay * wave)
    np.testing.assert_allclose(v, expected, atol=1e-5)


def test_second_order_in_time() -> None:
    """Half the inner step, a quarter of the error."""
    options = {**OPTIONS, "size": 0.3}

    def end(longest: float) -> np.ndarray:
        return next(evolve(start(), [64.0], longest=longest, **options))

    reference, sizes = end(1 / 32), [2.0, 1.0, 0.5, 0.25]
    errors = [np.abs(end(size) - reference).max() for size in sizes]
    order = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert order == pytest.approx(2, abs=0.1)
    assert errors[1] < 1e-3


def test_more_cells_change_nothing() -> None:
    """The modes of a smooth pattern that has grown converge faster than any power."""
    ends = {}
    for cells in (32, 48, 96):
        solver = GrayScott2D(cells, 0.5, steps=1, time_step=300.0, spots=1)
        step = run(solver, {**RATES, "w": 0.04, "x_1": 0.25, "y_1": 0.25})
        modes = np.fft.fft2(step.v[0].values) / cells**2
        # The first centre lies half a cell from the origin.
        angle = np.pi * np.fft.fftfreq(cells)
        modes *= np.exp(-1j * np.add.outer(angle, angle))
        ends[cells] = modes[:8, :8]
    coarse, middle = (np.abs(ends[n] - ends[96]).max() for n in (32, 48))
    assert coarse < 1e-2 * np.abs(ends[96]).max()
    assert middle < coarse / 20


def test_the_trivial_state_stays() -> None:
    """Without v the square stays full."""
    fields = np.stack((np.ones((8, 8)), np.zeros((8, 8))))
    for state in evolve(fields, [1.0, 100.0, 5000.0], **OPTIONS):
        np.testing.assert_allclose(state, fields, atol=1e-12)


def test_a_steady_state_with_both_stays() -> None:
    """Where F (1 - u) = u v² and u v = F + k neither changes."""
    feed, kill = 0.03, 0.05
    total = feed + kill
    # u + v (F + k)/F = 1 and u v = F + k
    v = feed / total * (1 + math.sqrt(1 - 4 * total**2 / feed)) / 2
    fields = np.ones((2, 4, 4)) * np.reshape((total / v, v), (2, 1, 1))
    (state,) = evolve(fields, [30.0], **{**OPTIONS, "feed": feed, "kill": kill})
    np.testing.assert_allclose(state, fields, atol=1e-12)


def test_the_balance_of_what_is_fed_and_removed() -> None:
    """What is there changes by what comes in, F (1 - u), less what goes, (F + k) v.

    With neither, what u loses v gains, to rounding.
    """
    times = np.arange(1, 401) * 0.25
    states = np.array([start(), *evolve(start(), times, **OPTIONS)])
    u, v = states.mean(axis=(2, 3)).T
    gained = simpson(0.04 * (1 - u) - 0.1 * v, dx=0.25)
    assert abs(u[-1] + v[-1] - u[0] - v[0]) > 0.04
    assert u[-1] + v[-1] - u[0] - v[0] == pytest.approx(gained, abs=1e-4)

    closed = {**OPTIONS, "feed": 0.0, "kill": 0.0}
    (end,) = evolve(start(), [100.0], **closed)
    assert np.abs(end.mean(axis=(1, 2)) - start().mean(axis=(1, 2)))[0] > 0.1
    assert end.sum(axis=0).mean() == pytest.approx(
        start().sum(axis=0).mean(), abs=1e-12
    )


def test_spots_are_where_they_say() -> None:
    """A spot is centred at its place, also over the edge, x before y."""
    solver = GrayScott2D(32, 2.0, steps=1, time_step=1e-6, spots=2)
    places = {"x_1": 0.53, "y_1": 1.22, "x_2": 1.97, "y_2": 0.34}
    step = run(solver, {**RATES, "w": 0.1, **places})
    x, y = step.x.values, step.y.values
    for where, other in (((0.53, 1.22), 0), ((1.97, 0.34), 2)):
        i, j = (int(np.abs(a - p).argmin()) for a, p in zip((x, y), where, strict=True))
        distance = (x[i] - where[0]) ** 2 + (y[j] - where[1]) ** 2
        s = math.exp(-distance / (2 * 0.1**2))
        assert float(step.v[0, i, j]) == pytest.approx(s / 4, abs=1e-3), other
        assert float(step.u[0, i, j]) == pytest.approx(1 - s / 2, abs=2e-3), other
    # The second lies at the right edge: its left half is at the left edge.
    row = step.v[0, :, 5].values
    assert row[0] > 0.15
    assert row[0] == pytest.approx(float(row[-2:].mean()), abs=0.08)
    assert float(step.v[0, 16, 5]) < 1e-6


def test_a_shifted_start_shifts_the_pattern() -> None:
    """The square has no walls, and its axes are alike."""
    solver = GrayScott2D(16, steps=2, time_step=50.0, spots=1)
    one = run(solver, {**RATES, "w": 0.06, "x_1": 0.25, "y_1": 0.5}).v
    moved = run(solver, {**RATES, "w": 0.06, "x_1": 0.75, "y_1": 0.625}).v
    turned = run(solver, {**RATES, "w": 0.06, "x_1": 0.5, "y_1": 0.25}).v
    np.testing.assert_allclose(np.roll(one, (8, 2), (1, 2)), moved, atol=1e-6)
    np.testing.assert_allclose(one.values.swapaxes(1, 2), turned, atol=1e-6)


def test_a_pattern_grows() -> None:
    """One spot spreads, and what is between stays within its bounds."""
    solver = GrayScott2D(32, 0.5, steps=10, time_step=60.0, spots=1)
    course = run(solver, {**RATES, "w": 0.03, "x_1": 0.25, "y_1": 0.25})
    covered = (course.v > 0.1).mean(("x", "y")).values
    assert covered[0] < 0.1
    assert covered[-1] > 0.2
    assert float(course.v[-1].std()) > 0.05
    assert float(course.min().to_array().min()) > -1e-3
    assert float(course.max().to_array().max()) < 1.001


def test_positions_and_times() -> None:
    """Cells are named by their centres, steps by their ends, all with their units."""
    solver = GrayScott2D(4, 2.0, steps=3, time_step=0.5, spots=1)
    for k, step in enumerate(solver.solve({**RATES, **SPOT})):
        np.testing.assert_allclose(step.x, [0.25, 0.75, 1.25, 1.75])
        np.testing.assert_allclose(step.y, step.x)
        np.testing.assert_allclose(step.time, [0.5 * (k + 1)])
        units = [step[c].attrs["units"] for c in ("x", "y", "time", "u", "feed", "w")]
        assert units == ["m", "m", "s", "1", "1/s", "m"]
    names = [p.name for p in solver.spec.parameters]
    assert names == ["feed", "kill", "w", "x_1", "y_1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cells": 0}, "cells: .* got 0"),
        ({"steps": 2.5}, "steps: .* got 2.5"),
        ({"spots": 0}, "spots: .* got 0"),
        ({"size": -1.0}, r"size: .* got -1.0.* in m\."),
        ({"time_step": float("inf")}, r"time_step: .* got inf.* in s\."),
        ({"diffusivities": (1e-5, 0.0)}, r"diffusivities\[1\]: .* got 0.0.* in m²/s"),
        (
            {"diffusivities": (1e-5,)},
            r"diffusivities: expected two values, got \(1e-05,\)",
        ),
        ({"feed": (0.05, 0.02)}, r"feed: .*low < high.* got \(0.05, 0.02\)"),
        ({"kill": (-0.1, 0.02)}, r"kill: .*low >= 0, got \(-0.1, 0.02\)"),
        ({"kill": (0.1, float("nan"))}, r"kill: .* got \(0.1, nan\)"),
    ],
)
def test_arguments_are_checked(arguments: dict, message: str) -> None:
    """A wrong argument is refused at once, with its name and value."""
    with pytest.raises(ValueError, match=f"GrayScott2D: .*{message}"):
        GrayScott2D(**arguments)


def test_parameters_are_checked() -> None:
    """A misspelt rate is refused with the right name, a spot without width too."""
    solver = GrayScott2D(8, spots=1)
    with pytest.raises(ValueError, match="mean 'feed'"):
        next(solver.solve({**RATES, **SPOT, "fed": 1.0}))
    with pytest.raises(ValueError, match=r"w: .* got 0\.0\. Give it in m"):
        next(solver.solve({**RATES, **SPOT, "w": 0.0}))
