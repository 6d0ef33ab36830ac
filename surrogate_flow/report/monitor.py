"""The state of a run, once a second: in memory, in a table, and to listeners."""

from __future__ import annotations

import csv
import io
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytorch_lightning as L
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_only

from surrogate_flow.data.module import RunCallback, Status, TrainingStats, data_of
from surrogate_flow.fields.window import monitored
from surrogate_flow.files import (
    log_unwritten,
    observing,
    write_atomically,
)
from surrogate_flow.report.folder.tables import COLUMNS
from surrogate_flow.threads import LoudThread

__all__ = ["Clock", "MetricsTable", "Monitor", "StatusListener", "telemetry"]

logger = logging.getLogger(__name__)

_INTERVAL = 1.0  # seconds between two statuses
_WINDOW = 5.0  # seconds over which samples/s is averaged


class StatusListener(Protocol):
    """Receives each `Status`, such as the progress line does."""

    def __call__(self, status: Status) -> None:
        """Take one; called in the monitor's thread, and so must be quick."""


class Clock:
    """The time, and a wait that an event ends."""

    def now(self) -> float:
        """Return the time in seconds, from any beginning."""
        return time.monotonic()

    def wait(self, over: threading.Event, seconds: float) -> bool:
        """Wait for so long at most; return whether the event is set."""
        return over.wait(seconds)


class Monitor(RunCallback):
    """Makes one `Status` a second while Lightning runs, and a last one at its end.

    Each goes into a ring of bounded length, into telemetry.csv (telemetry_1.csv for
    rank 1), and to the listeners, such as the progress line and the loggers.
    What the surrogate logs goes into metrics.csv beside it.

    Parameters
    ----------
    folder : Path
        Of the run.
    listeners : sequence of StatusListener
    kept : int
        Length of the ring.
    clock : Clock, optional

    Attributes
    ----------
    statuses : deque of Status
        The ring, the newest last.
    """

    def __init__(
        self,
        folder: Path,
        listeners: Sequence[StatusListener] = (),
        *,
        kept: int = 600,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(folder)
        self.statuses: deque[Status] = deque(maxlen=kept)
        self._listeners = list(listeners)
        self._clock = clock or Clock()
        self._begin = self._clock.now()
        self._table: _Table | None = None
        self._thread: LoudThread | None = None
        self._over = threading.Event()
        self._trainer: L.Trainer | None = None
        self._stage = self._phase = ""
        self._loss: Any = None
        self._validation: float | None = None
        # When the last batch had been trained, and how many samples by then.
        self._trained = (0.0, 0)
        self._recent: deque[tuple[float, int]] = deque()
        self._lock = threading.Lock()
        self._final_rate: float | None = None

    def setup(
        self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str
    ) -> None:
        """Start the thread."""
        if self._thread is not None:
            return
        rank = trainer.global_rank
        name = f"telemetry{f'_{rank}' if rank else ''}.csv"
        self._table = _Table(self.folder / name)
        # What goes on in a folder has moments behind those that are there.
        behind = self._table.seconds - (self._clock.now() - self._begin)
        self._begin -= max(behind, 0.0)
        tables = any(isinstance(logger, MetricsTable) for logger in trainer.loggers)
        if stage == "fit" and not (tables or trainer.barebones):
            table = MetricsTable(self.folder, name="", version="")
            trainer.loggers = [*trainer.loggers, table]
        self._trainer, self._stage = trainer, stage
        self._final_rate = None
        self._over.clear()
        self._thread = LoudThread(self._watch, "monitor")
        self._thread.start()

    def teardown(self, *_: Any, **__: Any) -> None:
        """Take the last status, after the data have ended."""
        thread = self._thread
        self.on_exception()
        if thread is not None:
            thread.check()

    def on_exception(self, *_: Any) -> None:
        """Take the last status of a run that fails."""
        if self._thread is None:
            return
        self._over.set()
        self._thread.join()
        thread, self._thread, self._phase = self._thread, None, ""
        if thread.error is None:
            self.sample()

    def on_validation_start(self, *_: Any) -> None:
        """Say what a wait is for."""
        self._phase = ", validating"

    def on_fit_end(self, *_: Any) -> None:
        """Say what the end waits for: the callbacks behind this one write."""
        self._phase = ", writing the report"

    def on_train_batch_start(self, *_: Any) -> None:
        """Note when the training began."""
        self._phase = ""
        if not self._trained[1]:
            self._trained = self._clock.now(), 0
            self._recent.append(self._trained)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Note that a batch has been trained; raise what ended the thread."""
        if self._thread is not None:
            self._thread.check()
        self._trained = self._clock.now(), self._trained[1] + len(batch.step)
        # Read once a second in the monitor's thread, since a GPU makes that wait.
        self._loss = outputs["loss"]

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Note the validation error; the callbacks behind this one save."""
        self._phase = ", saving" if trainer.state.fn == TrainerFn.FITTING else ""
        metrics = trainer.callback_metrics
        if (name := monitored(metrics)) in metrics:
            self._validation = float(metrics[name])

    def on_train_end(self, *_: Any) -> None:
        """Keep the pace of the training for the statuses after it."""
        self._final_rate = self._rate()

    def sample(self) -> Status:
        """Make the status of this moment, and pass it to the table and listeners."""
        trainer = self._trainer
        assert trainer is not None, "set by setup()"
        data = data_of(trainer)
        rate = self._rate() if self._final_rate is None else self._final_rate
        state = (data.status() if data else None) or Status()
        status = replace(
            state,
            # Behind the last batch nobody waits for another.
            waiting=state.waiting if self._final_rate is None else "",
            seconds=self._clock.now() - self._begin,
            time=datetime.now().astimezone().isoformat(timespec="milliseconds"),
            training=TrainingStats(
                stage=self._stage + self._phase,
                ranks=trainer.world_size,
                step=trainer.global_step,
                samples=self._trained[1],
                samples_per_second=rate,
                loss=None if self._loss is None else float(self._loss),
                validation=self._validation,
            ),
        )
        self.statuses.append(status)
        row = telemetry(status)
        if self._table is not None:
            self._table.append(row)
        for listener in [*self._listeners]:
            try:
                listener(status)
            except Exception:
                # It must not end the run, nor the table.
                self._listeners.remove(listener)
                logger.exception("%s gets no further status.", listener)
        return status

    def _watch(self) -> None:
        while not self._clock.wait(self._over, _INTERVAL):
            self.sample()

    def _rate(self) -> float:
        recent, since = self._recent, self._clock.now() - _WINDOW
        with self._lock:
            last = self._trained
            recent.append(last)
            while recent and recent[0][0] < since:
                recent.popleft()
            first = recent[0] if recent else last
        seconds = last[0] - first[0]
        return (last[1] - first[1]) / seconds if seconds else 0.0


class _Table:
    """Rows appended to a CSV file, each complete or absent, while the disk has room."""

    def __init__(self, path: Path) -> None:
        self._path, self._columns = path, [*COLUMNS]
        self._size, self._full = 0, False
        #: The last moment in it, of a run that goes on in the same folder.
        self.seconds = 0.0
        if path.is_file():
            with observing(path):
                self._adopt()

    def _adopt(self) -> None:
        """Go on with a table, under a new header if columns have been added since."""
        data = self._path.read_bytes()
        # A run that was killed may have left half a row.
        data = data[: data.rfind(b"\n") + 1]
        table = csv.DictReader(io.StringIO(data.decode("utf-8", "replace")))
        rows, header = [*table], [*(table.fieldnames or ())]
        self._columns = header + [name for name in COLUMNS if name not in header]
        if header and self._columns != header:
            text = io.StringIO()
            whole = csv.DictWriter(text, self._columns, extrasaction="ignore")
            whole.writeheader()
            whole.writerows(rows)
            data = text.getvalue().encode()
            with write_atomically(self._path) as part:
                part.write_bytes(data)
        self._size = len(data)
        with suppress(ValueError, TypeError, IndexError):
            self.seconds = float(rows[-1].get("seconds", 0.0))

    def append(self, row: Mapping[str, Any]) -> None:
        # A full disk is logged once, and tried again with each row.
        tolerant = suppress(OSError) if self._full else observing(self._path)
        text = io.StringIO()
        rows = csv.DictWriter(text, self._columns)
        if not self._size:
            rows.writeheader()
        rows.writerow(row)
        self._full = True
        with tolerant:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                # Without the part of a row that a full disk may have left.
                file.truncate(self._size)
                file.write(text.getvalue().encode())
            self._size = self._path.stat().st_size
            self._full = False


class MetricsTable(CSVLogger):
    """metrics.csv; rows that a full disk has no room for stay in memory until it has.

    A full disk is logged once, and training goes on.
    """

    _full = False

    @rank_zero_only
    def save(self) -> None:
        """Append the rows that are not in the file yet."""
        writer = self.experiment
        path, known = Path(writer.metrics_file_path), list(writer.metrics_keys)
        size = path.stat().st_size if path.is_file() else 0
        try:
            if size and not set().union(*writer.metrics) - set(known):
                super().save()
            elif writer.metrics:
                self._replace(path)
            self._full = False
        except OSError as error:
            writer.metrics_keys = known
            with suppress(OSError):
                # Without the part of a row; the row is written again by the next save.
                os.truncate(path, min(size, path.stat().st_size))
            if not self._full:
                log_unwritten(path, error)
            self._full = True

    def _replace(self, path: Path) -> None:
        """Write all rows, old and new, under a new header."""
        writer = self.experiment
        try:
            with write_atomically(path) as part:
                if path.is_file():
                    shutil.copyfile(path, part)
                writer.metrics_file_path = str(part)
                super().save()
        finally:
            writer.metrics_file_path = str(path)


def telemetry(status: Status) -> dict[str, Any]:
    """Return a row of telemetry.csv, without the columns that a run does not have."""
    row = {}
    for name, column in COLUMNS.items():
        part, _, attribute = column.source.rpartition(".")
        owner = getattr(status, part) if part else status
        if owner is not None:
            value = getattr(owner, attribute)
            if isinstance(value, tuple):
                value = " ".join(map(str, np.trim_zeros(value, "b")))
            row[name] = value if column.digits is None else round(value, column.digits)
    return row
