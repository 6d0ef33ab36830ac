"""What a run has come to, and what it took, in numbers."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as L
from pytorch_lightning.callbacks import Callback

from surrogate_flow.data.module import data_of

__all__ = ["FILE", "Outcome", "Outcomes"]

logger = logging.getLogger(__name__)

FILE = "outcome.json"


@dataclass(frozen=True)
class Outcome:
    """Errors at the end of a fit, and what it took.

    Attributes
    ----------
    batches : int
        Steps of the optimizer.
    samples : int
        That were trained, repetitions counted; of this process.
    unique_samples : int
        Different ones among them. Online, where up to four batches are drawn ahead
        which the end of the run leaves untrained, it may be too many by as much.
    simulations : int
        That were whole, the held-out ones included.
    solver_seconds : float
        That these took, together, without waiting for room.
    training_seconds : float
        From the first batch to the last, validations in between included.
    samples_per_second : float
        In this time.
    errors : dict of str to float
        Every ``val_*`` metric of the last validation.
    validated : int, optional
        Held-out simulations, of all ranks, that these are taken over: those that
        failed are left out. None in the files of older versions.
    """

    batches: int
    samples: int
    unique_samples: int
    simulations: int
    solver_seconds: float
    training_seconds: float
    samples_per_second: float
    errors: dict[str, float]
    validated: int | None = None

    @classmethod
    def read(cls, folder: Path) -> Outcome | None:
        """Return that of a run's folder, or None if the run has not ended."""
        path = folder / FILE
        return cls(**json.loads(path.read_text())) if path.is_file() else None


class Outcomes(Callback):
    """Writes outcome.json at the end of a fit.

    Parameters
    ----------
    folder : Path
        Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._samples = 0
        self._first = self._last = math.nan

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, index: int
    ) -> None:
        """Start the clock."""
        if math.isnan(self._first):
            self._first = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the batch."""
        self._samples += len(batch.step)
        self._last = time.monotonic()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file."""
        data = data_of(trainer)
        if data is None or not trainer.is_global_zero:
            return
        effort = data.effort()
        seconds = self._last - self._first if self._samples else 0.0
        errors = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val_")
        }
        outcome = Outcome(
            batches=trainer.global_step,
            samples=self._samples,
            # What was drawn ahead has not been trained.
            unique_samples=min(effort.samples, self._samples),
            simulations=effort.simulations,
            solver_seconds=effort.solver_seconds,
            training_seconds=seconds,
            samples_per_second=self._samples / seconds if seconds else 0.0,
            errors=errors,
            validated=data.validated,
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part = self.folder / f"{FILE}.part"
            part.write_text(json.dumps(asdict(outcome), indent=1))
            part.replace(self.folder / FILE)
        except OSError as error:
            logger.error("%s was not written (%s).", self.folder / FILE, error)
