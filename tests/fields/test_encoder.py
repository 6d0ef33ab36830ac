"""The crossing from xarray to arrays, and what it refuses."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.spec import Coordinate, FieldSpec, Variable
from surrogate_flow.stream import Encoder, SpecMismatch

SPEC = FieldSpec(
    parameters=(),
    variables=(Variable("temperature", "K"), Variable("speed", "m/s")),
    dims=("x", "y"),
    shape=(3, 4),
    times=(0.1, 0.2, 0.3, 0.4, 0.5),
    time_units="s",
)


def dataset(first=0, count=1, dtype=np.float64):
    fields = np.arange(count * 24).reshape(count, 2, 3, 4).astype(dtype)
    return SPEC.dataset(fields, SPEC.times[first : first + count], {})


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4", "i2", "u8", "f2"])
@pytest.mark.parametrize("count", [1, 3])
def test_datasets_become_contiguous_float32(dtype, count):
    """Every real dtype, one step or several, gives the same array."""
    steps = Encoder(SPEC, 1).convert(dataset(1, count, dtype), 1)
    assert steps.dtype is np.dtype(np.float32)
    assert steps.flags.c_contiguous
    assert steps.shape == (count, 2, 3, 4)
    assert steps.ravel().tolist() == list(range(24 * count))


def test_dims_in_any_order_are_put_right():
    """Xarray names its axes, so their order does not matter."""
    turned = dataset(0, 3).transpose("y", "time", "x")
    turned["speed"] = turned["speed"].transpose("x", "y", "time")
    np.testing.assert_array_equal(
        Encoder(SPEC, 1).convert(turned, 0),
        Encoder(SPEC, 1).convert(dataset(0, 3), 0),
    )


def test_the_array_does_not_alias_the_dataset():
    """The solver may reuse its memory."""
    data = dataset(dtype="f4")
    steps = Encoder(SPEC, 1).convert(data, 0)
    data["speed"][:] = -1
    assert steps.min() == 0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.ones((1, 3, 4)), "got ndarray"),
        (dataset()["speed"], "got DataArray.*to_dataset"),
        (None, "got NoneType"),
        ("temperature", "got str"),
    ],
)
def test_what_is_no_dataset_is_refused(value, words):
    """It says what was expected instead."""
    with pytest.raises(
        SpecMismatch, match=f"step 2: expected an xarray.Dataset.*{words}"
    ):
        Encoder(SPEC, 1).convert(value, 2)


def test_times_may_be_rounded():
    """Rounding of a time loop in single precision is not an error."""
    data = dataset(2, 2).assign_coords(time=np.array([0.3, 0.4], np.float32))
    assert len(Encoder(SPEC, 1).convert(data, 2)) == 2


def complex_field():
    data = dataset()
    data["speed"] = data["speed"] * 1j
    return data


def with_value(value, *place):
    data = dataset(0, 3)
    data["speed"][place] = value
    return data


@pytest.mark.parametrize(
    ("data", "step", "words"),
    [
        (
            dataset().rename(temperature="temprature"),
            0,
            ["expected the variable 'temperature'", "got ['temprature', 'speed']"],
        ),
        (dataset().drop_vars("speed"), 0, ["expected the variable 'speed'"]),
        (
            dataset().assign(sped=0.0),
            0,
            ["unknown variable 'sped'", "Did you mean 'speed'?", "Drop it"],
        ),
        (
            dataset().rename(x="lon"),
            0,
            ["'temperature'", "('time', 'x', 'y')", "('time', 'lon', 'y')", "rename"],
        ),
        (
            dataset().isel(x=slice(2)),
            0,
            ["'temperature'", "(1, 3, 4)", "(1, 2, 4)", "ghost cells"],
        ),
        (complex_field(), 0, ["'speed'", "complex128", "real and imaginary"]),
        (dataset().astype(str), 0, ["real numbers", "Cast it"]),
        (dataset().astype(bool), 0, ["real numbers", "bool"]),
        (dataset().drop_vars("time"), 0, ["coordinate 'time'", "expand_dims"]),
        (dataset().isel(time=0), 0, ["'time' as one or more numbers", "dims ()"]),
        (
            dataset().assign_coords(time=np.array(["2020-01-01"], "M8[ns]")),
            0,
            ["datetime64[ns]", "plain number"],
        ),
        (dataset().isel(time=slice(0)), 0, ["one or more numbers", "shape (0,)"]),
        (
            dataset(1),
            2,
            ["step 2: expected time 0.3 s, got 0.2 s", "step 1", "yielded before"],
        ),
        (dataset(0, 2).isel(time=[1, 0]), 0, ["step 0", "steps 0 to 0 are skipped"]),
        (dataset(3), 1, ["got 0.4 s", "steps 1 to 2 are skipped", "every n-th"]),
        (
            dataset().assign_coords(time=[0.15]),
            0,
            ["expected time 0.1 s, got 0.15 s", "no time of the spec"],
        ),
        (dataset().assign_coords(time=[np.nan]), 0, ["got nan s", "no time"]),
        (dataset(4), 5, ["expected 5 steps in all, got at least 6", "initial state"]),
        (
            with_value(np.nan, 1, 2, slice(1, 3)),
            0,
            ["step 1: variable 'speed'", "2 of 12 cells NaN or infinite", "unstable"],
        ),
        (with_value(-np.inf, 0, 0, 0), 0, ["step 0", "1 of 12 cells", "-inf"]),
        (
            with_value(1e39, 2, 0, 0),
            0,
            ["step 2", "too large for single precision", "1e+39", "not scaled"],
        ),
    ],
)
def test_refusals_say_what_is_wrong(data, step, words):
    """Each names simulation and step, what was expected, what came, and the remedy."""
    with pytest.raises(SpecMismatch) as caught:
        Encoder(SPEC, 17).convert(data, step)
    message = str(caught.value)
    assert message.startswith("Simulation 17, step")
    for word in words:
        assert word in message


def test_large_finite_values_are_not_refused():
    """A sum that overflows does not make its terms infinite."""
    steps = Encoder(SPEC, 1).convert(with_value(3e38, 0), 0)
    assert np.isfinite(steps).all()


def test_a_point_and_a_single_time_are_a_field_too():
    """Neither a grid nor a second time is needed."""
    spec = FieldSpec((), (Variable("u"),), (), (), (0.0,))
    crossing = Encoder(spec, 1)
    point = xr.Dataset({"u": ("time", [1.5])}, {"time": [0.0]})
    assert crossing.convert(point, 0).tolist() == [[1.5]]
    with pytest.raises(SpecMismatch, match="1 of 1 cells"):
        crossing.convert(point * np.nan, 0)


@pytest.mark.parametrize(("start", "gap"), [(0.0, 1e-9), (20_000.0, 0.04), (5.0, 60.0)])
def test_where_a_dataset_begins_is_told_by_the_distance_of_steps(start, gap):
    """However small, or far from zero, the times are."""
    times = tuple(start + gap * k for k in range(1, 6))
    spec = dataclasses.replace(SPEC, times=times)
    encoder = Encoder(spec, 1)
    for first in range(5):
        step = spec.dataset(np.zeros((1, 2, 3, 4)), times[first : first + 1], {})
        begins = [encoder.begins_at(step, k) for k in range(5)]
        assert begins == [k == first for k in range(5)]
    assert not encoder.begins_at(step.drop_vars("time"), 0)


X, Y = (0.0, 0.5, 1.0), (0.0, 1.0, 2.5, 4.0)
LABELLED = dataclasses.replace(
    SPEC, coordinates=(Coordinate("x", "x", X), Coordinate("y", "y", Y))
)
NODES = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [0, 0.5]])
MESH = FieldSpec(
    (),
    (Variable("u"),),
    ("node",),
    (5,),
    (0.1,),
    coordinates=tuple(Coordinate(c, "node", NODES[:, i]) for i, c in enumerate("xy")),
)


def labelled():
    return LABELLED.dataset(
        np.random.default_rng(1).normal(size=(2, 2, 3, 4)), X[1:], {}
    )


@pytest.mark.parametrize(
    "turn",
    [
        lambda data: data.isel(x=slice(None, None, -1)),
        lambda data: data.isel(y=[2, 0, 3, 1], x=[1, 2, 0]).transpose("y", ...),
        lambda data: data.assign_coords(y=np.float32(Y) + np.float32(1e-7)),
        lambda data: data.drop_vars("x"),
    ],
)
def test_points_in_another_order_are_put_right(turn):
    """By their coordinates, within round-off; every step."""
    spec = dataclasses.replace(LABELLED, times=X[1:])
    expected = Encoder(spec, 1).convert(labelled(), 0)
    np.testing.assert_array_equal(
        Encoder(spec, 1).convert(turn(labelled()), 0), expected
    )
    encoder = Encoder(spec, 1)
    for k in range(2):
        step = turn(labelled().isel(time=[k]))
        np.testing.assert_array_equal(encoder.convert(step, k)[0], expected[k])


def test_points_may_change_their_order_from_step_to_step():
    """What was right with one step is looked at again with the next."""
    spec = dataclasses.replace(LABELLED, times=X[1:])
    expected = Encoder(spec, 1).convert(labelled(), 0)
    for turns in ([None, "x"], ["x", None], ["x", "y"], ["y", "y"]):
        encoder = Encoder(spec, 1)
        for k, dim in enumerate(turns):
            step = labelled().isel(time=[k])
            step = step.isel({dim: slice(None, None, -1)}) if dim else step
            np.testing.assert_array_equal(encoder.convert(step, k)[0], expected[k])


def test_nodes_in_another_order_are_put_right():
    """By all of their coordinates together."""
    data = MESH.dataset(np.arange(5.0)[None, None], [0.1], {})
    turned = data.isel(node=[4, 2, 0, 1, 3])
    assert Encoder(MESH, 1).convert(turned, 0).ravel().tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(SpecMismatch, match="'x' expected the positions"):
        Encoder(MESH, 1).convert(turned.drop_vars("y"), 0)


@pytest.mark.parametrize(
    ("coords", "words"),
    [
        ({"y": np.array(Y) + 0.5}, "'y' expected the positions.*got"),
        ({"y": 1000 * np.array(Y)}, "'y' expected.*other units"),
        ({"y": [0.0, 1.0, 1.0, 4.0]}, "'y' expected the positions"),
        ({"y": [0.0, 1.0, np.nan, 4.0]}, "'y' expected the positions"),
        ({"y": list("abcd")}, "'y' expected numbers along 'y'"),
    ],
)
def test_other_points_are_refused(coords, words):
    """Staggered, in other units, twice, or no numbers at all."""
    spec = dataclasses.replace(LABELLED, times=X[1:])
    with pytest.raises(SpecMismatch, match=f"Simulation 1, step 0: coordinate {words}"):
        Encoder(spec, 1).convert(labelled().drop_vars("y").assign_coords(coords), 0)


def test_offset_and_scale_keep_what_single_precision_would_lose():
    """It is said without them, not with them, and the fields come back."""
    fields = 101325 + 1e-4 * np.random.default_rng(1).random((5, 1, 3, 4))
    for kind in ({}, {"offset": 101325, "scale": 1e-4}):
        spec = dataclasses.replace(SPEC, variables=(Variable("p", "Pa", **kind),))
        encoder = Encoder(spec, 1)
        steps = [
            encoder.convert(
                spec.dataset(fields[k : k + 1], spec.times[k : k + 1], {}), k
            )
            for k in range(5)
        ]
        error = np.abs(spec.physical(np.concatenate(steps)) - fields).max()
        assert (error < 1e-10) == bool(kind) == (not encoder.lost)
        assert FieldSpec.from_plain(spec.to_plain()) == spec
        assert ("scale" in str(spec.to_plain())) == bool(kind)
    without = dataclasses.replace(SPEC, variables=(Variable("p", "Pa"),))
    encoder = Encoder(without, 1)
    encoder.convert(without.dataset(fields, SPEC.times, {}), 0)
    assert "'p' varies by about 1e-04 around 101325" in encoder.lost
    assert "offset=101325, scale=1e-04)" in encoder.lost


def test_a_constant_field_has_lost_nothing():
    """Nor has one that varies by the rounding of double precision."""
    encoder = Encoder(SPEC, 1)
    encoder.convert(SPEC.dataset(np.full((5, 2, 3, 4), 0.1), SPEC.times, {}), 0)
    assert not encoder.lost


@pytest.mark.parametrize("kind", [{}, {"offset": 280.0, "scale": 9.0}])
@pytest.mark.parametrize(
    ("fill", "values"),
    [
        (np.nan, [1.0, 2.0]),
        (9.969209968386869e36, [0.0]),
        (9.969209968386869e36, [np.float32(9.969209968386869e36)]),
        (1e20, [1.0, 2e9]),
        (-1e20, [280.0]),
        (1e15, [1e5, 9e4]),
        (1e37, [280.0, -280.0]),
        (3.4e38, [280.0]),
        (-float(np.finfo("f4").max), [280.0]),
        (-999.0, [271.0, 302.0]),
        (-999.0, [0.0, 1500.0]),
        (-999.0, [-30.0, 40.0]),
        (-9999.0, [1.01e5, 9.5e4]),
        (-9999.0, [1500.0, 900.0]),
        (-9999.0, [0.0]),
        (-99999.0, [280.0, -5.0]),
        (9999.0, [271.0, 302.0]),
        (2147483647, [3, 8]),
        (-32768, [3, -8]),
    ],
)
def test_points_without_a_field_are_told_from_an_unstable_solver(fill, values, kind):
    """The message says mask, and names the fill value, whatever offset and scale."""
    spec = dataclasses.replace(SPEC, variables=(Variable("u", **kind),))
    data = spec.dataset(np.resize(values, (2, 1, 3, 4)), spec.times[:2], {})
    data["u"][0, :2, 0] = fill
    with pytest.raises(SpecMismatch, match=r".a mask..*Leave them out") as e:
        Encoder(spec, 1).convert(data, 0)
    count = 12 if fill in values else 2
    text = f"the fill value {np.float32(fill):.6g} at {count} of 12"
    assert np.isnan(fill) or text in str(e.value)


@pytest.mark.parametrize(
    "values",
    [
        [1e20, 0.0],
        [1e20, 3e19],
        [1e15, 1e11],
        [-9999.0, -9000.0, 9000.0],
        [50.0, 20.0, -999.0, 3.0, *[0.0] * 7, 1.0],
        [-999.0],
        [999.0, 1.2],
        [9999.0, 9998.0, 1.0],
    ],
)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_field_that_has_the_size_of_a_fill_value_is_one(values, dtype):
    """Such as a density of 1e20 inside and none outside."""
    fields = np.resize(values, (1, 2, 3, 4)).astype(dtype)
    Encoder(SPEC, 1).convert(SPEC.dataset(fields, SPEC.times[:1], {}), 0)


@pytest.mark.parametrize("place", ["attrs", "encoding"])
@pytest.mark.parametrize("name", ["_FillValue", "missing_value"])
def test_a_fill_value_that_is_declared_is_one(name, place):
    """Once and amid the others, too; of packed values it is no fill value as read."""
    for fill, words in ((17.0, "step 0.*17"), ([5, 40], "step 1.*40"), ("17", "")):
        data = dataset(0, 2)
        getattr(data["speed"], place).update({name: fill})
        if words:
            words += " at 1 of 12"
            with pytest.raises(SpecMismatch, match=f"{words}.*Leave them out"):
                Encoder(SPEC, 1).convert(data, 0)
            data["speed"].encoding["scale_factor"] = 0.1
        if place == "encoding" or not words:
            Encoder(SPEC, 1).convert(data, 0)


def test_a_field_may_say_that_it_has_no_fill_value():
    """Then what looks like one is a value."""
    data = dataset(0, 1)
    data["speed"][0, :2] = -9999.0
    with pytest.raises(SpecMismatch, match="attrs"):
        Encoder(SPEC, 1).convert(data, 0)
    data["speed"].attrs["_FillValue"] = np.nan
    Encoder(SPEC, 1).convert(data, 0)


def test_a_masked_variable_is_nan_at_the_same_points_of_all_steps():
    """Not everywhere, and not infinite; what is declared to mark points becomes NaN."""
    spec = dataclasses.replace(SPEC, variables=(Variable("u", masked=True),))
    shape = (2, 1, 3, 4)
    data = spec.dataset(np.ones(shape), spec.times[:2], {})
    data["u"][:, 1] = np.nan
    encoder = Encoder(spec, 1)
    np.testing.assert_array_equal(
        np.isnan(encoder.convert(data, 0)[:, 0, :, 0]), [[False, True, False]] * 2
    )
    later = data.copy(deep=True).assign_coords(time=list(spec.times[2:4]))
    encoder.convert(later, 2)
    later["u"][1, 0] = np.nan
    with pytest.raises(
        SpecMismatch, match=r"step 3: .* the same 4 of 12.* 4 more and 0"
    ):
        encoder.convert(later, 2)
    for value, words in (
        (np.inf, "1 of 12 cells NaN or inf"),
        (1e300, "1 of 12 cells too large"),
        (9.969209968386869e36, "the fill value 9.96921e.36 at 1 of 12 .a mask"),
    ):
        wrong = data.copy(deep=True)
        wrong["u"][0, 0, 0] = value
        with pytest.raises(SpecMismatch, match=words):
            Encoder(spec, 1).convert(wrong, 0)
    with pytest.raises(SpecMismatch, match="12 of 12 cells NaN"):
        Encoder(spec, 1).convert(data * np.nan, 0)
    declared = data.fillna(1e20)
    declared["u"].attrs["_FillValue"] = 1e20
    assert np.isnan(Encoder(spec, 1).convert(declared, 0)).sum() == 8


def test_an_unmasked_variable_has_the_digest_that_it_had():
    masked = dataclasses.replace(SPEC, variables=(Variable("u", masked=True),))
    assert "masked" not in str(SPEC.to_plain())
    assert FieldSpec.from_plain(masked.to_plain()) == masked
    with pytest.raises(ArgumentError, match="masked: expected True or False, got 'no'"):
        Variable("u", masked="no")


@pytest.mark.parametrize("spec", [SPEC, LABELLED], ids=["none", "of others"])
def test_an_index_that_the_spec_does_not_have_must_ascend(spec):
    """Nothing says which of two orders is meant, and solvers may mix them."""
    if spec is LABELLED:  # without the coordinate of y
        spec = dataclasses.replace(spec, coordinates=spec.coordinates[:1])
    step = spec.dataset(np.zeros((1, 2, 3, 4)), spec.times[:1], {})
    encoder = Encoder(spec, 1)
    encoder.convert(step.assign_coords(y=[0, 1, 2, 4]), 0)
    encoder.convert(step.assign_coords(y=list("badc")), 0)
    for values in ([4, 2, 1, 0], [0, 2, 1, 4], [0, 1, 1, 2]):
        with pytest.raises(
            SpecMismatch, match=r"'y' expected.*ascend.*Coordinate\('y'"
        ):
            encoder.convert(step.assign_coords(y=values), 0)


@pytest.mark.parametrize("far", [0.0, 1e7], ids=["near zero", "far from it"])
def test_points_may_be_off_by_round_off_alone(far):
    """By a hundredth of their distance; by less than half where they are rounded."""
    y = far + np.arange(4.0)
    spec = dataclasses.replace(SPEC, coordinates=(Coordinate("y", "y", tuple(y)),))
    step = spec.dataset(np.zeros((1, 2, 3, 4)), spec.times[:1], {})
    little, much = (0.35, 0.45) if far else (0.009, 0.02)
    Encoder(spec, 1).convert(step.assign_coords(y=y[::-1] + little), 0)
    with pytest.raises(SpecMismatch, match="'y' expected the positions"):
        Encoder(spec, 1).convert(step.assign_coords(y=y[::-1] + much), 0)


LATITUDES = [0.0, 1.0, 2.5, 4.0]
GLOBE = dataclasses.replace(
    SPEC, dims=("i", "j"), coordinates=(Coordinate("lat", "j", LATITUDES),)
)


@pytest.mark.parametrize(
    ("coords", "words"),
    [
        ({"lat": (("i", "j"), np.tile(LATITUDES, (3, 1)))}, ""),
        ({"lat": (("j", "i"), np.tile(LATITUDES[::-1], (3, 1)).T)}, ""),
        (
            {"lat": (("i", "j"), np.arange(12.0).reshape(3, 4))},
            "'lat' expected numbers",
        ),
        (
            {"lat": ("i", [2.0, 1.0, 0.0])},
            r"'lat' expected numbers along 'j'.*\('i',\)",
        ),
        ({"lat": 3.0}, r"'lat' expected numbers along 'j'.*\(\)"),
        ({"latitude": ("j", LATITUDES[::-1])}, r"'latitude' .*ascend.*has 'lat'"),
        ({"latitude": ("j", LATITUDES)}, ""),
        ({"land": ("j", [0, 1, 1, 0])}, ""),
        ({"latitude": ("i", LATITUDES[2::-1])}, r"'latitude' .*Coordinate\('latitude'"),
        ({"lat": ("j", LATITUDES), "depth": ("j", LATITUDES[::-1])}, ""),
    ],
)
def test_coordinates_of_another_shape_or_name_are_looked_at(coords, words):
    """They put fields right, or are refused: a field is not taken as it lies."""
    fields = np.random.default_rng(1).normal(size=(1, 2, 3, 4))
    step = GLOBE.dataset(fields, SPEC.times[:1], {}).drop_vars("lat")
    encoder = Encoder(GLOBE, 1)
    encoder.convert(step, 0)  # what was right with one step is looked at again
    if words:
        with pytest.raises(SpecMismatch, match=f"step 0: coordinate {words}"):
            encoder.convert(step.assign_coords(coords), 0)
        return
    got = encoder.convert(step.assign_coords(coords), 0)
    turned = np.ravel(coords.get("lat", (0, [0]))[1])[0] == LATITUDES[-1]
    expected = fields[..., ::-1] if turned else fields
    np.testing.assert_array_equal(got, expected.astype(np.float32))


def test_points_of_another_number_are_named():
    """With the shape that was expected, whatever their coordinates."""
    with pytest.raises(
        SpecMismatch, match=r"shape \(2, 3, 4\) along .* got \(2, 3, 3\)"
    ):
        Encoder(dataclasses.replace(LABELLED, times=X[1:]), 1).convert(
            labelled().isel(y=slice(3)), 0
        )
