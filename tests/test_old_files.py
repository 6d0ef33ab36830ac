"""What earlier versions wrote still opens: tests/data has small files of each."""

import shutil
from pathlib import Path

import numpy as np
import programs
import pytest
import torch

from surrogate_flow import Archive, Surrogate
from surrogate_flow.fields.names import public_path
from surrogate_flow.nn import FNO
from surrogate_flow.report.callbacks import SafeCheckpoint

DATA = Path(__file__).parent / "data"
VERSIONS = sorted(DATA.glob("v*"))
CHECKPOINTS = [path for version in VERSIONS for path in version.glob("*.ckpt")]
WALLS = {"initial": 300.0, "left": 100.0, "right": 500.0, "bottom": 200.0, "top": 400.0}


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_a_checkpoint_predicts_what_it_did(path):
    surrogate = Surrogate.load(path)
    past = None
    if surrogate.window.inputs:
        values = 300 + np.arange(2 * 64, dtype=np.float32).reshape(2, 1, 8, 8)
        past = surrogate.spec.dataset(values, surrogate.spec.times[:2], WALLS)
    predicted = surrogate.predict(WALLS, history=past).temperature
    expected = np.load(path.with_name(f"{path.stem}.expected.npy"))
    np.testing.assert_allclose(predicted, expected, rtol=1e-4)
    page = surrogate._repr_html_()
    assert f"{surrogate.error:.2%}, relative L2" in page
    assert "temperature [K], on 8 x 8 (x, y)" in page
    assert "left: 100 to 500 K" in page
    assert f"{sum(w.numel() for w in surrogate.network.parameters()):,} weights" in page


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_every_shipped_network_has_a_checkpoint(version):
    recipes = [Surrogate.load(path).recipe for path in version.glob("*.ckpt")]
    kinds = {recipe["network"]["class_path"] for recipe in recipes}
    shipped = {"FNO", "FullyConnected", "MessagePassingSolver", "OnGrid", "UNet"}
    assert kinds == {f"surrogate_flow.nn.{name}" for name in shipped}


@pytest.mark.parametrize("name", ["fully_connected", "message_passing"])
@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_a_run_goes_on(version, name, tmp_path):
    shutil.copytree(version, tmp_path / "old")
    old = tmp_path / "old"
    done = programs.run(
        "fit",
        *("--data", old / "heat2d.yaml", "--model", old / f"{name}.yaml"),
        *("--ckpt_path", old / f"{name}.ckpt", "--trainer.max_steps", "6"),
        *("--data.checkpoint_reservoir", str(name == "fully_connected").lower()),
        *("--trainer.default_root_dir", tmp_path / "runs"),
        cwd=tmp_path,
    )
    assert "Going on:" in done.stdout
    assert "is gone" not in done.stdout
    (last,) = (tmp_path / "runs").rglob("last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 6


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_the_best_error_of_a_run_is_found_in_its_checkpoint(path, tmp_path):
    saved = torch.load(path, weights_only=True)["callbacks"]
    for monitor in ("val_relative_l2", None):
        callback = SafeCheckpoint(tmp_path, monitor=monitor)
        assert callback.state_key in saved


@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_a_data_set_is_read_and_trained_on(version, tmp_path):
    path = tmp_path / "heat2d.zarr"
    shutil.copytree(version / "heat2d.zarr", path)
    archive = Archive(path)
    assert archive.complete() == list(range(8))
    step = np.empty((archive.spec.steps, *archive.spec.step_shape), dtype=np.float32)
    assert "8 of 8 complete" in archive._repr_html_()
    archive.read(3, 0, step)
    assert np.isfinite(step).all()
    programs.run(
        *("fit", "--data", path, "--model", version / "fully_connected.yaml"),
        *("--trainer.max_steps", "2", "--trainer.default_root_dir", tmp_path / "runs"),
        cwd=tmp_path,
    )


def test_a_class_goes_by_the_package_that_exports_it():
    assert FNO.__module__ != "surrogate_flow.nn"
    assert public_path(FNO) == "surrogate_flow.nn.FNO"
