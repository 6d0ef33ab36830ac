"""Distributions of parameters: quantiles, words, vectors, and specs without them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from scipy.stats import qmc

from surrogate_flow.fields import FieldSpec, Parameter, Variable
from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.parameter import arguments
from surrogate_flow.fields.table import units_apart
from surrogate_flow.sampling import (
    Design,
    Halton,
    LatinHypercube,
    Sobol,
    Table,
    Uniform,
)

BOX = (
    Parameter("speed", -2.0, 3.0),
    Parameter("viscosity", 1e-4, 1e-1, "Pa s", log=True),
    Parameter("load", 0.0, 12.0, mean=4.0, std=3.0),
)
TRUTH = (
    stats.uniform(-2.0, 5.0),
    stats.loguniform(1e-4, 1e-1),
    stats.truncnorm(-4 / 3, 8 / 3, loc=4.0, scale=3.0),
)
METAL = Parameter("metal", choices=("steel", "copper", "brass"))
FORCE = Parameter("force", -1.0, 1.0, "N", size=3)
SPEC = FieldSpec(
    parameters=(*BOX, METAL, FORCE, Parameter("waves", 1, 64, log=True, whole=True)),
    variables=(Variable("u"),),
    dims=(),
    shape=(),
    times=(1.0, 2.0),
)
SAMPLERS = (Uniform(1), Sobol(1), Halton(1), LatinHypercube(1))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_samples_have_the_distribution(sampler: object) -> None:
    """Kolmogorov-Smirnov against scipy; whole ones and choices by their counts."""
    points = sampler.ask(0, 2048, SPEC.parameters)
    for column, truth in zip(points.T, TRUTH, strict=False):
        assert stats.kstest(column, truth.cdf).pvalue > 0.01
    steel, copper, brass = np.bincount(points[:, 3].astype(int), minlength=3)
    assert min(steel, copper, brass) > 2048 / 3 - 100
    waves = np.bincount(points[:, -1].astype(int))[1:] / 2048
    ends = np.log(np.arange(65) + 0.5)
    assert np.abs(waves - np.diff(ends) / (ends[-1] - ends[0])).max() < 0.03


def test_sobol_stays_sobol_under_every_distribution() -> None:
    """Back in shares the points are as even as they were, and more so than random."""
    found = {}
    for kind in (Sobol, Uniform):
        points = kind(3).ask(0, 256, BOX)
        shares = [t.cdf(column) for t, column in zip(TRUTH, points.T, strict=True)]
        found[kind] = np.column_stack(shares)
    assert np.allclose(found[Sobol], Sobol(3).block(0, 3)[:256], atol=1e-12)
    discrepancies = [qmc.discrepancy(found[kind]) for kind in (Sobol, Uniform)]
    assert discrepancies[0] < discrepancies[1] / 10


def test_ask_begins_anywhere() -> None:
    """A point depends on its number alone, with distributions as without."""
    whole = Sobol(2).ask(0, 2050, SPEC.parameters)
    assert np.array_equal(Sobol(2).ask(1020, 9, SPEC.parameters), whole[1020:1029])
    low, high = SPEC.low, SPEC.high
    assert ((low <= whole) & (whole <= high)).all()


def test_the_ends_of_a_distribution_are_the_bounds() -> None:
    """Shares 0 and 1 are the bounds, and shares may be an array."""
    for p in SPEC.parameters:
        assert p.at(np.array([0.0, 1.0])) == pytest.approx([p.low, p.high], rel=1e-12)
        assert isinstance(p.at(0.5), float)
    assert BOX[1].at(0.5) == pytest.approx(10**-2.5)
    assert [METAL.value(METAL.at(s)) for s in (0.1, 0.5, 0.9)] == [*METAL.choices]


def test_a_simulation_has_words_and_a_solver_vectors() -> None:
    """Components are parameters of the spec; the solver is given one array."""
    names = [p.name for p in SPEC.parameters]
    assert names[3:] == ["metal", "force[0]", "force[1]", "force[2]", "waves"]
    design = Design(SPEC.parameters, Sobol(4), held_out=2, simulations=6)
    for simulation in design:
        assert simulation.parameters["metal"] in METAL.choices
        vector = SPEC.vector(simulation.parameters)
        given = SPEC.arguments(simulation.parameters)
        assert given["metal"] == simulation.parameters["metal"]
        assert np.array_equal(given["force"], vector[4:7])
        assert np.array_equal(SPEC.vector(given), vector)
        one = SPEC.dataset(np.zeros((2, 1), "f4"), SPEC.times, given)
        assert float(one["force[1]"]) == vector[5]
        assert one["metal"].attrs["flag_meanings"] == "steel copper brass"


def test_netcdf_keeps_components_and_categories(tmp_path: Path) -> None:
    """Brackets may be in the names of files, and attributes say the words."""
    given = arguments(SPEC.parameters, [1, 0.01, 3, 1, 0.1, 0.2, 0.3, 4])
    one = SPEC.dataset(np.zeros((2, 1), "f4"), SPEC.times, given)
    one.to_netcdf(tmp_path / "one.nc")
    read = xr.load_dataset(tmp_path / "one.nc")
    assert float(read["force[2]"]) == 0.3
    assert float(read["metal"]) == 1
    assert read["metal"].attrs["flag_values"].tolist() == [0, 1, 2]


def test_a_table_has_words_and_components(tmp_path: Path) -> None:
    """A column of words, and load[0], load[1] beside one with units."""
    text = "speed [m/s],metal,force[0],force[1]\n1,copper,2,3\n2,steel,4,5\n"
    (tmp_path / "runs.csv").write_text(text)
    force = Parameter("force", 0, 9, size=2).components()
    bounds = (Parameter("speed", 0, 9, "m/s"), METAL, *force)
    table = Table(tmp_path / "runs.csv", shuffle=False)
    assert table.ask(0, 2, bounds).tolist() == [[1, 1, 2, 3], [2, 0, 4, 5]]
    frame = units_apart(table._rows)
    assert "force[0]" in frame
    assert frame.attrs["units"] == {"speed": "m/s"}
    # A table reads these as numbers.
    order = Parameter("speed", choices=("7", "1e1", "5"))
    (tmp_path / "runs.csv").write_text("speed\n10\n5\n7\n")
    table = Table(tmp_path / "runs.csv", shuffle=False)
    assert table.ask(0, 3, [order])[:, 0].tolist() == [1, 2, 0]
    assert order.number("7") == 0
    (tmp_path / "runs.csv").write_text(text.replace("copper", "coper"))
    with pytest.raises(ArgumentError, match=r"line 2.*coper.*copper"):
        Table(tmp_path / "runs.csv").ask(0, 2, bounds)


def test_a_spec_goes_through_plain_data() -> None:
    """From JSON it is the same; without distributions it is what it always was."""
    plain = json.loads(json.dumps(SPEC.to_plain()))
    assert FieldSpec.from_plain(plain) == SPEC
    assert FieldSpec.from_plain(plain).digest() == SPEC.digest()
    assert plain["parameters"][1] | {"low": 0} == {
        **{"name": "viscosity", "low": 0, "high": 0.1, "units": "Pa s", "log": True}
    }
    assert plain["parameters"][4]["of"] == "force"
    old = dataclasses.replace(SPEC, parameters=(Parameter("a", 0, 1, whole=True),))
    assert old.to_plain()["parameters"] == [
        {"name": "a", "low": 0.0, "high": 1.0, "units": "", "whole": True}
    ]
    assert old.digest() == "7610e0f9f429acf8"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"low": 0, "high": 1, "log": True}, "> 0 with log"),
        ({"low": 1, "high": 2, "log": True, "mean": 1, "std": 1}, "one of log"),
        ({"low": 0, "high": 1, "mean": 0.5}, "mean and std"),
        ({"low": 0, "high": 1, "mean": 2, "std": 1}, "from 0 to 1, its bounds"),
        ({"low": 0, "high": 1, "mean": 0.5, "std": 0}, "std: expected a number > 0"),
        ({"choices": ("one",)}, "two or more"),
        ({"choices": ("a", "a")}, "different"),
        ({"choices": ("stainless steel", "b")}, "without blanks"),
        ({"choices": (1, 2)}, "as text"),
        ({"choices": ("1", "2", "3")}, "no index of another choice, as 1 is.*order1"),
        ({"low": 0, "high": 5, "choices": ("a", "b")}, "no bounds beside"),
        ({"low": 0, "high": 1, "size": -1}, "length of a vector"),
        ({}, "finite bounds"),
    ],
)
def test_wrong_distributions_are_refused(given: dict, said: str) -> None:
    """Each with what it should be."""
    with pytest.raises(ArgumentError, match=said):
        Parameter("p", **given)


def test_wrong_values_are_refused() -> None:
    """An unknown word, a vector of another length, a logarithm of nothing."""
    given = arguments(SPEC.parameters, [1, 0.01, 3, 1, 0.1, 0.2, 0.3, 4])
    for change, said in (
        ({"metal": "cooper"}, "cooper.*'copper'"),
        ({"metal": 3}, "unknown choice 3"),
        ({"force": [1, 2]}, "a vector of 3 values"),
        ({"viscosity": 0.0}, "> 0"),
    ):
        with pytest.raises(ArgumentError, match=said):
            SPEC.vector(given | change)
    twice = (Parameter("force[0]", 0, 1), FORCE)
    with pytest.raises(ArgumentError, match="names that differ"):
        dataclasses.replace(SPEC, parameters=twice)
