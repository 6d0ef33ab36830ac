"""A callback that says when a rank trained which samples."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as L
from pytorch_lightning.callbacks import Callback


class Stopwatch(Callback):
    """Writes ``{"first", "last", "paused", ...}`` to ``<folder>/<rank>.json``.

    *paused* is how many seconds of these validations took, with their checkpoints.

    Parameters
    ----------
    folder : str
    skipped : int
        Batches before the first that counts.
    """

    def __init__(self, folder: str, skipped: int = 0) -> None:
        self.folder, self._skipped = Path(folder), skipped
        self.samples = self.batches = 0
        self.first = self.last = self.paused = self._validates = 0.0

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note when the first batch that counts is there."""
        now = time.time()
        if self.first and self._validates:
            self.paused += now - self._validates
        self._validates = 0.0
        if batch_idx >= self._skipped:
            self.first = self.first or now

    def on_validation_start(self, *_: Any) -> None:
        """Note when the training pauses."""
        self._validates = time.time()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        *rest: Any,
    ) -> None:
        """Count what was trained."""
        self.last = time.time()
        if not self.first:
            return
        self.batches += 1
        self.samples += len(batch.step) if batch.weight else 0

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the counts of this rank."""
        path = self.folder / f"{trainer.global_rank}.json"
        words = ("first", "last", "paused", "samples", "batches")
        path.write_text(json.dumps({word: getattr(self, word) for word in words}))
