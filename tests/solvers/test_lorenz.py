"""The Lorenz system against series of sixty digits and against what is known of it."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import xarray as xr

from surrogate_flow.solvers import Lorenz
from surrogate_flow.testing import check_solver

CLASSIC = {"sigma": 10.0, "rho": 28.0, "beta": 8 / 3}
STATE = {"x0": -3.0, "y0": 4.0, "z0": 20.0}


def run(solver: Lorenz, parameters: dict) -> np.ndarray:
    """All steps of a simulation, each a state."""
    steps = xr.concat(solver.solve(parameters), "time")
    return np.stack([steps[name].values for name in "xyz"], axis=1)


def series(parameters: dict, steps: int, time_step: str, order: int = 40) -> np.ndarray:
    """The states from Taylor series about each step, in sixty decimal digits.

    The coefficients follow from the equations: (n + 1) x[n + 1] = σ (y[n] - x[n]), and
    alike for y and z, where a product is the convolution of two series.
    """
    with localcontext() as context:
        context.prec = 60
        sigma, rho, beta = (Decimal(parameters[p]) for p in ("sigma", "rho", "beta"))
        state = [Decimal(parameters[p]) for p in ("x0", "y0", "z0")]
        states = []
        for _ in range(steps):
            x, y, z = ([value] for value in state)
            for n in range(order):
                xz = sum(x[i] * z[n - i] for i in range(n + 1))
                xy = sum(x[i] * y[n - i] for i in range(n + 1))
                x.append(sigma * (y[n] - x[n]) / (n + 1))
                y.append((rho * x[n] - xz - y[n]) / (n + 1))
                z.append((xy - beta * z[n]) / (n + 1))
            h = Decimal(time_step)
            state = [sum(c * h**n for n, c in enumerate(s)) for s in (x, y, z)]
            states.append([float(value) for value in state])
    return np.array(states)


@pytest.mark.parametrize(
    "solver",
    [
        Lorenz(steps=5),
        Lorenz(steps=100, time_step=0.02),
        Lorenz(steps=101, time_step=0.003),
        Lorenz(steps=1),
    ],
    ids=["one dataset", "one full dataset", "one step more", "one step"],
)
def test_laws(solver: Lorenz) -> None:
    """The Lorenz solver keeps the laws of all solvers."""
    check_solver(solver, {**CLASSIC, **STATE})


@pytest.mark.parametrize(
    "parameters",
    [
        {**CLASSIC, **STATE},
        {**CLASSIC, "x0": 14.0, "y0": -19.0, "z0": 11.0},
        {"sigma": 9.0, "rho": 36.0, "beta": 2.0, **STATE},
    ],
    ids=["classic", "far from the attractor", "corner"],
)
def test_single_precision_until_ten(parameters: dict) -> None:
    """Chaos included, the states up to t = 10 are the exact ones, rounded to float32."""
    states = run(Lorenz(steps=200, time_step=0.05), parameters)
    exact = series(parameters, 200, "0.05")
    np.testing.assert_allclose(states, exact, rtol=2e-7, atol=1e-6)


def test_steps_of_any_length_are_as_exact() -> None:
    """States between the solver's own steps are as exact as those at their ends."""
    parameters = {**CLASSIC, **STATE}
    short = run(Lorenz(steps=1000, time_step=0.001), parameters)
    exact = series(parameters, 1000, "0.001", order=15)
    np.testing.assert_allclose(short, exact, rtol=2e-7, atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1, 0])
def test_fixed_points_stay(sign: int) -> None:
    """The origin, and both points x = y = ±√(β(ρ - 1)), z = ρ - 1, stay where they are."""
    rho, beta = CLASSIC["rho"], CLASSIC["beta"]
    x = sign * math.sqrt(beta * (rho - 1))
    point = [x, x, (rho - 1) * abs(sign)]
    initial = dict(zip(("x0", "y0", "z0"), point, strict=True))
    states = run(Lorenz(steps=200), {**CLASSIC, **initial})
    np.testing.assert_allclose(states, np.tile(point, (200, 1)), rtol=1e-6)


def test_without_convection_z_decays() -> None:
    """From x = y = 0 nothing moves, and z = z0 exp(-βt)."""
    states = run(Lorenz(steps=300), {**CLASSIC, "x0": 0.0, "y0": 0.0, "z0": 37.0})
    times = 0.01 * np.arange(1, 301)
    np.testing.assert_allclose(states[:, 2], 37 * np.exp(-8 / 3 * times), rtol=2e-7)
    assert not states[:, :2].any()


def test_weak_heating_lets_all_motion_die() -> None:
    """For ρ < 1 the origin attracts every state, no slower than its slowest mode."""
    sigma, rho, beta = 10.0, 0.5, 8 / 3
    constants = {"sigma": sigma, "rho": rho, "beta": beta}
    states = run(Lorenz(steps=20, time_step=0.5), {**constants, **STATE})
    slowest = (sigma + 1) / 2 - math.sqrt((sigma - 1) ** 2 / 4 + sigma * rho)
    size = np.linalg.norm(states, axis=1)
    assert (np.diff(size) < 0).all()
    rates = -np.diff(np.log(size[10:])) / 0.5
    np.testing.assert_allclose(rates, slowest, rtol=1e-4)


def test_volumes_shrink() -> None:
    """A volume of states shrinks at the rate σ + 1 + β, wherever it is."""
    solver, radius = Lorenz(steps=20), 0.02
    names = list(STATE)

    def displaced(name: str, by: float) -> np.ndarray:
        return run(solver, {**CLASSIC, **STATE, name: STATE[name] + by})

    edges = [
        (displaced(name, radius) - displaced(name, -radius)) / (2 * radius)
        for name in names
    ]
    volumes = np.linalg.det(np.stack(edges, axis=2).astype(np.float64))
    times = np.array(solver.spec.times)
    np.testing.assert_allclose(-np.log(volumes) / times, 10 + 1 + 8 / 3, rtol=2e-3)


def test_mirror_image() -> None:
    """(x, y, z) and (-x, -y, z) go the same way, mirrored."""
    mirrored = {"x0": 3.0, "y0": -4.0, "z0": 20.0}
    one = run(Lorenz(), {**CLASSIC, **STATE})
    other = run(Lorenz(), {**CLASSIC, **mirrored})
    np.testing.assert_array_equal(one * [-1, -1, 1], other)


def test_names_times_and_units() -> None:
    """Numbers without dimension, in datasets of a hundred steps."""
    solver = Lorenz(steps=250)
    datasets = list(solver.solve({**CLASSIC, **STATE}))
    assert [step.sizes["time"] for step in datasets] == [100, 100, 50]
    assert [p.name for p in solver.spec.parameters] == [*CLASSIC, *STATE]
    for name in "xyz":
        assert datasets[0][name].dtype == np.float64
        assert datasets[0][name].attrs["units"] == "1"
    assert datasets[1].time.values[0] == pytest.approx(1.01)
    assert datasets[0].time.attrs["units"] == "1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps: .* got 0"),
        ({"steps": 2.5}, "steps: .* got 2.5"),
        ({"time_step": 0.0}, "time_step: .* got 0.0"),
        ({"time_step": math.nan}, "time_step: .* got nan"),
        ({"rho": (28.0, 28.0)}, r"rho: .* low < high, .*got \(28.0, 28.0\)"),
        ({"x0": (1.0, -1.0)}, r"x0: .* got \(1.0, -1.0\)"),
        ({"y0": (0.0, math.inf)}, r"y0: .* got \(0.0, inf\)"),
        ({"z0": (0.0, 1.0, 2.0)}, r"z0: .* got \(0.0, 1.0, 2.0\)"),
        ({"sigma": (-1.0, 1.0)}, r"sigma: .*low >= 0, got \(-1.0, 1.0\)"),
    ],
)
def test_arguments_are_checked(arguments: dict, message: str) -> None:
    """A wrong argument is refused at once, with its name and value."""
    with pytest.raises(ValueError, match=f"Lorenz: .*{message}"):
        Lorenz(**arguments)


def test_parameters_are_checked() -> None:
    """A misspelt parameter is refused with the right name."""
    with pytest.raises(ValueError, match="mean 'sigma'"):
        next(Lorenz().solve({**CLASSIC, **STATE, "sigm": 1.0}))


@pytest.mark.parametrize("name", CLASSIC)
def test_negative_constants_are_refused(name: str) -> None:
    """With a negative constant a state could grow without end, so none is begun."""
    with pytest.raises(ValueError, match=r"beta: expected >= 0, got .*-1\.0"):
        next(Lorenz().solve({**CLASSIC, **STATE, name: -1.0}))


def test_a_state_beyond_all_steps_is_told() -> None:
    """A state that is too large for any step ends the simulation in words."""
    with pytest.raises(FloatingPointError, match=r"none after t = 0\. .*'x0': 1e\+300"):
        next(Lorenz().solve({**CLASSIC, **STATE, "x0": 1e300}))
