"""The monitor: a status a second, true to what it watches, that ends with the run."""

import csv
import io
import logging
import resource
import threading
from pathlib import Path

import pytest
import pytorch_lightning as L
from filled import SIMULATIONS, SPEC, Filled, fit
from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from surrogate_flow.report.boards import Boards
from surrogate_flow.report.folder.run_folder import FILES
from surrogate_flow.report.folder.tables import COLUMNS
from surrogate_flow.report.monitor import Clock, Monitor
from surrogate_flow.report.progress import ProgressLine

PAGE = Path(__file__).parents[2] / "docs" / "telemetry.md"
COUNTS = ("step", "samples", "inserted", "drawn", "evicted", "steps_received")


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Scripted(Clock):
    """A clock that the test sets; waits end with the run, or at once until `until`."""

    def __init__(self, until=0.0):
        self.time, self.until = 0.0, until
        self.there = threading.Event()

    def now(self):
        return self.time

    def wait(self, over, seconds):
        if self.time + seconds > self.until:
            self.there.set()
            return over.wait()
        self.time += seconds
        return over.is_set()


class Steady(L.Callback):
    """Each batch takes half a second, and is looked at."""

    def __init__(self, monitor, clock):
        self.monitor, self.clock = monitor, clock

    def on_train_batch_start(self, trainer, module, batch, index):
        self.clock.time += 0.5

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.monitor.sample()


def test_each_status_says_what_the_trainer_does(tmp_path):
    """Behind the monitor checkpoints are written and pictures drawn; at the end it is a fit."""
    monitor, stages = Monitor(tmp_path, clock=Scripted()), []

    def look(*_):
        stages.append(monitor.sample().training.stage)

    looks = LambdaCallback(on_train_batch_end=look, on_fit_end=look)
    _, trainer = fit(Filled(), tmp_path, monitor, looks)
    assert {*stages[:-1]} == {"fit"}
    assert stages[-1] == "fit, writing the report"
    assert monitor.statuses[-1].training.stage == "fit"
    monitor.on_validation_start(trainer)
    look()
    monitor.on_validation_end(trainer)
    look()
    assert stages[-2:] == ["fit, validating", "fit, saving"]


def test_the_last_row_is_what_the_run_came_to(tmp_path):
    """All counts are those of the store and the trainer; none ever falls."""
    clock, data = Scripted(), Filled()
    monitor = Monitor(tmp_path, clock=clock)
    data.waiting = "trainer waits: for nothing, really"
    _, trainer = fit(data, tmp_path, monitor, Steady(monitor, clock))
    rows = rows_of(tmp_path / "telemetry.csv")
    assert list(rows[0]) == list(COLUMNS)
    last = rows[-1]
    samples = SIMULATIONS * data.window.samples(SPEC.steps)
    assert trainer.global_step == len(rows) - 1
    assert int(last["step"]) == trainer.global_step
    for name in ("samples", "inserted", "drawn"):
        assert int(last[name]) == samples
    assert (last["population"], last["unseen"]) == ("0", "0")
    # Behind the last batch nobody waits.
    assert (rows[-2]["waiting"], last["waiting"]) == (data.waiting, "")
    assert last["simulations_done"] == last["bytes_read"] == ""
    for name in COUNTS:
        values = [int(row[name] or 0) for row in rows]
        assert values == sorted(values)
    # Four samples each half second; the pace of the training stays the last one.
    paces = [float(row["samples_per_second"]) for row in rows]
    assert paces[2:-2] == [8.0] * (len(rows) - 4)
    assert paces[-1] == pytest.approx(8.0, abs=2)
    assert float(last["seconds"]) == trainer.global_step / 2
    assert float(last["loss"]) > 0


def test_the_page_has_every_column():
    """In the order of the file, with the words of the code."""
    page, _, others = PAGE.read_text().partition("## Loggers")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for pattern in FILES:
        assert f"| `{pattern.replace('*', '')}`" in others
    assert rows == [f"| `{name}` | {c.meaning} |" for name, c in COLUMNS.items()]


def test_an_hour_is_at_most_3600_rows(tmp_path):
    """One a second and a last one; memory holds the newest of them only."""
    clock = Scripted(until=3600.0)
    monitor = Monitor(tmp_path, kept=100, clock=clock)
    trainer, module = L.Trainer(logger=False, accelerator="cpu"), L.LightningModule()
    # As a wait takes a little longer than it was asked for.
    clock.time = 0.001
    monitor.setup(trainer, module, "fit")
    assert clock.there.wait(60)
    monitor.teardown(trainer, module, "fit")
    rows = rows_of(tmp_path / "telemetry.csv")
    assert 3500 < len(rows) <= 3600
    assert len(monitor.statuses) == 100
    assert monitor.statuses[-1].seconds == float(rows[-1]["seconds"])


def raising(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("way", ["end", "error", "Ctrl-C", "setup", "moments"])
def test_it_ends_with_the_run(way, tmp_path):
    """Whatever ends it, no thread is left, and what there was has its last row."""
    data, last = Filled(), L.Callback()
    if way == "error":
        last.on_train_batch_end = raising(ZeroDivisionError())
    if way == "Ctrl-C":
        last.on_train_batch_end = raising(KeyboardInterrupt())
    if way == "setup":
        data.setup = raising(ZeroDivisionError())
    if way == "moments":
        data.moments = raising(ZeroDivisionError())
    try:
        fit(data, tmp_path, Monitor(tmp_path), last)
    except (ZeroDivisionError, SystemExit, KeyboardInterrupt):
        assert way != "end"
    assert "monitor" not in [thread.name for thread in threading.enumerate()]
    path = tmp_path / "telemetry.csv"
    if way == "setup":
        assert not path.exists()
    else:
        drawn = data.store.stats().drawn
        assert int(rows_of(path)[-1]["drawn"]) <= drawn
        assert (drawn > 0) == (way != "moments")


def test_a_full_disk_costs_rows_and_no_more(tmp_path, caplog):
    """It is logged once; a row is there completely or not, and later ones come again."""
    clock = Scripted()
    monitor = Monitor(tmp_path, clock=clock)
    trainer, module = L.Trainer(logger=False, accelerator="cpu"), L.LightningModule()
    monitor.setup(trainer, module, "fit")
    path, before = tmp_path / "telemetry.csv", resource.getrlimit(resource.RLIMIT_FSIZE)
    monitor.sample()
    try:
        limit = path.stat().st_size + 10
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        with caplog.at_level(logging.ERROR):
            for clock.time in (1.0, 2.0, 3.0):
                monitor.sample()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caplog.text.count("telemetry.csv was not written") == 1
    clock.time = 4.0
    monitor.teardown(trainer, module, "fit")
    assert [row["seconds"] for row in rows_of(path)] == ["0.0", "4.0"]


def test_listeners_see_each_status_and_cannot_end_the_run(tmp_path, caplog):
    """The line has the last one; one that fails is logged, and left out from then on."""
    text = io.StringIO()
    line = ProgressLine(Console(file=text, width=200), every=60)
    seen = []
    events = TensorBoardLogger(tmp_path, name="", version="")
    clock = Scripted()
    boards = Boards(tmp_path)
    monitor = Monitor(tmp_path, [line, seen.append, boards], clock=clock)
    steady = Steady(monitor, clock)
    _, trainer = fit(Filled(), tmp_path, monitor, boards, line, steady, logger=events)
    assert seen == list(monitor.statuses)
    (printed,) = text.getvalue().splitlines()
    steps = trainer.global_step
    assert printed.startswith(f"fit | batch {steps} | loss ")
    assert printed.rstrip().endswith("reservoir 0/60 (seen 0, unseen 0)")
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    drawn = board.Scalars("telemetry/drawn")
    assert [event.value for event in drawn] == [s.store.drawn for s in seen]
    assert [event.step for event in drawn][-1] == steps

    clock = Scripted(until=1.0)
    folder = tmp_path / "other"
    monitor = Monitor(folder, [raising(ZeroDivisionError())], clock=clock)
    module = L.LightningModule()
    monitor.setup(trainer, module, "fit")
    assert clock.there.wait(60)
    monitor.teardown(trainer, module, "fit")
    assert caplog.text.count("gets no further status") == 1
    assert len(rows_of(folder / "telemetry.csv")) == 2


def test_a_table_of_another_version_goes_on(tmp_path):
    """Under a header that has the columns of both; the seconds go on, too."""
    path = tmp_path / "telemetry.csv"
    path.write_text("seconds,gone,step\r\n1.5,a,7\r\n40.25,b,8\r\n41.2")
    monitor = Monitor(tmp_path, clock=Scripted())
    fit(Filled(), tmp_path, monitor)
    first, second, *new = rows_of(path)
    assert (first["step"], second["gone"]) == ("7", "b")
    assert {*first} == {*COLUMNS, "gone"}
    assert new
    assert all(float(row["seconds"]) >= 40.25 and row["time"] for row in new)
