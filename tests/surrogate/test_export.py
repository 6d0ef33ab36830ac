"""An exported surrogate predicts what the surrogate does, in programs that have the file alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import pytorch_lightning as L
import torch
from torch import nn

from surrogate_flow import Autoregressive, Direct, Surrogate
from surrogate_flow.cli.app import main
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.spec import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.nn import (
    FNO,
    DeepONet,
    FullyConnected,
    MessagePassingSolver,
    OnGrid,
    UNet,
)
from surrogate_flow.solvers import Heat2D
from surrogate_flow.surrogate.export import Exported, export

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
WALLS = {"initial": 300, "left": 100, "right": 500, "bottom": 200, "top": 400}
TRIANGLES = ((0, 1, 2), (1, 2, 3), (2, 3, 4))
PLACES = tuple(
    Coordinate(name, "node", values)
    for name, values in (("x", (0, 1, 0, 1, 0)), ("y", (0, 0, 1, 1, 2)))
)


def spec_of(*shape, **more):
    """Two variables, one of which single precision would spoil; steps of several lengths."""
    return FieldSpec(
        parameters=(
            Parameter("rate", 1, 3, "1/s"),
            Parameter("waves", 1, 9, whole=True),
        ),
        variables=(
            # Torch has operators of these names.
            Variable("add", "m/s"),
            Variable("mean pressure", "Pa", offset=1e5, scale=10.0),
        ),
        dims=("x", "y", "z")[: len(shape)],
        shape=shape,
        times=(0.5, 1.0, 2.5, 3.0, 4.0, 4.5, 6.0),
        time_units="s",
        **more,
    )


MESH = FieldSpec(
    parameters=(Parameter("a", 0, 1),),
    variables=(Variable("u"),),
    dims=("node",),
    shape=(5,),
    times=(0, 1, 2, 3, 4),
    coordinates=PLACES,
    cells=TRIANGLES,
)
LINE, PLANE, SPACE, NUMBERS = map(lambda s: spec_of(*s), ((7,), (6, 5), (4, 3, 5), ()))
INPUTS = (Variable("a", "1/m"), Variable("p", "Pa", offset=1e5))
STEP, BUNDLE = Autoregressive(), Autoregressive(inputs=2, outputs=3)
SMALL = partial(FullyConnected, widths=(8,))
FOURIER = partial(FNO, modes=3, width=4, layers=1)
SENSORS = partial(DeepONet, branch=(8,), trunk=(8, 4))
LEVELS = partial(UNet, widths=(2, 4))
NODES = partial(MessagePassingSolver, width=8, layers=1)
ANY = partial(OnGrid, module="torch.nn.Conv2d", arguments={"kernel_size": 1})

CASES = {
    "fully connected, from step to step": (SMALL, PLANE, STEP),
    "fno, 1D, padded": (partial(FOURIER, padding=0.2), LINE, BUNDLE),
    "fno, 2D": (FOURIER, PLANE, Direct()),
    "fno, of input fields": (FOURIER, spec_of(6, 5, inputs=INPUTS), STEP),
    "deeponet, at one time": (
        SENSORS,
        replace(spec_of(6, 5, inputs=INPUTS), times=(1.0,)),
        Direct(),
    ),
    "deeponet": (SENSORS, MESH, STEP),
    "fno, 3D": (FOURIER, SPACE, Direct()),
    "unet, 2D, periodic": (partial(LEVELS, padding="circular"), PLANE, Direct()),
    "message passing": (NODES, MESH, BUNDLE),
    "a change": (SMALL, PLANE, BUNDLE, np.array([[0.3, 0.2], [0.6, 0.4], [0.9, 0.6]])),
    "on grid": (ANY, PLANE, BUNDLE),
}
MORE = {
    "fully connected": (SMALL, NUMBERS, Direct()),
    "unet, 1D": (LEVELS, LINE, BUNDLE),
    "message passing, direct": (NODES, PLANE, Direct()),
}


def surrogate_of(network, spec, window, sizes=None):
    """One with the moments of fields that are far from order one."""
    torch.manual_seed(0)
    predicts = "field" if sizes is None else "change"
    surrogate = Surrogate(spec, network, window=window, predicts=predicts)
    count = len(spec.variables)
    surrogate.normalisation.freeze(np.full(count, 20.0), np.full(count, 3.0))
    if sizes is not None:
        surrogate.normalisation.freeze_changes(sizes)
    return surrogate.eval()


def opened(path):
    """What a program has that has the file alone: names to arrays, and a description."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path)
        names = [output.name for output in session.get_outputs()]
        text = session.get_modelmeta().custom_metadata_map["surrogate_flow"]
        return lambda inputs: dict(
            zip(names, session.run(None, inputs), strict=True)
        ), text
    extra = {"surrogate_flow.json": ""}
    module = torch.export.load(path, extra_files=extra).module()

    def predict(inputs):
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        return {name: field.numpy() for name, field in module(tensors).items()}

    return predict, extra["surrogate_flow.json"]


@pytest.mark.parametrize("format", ["pt2", "onnx"])
@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=name) for name, case in CASES.items()),
        *(
            pytest.param(case, id=name, marks=pytest.mark.bench)
            for name, case in MORE.items()
        ),
    ],
)
def test_a_file_predicts_what_the_surrogate_does(case, format, tmp_path):
    """By names and in units of the spec, in a batch of a size that was never tried."""
    _, spec, window, *_ = case
    surrogate = surrogate_of(*case)
    path = tmp_path / f"some.{format}"
    assert export(surrogate, path, format) < 1e-5
    assert [*tmp_path.iterdir()] == [path]
    predict, text = opened(path)
    described = json.loads(text)
    chance = np.random.default_rng(0)
    rows = [{p.name: p.at(chance.random()) for p in spec.parameters} for _ in range(5)]
    inputs = {p.name: [row[p.name] for row in rows] for p in spec.parameters}
    inputs["time"] = chance.uniform(spec.times[0], spec.times[-1], 5)
    pasts = []
    if window.inputs:
        inputs["time"][:] = spec.times[window.inputs]
        shape = (5, window.inputs, *spec.step_shape)
        stored = (20 + 3 * chance.standard_normal(shape)).astype(np.float32)
        for row, steps in zip(rows, stored, strict=True):
            known = spec.times[: window.inputs]
            pasts.append(spec.dataset(spec.physical(steps), known, row))
        for v in spec.variables:
            inputs[f"{v.name}_history"] = np.stack([past[v.name] for past in pasts])
    given = [{} for _ in rows]
    for v in spec.inputs:
        inputs[v.name] = v.offset + chance.standard_normal((5, *spec.shape))
        for number, fields in enumerate(given):
            fields[v.name] = inputs[v.name][number]
    types = {entry["name"]: entry["dtype"] for entry in described["inputs"]}
    fields = predict({name: np.array(inputs[name], types[name]) for name in types})
    for number, row in enumerate(rows):
        if window.inputs:
            known = spec.times[window.inputs : window.inputs + window.outputs]
            expected = surrogate.predict(
                row, known, pasts[number], inputs=given[number] or None
            )
        else:
            times = inputs["time"][number : number + 1]
            fields_given = given[number] or None
            expected = surrogate.predict(row, times, inputs=fields_given).isel(time=0)
        for v, entry in zip(spec.variables, described["outputs"], strict=True):
            assert (entry["name"], entry["units"]) == (v.name, v.units)
            assert entry["dtype"] == fields[v.name].dtype
            assert ["batch", *fields[v.name].shape[1:]] == entry["shape"]
            size = float(np.abs(expected[v.name] - v.offset).max())
            np.testing.assert_allclose(
                fields[v.name][number], expected[v.name], rtol=0, atol=1e-5 * size
            )
    assert FieldSpec.from_plain(described["spec"]) == spec
    bounds = {
        e["name"]: (e["low"], e["high"]) for e in described["inputs"] if "low" in e
    }
    assert bounds == {
        **{p.name: (p.low, p.high) for p in spec.parameters},
        "time": (spec.times[0], spec.times[-1]),
    }


def test_times_that_single_precision_cannot_tell_apart_are_double():
    """And only those."""
    spec = Heat2D(cells=(4, 4), steps=3).spec
    late = FieldSpec(**{**vars(spec), "times": (1e6, 1e6 + 0.5, 1e6 + 1)})
    for each, expected in ((spec, "float32"), (late, "float64")):
        entries = Exported(surrogate_of(SMALL, each, Direct())).inputs()
        assert [e["dtype"] for e in entries] == ["float32"] * 5 + [expected]


class Linear(nn.Module):
    """A network as users write them; subclasses change what it returns."""

    def __init__(self, spec, window):
        super().__init__()
        self.shape = (window.outputs, *spec.step_shape)
        self.linear = nn.Linear(len(spec.parameters), int(np.prod(self.shape)))

    def forward(self, parameters, step, history):
        out = self.linear(parameters).reshape(-1, *self.shape)
        return self.changed(out + 0 * step.reshape(-1, *(1 for _ in self.shape)))


class Bessel(Linear):
    def changed(self, out):
        return torch.special.bessel_j0(out)


class Branch(Linear):
    def changed(self, out):
        return out if out.sum() > 0 else -out


class Counted(Linear):
    def changed(self, out):
        return out.reshape(len(out), *self.shape)


class Noisy(Linear):
    def changed(self, out):
        return out + torch.rand_like(out)


@pytest.mark.parametrize(
    ("network", "format", "expected"),
    [
        (
            Bessel,
            "onnx",
            r"ONNX, which has no operator prims.bessel_j0.*pt2. At .*test_export.py:\d+, in ",
        ),
        (
            Branch,
            "pt2",
            r"depends on the values of a tensor.*torch.where.*out.sum\(\) > 0",
        ),
        (Counted, "onnx", r"takes batches of one size.*x.shape\[0\]"),
        (Noisy, "pt2", "differs from the surrogate by .*random numbers"),
    ],
)
def test_a_network_that_cannot_be_exported_is_named(
    network, format, expected, tmp_path
):
    """What it does, at which line, and what to do; the file that was there stays."""
    path = tmp_path / f"some.{format}"
    path.write_text("before")
    surrogate = surrogate_of(network, Heat2D(cells=(3, 3), steps=3).spec, Direct())
    with pytest.raises(UserError, match=expected):
        export(surrogate, path, format)
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_text() == "before"


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    """With the line that installs it; the other format needs none."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    surrogate = surrogate_of(SMALL, NUMBERS, Direct())
    with pytest.raises(ImportError, match="pip install onnx onnxscript onnxruntime"):
        export(surrogate, tmp_path / "some.onnx", "onnx")
    export(surrogate, tmp_path / "some.pt2", "pt2")


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path):
    """Such as one in a folder that is none."""
    surrogate = surrogate_of(SMALL, NUMBERS, Direct())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written .*name another file"):
        export(surrogate, tmp_path / "file" / "some.pt2", "pt2")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with what the page exports: a direct surrogate, and one that rolls out."""
    folder = tmp_path_factory.mktemp("exported")
    spec = Heat2D(cells=(8, 6), steps=6).spec
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, window in (("surrogate", Direct()), ("step", BUNDLE)):
            surrogate = surrogate_of(SMALL, spec, window)
            trainer = L.Trainer(logger=False, accelerator="cpu")
            trainer.strategy.connect(surrogate)
            trainer.save_checkpoint(f"{name}.ckpt")
            for format in ("onnx", "pt2"):
                main(
                    [
                        "export",
                        f"--ckpt_path={name}.ckpt",
                        f"--format={format}",
                        f"--output={name}.{format}",
                    ]
                )
    return folder


def test_the_python_of_the_page_runs(files, monkeypatch):
    """It predicts what the surrogate does; the rollout goes on to the last step."""
    monkeypatch.chdir(files)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 3
    surrogate = Surrogate.load("surrogate.ckpt")
    for block in blocks[:2]:
        names = {}
        exec(block, names)
        expected = surrogate.predict(WALLS, names["times"].tolist()).temperature
        np.testing.assert_allclose(np.asarray(names["fields"]), expected, rtol=1e-5)
    step = Surrogate.load("step.ckpt")
    history = 20 + np.random.default_rng(0).random((2, 8, 6), dtype=np.float32)
    names = {"first_fields": history}
    exec(blocks[2], names)
    past = step.spec.dataset(history[:, None], step.spec.times[:2], WALLS)
    expected = step.predict(WALLS, history=past).temperature
    np.testing.assert_allclose(names["fields"][0], expected, rtol=1e-5)


def header():
    """The folder of ONNX Runtime's header, on CPATH or where systems have it."""
    places = os.environ.get("CPATH", "").split(os.pathsep)
    places += [
        f"{p}/include{q}" for p in ("/usr", "/usr/local") for q in ("/onnxruntime", "")
    ]
    found = (
        Path(p) for p in places if p and (Path(p) / "onnxruntime_c_api.h").is_file()
    )
    return next(found, None)


def test_the_c_of_the_page_runs(files, tmp_path, monkeypatch):
    """Compiled with the header of ONNX Runtime, and linked with the library of its wheel."""
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"```c\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(program.splitlines()) <= 40
    if header() is None or shutil.which("cc") is None:
        pytest.skip("no onnxruntime_c_api.h on CPATH or in /usr, or no C compiler")
    Path("predict.c").write_text(program)
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        Path(name).symlink_to(library)
    words = ("-Wall", "-Werror", "predict.c", "-o", "predict", f"-I{header()}")
    link = ("-L.", "-lonnxruntime", "-Wl,-rpath,.")
    subprocess.run(["cc", *words, *link], check=True)
    shown = subprocess.check_output(["./predict", files / "surrogate.onnx"], text=True)
    field = Surrogate.load(files / "surrogate.ckpt").predict(WALLS, [0.02]).temperature
    cells = np.reshape([*map(float, shown.split())], field.shape[1:])
    np.testing.assert_allclose(cells, field[0], rtol=1e-5)
