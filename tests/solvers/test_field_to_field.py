"""Darcy's flow and Burgers' equation: from a field to a field, and the samplers of fields."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.fields.spec import Coordinate, FieldSpec, Variable
from surrogate_flow.sampling import FieldsFromFile, FourierModes, GaussianRandomField
from surrogate_flow.solvers import BurgersFromState, Darcy, Heat2D, NavierStokes2D
from surrogate_flow.surrogate.inputs import checked_inputs
from surrogate_flow.testing import check_solver


def grid(*shape):
    """A spec of one input on cells of the unit square."""
    dims = tuple("xyz"[: len(shape)])
    return FieldSpec(
        parameters=(),
        variables=(Variable("u"),),
        dims=dims,
        shape=shape,
        times=(1.0,),
        coordinates=tuple(
            Coordinate(d, d, tuple((i + 0.5) / n for i in range(n)))
            for d, n in zip(dims, shape, strict=True)
        ),
        inputs=(Variable("a"),),
    )


def drawn(sampler, spec, number=0, part="training"):
    return sampler.fields(Simulation(number, part, {}), spec)[0]


@pytest.mark.parametrize(
    "solver",
    [
        Darcy(cells=8),
        BurgersFromState(cells=16, steps=3),
        Heat2D((6, 4), steps=3, from_state=True),
        NavierStokes2D(points=8, steps=2, from_state=True),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_the_solvers_keep_the_laws(solver):
    check_solver(solver)


def test_darcy_is_of_second_order():
    """Against u = sin πx sin 2πy in a medium a = 1 + x + 2y."""
    errors, sizes = [], (8, 16, 32, 64)
    for n in sizes:
        x = (np.arange(n) + 0.5) / n
        x, y = np.meshgrid(x, x, indexing="ij")
        a, u = 1 + x + 2 * y, np.sin(np.pi * x) * np.sin(2 * np.pi * y)
        u_x = np.pi * np.cos(np.pi * x) * np.sin(2 * np.pi * y)
        u_y = 2 * np.pi * np.sin(np.pi * x) * np.cos(2 * np.pi * y)
        source = 5 * np.pi**2 * a * u - u_x - 2 * u_y
        errors.append(np.abs(Darcy(n)._pressure(a, source) - u).max())
    orders = np.diff(np.log(errors)) / np.diff(np.log(sizes))
    assert np.all(orders < -1.9)
    assert errors[-1] < 1e-3


def test_darcy_carries_a_flux_through_layers():
    """Through layers of 12 and 3 the flux is that of their harmonic mean, to rounding."""
    n = 6
    a = np.repeat([12.0, 3.0, 12.0], 2)[:, None] * np.ones(n)
    solver = Darcy(n)
    # A pressure that varies along x alone, by the resistance up to each centre.
    resistance = np.cumsum(1 / a[:, 0]) - 0.5 / a[:, 0]
    u = (resistance / n)[:, None] * np.ones(n)
    source = np.zeros((n, n))
    # What leaves through the other ends, which the border draws to 0.
    source[-1] = n + n**2 * 2 * a[-1] * u[-1]
    source[:, [0, -1]] += n**2 * 2 * a[:, [0, -1]] * u[:, [0, -1]]
    np.testing.assert_allclose(solver._pressure(a, source), u, rtol=1e-10)


def test_darcy_refuses_what_is_no_permeability():
    with pytest.raises(
        ArgumentError, match="permeability: expected more than 0, got 0"
    ):
        list(Darcy(4).solve({"permeability": np.zeros((4, 4))}))
    with pytest.raises(
        ArgumentError, match=r"Darcy: expected the input field 'perm.*none"
    ):
        list(Darcy(4).solve({}))


def test_burgers_from_a_state_is_that_of_cole_and_hopf():
    """u = -2ν φ_x / φ of a heat equation for φ, evaluated on a fine grid."""
    cells, nu, fine = 128, 0.1, 4096
    x = (np.arange(fine) + 0.5) / fine
    # φ = exp(-∫ u0 / 2ν), u0 = 0.8 sin 2πx, whose integral has the mean 0.
    potential = 0.8 * (1 - np.cos(2 * np.pi * x)) / (2 * np.pi)
    k = 2 * np.pi * np.fft.fftfreq(fine, 1 / fine)
    phi = np.fft.fft(np.exp(-potential / (2 * nu))) * np.exp(-nu * k**2 * 0.5)
    u = -2 * nu * np.fft.ifft(1j * k * phi).real / np.fft.ifft(phi).real
    exact = u.reshape(cells, -1).mean(1)
    start = (0.8 * np.sin(2 * np.pi * x)).reshape(cells, -1).mean(1)
    *_, last = BurgersFromState(cells, steps=2, time_step=0.25).solve(
        {"initial": start}
    )
    assert np.abs(last.u.values[0] - exact).max() < 1e-6 * np.abs(start).max()


WALLS = {"left": 100.0, "right": 500.0, "bottom": 200.0, "top": 300.0}
HALVES = {
    "Burgers": (BurgersFromState, {"cells": 32, "time_step": 0.05}, {}),
    "heat": (Heat2D, {"cells": (8, 6), "from_state": True}, WALLS),
    "nonlinear heat": (
        Heat2D,
        {"cells": (8, 6), "from_state": True, "conductivity_slope": 0.004},
        WALLS,
    ),
    "Navier-Stokes": (
        NavierStokes2D,
        {"points": 16, "from_state": True},
        {"log10_viscosity": -3.0},
    ),
}


@pytest.mark.parametrize("case", HALVES.values(), ids=HALVES)
def test_two_half_runs_are_one_whole(case):
    """Begun from the state in which the first has ended, the second ends as the whole."""
    kind, options, given = case
    whole, half = kind(**options, steps=6), kind(**options, steps=3)
    state = drawn(FourierModes(mean=300.0 if kind is Heat2D else 0.0), whole.spec)
    (name,) = (v.name for v in whole.spec.variables)
    *_, expected = whole.solve({**given, "initial": state})
    for _ in range(2):
        *_, last = half.solve({**given, "initial": state})
        state = last[name].values[0]
    # Heat2D yields single precision.
    size = float(abs(expected[name]).max())
    np.testing.assert_allclose(state, expected[name].values[0], atol=1e-6 * size)
    assert np.ptp(state) > 1e-3 * size


def test_a_uniform_state_is_that_of_the_parameter():
    """Heat2D begins from the same temperature, as a number and as a field."""
    walls = dict.fromkeys(("left", "right", "bottom", "top"), 300.0)
    (one,) = Heat2D((8, 6), steps=1).solve({"initial": 400.0, **walls})
    (other,) = Heat2D((8, 6), steps=1, from_state=True).solve(
        {"initial": np.full((8, 6), 400.0), **walls}
    )
    np.testing.assert_array_equal(one.temperature, other.temperature)


@pytest.mark.parametrize("boundary", ["neumann", "periodic"])
def test_a_gaussian_random_field_has_the_variance_of_its_modes(boundary):
    """In 1D, of 4,000 fields: σ² Σ (λ + τ²)^-α over the modes of the unit interval."""
    sampler = GaussianRandomField(5.0, 2.0, scale=25.0, boundary=boundary, seed=3)
    spec = grid(64)
    fields = np.array([drawn(sampler, spec, n) for n in range(4000)])
    k = (
        np.arange(1, 64)
        if boundary == "neumann"
        else 2 * np.abs(np.fft.fftfreq(64, 1 / 64)[1:])
    )
    expected = (625.0 * ((np.pi * k) ** 2 + 25) ** -2).sum()
    assert np.mean(fields**2) == pytest.approx(expected, rel=0.05)
    assert np.abs(fields.mean(axis=1)).max() < 1e-5


def test_a_gaussian_random_field_has_the_correlation_length_that_it_is_given():
    """At ν = 1/2, exp(-r / length), less the constant mode: its share of the variance."""
    length = 0.05
    for shape, constant in (((256,), 2 * length), ((64, 64), 2 * np.pi * length**2)):
        spec = grid(*shape)
        alpha = (1 + len(shape)) / 2
        sampler = GaussianRandomField(alpha=alpha, length=length, boundary="periodic")
        sampler.require(spec)
        fields = np.array([drawn(sampler, spec, n) for n in range(400)])
        found = (fields * np.roll(fields, shape[0] // 16, 1)).mean() / fields.var()
        expected = (np.exp(-1 / 16 / length) - constant) / (1 - constant)
        assert found == pytest.approx(expected, abs=0.04)
    with pytest.raises(ArgumentError, match=r"alpha: expected more than 1, half"):
        GaussianRandomField(alpha=1.0, length=0.1).require(grid(4, 4))


def test_fields_depend_on_seed_number_and_part_alone():
    spec, sampler = grid(8, 6), GaussianRandomField(transform="threshold")
    one = drawn(sampler, spec, 4)
    assert set(np.unique(one)) <= {3.0, 12.0}
    np.testing.assert_array_equal(
        one, drawn(GaussianRandomField(transform="threshold"), spec, 4)
    )
    others = [drawn(sampler, spec, 5), drawn(sampler, spec, 4, "validation")]
    others += [drawn(GaussianRandomField(transform="threshold", seed=1), spec, 4)]
    assert not any(np.array_equal(one, other) for other in others)
    held_out = drawn(GaussianRandomField(seed=1), spec, 0, "validation")
    np.testing.assert_array_equal(
        held_out, drawn(GaussianRandomField(), spec, 0, "validation")
    )


def test_fourier_modes_have_no_more_waves_than_asked_for():
    field = drawn(FourierModes(waves=4, highest=3), grid(32))
    found = np.abs(np.fft.rfft(field))
    assert found[1:4].max() > 0.1
    assert found[[0, *range(4, 17)]].max() < 1e-5
    assert drawn(FourierModes(), grid(8, 8)).shape == (8, 8)


@pytest.mark.parametrize("name", ["some.npy", "some.nc", "some.zarr"])
def test_fields_come_from_files(tmp_path, name):
    spec, values = grid(4), np.arange(12.0).reshape(3, 4)
    path = tmp_path / name
    dataset = xr.Dataset({"a": (("case", "x"), values)})
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".nc":
        dataset.to_netcdf(path)
    else:
        # As files of models have them beside fields.
        dataset["x_bounds"] = ("x", "end"), np.zeros((4, 2))
        dataset.to_zarr(path)
    sampler = FieldsFromFile(path)
    assert sampler.count == 3
    sampler.require(spec)
    np.testing.assert_array_equal(drawn(sampler, spec, 2), values[2])
    with pytest.raises(ArgumentError, match="fields for simulation 3, got those of 3"):
        drawn(sampler, spec, 3)


def test_fields_of_files_are_put_right(tmp_path):
    """Their dims in another order, and points that descend."""
    spec = dataclasses.replace(
        grid(3, 3), coordinates=(Coordinate("x", "x", (0.0, 1.0, 2.0)),)
    )
    values = np.arange(18.0).reshape(2, 3, 3)
    other = xr.Dataset({"a": (("case", *spec.dims), values)}, {"x": [0, 1, 2]})
    other = other.transpose("case", *spec.dims[::-1]).isel(x=slice(None, None, -1))
    other.to_netcdf(tmp_path / "other.nc")
    sampler = FieldsFromFile(tmp_path / "other.nc")
    np.testing.assert_array_equal(drawn(sampler, spec, 1), values[1])


@pytest.mark.parametrize(
    ("options", "shape", "said"),
    [
        (
            {"alpha": 0.5},
            (8,),
            "alpha: expected more than 0.5, half the number of dims",
        ),
        ({"alpha": 1.0}, (4, 4), "alpha: expected more than 1, half the number"),
        ({"mean": np.nan}, (8,), "mean: expected a finite number, got nan"),
        ({"values": (1.0, 2.0, 3.0)}, (8,), "values: expected two finite numbers"),
        ({"values": (1.0, np.inf)}, (8,), "values: expected two finite numbers"),
    ],
)
def test_a_random_field_that_is_none_is_refused(options, shape, said):
    with pytest.raises(ArgumentError, match=f"GaussianRandomField: {said}") as error:
        GaussianRandomField(**options).require(grid(*shape))
    assert "\n" not in str(error.value)


def test_a_random_field_is_drawn_on_even_positions():
    """Up to the rounding of single precision, in either direction."""
    even = grid(16)
    for x in (
        np.linspace(1, 2, 16, dtype=np.float32),
        np.linspace(1, 0, 16),
    ):
        line = Coordinate("x", "x", tuple(map(float, x)))
        GaussianRandomField().require(dataclasses.replace(even, coordinates=(line,)))
    line = Coordinate("x", "x", tuple(np.geomspace(1, 100, 16).tolist()))
    uneven = dataclasses.replace(even, coordinates=(line,))
    with pytest.raises(
        ArgumentError,
        match=r"evenly spaced .*along 'x', got .*\. Write an InputSampler",
    ):
        GaussianRandomField().require(uneven)
    FourierModes().require(uneven)


def test_an_input_may_be_a_number():
    """Of a spec without dims."""
    spec = FieldSpec((), (Variable("u"),), (), (), (1.0,), inputs=(Variable("a"),))
    np.testing.assert_array_equal(checked_inputs(spec, {"a": 2.0}), [[2.0]])
    given = checked_inputs(spec, {"a": np.array([2.0, 3.0])})
    np.testing.assert_array_equal(given, [[2.0], [3.0]])
