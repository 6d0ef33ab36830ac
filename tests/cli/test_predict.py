"""``surrogate-flow predict`` for tables and samples, into netCDF and Zarr."""

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
import pytorch_lightning as L
import torch
import xarray as xr
import zarr
from conventions import findings

from surrogate_flow import to_netcdf
from surrogate_flow.cli.app import main
from surrogate_flow.cli.predict import _drawn
from surrogate_flow.dataset import Archive, ArchiveError
from surrogate_flow.fields.window import Autoregressive
from surrogate_flow.nn import FullyConnected
from surrogate_flow.sampling import Halton, LatinHypercube, Sobol, Uniform
from surrogate_flow.solvers import Heat2D
from surrogate_flow.surrogate.surrogate import Surrogate

SOLVER = Heat2D(cells=(6, 4), steps=9)
SPEC = SOLVER.spec
NAMES = [p.name for p in SPEC.parameters]
ROWS = np.random.default_rng(0).uniform(100, 500, (20, 5)).round(2)
TABLE = {name: ROWS[:, k] for k, name in enumerate(NAMES)}
LABELS = [f"case {k}" for k in range(20)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A direct and an autoregressive surrogate, and their checkpoints."""
    folder = tmp_path_factory.mktemp("checkpoints")
    made = {}
    for name, window in (("direct", None), ("rolls", Autoregressive(2))):
        torch.manual_seed(0)
        surrogate = Surrogate(SPEC, FullyConnected, window=window)
        surrogate.normalisation.freeze(np.array([300.0]), np.array([80.0]))
        trainer = L.Trainer(logger=False, accelerator="cpu", default_root_dir=folder)
        trainer.strategy.connect(surrogate)
        trainer.save_checkpoint(folder / f"{name}.ckpt")
        made[name] = surrogate, f"--ckpt_path={folder / name}.ckpt"
    return made


@pytest.fixture
def predict(checkpoints, tmp_path, monkeypatch):
    """Call the command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words, of="direct"):
        main(["predict", checkpoints[of][1], *map(str, words)])

    call.surrogate = checkpoints["direct"][0]
    return call


def csv(path, units=True, rows=ROWS):
    header = ",".join(f"{name} [K]" if units else name for name in NAMES)
    lines = [",".join(map(str, row)) for row in rows.tolist()]
    named = [f"{name},{line}" for name, line in zip(LABELS, lines, strict=True)]
    path.write_text("\n".join([f",{header}", *named]))  # as pandas has it


def netcdf(path):
    columns = {name: ("row", values, {"units": "K"}) for name, values in TABLE.items()}
    xr.Dataset(columns, {"row": LABELS}).to_netcdf(path)


@pytest.mark.parametrize("write", [csv, netcdf])
@pytest.mark.parametrize("output", ["out.nc", "out.zarr"])
def test_a_table_gives_one_dataset(write, output, predict, tmp_path, capsys):
    """As Python does; a checker of CF finds nothing in it."""
    table = f"table.{write.__name__ if write is csv else 'nc'}"
    write(tmp_path / table)
    predict(f"--parameters={table}", f"--output={output}", "--batch_size=6")
    expected = predict.surrogate.predict({**TABLE, "id": LABELS})
    with xr.open_dataset(output, decode_coords="all") as got:
        np.testing.assert_allclose(got.temperature, expected.temperature, rtol=1e-5)
        assert got.temperature.dims == ("sample", "time", "x", "y")
        assert {*got.coords} == {*expected.coords}
        np.testing.assert_allclose(got.left, TABLE["left"])
        assert list(got.id.values) == LABELS
        np.testing.assert_allclose(got.time, SPEC.times)
        if output.endswith("zarr"):
            assert zarr.open_array(f"{output}/temperature").chunks == (6, 9, 6, 4)
            to_netcdf(got, "copy.nc")
    file = "copy.nc" if output.endswith("zarr") else output
    assert findings(tmp_path / file) == []
    said = " ".join(capsys.readouterr().out.split())
    assert f"{output}: temperature {{'sample': 20, 'time': 9, 'x': 6, 'y': 4}}" in said
    assert "predict | 20 of 20 samples" in said
    left = {"out.nc", "out.zarr", "copy.nc", table}
    assert {path.name for path in tmp_path.iterdir()} - left <= {f"{file}.json"}


def test_one_mapping_goes_to_zarr_too(predict):
    """Without the dim of samples; also of sequences."""
    one = {name: float(ROWS[0, k]) for k, name in enumerate(NAMES)}
    predict(f"--parameters={one}", "--output=one.zarr", "--times=[0.02, 0.035]")
    with xr.open_zarr("one.zarr") as got:
        expected = predict.surrogate.predict(one, [0.02, 0.035])
        np.testing.assert_allclose(got.temperature, expected.temperature, rtol=1e-5)
        assert got.temperature.dims == ("time", "x", "y")
    predict(f"--parameters={one | {'top': [200, 300]}}", "--output=two.nc")
    with xr.open_dataset("two.nc") as got:
        assert list(got.top) == [200, 300]


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("sobol", Sobol(3)),
        ("halton", Halton(3)),
        ("latin_hypercube", LatinHypercube(3, strata=16)),
        ("uniform", Uniform(3)),
    ],
)
def test_samples_are_drawn_within_the_bounds(name, sampler, predict):
    predict("--samples=16", f"--sampler={name}", "--seed=3", "--device=cpu")
    with xr.open_dataset("field.nc") as got:
        drawn = np.stack([got[n] for n in NAMES], axis=1)
    np.testing.assert_allclose(drawn, sampler.ask(0, 16, SPEC.parameters))


def test_samples_roll_out_from_one_history(predict, checkpoints):
    truth = xr.concat(SOLVER.solve(dict.fromkeys(NAMES, 300) | {"top": 400}), "time")
    first = truth.isel(time=slice(2)).assign_coords(left=ROWS[0, 1], bottom="a")
    first = first.drop_vars(["initial", "right"])
    to_netcdf(first, "first.nc")
    csv(Path("table.csv"))
    with pytest.warns(match="20 of 20 samples have another left, top."):
        predict("--parameters=table.csv", "--history=first.nc", of="rolls")
    expected = checkpoints["rolls"][0].predict(TABLE, history=first)
    with xr.open_dataset("field.nc") as got:
        np.testing.assert_allclose(got.temperature, expected.temperature, rtol=1e-5)


@pytest.mark.parametrize("output", ["out.nc", "out.zarr"])
def test_what_is_interrupted_leaves_nothing(
    output, predict, tmp_path, monkeypatch, capsys
):
    """In the middle of it: no file, no folder, no thread; and this is said."""
    forward, passes = FullyConnected.forward, []

    def interrupted(*args):
        passes.append(1)
        if len(passes) == 3:
            raise KeyboardInterrupt
        return forward(*args)

    monkeypatch.setattr(FullyConnected, "forward", interrupted)
    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        predict("--samples=8", "--batch_size=2", f"--output={output}")
    assert len(passes) == 3
    assert (
        f"{output} was not written: nothing is left of it." in capsys.readouterr().out
    )
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == threads


MISTAKES = {
    "unknown column": (
        ("100,200,300,200,300,1", ",".join([*NAMES, "lef"])),
        "table.csv: unknown column 'lef'. Did you mean 'left'? Valid names: "
        f"{', '.join(NAMES)}. Labels of rows go into a column 'id'.",
    ),
    "missing column": (
        ("100,200,300,200", ",".join(NAMES[:4])),
        "table.csv: expected a column for each parameter, and 'top' is one, got the",
    ),
    "units": (
        ("100,200,300,200,300", ",".join(NAMES).replace("left", "left [degC]")),
        "table.csv: left: expected the units of the spec, K, got degC",
    ),
    "NaN": (
        ("100,200,nan,200,300",),
        "table.csv, line 4: right: expected a finite number, got nan",
    ),
    "text": (
        ("100,warm,3,200,300",),
        "table.csv, line 4: left: expected a finite number, got warm",
    ),
    "nothing": (None, "table.csv: expected one row or more, got none"),
}


@pytest.mark.parametrize(("table", "message"), MISTAKES.values(), ids=MISTAKES)
@pytest.mark.parametrize("output", ["out.nc", "out.zarr"])
def test_a_mistake_in_a_table_is_one_line(
    table, message, output, predict, tmp_path, capsys
):
    """And nothing is written."""
    line, *header = table or ("",)
    names = header[0] if header else ",".join(NAMES)
    rows = ["", ",".join(["300"] * (names.count(",") + 1)), line] if table else []
    (tmp_path / "table.csv").write_text("\n".join([names, *rows]) + "\n")
    with pytest.raises(SystemExit) as ended:
        predict("--parameters=table.csv", f"--output={output}")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_other_mistakes_are_one_line(predict, tmp_path, capsys, monkeypatch):
    """A store that is there, no GPU, and netCDF that would not fit into memory.

    That is said before any sample is drawn.
    """
    drawn = Mock(wraps=_drawn)
    monkeypatch.setattr("surrogate_flow.cli.predict._drawn", drawn)
    (tmp_path / "there.zarr").mkdir()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: SimpleNamespace(available=1000)
    )
    for words, message in (
        (["--output=there.zarr"], "expected a new name, got one that exists. Remove"),
        (["--device=cuda"], "--device cuda: torch finds no GPU here."),
        (
            [],
            "2 samples at 9 times: expected what fits into free memory, 0.98 kiB, got",
        ),
        (["--batch_size=0", "--output=a.zarr"], "batch_size: expected a number >= 1"),
    ):
        with pytest.raises(SystemExit):
            predict("--samples=2", *words)
        assert message in capsys.readouterr().err
        assert drawn.called == ("--output=a.zarr" in words)
    assert [path.name for path in tmp_path.iterdir()] == ["there.zarr"]
    predict("--samples=2", "--output=fits.zarr")
    with pytest.raises(ArchiveError, match="a data set, got a prediction"):
        Archive(tmp_path / "fits.zarr")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    # As netCDF's library tells of a full disk.
    full = OSError(-101, "NetCDF: HDF error")
    monkeypatch.setattr(xr.Dataset, "to_netcdf", Mock(side_effect=full))
    for free, message in (
        (1000, "no space on its disk: expected 1.69 kiB free, got 0.98 kiB."),
        (2000, "cannot be written ([Errno -101] NetCDF: HDF error)"),
    ):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free)
        )
        with pytest.raises(SystemExit):
            predict("--samples=2")
        assert message in capsys.readouterr().err
