"""Telemetry, times seen and the newest field in TensorBoard, W&B and MLflow, offline."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from filled import Filled, fit
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_records import look, spec

from surrogate_flow.data.module import Status
from surrogate_flow.report import boards as boards_module
from surrogate_flow.report.boards import Boards, newest_picture
from surrogate_flow.report.folder.run_folder import RunFolder
from surrogate_flow.report.monitor import Monitor
from surrogate_flow.report.records import NewestFile, Records, Throttle

ROOT = Path(__file__).parents[2]


def recipe(name):
    """The arguments of a shipped recipe."""
    return yaml.safe_load((ROOT / f"models/loggers/{name}.yaml").read_text())[
        "init_args"
    ]


def run(folder, logger):
    """A fit whose logger has a status a batch, and a picture after the third."""
    records, boards = Records(folder), Boards(folder)
    records._paces, always = {}, Throttle(0.0, 1.0)
    boards._slow = boards._seen = always
    monitor = Monitor(folder, [records, boards])

    def each(trainer, *_):
        if trainer.global_step == 3:
            boards.on_validation_end(trainer)
        monitor.sample()

    callbacks = (records, boards, LambdaCallback(on_train_batch_end=each))
    _, trainer = fit(Filled(), folder, monitor, *callbacks, logger=logger)
    return trainer.global_step, monitor.statuses[-1].store


def test_tensorboard_has_it_all(tmp_path):
    """Scalars, the histogram with its counts, and one picture with fields in it."""
    events = TensorBoardLogger(tmp_path, name="", version="")
    step, store = run(tmp_path, events)
    board = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    board.Reload()
    assert board.Scalars("telemetry/drawn")[-1].value == store.drawn
    histogram = board.Histograms("telemetry/times_seen")[-1]
    assert histogram.step == step
    counts = dict(
        zip(
            histogram.histogram_value.bucket_limit,
            histogram.histogram_value.bucket,
            strict=True,
        )
    )
    assert counts[1.5] == store.times_seen[1] > 0
    (image,) = board.Images("newest")
    assert image.step == 3
    assert image.width > 1000
    assert len(image.encoded_image_string) > 10_000
    table = RunFolder(tmp_path).metrics
    assert not [name for name in table if "telemetry" in name]


def test_wandb_offline(tmp_path, monkeypatch):
    """By the shipped recipe: nothing leaves this machine until it is told to."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    options = {**recipe("wandb"), "save_dir": tmp_path}
    assert options["offline"]
    board = WandbLogger(**options)
    step, store = run(tmp_path, board)
    summary = board.experiment.summary
    assert summary["telemetry/drawn"] == store.drawn
    assert summary["trainer/global_step"] == step
    seen = summary["telemetry/times_seen"]
    assert list(seen["values"])[1] == store.times_seen[1]
    board.experiment.finish()
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    assert list(folder.glob("*.wandb"))
    (image,) = folder.glob("files/media/images/newest*.png")
    assert image.stat().st_size > 10_000


def test_mlflow_in_a_file(tmp_path):
    """By the shipped recipe, in a database beside: no server."""
    options = recipe("mlflow")
    assert options["tracking_uri"] == "sqlite:///mlflow.db"
    options["tracking_uri"] = f"sqlite:///{tmp_path}/mlflow.db"
    artifacts = tmp_path / "artifacts"
    board = MLFlowLogger(**options, artifact_location=artifacts.as_uri())
    step, store = run(tmp_path, board)
    metrics = board.experiment.get_run(board.run_id).data.metrics
    assert metrics["telemetry/drawn"] == store.drawn
    last = board.experiment.get_metric_history(board.run_id, "telemetry/step")[-1]
    assert last.value == last.step == step
    (image,) = artifacts.glob("*/artifacts/newest/3.png")
    assert image.stat().st_size > 10_000


def test_a_logger_that_fails_ends_no_run(tmp_path, caplog):
    """It is logged once; tables of the user's get no row a second."""

    class Failing(TensorBoardLogger):
        def log_metrics(self, metrics, step=None):
            if any(name.startswith("telemetry/") for name in metrics):
                raise ConnectionError("gone")

    table = CSVLogger(tmp_path, name="mine")
    run(tmp_path, [Failing(tmp_path), table])
    assert caplog.text.count("Failing gets no further telemetry") == 1
    assert "telemetry" not in json.dumps([*table.experiment.metrics_keys])


def test_a_server_that_does_not_answer_holds_up_nothing(caplog, monkeypatch):
    """Neither the thread that writes telemetry.csv, nor for long the end; it is said."""
    monkeypatch.setattr(boards_module, "_PATIENCE", 0.1)
    monkeypatch.setattr(boards_module, "_WAITING", 2)
    asked, answer = threading.Event(), threading.Event()

    class Hanging(Logger):
        name = version = "hanging"

        def log_hyperparams(self, *_):
            """Take nothing."""

        def log_metrics(self, *_):
            asked.set()
            assert answer.wait(60)

    boards = Boards(Path("nowhere"))
    boards._slow = Throttle(0.0, 1.0)
    trainer = SimpleNamespace(loggers=[Hanging()], global_step=1)
    boards.setup(trainer, None, "fit")
    caplog.set_level("INFO")
    for seconds in range(6):
        boards(Status(seconds=float(seconds)))
    assert asked.wait(60)
    boards.teardown()
    answer.set()
    for words in ("does not keep up", "Waiting for Hanging", "did not answer"):
        assert caplog.text.count(words) == 1


@pytest.mark.parametrize(
    ("spec", "axes"),
    [
        (spec((), variables=2), 4),
        (spec((30,)), 2),
        (spec((12, 8), variables=2), 2 * 6),
        (spec((8, 7, 6)), 6),
        (spec((30,), mesh=True), 6),
    ],
    ids=["0D", "1D", "2D", "3D", "mesh"],
)
def test_the_newest_field_is_drawn(spec, axes, tmp_path):
    """Maps of two dims, of a plane of three, and of meshes; curves of all others."""
    field = NewestFile(spec, 4, cut=("z",) if len(spec.dims) > 2 else ())
    seen, (truth, _) = look(spec, field)
    (tmp_path / "telemetry.csv").touch()
    field.write(seen, 1, tmp_path / "newest.nc")
    figure = newest_picture(RunFolder(tmp_path).newest)
    assert isinstance(figure, Figure)
    assert len(figure.axes) == axes
    figure.canvas.draw()
    if spec.dims == ("x",):
        np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), truth[-1, 0])
