"""A callback that says when a rank trained which samples."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as L
from pytorch_lightning.callbacks import Callback


class Stopwatch(Callback):
    """Writes ``{"first", "last", "samples", "batches"}`` to ``<folder>/<rank>.json``.

    Parameters
    ----------
    folder : str
    skipped : int
        Batches before the first that counts.
    """

    def __init__(self, folder: str, skipped: int = 0) -> None:
        self.folder, self._skipped = Path(folder), skipped
        self.samples = self.batches = 0
        self.first = self.last = 0.0

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note when the first batch that counts is there."""
        if batch_idx >= self._skipped:
            self.first = self.first or time.time()

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
        words = ("first", "last", "samples", "batches")
        path.write_text(json.dumps({word: getattr(self, word) for word in words}))
