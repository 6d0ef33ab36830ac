"""Predictions of a table of parameters: each row is what it is alone, in few passes."""

import dataclasses
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import xarray as xr

from surrogate_flow.fields.spec import FieldSpec, Parameter, Variable
from surrogate_flow.fields.window import Autoregressive, Direct
from surrogate_flow.nn import FullyConnected
from surrogate_flow.solvers import Heat2D
from surrogate_flow.surrogate.prediction import Prediction
from surrogate_flow.surrogate.surrogate import Surrogate

SOLVER = Heat2D(cells=(6, 4), steps=9)
SPEC = SOLVER.spec
NAMES = [p.name for p in SPEC.parameters]
ROWS = np.random.default_rng(0).uniform(100, 500, (7, 5)).round(2)
TABLE = {name: ROWS[:, k] for k, name in enumerate(NAMES)}
TRUTH = xr.concat(SOLVER.solve(dict.fromkeys(NAMES, 300) | {"top": 400}), "time")


def make(window, spec=SPEC):
    torch.manual_seed(0)
    surrogate = Surrogate(spec, FullyConnected, window=window)
    count = len(spec.variables)
    surrogate.normalisation.freeze(np.full(count, 300.0), np.full(count, 80.0))
    passes = []
    surrogate.network.register_forward_hook(
        lambda _, given, __: passes.append(len(given[1]))
    )
    return surrogate, passes


def named(row):
    return dict(zip(NAMES, row.tolist(), strict=True))


def one_by_one(surrogate, times, histories):
    rows = [
        surrogate.predict(named(row), times, history)
        for row, history in zip(ROWS, histories, strict=True)
    ]
    return xr.concat(rows, "sample")


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_a_row_is_what_it_is_alone(batch_size):
    """Direct: all pairs of a row and a time go through the network together."""
    surrogate, passes = make(Direct())
    times = [0.09, 0.035, 0.01]
    expected = one_by_one(surrogate, times, [None] * 7)
    passes.clear()
    got = surrogate.predict(TABLE, times, batch_size=batch_size)
    assert passes == {None: [21], 1: [3] * 7, 3: [9, 9, 3]}[batch_size]
    assert got.temperature.dims == ("sample", "time", "x", "y")
    one = surrogate.predict({name: np.array(300.0) for name in NAMES}, times)
    assert one.temperature.dims == ("time", "x", "y")
    assert list(got.sample) == list(range(7))
    np.testing.assert_allclose(got.temperature, expected.temperature, rtol=1e-5)
    np.testing.assert_allclose(got.time, times)
    for name in NAMES:
        assert got[name].dims == ("sample",)
        np.testing.assert_array_equal(got[name], TABLE[name])
        assert got[name].attrs["units"] == "K"


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("several", [False, True])
def test_rows_roll_out_together(several, batch_size):
    """From one history, or each from its own: as many passes as for one."""
    surrogate, passes = make(Autoregressive(2, 3))
    first = TRUTH.isel(time=slice(2))
    histories = [first + 10 * k * several for k in range(7)]
    expected = one_by_one(surrogate, [0.09, 0.05, 0.07], histories)
    passes.clear()
    history = xr.concat(histories, "sample") if several else first
    times = [0.09, 0.05, 0.07]
    got = surrogate.predict(TABLE, times, history, batch_size=batch_size)
    assert passes == ([7] * 3 if batch_size is None else [3] * 6 + [1] * 3)
    np.testing.assert_allclose(got.temperature, expected.temperature, rtol=1e-5)


def test_every_kind_of_table_gives_the_same():
    """A mapping, a DataFrame, a Dataset with its parameters as variables or coordinates."""
    surrogate, _ = make(Direct())
    expected = surrogate.predict(TABLE)
    frame = pd.DataFrame(TABLE)[NAMES[::-1]]
    along = {name: ("row", values, {"units": "K"}) for name, values in TABLE.items()}
    headed = frame.rename(columns="{} [K]".format)
    given = headed, xr.Dataset(along), xr.Dataset(coords=along)
    for table in (frame, *given, expected):
        if table is expected:
            table = table[NAMES]
        xr.testing.assert_identical(surrogate.predict(table), expected)
    assert (list(headed), headed.attrs) == ([f"{n} [K]" for n in NAMES[::-1]], {})
    names = [f"case {k}" for k in range(7)]
    assert "id" not in expected.coords
    for table in (
        frame.assign(id=names),
        frame.set_axis(names),
        {**TABLE, "id": names},
        xr.Dataset(along | {"id": ("row", names)}),
        xr.Dataset(along, {"row": names}),
    ):
        got = surrogate.predict(table)
        assert list(got.id) == names
        assert got.id.dims == ("sample",)
        xr.testing.assert_identical(got.drop_vars("id"), expected)
    assert list(surrogate.predict(frame[frame.left > 200]).id) == [
        k for k, value in enumerate(TABLE["left"]) if value > 200
    ]
    one = surrogate.predict({**TABLE, "top": 200})
    assert one.sizes["sample"] == 7
    assert (one.top == 200).all()
    alone = surrogate.predict(frame[:1])
    assert alone.sizes["sample"] == 1


def test_variables_with_an_offset_are_whole():
    """Several, in double precision where one has an offset."""
    spec = FieldSpec(
        (Parameter("a", 0, 1),),
        (Variable("p", "Pa", offset=101325, scale=1e-3), Variable("q")),
        (),
        (),
        (0.0, 1.0),
    )
    surrogate, _ = make(Direct(), spec)
    got = surrogate.predict({"a": [0.25, 0.75]})
    assert got.p.dims == ("sample", "time")
    for k, a in enumerate((0.25, 0.75)):
        alone = surrogate.predict({"a": a})
        np.testing.assert_allclose(got.p[k], alone.p, rtol=1e-9)
        np.testing.assert_allclose(got.q[k], alone.q, rtol=1e-5)


def with_units(table, **units):
    table = pd.DataFrame(table)
    table.attrs["units"] = units
    return table


def without(name):
    return {k: v for k, v in TABLE.items() if k != name}


SHORT = dict.fromkeys(NAMES, np.array([300.0, 200.0]))
FRAME = pd.DataFrame(TABLE, index=list("abcdefg"))
MISTAKES = {
    "unknown": ({**TABLE, "lef": ROWS[:, 0]}, "unknown column 'lef'. Did you mean"),
    "missing": (without("left"), r"'left' is one, got the columns initial, right, bot"),
    "twice": (pd.concat([FRAME, FRAME.top], axis=1), "different names, got two 'top'"),
    "units": (
        with_units(TABLE, left="degC"),
        "parameters: left: expected the units of the spec, K, got degC. Convert",
    ),
    "units of a column": (
        FRAME.rename(columns={"left": "left [degC]"}),
        "left: expected the units of the spec, K, got degC",
    ),
    "units of a Dataset": (
        xr.Dataset({n: ("sample", v, {"units": "m"}) for n, v in TABLE.items()}),
        "initial: expected the units of the spec, K, got m",
    ),
    "NaN": (
        {**SHORT, "top": [1, np.nan]},
        "index 1: top: expected a finite .* got nan",
    ),
    "text": ({**SHORT, "top": ["a", 1]}, "index 0: top: expected a finite .*, got a"),
    "index": (
        FRAME.assign(left=[*ROWS[:2, 1], np.nan, *ROWS[3:, 1]]),
        "parameters, index c: left: exp",
    ),
    "dates": (
        FRAME.assign(top=pd.Timestamp("2020-01-01")),
        "index a: top: .* got 2020",
    ),
    "empty": (
        pd.DataFrame(TABLE)[:0],
        "parameters: expected one row or more, got none",
    ),
    "lengths": ({**SHORT, "top": [1, 2, 3]}, "columns of one length .* got .*'top': 3"),
    "two dims": (
        xr.Dataset({n: (n, v) for n, v in TABLE.items()}),
        "a Dataset: expected one dim, such as 'sample', got",
    ),
    "a field among them": (
        xr.Dataset({n: ("sample", v) for n, v in TABLE.items()}).assign(t=1.0),
        "unknown column 't'",
    ),
}


@pytest.mark.parametrize(("table", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_a_table_are_named(table, message):
    with pytest.raises(ValueError, match=message):
        make(Direct())[0].predict(table)


def test_one_row_of_parameters_goes_with_many_input_fields():
    """As one field goes with many rows."""
    spec = dataclasses.replace(SPEC, inputs=(Variable("map"),))
    fields = np.stack([np.full(spec.shape, k) for k in (0.0, 1.0)])
    surrogate, _ = make(Direct(), spec)
    several = surrogate.predict(named(ROWS[0]), inputs={"map": fields})
    assert several.sizes["sample"] == 2
    for k in range(2):
        alone = surrogate.predict(named(ROWS[0]), inputs={"map": fields[k]})
        np.testing.assert_allclose(several.temperature[k], alone.temperature, rtol=1e-5)


def test_other_mistakes_are_named():
    """A batch of none, a history for other samples, a name that is taken."""
    surrogate, _ = make(Autoregressive(2))
    history = xr.concat([TRUTH.isel(time=slice(2))] * 2, "sample")
    with pytest.raises(ValueError, match="one for each of the 7 samples, got 2"):
        surrogate.predict(TABLE, history=history)
    with pytest.raises(ValueError, match="batch_size: expected a number >= 1, got 0"):
        surrogate.predict(TABLE, batch_size=0)
    spec = FieldSpec((Parameter("sample", 0, 1),), (Variable("u"),), (), (), (0.0,))
    with pytest.raises(ValueError, match="'sample', as is the dim of a table"):
        make(Direct(), spec)[0].predict({"sample": [0.0, 1.0]})


def test_one_warning_counts_what_lies_outside():
    """Of 7 rows 3: not a line for each."""
    table = {**TABLE, "left": [90, 900, 300, 300, 300, 300, 300], "top": [300] * 7}
    table["top"][6] = 501
    surrogate, _ = make(Direct())
    bounds = r"samples lies outside of \[100, 500\]"
    said = (
        rf"^left = 90 to 900 K in 2 of 7 {bounds}, and top = 501 K in 1 of 7 {bounds}: "
    )
    with pytest.warns(UserWarning, match=said) as w:
        surrogate.predict(table)
    assert len(w) == 1
    assert w[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        surrogate.predict(TABLE)


def test_a_wide_network_takes_fewer_samples_a_pass(monkeypatch):
    """On a CPU, where huge layers cost time and memory; it is tried on one sample."""
    monkeypatch.setattr("surrogate_flow.surrogate.prediction._FEWEST", 1)
    monkeypatch.setattr("surrogate_flow.surrogate.prediction._LAYER", 3 * 256)
    surrogate, passes = make(Direct())
    surrogate.predict(TABLE, times=[0.01])
    assert passes == [1, 3, 3, 1]


@pytest.mark.parametrize("limit", ["machine", "job"])
def test_what_does_not_fit_into_memory_is_refused(limit, monkeypatch):
    """Before anything is predicted; it is written part by part instead."""
    surrogate, passes = make(Direct())
    free = 7 * 9 * 24 * 4 - 1
    if limit == "machine":
        available = SimpleNamespace(available=free)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: available)
    else:
        held = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=10**9))
        monkeypatch.setattr(psutil, "Process", lambda: held)
        monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 10**9 + free)
    with pytest.raises(Exception, match=r"7 samples at 9 times.*--output field.zarr"):
        surrogate.predict(TABLE)
    assert not passes


def test_parts_are_bounded_whatever_is_large(monkeypatch):
    """By free memory: many samples are cut by samples, one large sample by times."""
    free = SimpleNamespace(available=2**20 * 4096)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    surrogate, _ = make(Direct())
    many = {name: np.full(10_000, 300.0) for name in NAMES}
    assert Prediction(surrogate, many).chunk == (2**20 // 24 // 9, 9)
    times = np.linspace(0.01, 0.09, 100_000)
    assert Prediction(surrogate, many, times).chunk == (1, 2**20 // 24)
    surrogate, _ = make(Autoregressive(2))
    rolled = Prediction(surrogate, many, history=TRUTH.isel(time=slice(2)))
    assert rolled.chunk == (10_000, 7)


@pytest.mark.parametrize("name", ["field.nc", "fields.zarr"])
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("CUDA out of memory. Tried", "batch_size .* below 7"),
        ("mat1 and mat2", "mat1"),
    ],
)
def test_an_error_of_the_network_is_none_of_the_file(name, said, expected, tmp_path):
    """It comes through; want of memory is said with what lowers it."""

    def fail(*_):
        raise RuntimeError(said)

    surrogate, _ = make(Direct())
    surrogate.network.register_forward_hook(fail)
    with pytest.raises(Exception, match=expected) as raised:
        surrogate.predict_to_file(tmp_path / name, TABLE)
    assert "cannot be written" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_network_sees_distributions_and_users_write_words():
    """Logarithms, central 95 % and indices to [-1, 1]; words and vectors in rows."""
    spec = FieldSpec(
        parameters=(
            Parameter("viscosity", 1e-4, 1e-2, log=True),
            Parameter("load", 0.0, 12.0, mean=4.0, std=1.0),
            Parameter("metal", choices=("steel", "copper", "brass")),
            Parameter("force", 0.0, 2.0, size=2),
        ),
        variables=(Variable("u"),),
        dims=(),
        shape=(),
        times=(1.0, 2.0),
    )
    surrogate, _ = make(Direct(), spec)
    raw = torch.tensor([[1e-3, 4 + 1.96, 2, 0, 1], [1e-4, 4 - 1.96, 0, 2, 0.5]])
    seen, _ = surrogate.normalisation.inputs(raw, torch.zeros(2))
    expected = [[0, 1, 1, -1, 0], [-1, -1, -1, 1, -0.5]]
    assert seen.numpy() == pytest.approx(np.array(expected), abs=1e-3)
    assert "logarithmic" not in surrogate.normalisation.state_dict()
    rows = {
        "viscosity": [1e-3, 1e-4],
        "load": 4.0,
        "metal": ["brass", "steel"],
        "force": [[0.0, 1.0], [2.0, 0.5]],
    }
    several = surrogate.predict(rows)
    assert several["metal"].values.tolist() == [2, 0]
    for k in range(2):
        named = {n: v if np.ndim(v) < 1 else v[k] for n, v in rows.items()}
        one = surrogate.predict(named)
        assert one["force[1]"] == rows["force"][k][1]
        np.testing.assert_allclose(one["u"], several["u"][k], rtol=1e-5)


def test_a_network_sees_the_time_of_uneven_steps():
    """From -1 to 1 in time, between steps too; a network of before sees the index."""
    times = (0.1, 0.2, 0.4, 0.8, 1.6)
    spec = FieldSpec((Parameter("a", 0, 1),), (Variable("u"),), (), (), times)
    surrogate, _ = make(Direct(), spec)
    steps = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 3.5])
    nothing = torch.zeros(6, 1)
    _, seen = surrogate.normalisation.inputs(nothing, steps)
    expected = [(t - 0.85) / 0.75 for t in (*times, 1.2)]
    assert seen.numpy() == pytest.approx(np.array(expected), abs=1e-6)
    state = surrogate.state_dict()
    again, _ = make(Direct(), spec)
    again.load_state_dict(state)
    one = {"a": 0.5}
    assert again.predict(one).equals(surrogate.predict(one))
    del state["normalisation.time_of_step"]
    old, _ = make(Direct(), spec)
    old.load_state_dict(state)
    _, seen = old.normalisation.inputs(nothing, steps)
    assert seen.tolist() == [-1, -0.5, 0, 0.5, 1, 0.75]
    raw = Surrogate(spec, FullyConnected, normalisation="none").normalisation
    assert raw.inputs(nothing, steps)[1].tolist() == steps.tolist()
    even, _ = make(Direct())
    assert "normalisation.time_of_step" not in even.state_dict()
