"""How many batches are in the weights."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as L
from pytorch_lightning.callbacks import Callback

__all__ = ["AppliedBatches"]


class AppliedBatches(Callback):
    """Number of batches in the weights since this was made, when called.

    Batches whose gradients still add up (``accumulate_grad_batches``) are in no
    checkpoint, and come again in a run that goes on.

    Parameters
    ----------
    trainer : Trainer
        That fits, and has this called back from now on.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = trainer
        self._before = self._progress()["total"]["processed"]
        # Lightning sets the attribute elsewhere.
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [c for c in callbacks if not isinstance(c, AppliedBatches)]
        callbacks.append(self)

    def __call__(self) -> int:
        """Count those whose gradients have been applied."""
        progress = self._progress()
        total = progress["total"]["processed"] - self._adding_up(progress)
        return max(0, int(total - self._before))

    def on_save_checkpoint(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        """Count no batch that comes again.

        So the next step of the optimizer is made of as many as ever.
        """
        count = self._adding_up(self._progress())
        saved = checkpoint.get("loops", {}).get("fit_loop", {})
        for part in ("current", "total"):
            counters = saved.get("epoch_loop.batch_progress", {}).get(part, {})
            for name in counters:
                counters[name] -= count
        if count:
            # Lightning adds it again when it goes on behind a step of the optimizer.
            saved["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1

    def _adding_up(self, progress: dict[str, Any]) -> int:
        now: int = progress["current"]["processed"]
        # The flag is set before the batch is trained.
        last = progress["is_last_batch"] and now == progress["current"]["ready"]
        over = last or now >= self._trainer.num_training_batches
        return 0 if over else now % self._trainer.accumulate_grad_batches

    def _progress(self) -> dict[str, Any]:
        return self._trainer.fit_loop.epoch_loop.batch_progress.state_dict()
