"""The Navier-Stokes solver against exact flows, conservation and its own orders."""

import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from surrogate_flow.solvers import NavierStokes2D
from surrogate_flow.solvers.navier_stokes2d import GaussianField, evolve
from surrogate_flow.testing import check_solver


def parameters(modes: int = 24, log10_viscosity: float = -3.0, seed: int = 0) -> dict:
    """A viscosity and modes drawn at random."""
    draws = np.random.default_rng(seed).uniform(0.01, 0.99, modes)
    names = (f"mode_{k + 1}" for k in range(modes))
    return {
        "log10_viscosity": log10_viscosity,
        **dict(zip(names, draws.tolist(), strict=True)),
    }


def run(solver: NavierStokes2D, values: dict) -> xr.DataArray:
    """All steps of a simulation."""
    return xr.concat(solver.solve(values), "time").vorticity


def grid(points: int) -> tuple[np.ndarray, np.ndarray]:
    """2πx and 2πy at the points."""
    turns = 2 * np.pi * np.arange(points) / points
    return np.meshgrid(turns, turns, indexing="ij")


def flow(points: int) -> np.ndarray:
    """A smooth vorticity with all wave numbers, of which none stays as it is."""
    x, y = grid(points)
    return 3 * np.exp(np.sin(x) + np.cos(y - 1)) * np.sin(x + 2 * y) + np.cos(2 * x)


def last(field: np.ndarray, forcing: float = 0.0, **settings: float) -> np.ndarray:
    """The last field of a flow with or without forcing along x."""
    shape = {"viscosity": 0.0, "steps": 1, "time_step": 0.1, "substep": 0.01}
    x, _ = grid(len(field))
    *_, final = evolve(field, forcing * np.sin(x), **{**shape, **settings})
    return final


def slope(widths: list[float], errors: list[float]) -> float:
    """Measured order of convergence."""
    return np.polyfit(np.log(widths), np.log(errors), 1)[0]


@pytest.mark.parametrize(
    ("solver", "modes"),
    [
        (NavierStokes2D(points=16, steps=3), 24),
        (NavierStokes2D(points=10, steps=2, time_step=0.3, modes=5), 5),
        (NavierStokes2D(points=4, steps=1, modes=1, forcing=0.0), 1),
    ],
    ids=["default modes", "five modes", "one step"],
)
def test_laws(solver: NavierStokes2D, modes: int) -> None:
    """The Navier-Stokes solver keeps the laws of all solvers."""
    check_solver(solver, parameters(modes))


def test_taylor_green_vortices_decay() -> None:
    """Vortices of one wave number carry one another nowhere: they only decay."""
    x, y = grid(32)
    for vortices in (
        np.cos(2 * x) * np.cos(2 * y),
        np.cos(x - y) + np.sin(x + y),
        np.sin(2 * x + y) - np.cos(x - 2 * y),
    ):
        number = np.abs(np.fft.fft2(vortices)) > 1
        k = np.fft.fftfreq(32, 1 / 32)
        rates = 4 * np.pi**2 * np.add.outer(k**2, k**2)[number]
        final = last(vortices, viscosity=0.01, substep=1e-3, time_step=0.5)
        exact = vortices * np.exp(-0.01 * rates[0] * 0.5)
        np.testing.assert_allclose(final, exact, rtol=0, atol=2e-6)


def test_forcing_alone_drives_a_laminar_flow() -> None:
    """From rest, w = f (1 - exp(-8π²νt)) / (8π²ν): a flow along the forcing's waves."""
    solver = NavierStokes2D(points=24, steps=20, forcing=0.3, modes=2)
    viscosity = 3e-3
    rest = {"log10_viscosity": math.log10(viscosity), "mode_1": 0.5, "mode_2": 0.5}
    vorticity = run(solver, rest)
    x, y = grid(24)
    rate = 8 * np.pi**2 * viscosity
    for step in (0, 4, 19):
        growth = (1 - math.exp(-rate * (step + 1))) / rate
        exact = 0.3 * (np.sin(x + y) + np.cos(x + y)) * growth
        np.testing.assert_allclose(vorticity[step], exact, rtol=0, atol=2e-5)


def test_two_waves_drive_each_other() -> None:
    """Of A cos 2πa·x + B cos 2πb·x the change at once is known in closed form.

    It is A B (a x b) (1/|a|² - 1/|b|²) sin(2πa·x) sin(2πb·x).
    """
    x, y = grid(32)
    for (ax, ay), (bx, by) in (((1, 0), (1, 2)), ((2, 1), (0, 3)), ((-1, 3), (2, 2))):
        one, other = ax * x + ay * y, bx * x + by * y
        field = 3 * np.cos(one) + 0.5 * np.cos(other)
        after, before = (last(s * field, time_step=1e-4, substep=1e-5) for s in (1, -1))
        # Backwards in time the flow is the flow of -w.
        change = (after + before) / 2e-4
        cross = (ax * by - ay * bx) * (1 / (ax**2 + ay**2) - 1 / (bx**2 + by**2))
        expected = 1.5 * cross * np.sin(one) * np.sin(other)
        np.testing.assert_allclose(change, expected, rtol=0, atol=1e-6)


def test_the_mean_is_conserved() -> None:
    """The forcing has no mean, and advection and diffusion make none."""
    vorticity = run(NavierStokes2D(steps=5, forcing=3.0), parameters())
    assert vorticity.std(("x", "y")).min() > 0.1
    assert np.abs(vorticity.astype("float64").mean(("x", "y"))).max() < 1e-6
    field = flow(32)
    final = last(field, viscosity=1e-3)
    assert final.mean() == pytest.approx(field.mean(), rel=1e-12)


def test_energy_and_enstrophy_are_conserved_without_viscosity() -> None:
    """Neither changes but by the error in time, which falls with the third order."""

    def invariants(field: np.ndarray) -> np.ndarray:
        k = np.fft.fftfreq(32, 1 / 32)
        square = np.add.outer(k**2, k**2)
        square[0, 0] = np.inf
        spectrum = np.abs(np.fft.fft2(field)) ** 2
        return np.array([(spectrum / square).sum(), spectrum.sum()])

    start = last(flow(32), substep=1e-9, time_step=1e-9)
    steps, changes = [0.004, 0.002, 0.001], []
    for substep in steps:
        final = last(start, time_step=0.2, substep=substep)
        changes.append(np.abs(invariants(final) / invariants(start) - 1))
        assert np.abs(final - start).max() > 0.1 * np.abs(start).max()
    assert np.max(changes[-1]) < 1e-6
    for change in np.transpose(changes):
        assert slope(steps, change) > 2.8


@pytest.mark.parametrize(
    ("viscosity", "order"), [(0.02, 2), (0.0, 3)], ids=["diffusion", "advection"]
)
def test_order_in_time(viscosity: float, order: int) -> None:
    """Second order with diffusion, and third without."""
    substeps, errors = [0.01, 0.005, 0.0025], []
    settings = {"viscosity": viscosity, "time_step": 0.2, "forcing": 5.0}
    truth = last(flow(24), substep=0.2 / 1024, **settings)
    for substep in substeps:
        final = last(flow(24), substep=substep, **settings)
        errors.append(np.abs(final - truth).max())
    assert slope(substeps, errors) == pytest.approx(order, abs=0.15)


def test_spectral_accuracy_in_space() -> None:
    """Errors fall faster than with any order, until the error in time is left."""
    settings = {"viscosity": 5e-3, "time_step": 0.2, "substep": 0.001}
    truth = last(flow(128), **settings)
    points, errors = [16, 32, 64], []
    for n in points:
        difference = last(flow(n), **settings) - truth[:: 128 // n, :: 128 // n]
        errors.append(np.abs(difference).max())
    orders = -np.diff(np.log(errors)) / np.diff(np.log(points))
    assert (np.diff(orders) > 0).all(), orders
    assert orders[-1] > 12
    assert errors[-1] < 1e-7


def test_products_leave_no_alias() -> None:
    """What the grid cannot hold is left out, not taken for something longer.

    The sum of two wave numbers 6 is 12, which 20 points would take for -8.
    """

    def spectrum(points: int) -> np.ndarray:
        x, y = grid(points)
        field = np.cos(6 * x + y) + np.cos(6 * x - 2 * y)
        final = last(field, time_step=0.001, substep=0.001)
        return np.fft.fft2(final - field, norm="forward")

    few, many = spectrum(20), spectrum(60)
    short = np.arange(-6, 7)
    kept = few[np.ix_(short, short)]
    assert np.abs(few).sum() == pytest.approx(np.abs(kept).sum())
    np.testing.assert_allclose(kept, many[np.ix_(short, short)], atol=2e-9)
    assert np.abs(kept).max() > 5e-6


def test_a_fast_flow_takes_short_substeps() -> None:
    """Substeps that are too long for the velocity are split, and the flow stays exact."""
    fast = 200 * flow(24)
    coarse = last(fast, time_step=0.01, substep=0.01)
    fine = last(fast, time_step=0.01, substep=1e-5)
    np.testing.assert_allclose(coarse, fine, atol=0.01 * np.abs(fine).max())


def test_modes_have_the_distribution_of_the_field() -> None:
    """Each mode has the variance 7^{3/2} (4π²k² + 49)^{-2.5}, and none depends on another."""
    points = 12
    x, y = grid(points)
    waves = [(0, 1), (1, 0), (1, -1), (1, 1), (0, 2), (2, 0)]
    for number, (kx, ky) in enumerate(waves):
        deviation = 7**0.75 * (4 * np.pi**2 * (kx**2 + ky**2) + 49) ** -1.25
        for which, wave in enumerate((np.cos, np.sin)):
            quantiles = np.full(12, 0.5)
            # Φ(1), one standard deviation above the mean
            quantiles[2 * number + which] = 0.8413447460685429
            np.testing.assert_allclose(
                GaussianField(12).field(quantiles, points),
                deviation * math.sqrt(2) * wave(kx * x + ky * y),
                atol=1e-15,
            )


def test_modes_of_every_number_are_the_shortest() -> None:
    """The first modes are those of the shortest wave vectors, each once."""
    everything = sorted(
        x**2 + y**2 for x in range(-20, 21) for y in range(-20, 21) if (x, y) > (0, 0)
    )
    for modes in (1, 2, 3, 24, 97, 500):
        vectors = GaussianField(modes).vectors
        lengths = [x**2 + y**2 for x, y in vectors]
        assert lengths == everything[: (modes + 1) // 2]
        assert len({*vectors, *((-x, -y) for x, y in vectors)}) == 2 * len(vectors)


def test_more_modes_leave_the_first_as_they_are() -> None:
    """An odd number of modes ends with a cosine, and 0.5 stands for none."""
    quantiles = np.random.default_rng(1).uniform(size=9)
    longer = np.append(quantiles, [0.5, 0.5])
    one, other = (
        GaussianField(9).field(quantiles, 8),
        GaussianField(11).field(longer, 8),
    )
    np.testing.assert_allclose(one, other, atol=1e-16)


def test_same_parameters_same_bits(tmp_path) -> None:
    """Interleaved with another simulation, or in another process: not a bit differs."""
    solver = NavierStokes2D(steps=3)
    pairs = list(
        zip(solver.solve(parameters()), solver.solve(parameters(seed=1)), strict=True)
    )
    fields = np.array([one.vorticity.values for one, _ in pairs])
    code = (
        "import sys, pickle, numpy as np\n"
        "solver, values = pickle.load(open(sys.argv[1], 'rb'))\n"
        "fields = [step.vorticity.values for step in solver.solve(values)]\n"
        "np.save(sys.argv[2], np.array(fields))"
    )
    task, result = tmp_path / "task", tmp_path / "fields.npy"
    task.write_bytes(pickle.dumps((solver, parameters())))
    subprocess.run([sys.executable, "-c", code, task, result], check=True, timeout=60)
    assert np.load(result).tobytes() == fields.tobytes()
    assert not np.array_equal(fields[0], pairs[0][1].vorticity)


def test_viscosity_is_a_power_of_ten() -> None:
    """log10_viscosity -2 is a viscosity of 0.01 m²/s."""
    solver = NavierStokes2D(points=16, steps=2)
    values = parameters(log10_viscosity=-2.0)
    x, y = grid(16)
    modes = np.array([values[f"mode_{k + 1}"] for k in range(24)])
    fields = evolve(
        GaussianField(24).field(modes, 16),
        0.1 * (np.sin(x + y) + np.cos(x + y)),
        viscosity=0.01,
        steps=2,
        time_step=1.0,
        substep=0.05,
    )
    np.testing.assert_allclose(run(solver, values), list(fields), rtol=1e-5, atol=1e-7)
    low, high = solver.spec.low[0], solver.spec.high[0]
    assert (low, high) == (-4, -3)


def test_names_positions_times_and_units() -> None:
    """Points from 0 on, steps by their ends, all with their units."""
    solver = NavierStokes2D(points=4, steps=3, time_step=0.5, modes=2)
    for k, step in enumerate(solver.solve(parameters(2))):
        np.testing.assert_allclose(step.x, [0, 0.25, 0.5, 0.75])
        np.testing.assert_allclose(step.y, step.x)
        np.testing.assert_allclose(step.time, [0.5 * (k + 1)])
        assert [step[c].attrs["units"] for c in ("x", "y", "time")] == ["m", "m", "s"]
        assert step.vorticity.attrs["units"] == "1/s"
        assert step.vorticity.dtype == np.float64
    names = [p.name for p in solver.spec.parameters]
    assert names == ["log10_viscosity", "mode_1", "mode_2"]
    assert {(p.low, p.high) for p in solver.spec.parameters[1:]} == {(0.001, 0.999)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": 0}, "points: .* got 0"),
        ({"points": 33}, "points: expected even and > 6, .* got 33"),
        ({"points": 6}, "points: expected even and > 6, .* 24 modes, got 6"),
        ({"steps": 2.5}, "steps: .* got 2.5"),
        ({"modes": 0}, "modes: .* got 0"),
        ({"time_step": 0.0}, "time_step: .* got 0.0.* in s"),
        ({"substep": -1.0}, "substep: .* got -1.0.* in s"),
        ({"forcing": math.inf}, "forcing: .* in 1/s², got inf"),
        ({"viscosity": (0.0, 1.0)}, r"viscosity\[0\]: .* > 0, got 0.0"),
        ({"viscosity": (1e-3, 1e-4)}, r"low < high.*, got \(0.001, 0.0001\).*m²/s"),
        ({"viscosity": (1e-3,)}, r"viscosity: .* got \(0.001,\)"),
    ],
)
def test_arguments_are_checked(arguments: dict, message: str) -> None:
    """A wrong argument is refused at once, with its name and value."""
    with pytest.raises(ValueError, match=f"NavierStokes2D: .*{message}"):
        NavierStokes2D(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode_2": 1.0}, r"mode_2: .* between 0 and 1, got 1\.0"),
        ({"mode_1": -0.3}, r"mode_1: .* between 0 and 1, got -0\.3"),
        ({"mode_25": 0.5}, "Unknown parameter 'mode_25'"),
    ],
)
def test_parameters_are_checked(change: dict, message: str) -> None:
    """A quantile that is none, and an unknown mode, are refused in words."""
    with pytest.raises(ValueError, match=message):
        next(NavierStokes2D().solve({**parameters(), **change}))


@pytest.mark.parametrize("size", [1e9, math.nan])
def test_a_velocity_without_bound_is_told(size: float) -> None:
    """A flow that no substep can follow ends the simulation in words."""
    with pytest.raises(FloatingPointError, match=r"in step 0 \(16 points, viscosity 0"):
        last(size * flow(16))
