"""Which parameters condition a network, and whether the time does."""

import json
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import pytorch_lightning as L
import torch
import xarray as xr

from surrogate_flow import Surrogate
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.spec import FieldSpec, Parameter, Variable
from surrogate_flow.fields.window import Autoregressive, Direct
from surrogate_flow.nn import FNO, FullyConnected
from surrogate_flow.solvers import (
    Combined1D,
    GrayScott2D,
    Heat2D,
    HeatPlate,
    Lorenz,
    NavierStokes2D,
)
from surrogate_flow.surrogate import checkpoint
from surrogate_flow.surrogate.export import export

SPEC = FieldSpec(
    parameters=(
        Parameter("speed", 1, 9, log=True),
        Parameter("wave", -1, 1, size=2, initial=True),
        Parameter("width", 0, 1, initial=True),
    ),
    variables=(Variable("u"),),
    dims=("x",),
    shape=(8,),
    times=(0.0, 1.0, 2.0, 4.0, 5.0),
)
POINT = {"speed": 2.0, "wave": [0.1, 0.2], "width": 0.3}
STEP = Autoregressive()
SMALL = partial(FullyConnected, widths=(8,))
WAVES = partial(FNO, modes=4, width=4, layers=1, positions=False)
PAST = xr.Dataset(
    {"u": (("time", "x"), np.sin(np.arange(8.0))[None])}, coords={"time": [0.0]}
)


def surrogate_of(conditions=None, window=STEP, network=SMALL, **more):
    torch.manual_seed(0)
    surrogate = Surrogate(SPEC, network, window=window, conditions=conditions, **more)
    if not surrogate.normalisation.frozen:
        surrogate.normalisation.freeze(np.zeros(1), np.ones(1))
    return surrogate.eval()


def called(surrogate, parameters, step):
    """What it predicts of one sample."""
    history = torch.linspace(-1, 1, 8).reshape(1, 1, 1, 8)[:, : surrogate.window.inputs]
    vector = torch.from_numpy(SPEC.vector({**POINT, **parameters})).float()[None]
    with torch.no_grad():
        return surrogate(vector, torch.tensor([float(step)]), history)


@pytest.mark.parametrize("network", [SMALL, WAVES], ids=["fully connected", "fno"])
@pytest.mark.parametrize("normalisation", ["standard", "none"])
@pytest.mark.parametrize(
    ("conditions", "seen"),
    [
        (None, {"speed", "time"}),
        ([], set()),
        (["time"], {"time"}),
        (["wave"], {"wave"}),
        (["wave[1]", "time", "width"], {"wave[1]", "width", "time"}),
        (["speed", "wave", "width", "time"], {"speed", "wave", "width", "time"}),
    ],
)
def test_a_prediction_depends_on_what_is_seen_alone(
    conditions, seen, normalisation, network
):
    """The law of conditions, of each parameter and of the time."""
    surrogate = surrogate_of(conditions, network=network, normalisation=normalisation)
    first = called(surrogate, {}, 1)
    others = {
        "speed": called(surrogate, {"speed": 3.0}, 1),
        "wave[0]": called(surrogate, {"wave": [0.9, 0.2]}, 1),
        "wave[1]": called(surrogate, {"wave": [0.1, 0.9]}, 1),
        "width": called(surrogate, {"width": 0.9}, 1),
        "time": called(surrogate, {}, 3),
    }
    for name, other in others.items():
        depends = not torch.equal(other, first)
        assert depends == bool({name, name.partition("[")[0]} & seen), name


def test_by_default_a_history_stands_for_what_makes_the_initial_state():
    """Without one the network sees all."""
    every = ["speed", "wave[0]", "wave[1]", "width", "time"]
    assert surrogate_of(window=Direct()).recipe["conditions"] == every
    surrogate = surrogate_of()
    assert surrogate.recipe["conditions"] == ["speed", "time"]
    assert "conditions: speed, time; not wave, width" in repr(surrogate)
    assert "conditions: wave[1]; not speed, wave[0]," in repr(surrogate_of(["wave[1]"]))


@pytest.mark.parametrize(
    ("conditions", "window", "said"),
    [
        (["sped"], STEP, "there is no 'sped'. Did you mean 'speed'?"),
        (["time", "wave[2]"], STEP, "Did you mean 'wave"),
        (["speed"], Direct(), "expected 'time' among them, to predict 5 times"),
    ],
)
def test_mistakes_are_refused(conditions, window, said):
    with pytest.raises(UserError, match=said):
        surrogate_of(conditions, window)


def test_a_flag_of_a_parameter_is_none_of_the_fields():
    """A spec keeps its digest with it, and its plain form without it."""
    without = replace(
        SPEC, parameters=tuple(replace(p, initial=False) for p in SPEC.parameters)
    )
    assert without.digest() == SPEC.digest()
    assert "initial" not in json.dumps(without.to_plain())
    assert FieldSpec.from_plain(SPEC.to_plain()) == SPEC != without
    with pytest.raises(UserError, match="initial: expected true or false"):
        Parameter("a", 0, 1, initial="yes")


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        (Heat2D(cells=(4, 4)), ["initial"]),
        (HeatPlate(cells=(16, 3)), ["initial"]),
        (Lorenz(), ["x0", "y0", "z0"]),
        (GrayScott2D(cells=8, spots=1), ["w", "x_1", "y_1"]),
        (NavierStokes2D(points=16, modes=2), ["mode_1", "mode_2"]),
        (Combined1D(cells=4), []),  # its waves are the source, too
    ],
    ids=lambda value: type(value).__name__,
)
def test_shipped_solvers_say_what_makes_their_initial_state(solver, expected):
    assert [p.name for p in solver.spec.parameters if p.initial] == expected


def test_what_is_not_seen_may_be_left_out():
    """Of one sample, of a table and of a dataset; the prediction is the same."""
    surrogate = surrogate_of()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = surrogate.predict(POINT, history=PAST)
        some = surrogate.predict({"speed": 2.0}, history=PAST)
        table = surrogate.predict(pd.DataFrame({"speed": [2.0, 3.0]}), history=PAST)
    xr.testing.assert_identical(some, whole.drop_vars(["wave[0]", "wave[1]", "width"]))
    # A batch of another size is summed up in another order.
    np.testing.assert_allclose(table.u[0], some.u, rtol=1e-5)
    assert not np.allclose(table.u[1], some.u, rtol=1e-3)
    again = surrogate.predict(table[["speed"]], history=PAST)
    np.testing.assert_array_equal(again.u, table.u)
    alone = surrogate_of([]).predict({}, history=PAST)
    assert alone.sizes == {"time": 4, "x": 8}
    with pytest.raises(UserError, match="Missing parameters"):
        surrogate.predict({"wave": [0.1, 0.2]}, history=PAST)
    with pytest.raises(UserError, match="Unknown parameter 'sped'"):
        surrogate.predict({"speed": 2.0, "sped": 1.0}, history=PAST)


def saved(surrogate, path):
    trainer = L.Trainer(logger=False, accelerator="cpu", default_root_dir=path.parent)
    trainer.strategy.connect(surrogate)
    trainer.save_checkpoint(path)
    return path


@pytest.mark.parametrize("conditions", [None, [], ["wave", "time"]], ids=str)
def test_a_checkpoint_keeps_them(conditions, tmp_path):
    surrogate = surrogate_of(conditions)
    loaded = Surrogate.load(saved(surrogate, tmp_path / "a.ckpt"))
    assert loaded.conditions == surrogate.conditions
    assert torch.equal(called(loaded, {}, 2), called(surrogate, {}, 2))


def test_a_run_goes_on_with_those_of_its_checkpoint(tmp_path):
    """Unless the recipe chooses others, which are refused; a flag of a spec is no other."""
    old = surrogate_of(["speed", "wave", "width", "time"])
    recipe, state = checkpoint.read(saved(old, tmp_path / "a.ckpt"))
    for parameter in recipe["spec"]["parameters"]:
        parameter.pop("initial", None)  # of a version that had none
    present, own = surrogate_of(), surrogate_of(["time"])
    for surrogate in (present, own):
        surrogate.take_conditions(recipe["conditions"])
    checkpoint.require_same(present.recipe, {checkpoint.KEY: recipe})
    present.load_state_dict(state)
    assert torch.equal(called(present, {}, 2), called(old, {}, 2))
    with pytest.raises(UserError, match=r"of other conditions: .* --model.conditions"):
        checkpoint.require_same(own.recipe, {checkpoint.KEY: recipe})


@pytest.mark.parametrize(
    ("conditions", "names", "format"),
    [
        (None, ["speed", "time", "u_history"], "onnx"),
        ([], ["u_history"], "onnx"),
        ([], ["u_history"], "pt2"),
        (["wave[1]"], ["wave[1]", "u_history"], "pt2"),
    ],
    ids=str,
)
def test_an_exported_file_takes_what_is_seen_alone(conditions, names, format, tmp_path):
    path = tmp_path / f"surrogate.{format}"
    assert export(surrogate_of(conditions), path, format) < 1e-5
    if format == "onnx":
        session = onnxruntime.InferenceSession(path)
        assert [given.name for given in session.get_inputs()] == names
