"""How many batches are in the weights."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as L

__all__ = ["Trained"]


class Trained:
    """Number of batches in the weights since this was made, when called.

    Parameters
    ----------
    trainer : Trainer
        That fits.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = trainer
        self._before = self._progress()["total"]["processed"]

    def __call__(self) -> int:
        """Count those whose gradients have been applied."""
        progress, trainer = self._progress(), self._trainer
        now, total = progress["current"]["processed"], progress["total"]["processed"]
        over = progress["is_last_batch"] or now >= trainer.num_training_batches
        # Gradients that still add up are in no checkpoint: those batches come again.
        waiting = 0 if over else now % trainer.accumulate_grad_batches
        return max(0, int(total - waiting - self._before))

    def _progress(self) -> dict[str, Any]:
        return self._trainer.fit_loop.epoch_loop.batch_progress.state_dict()
