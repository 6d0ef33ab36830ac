"""What a run shows in its loggers: telemetry, times seen, and the newest field."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as L
import xarray as xr
from matplotlib.figure import Figure
from pytorch_lightning.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from pytorch_lightning.trainer.states import TrainerFn

from surrogate_flow.data.module import RunCallback, Status
from surrogate_flow.fields.quantities import in_units
from surrogate_flow.fields.thinning import SURROGATE, cells_of, variables_of
from surrogate_flow.report.folder.run_folder import RunFolder
from surrogate_flow.report.monitor import telemetry
from surrogate_flow.report.pictures.drawing import Row, draw, flat, titled
from surrogate_flow.report.records import Throttle

__all__ = ["Boards", "newest_picture"]

logger = logging.getLogger(__name__)

_SLOW = 10.0  # seconds between two rows of telemetry, where each may cross a network
_SEEN = 10.0  # and between two histograms
_PICTURE = 60.0  # and between two pictures
_WAITING = 100  # calls of a logger whose server does not answer
_PATIENCE = 10.0  # seconds that the end of a run waits for all of these
_VARIABLES = 3  # in a picture, at most


class Boards(RunCallback):
    """Passes telemetry, a histogram and a picture to each logger of the trainer.

    A listener of the `Monitor`, in whose thread it works; what may cross a network has
    a thread of its own, for which the end of a run waits ten seconds. TensorBoard has
    each status, all others every ten seconds, without tables, which have their files.
    TensorBoard and W&B have the histogram of the times that samples were seen;
    these two and MLflow the newest field after a validation, at most once a minute. A
    logger that fails is logged once, and gets no more; the run goes on.

    Parameters
    ----------
    folder : Path
        Of the run, with newest.nc.
    drawn : bool
        Whether there are pictures.
    """

    def __init__(self, folder: Path, *, drawn: bool = True) -> None:
        super().__init__(folder)
        self._drawn = drawn
        self._trainer: L.Trainer | None = None
        self._loggers: list[Logger] = []
        self._senders: dict[int, _Sender] = {}
        self._slow, self._seen = Throttle(_SLOW), Throttle(_SEEN)
        self._picture = Throttle(_PICTURE)
        self._validated = self._over = False

    def setup(
        self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str
    ) -> None:
        """Find the loggers."""
        tables = (CSVLogger,)
        self._loggers = [b for b in trainer.loggers if not isinstance(b, tables)]
        slow = [b for b in self._loggers if not isinstance(b, TensorBoardLogger)]
        self._close()
        self._senders = {id(board): _Sender(board) for board in slow}
        self._trainer, self._over = trainer, False

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Have the newest field drawn."""
        self._validated = self._drawn and trainer.state.fn == TrainerFn.FITTING

    def on_train_end(self, *_: Any) -> None:
        """Have what follows logged whatever the pace."""
        self._over = True

    def teardown(self, *_: Any, **__: Any) -> None:
        """Wait for the loggers that are slow, but not for ever."""
        self._close()

    def on_exception(self, *_: Any) -> None:
        """Wait for them as well."""
        self._close()

    def _close(self) -> None:
        senders, deadline = [*self._senders.values()], time.monotonic() + _PATIENCE
        self._senders = {}
        for sender in senders:
            sender.put(None)
        for sender in senders:
            sender.join(deadline)

    def __call__(self, status: Status) -> None:
        """Log the status, and the picture if there is a new one."""
        if self._trainer is None or not self._loggers:
            return
        step = self._trainer.global_step
        row = telemetry(status)
        scalars = {
            f"telemetry/{name}": value
            for name, value in row.items()
            if isinstance(value, int | float)
        }
        quick = [b for b in self._loggers if isinstance(b, TensorBoardLogger)]
        self._to(quick, lambda board: board.log_metrics(scalars, step))
        if self._over or self._slow.due:
            slow = [board for board in self._loggers if board not in quick]
            with self._slow.taking():
                self._to(slow, lambda board: board.log_metrics(scalars, step))
        if status.store is not None and (self._over or self._seen.due):
            counts = np.array(np.trim_zeros(status.store.times_seen, "b"))
            with self._seen.taking():
                self._to(self._loggers, lambda board: _log_seen(board, counts, step))
        # Nothing else draws then.
        trains = status.training is not None and status.training.stage == "fit"
        if self._validated and trains and (self._over or self._picture.due):
            self._validated = False
            with self._picture.taking():
                self._draw(step)

    def _draw(self, step: int) -> None:
        newest = RunFolder(self.folder).newest
        if newest is None:
            return
        figure: Any = newest_picture(newest)
        figure.canvas.draw()
        image = np.asarray(figure.canvas.buffer_rgba())[..., :3]
        self._to(self._loggers, lambda board: _log_picture(board, image, step))

    def _to(self, boards: Sequence[Logger], log: Callable[[Any], None]) -> None:
        for board in [*boards]:
            if sender := self._senders.get(id(board)):
                sender.put(log)
            elif isinstance(board, TensorBoardLogger) and not _logged(board, log):
                self._loggers.remove(board)


class _Sender:
    """Calls a logger in a thread, since its server may take long, or never answer."""

    def __init__(self, board: Logger) -> None:
        self._board, self._name = board, type(board).__name__
        self._calls: queue.Queue[Callable[[Any], None] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._send, name="logger", daemon=True)
        self._thread.start()
        self._said = False

    def put(self, log: Callable[[Any], None] | None) -> None:
        """Have it called; the oldest call that waits makes room. None is the last."""
        while self._thread.is_alive():
            with suppress(queue.Full):
                self._calls.put_nowait(log)
                return
            with suppress(queue.Empty):
                self._calls.get_nowait()
            if not self._said:
                words = "%s does not keep up; the oldest of %d calls are left out."
                logger.warning(words, self._name, _WAITING)
                self._said = True

    def join(self, deadline: float) -> None:
        """Wait for the last call, and say so if it does not return in time."""
        self._thread.join(0.5)
        if self._thread.is_alive():
            seconds = max(deadline - time.monotonic(), 0.0)
            logger.info("Waiting for %s, %.0f s at most.", self._name, seconds)
            self._thread.join(seconds)
        if self._thread.is_alive():
            logger.warning(
                "%s did not answer; it lacks the last telemetry, which telemetry.csv "
                "has.",
                self._name,
            )

    def _send(self) -> None:
        while log := self._calls.get():
            if not _logged(self._board, log):
                return


def _logged(board: Logger, log: Callable[[Any], None]) -> bool:
    try:
        log(board)
    except Exception:
        # Of any type: the logger's own, or of its network.
        logger.exception("%s gets no further telemetry.", type(board).__name__)
        return False
    return True


def newest_picture(newest: xr.Dataset) -> Figure:
    """Draw solver, surrogate and difference of newest.nc; of numbers all samples."""
    cells = cells_of(newest)
    number = f"simulation {newest.attrs['simulation']}"
    named = {}
    for name, c in newest.coords.items():
        if c.ndim == 0 and name != "time" and name not in newest.indexes:
            named[str(name)] = float(c), str(c.attrs.get("units", ""))
    rows = []
    for name in variables_of(newest)[:_VARIABLES]:
        truth, guess = newest[name], newest[f"{name}{SURROGATE}"]
        if truth.dims == ("sample",):
            order = np.argsort(truth.values[np.isfinite(truth.values)])
            truth, guess = (
                f.isel(sample=order).drop_vars(f.coords) for f in (truth, guess)
            )
            rows.append(Row(truth, guess, "samples of a batch, by the solver's value"))
            continue
        units = str(newest.time.attrs.get("units", ""))
        place = f" at {in_units(float(newest.time), units)}"
        if truth.ndim > 1:
            lying = (f.expand_dims("time") for f in (truth, guess))
            truth, guess, place = flat(*lying)
        rows.append(Row(truth, guess, titled(f"{number}{place}", named)))
    return draw(rows, cells)


def _log_seen(board: Any, counts: np.ndarray, step: int) -> None:
    """Log for how many samples each number of draws is theirs."""
    name, times = "telemetry/times_seen", np.arange(len(counts))
    if not np.sum(counts):
        return
    if isinstance(board, TensorBoardLogger):
        board.experiment.add_histogram_raw(
            name,
            min=0,
            max=len(counts) - 1,
            num=int(np.sum(counts)),
            sum=float(np.dot(counts, times)),
            sum_squares=float(np.dot(counts, times**2)),
            bucket_limits=(times + 0.5).tolist(),
            bucket_counts=list(counts),
            global_step=step,
        )
    elif isinstance(board, WandbLogger):
        import wandb

        edges = np.arange(len(counts) + 1) - 0.5
        histogram = wandb.Histogram(np_histogram=(np.array(counts), edges))
        board.experiment.log({name: histogram, "trainer/global_step": step})


def _log_picture(board: Any, image: np.ndarray, step: int) -> None:
    if isinstance(board, TensorBoardLogger):
        board.experiment.add_image("newest", image, step, dataformats="HWC")
    elif isinstance(board, WandbLogger):
        board.log_image("newest", [image], step)
    elif isinstance(board, MLFlowLogger):
        path = f"newest/{step}.png"
        board.experiment.log_image(board.run_id, image, artifact_file=path)
