"""FieldSpec and its parts: plain data, checked once, with remedies."""

import dataclasses
import json
import pickle

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.names import nearest
from surrogate_flow.fields.spec import Coordinate, FieldSpec, Parameter, Variable

SPEC = FieldSpec(
    parameters=(Parameter("inflow", 0.5, 1.5, "m/s"), Parameter("angle", -5.0, 5.0)),
    variables=(Variable("pressure", "Pa", "static pressure"), Variable("speed")),
    dims=("x", "y"),
    shape=(3, 2),
    times=(0.1, 0.2),
    time_units="s",
    coordinates=(
        Coordinate("x", "x", (0.0, 1.0, 2.0), "m"),
        Coordinate("y", "y", (0.0, 0.5), "m"),
    ),
)

WHOLE = dataclasses.replace(
    SPEC, parameters=(SPEC.parameters[0], Parameter("angle", -5.0, 5.0, whole=True))
)
DAYS = np.array(["2000-01-01", "2000-01-02"], dtype="M8[ns]")
finite = st.floats(-1e6, 1e6)
units = st.text(max_size=5)
name = st.text(min_size=1).filter(
    lambda name: name.isprintable() and name == name.strip() and "/" not in name
)
name = name.filter(lambda name: name.strip("."))


@st.composite
def specs(draw: st.DrawFn) -> FieldSpec:
    """Any valid spec, of a structured grid or a mesh."""
    names = iter(
        draw(
            st.lists(name.filter(lambda name: name != "time"), min_size=12, unique=True)
        )
    )
    shape = draw(st.lists(st.integers(1, 5), max_size=3))
    dims = [next(names) for _ in shape]
    return FieldSpec(
        parameters=tuple(
            Parameter(
                next(names),
                *sorted(bounds),
                draw(units),
                max(bounds) - min(bounds) > 2 and draw(st.booleans()),
            )
            for bounds in draw(
                st.lists(
                    st.sets(finite, min_size=2, max_size=2).filter(
                        lambda pair: (
                            max(pair) - min(pair) > 1e-4 * max(1, *map(abs, pair))
                        )
                    ),
                    max_size=3,
                )
            )
        ),
        variables=tuple(
            Variable(next(names), draw(units), draw(units))
            for _ in range(draw(st.integers(1, 3)))
        ),
        dims=tuple(dims),
        shape=tuple(shape),
        times=tuple(sorted(draw(st.sets(finite, min_size=1, max_size=4)))),
        time_units=draw(units),
        coordinates=tuple(
            Coordinate(
                dim,
                dim,
                tuple(draw(st.lists(finite, min_size=size, max_size=size))),
                draw(units),
            )
            for dim, size in zip(dims, shape, strict=True)
        ),
        cells=draw(
            st.none()
            | st.lists(
                st.lists(
                    st.integers(0, shape[0] - 1), min_size=2, max_size=4, unique=True
                ).map(tuple),
                min_size=1,
                max_size=3,
            ).map(tuple)
            if len(shape) == 1 and shape[0] > 1
            else st.none()
        ),
    )


@given(specs())
@settings(max_examples=60, deadline=None)
def test_plain_values_make_the_same_spec(spec: FieldSpec) -> None:
    """A spec survives JSON, as in a checkpoint, and pickle, as to a worker."""
    plain = json.loads(json.dumps(spec.to_plain()))
    for copy in (FieldSpec.from_plain(plain), pickle.loads(pickle.dumps(spec))):
        assert copy == spec
        assert copy.digest() == spec.digest()
        assert hash(copy) == hash(spec)


def test_equal_specs_share_a_digest_however_they_were_written() -> None:
    """Integers, NumPy scalars, lists and minus zero say the same as plain floats."""
    given_loosely = FieldSpec(
        parameters=[Parameter("a", 0, np.float32(1)), Parameter("b", -0.0, 1)],
        variables=[Variable("u")],
        dims=["x"],
        shape=[np.int64(2)],
        times=np.array([1, 2]),
        coordinates=[Coordinate("x", "x", np.array([-0.0, 1]))],
        cells=np.array([[0, 1]]),
    )
    given_strictly = FieldSpec(
        parameters=(Parameter("a", 0.0, 1.0), Parameter("b", 0.0, 1.0)),
        variables=(Variable("u"),),
        dims=("x",),
        shape=(2,),
        times=(1.0, 2.0),
        coordinates=(Coordinate("x", "x", (0.0, 1.0)),),
        cells=((0, 1),),
    )
    assert given_loosely == given_strictly
    assert given_loosely.digest() == given_strictly.digest()


@pytest.mark.parametrize(
    "change",
    [
        {"times": (0.1, 0.3)},
        {"time_units": "ms"},
        {"parameters": SPEC.parameters[::-1]},
        {"variables": SPEC.variables[::-1]},
        {"coordinates": ()},
        {"variables": (Variable("u", offset=3.0), SPEC.variables[1])},
        {"parameters": WHOLE.parameters},
    ],
    ids=lambda change: next(iter(change)),
)
def test_different_specs_have_different_digests(change: dict) -> None:
    """Whatever changes in a spec changes its digest."""
    assert dataclasses.replace(SPEC, **change).digest() != SPEC.digest()


def test_sizes() -> None:
    """The shape of a step has the variables first, and single precision."""
    assert SPEC.steps == 2
    assert SPEC.step_shape == (2, 3, 2)
    assert SPEC.step_bytes == 2 * 3 * 2 * 4
    np.testing.assert_array_equal(SPEC.low, [0.5, -5.0])
    np.testing.assert_array_equal(SPEC.high, [1.5, 5.0])


def test_a_spec_without_space() -> None:
    """A simulation may yield plain numbers."""
    spec = FieldSpec((), (Variable("mass"),), (), (), (1.0,))
    assert spec.step_shape == (1,)
    assert spec.vector({}).shape == (0,)


@pytest.mark.parametrize(
    ("change", "culprits"),
    [
        ({"parameters": SPEC.parameters[:1] * 2}, ["'inflow'", "a parameter"]),
        ({"variables": SPEC.variables[:1] * 2}, ["'pressure'", "a variable"]),
        ({"dims": ("x", "x"), "shape": (3, 3)}, ["'x'", "a dim"]),
        ({"dims": ("time", "y")}, ["'time'", "a dim"]),
        ({"variables": (Variable("time"),)}, ["'time'", "a variable"]),
        ({"variables": (Variable("inflow"),)}, ["'inflow'", "variable", "parameter"]),
        ({"parameters": (Parameter("x", 0.0, 1.0),)}, ["'x'", "parameter", "a dim"]),
        (
            {"coordinates": (Coordinate("inflow", "y", (0.0, 1.0)),)},
            ["'inflow'", "parameter", "coordinate"],
        ),
        ({"coordinates": SPEC.coordinates[:1] * 2}, ["'x'", "twice"]),
        (
            {"variables": (Variable("u"), Variable("u_surrogate"))},
            ["'u_surrogate'", "a prediction", "Rename"],
        ),
        ({"dims": ("pressure_surrogate", "y")}, ["the prediction of 'pressure'"]),
        ({"variables": (Variable("u_surrogate"),)}, ["'u_surrogate'", "a prediction"]),
        (
            {
                **{"dims": ("node",), "shape": (3,), "cells": ((0, 1, 2),)},
                **{"coordinates": (), "parameters": (Parameter("cells", 0, 1),)},
            },
            ["'cells'", "those of the mesh"],
        ),
        ({"variables": ()}, ["0 variables", "2 times"]),
        ({"times": ()}, ["2 variables", "0 times"]),
        ({"shape": (3,)}, ["('x', 'y')", "(3,)"]),
        ({"shape": (3, 0)}, ["('x', 'y')", "(3, 0)"]),
        ({"times": (0.2, 0.1)}, ["0.1 after 0.2"]),
        ({"times": (0.1, 0.1)}, ["0.1 after 0.1"]),
        ({"times": (0.1, float("nan"))}, ["nan after 0.1"]),
        ({"times": (0.1, float("inf"))}, ["inf"]),
        ({"coordinates": (Coordinate("x", "x", (0.0,)),)}, ["'x'", "1 values", "3"]),
        (
            {"coordinates": (Coordinate("z", "depth", (0.0,)),)},
            ["'z'", "'depth'", "None"],
        ),
        ({"dtype": "float64"}, ["'float32'", "'float64'"]),
    ],
)
def test_an_error_names_the_culprit(change: dict, culprits: list[str]) -> None:
    """Every refusal of a spec says what was wrong in it."""
    with pytest.raises(ValueError, match="FieldSpec: ") as caught:
        dataclasses.replace(SPEC, **change)
    for culprit in culprits:
        assert culprit in str(caught.value)


@pytest.mark.parametrize(
    ("low", "high", "culprit"),
    [
        (2.0, 1.0, "[2.0, 1.0]"),
        (1.0, 1.0, "[1.0, 1.0]"),
        (float("nan"), 1.0, "nan"),
        (0.0, float("inf"), "inf"),
    ],
)
def test_bounds_of_a_parameter(low: float, high: float, culprit: str) -> None:
    """Bounds that span no interval are refused with the parameter's name."""
    with pytest.raises(ValueError, match="'angle'") as caught:
        Parameter("angle", low, high, "rad")
    assert culprit in str(caught.value)


def test_positions_are_finite() -> None:
    """A coordinate with a hole in it is refused with its name."""
    with pytest.raises(ValueError, match="Coordinate 'x': expected finite"):
        Coordinate("x", "x", (0.0, float("nan")))


@given(finite, finite)
def test_vector_orders_by_name(inflow: float, angle: float) -> None:
    """The order of the mapping does not matter, that of the spec does."""
    vector = SPEC.vector({"angle": angle, "inflow": inflow})
    np.testing.assert_array_equal(vector, [inflow, angle])
    assert vector.dtype == np.float64


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"inflow": 1.0, "angel": 0.0}, "Unknown parameter 'angel'.*mean 'angle'"),
        ({"inflow": 1.0}, r"Missing parameters \['angle'\].*\['inflow'\]"),
        ({"inflow": 1.0, "angle": float("nan")}, "parameter 'angle', got nan"),
        ({"inflow": float("-inf"), "angle": 0.0}, "parameter 'inflow', got -inf"),
        ({"inflow": "fast", "angle": 0.0}, "number for each.*'inflow': 'fast'"),
        ({"inflow": None, "angle": 0.0}, "number for each.*'inflow': None"),
        ({"inflow": 1.0, "angle": 0.5}, "whole number for .* 'angle', got 0.5"),
    ],
)
def test_vector_refuses(parameters: dict, message: str) -> None:
    """Unknown, missing and meaningless parameters are told by name."""
    with pytest.raises(ValueError, match=message):
        WHOLE.vector(parameters)


def test_nearest_lists_all_names() -> None:
    """A hint appears only where a name is close."""
    assert nearest("inflwo", ["inflow", "angle"]).startswith("Did you mean 'inflow'?")
    assert nearest("zzz", ["inflow"]) == "Valid names: inflow."
    assert nearest("zzz", []) == "Valid names: none."
    said = nearest("rd.yml", ["heat2d"], here=["rd.yaml", "c.zarr"])
    assert said.startswith("Did you mean 'rd.yaml'? Valid names: heat2d, and in this")
    assert said.endswith("folder: rd.yaml, c.zarr.")


def test_dataset_has_coordinates_and_units() -> None:
    """Bare fields get back their names, units, positions, times and parameters."""
    fields = np.arange(24, dtype=np.float32).reshape(2, 2, 3, 2)
    dataset = SPEC.dataset(fields, SPEC.times, {"inflow": 1.0, "angle": 2.0})
    assert list(dataset) == ["pressure", "speed"]
    for i, variable in enumerate(SPEC.variables):
        assert dataset[variable.name].dims == ("time", "x", "y")
        np.testing.assert_array_equal(dataset[variable.name], fields[:, i])
    np.testing.assert_array_equal(dataset.time, SPEC.times)
    np.testing.assert_array_equal(dataset.x, [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(dataset.y, [0.0, 0.5])
    assert float(dataset.inflow) == 1.0
    assert dataset.pressure.attrs == {"units": "Pa", "long_name": "static pressure"}
    assert dataset.speed.attrs == {"long_name": "speed"}
    assert dataset.time.attrs["units"] == "s"
    assert dataset.x.attrs["units"] == "m"
    assert dataset.inflow.attrs["units"] == "m/s"


def test_dataset_holds_part_of_a_trajectory() -> None:
    """The times are those given, as many as there are fields."""
    fields = np.zeros((1, 2, 3, 2), dtype=np.float32)
    dataset = SPEC.dataset(fields, [0.2], {"inflow": 1.0, "angle": 2.0})
    assert dataset.time.values.tolist() == [0.2]


def test_positions_along_a_dim() -> None:
    """Those of the dim's own coordinate, of any other along it, or else the indices."""
    other = (Coordinate("lat", "y", (3.0, 4.0)),)
    spec = dataclasses.replace(SPEC, coordinates=SPEC.coordinates[:1] + other)
    assert spec.axis("x").tolist() == [0.0, 1.0, 2.0]
    assert spec.axis("y").tolist() == [3.0, 4.0]
    both = dataclasses.replace(SPEC, coordinates=other + SPEC.coordinates)
    assert both.axis("y").tolist() == [0.0, 0.5]
    assert dataclasses.replace(SPEC, coordinates=()).axis("x").tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "culprit"),
    [({"times": "soon"}, "times"), ({"shape": [2.5, 2]}, "shape"), (None, "dims")],
)
def test_plain_values_of_no_spec_are_refused(change: dict, culprit: str) -> None:
    """A damaged file has an entry of another type, or none."""
    plain = SPEC.to_plain()
    plain = {**plain, **change} if change else {k: plain[k] for k in ("variables",)}
    with pytest.raises(ValueError, match=f"FieldSpec: .*({culprit}|parameters)"):
        FieldSpec.from_plain(plain)


def test_parts_may_come_from_a_generator():
    """They are kept, not used up by the check."""
    parts = (Parameter(name, 0.0, 1.0) for name in "ab")
    spec = FieldSpec(parts, iter([Variable("u")]), (), (), iter([1.0]))
    assert [p.name for p in spec.parameters] == ["a", "b"]
    assert spec.steps == 1


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("shape", 4, "shape: expected a tuple of whole numbers, got 4"),
        ("shape", (1.5, 2), "shape: expected a tuple of whole numbers"),
        ("dims", "xy", "dims: expected a tuple of text, got 'xy'"),
        ("variables", ("u",), r"variables: expected a tuple of Variable, got \('u',\)"),
        ("times", ("now",), "times: expected numbers, got 'now'"),
    ],
)
def test_parts_of_another_kind_are_refused(part, value, message):
    """With the name of the part."""
    with pytest.raises(ArgumentError, match=f"FieldSpec: {message}"):
        dataclasses.replace(SPEC, **{part: value})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: dataclasses.replace(SPEC, times=list(DAYS)),
            r"FieldSpec: times: expected numbers, got np.datetime64.*time_units='s'",
        ),
        (
            lambda: dataclasses.replace(SPEC, times=tuple(pd.to_datetime(DAYS))),
            r"times: expected numbers, got Timestamp.*time_units='s'",
        ),
        (
            lambda: dataclasses.replace(SPEC, times=tuple(DAYS - DAYS[0])),
            "times: expected numbers, got np.timedelta64",
        ),
        (lambda: Coordinate("x", "x", DAYS), "Coordinate 'x': expected numbers"),
        (lambda: Parameter("k", (0, 0), (1, 1)), "'k': low.*each component a name"),
        (lambda: Parameter("k", "low", 1), "Parameter 'k': low: expected numbers"),
        (lambda: Parameter("p", 1e6, 1e6 + 0.1), "'p'.*distance from 1e.06"),
        (lambda: Parameter("n", 1.2, 2.9, whole=True), "'n': .*two whole numbers"),
        (lambda: Parameter("n", 0, 2**25, whole=True), "'n': expected bounds within"),
        (lambda: Parameter("n", 0, 9, whole="yes"), "'n': whole: expected true or"),
        (lambda: Variable("u", units=None), "Variable 'u': units: expected text"),
        (lambda: Variable("u", scale=0), "'u': expected a finite offset and a scale"),
        *(
            (lambda name=name: Variable(name), "Variable: name: expected text")
            for name in ("", " u", "u/v", "u\n", 3, None)
        ),
    ],
)
def test_what_is_no_number_or_no_name_is_refused(make, words):
    """Dates, text and vectors, in one sentence with the remedy."""
    with pytest.raises(ArgumentError, match=words):
        make()


@pytest.mark.parametrize(
    "name", ["alpha.water", "air temperature", "lambda", "T'", "ü"]
)
def test_names_of_other_codes_are_good(name):
    """Dots, blanks within, words of Python and letters of any language."""
    assert Variable(name).name == name


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (((1, 2), (2, 3)), "from 0 to 2, got 3. They begin at 1: subtract 1"),
        (((0, 7),), "from 0 to 2, got 7"),
        (((0, 1, -1),), "got -1. Cells may differ in length"),
        (((0, 1.5),), "got 1.5"),
        (((0, 1, 1),), r"cells of different nodes, two or more, got \(0, 1, 1\)"),
        (((0,),), "cells of different nodes"),
        ((), "got no cell"),
        ((0, 1), "cells of different nodes"),
        ((("a", "b"),), "cells: expected numbers, got 'a'"),
    ],
)
def test_cells_that_are_none_are_refused(cells, words):
    """When the spec is made, with the number that is wrong."""
    with pytest.raises(ArgumentError, match=words):
        FieldSpec((), (Variable("u"),), ("node",), (3,), (1.0,), cells=cells)
