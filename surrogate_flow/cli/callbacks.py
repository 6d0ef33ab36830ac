"""What happens at the last batch of a run, and when it fails."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as L
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from surrogate_flow.data.module import data_of

__all__ = ["FinalValidation", "SafeCheckpoint"]

logger = logging.getLogger(__name__)


class FinalValidation(Callback):
    """Validates and saves after the last batch, whatever the interval between both."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Stop the trainer after its last batch, for which it validates and saves."""
        loop = trainer.fit_loop.epoch_loop
        # Data that come in a stream, of unknown length, come once.
        once = trainer.num_training_batches == float("inf")
        last = once or trainer.current_epoch + 1 == trainer.max_epochs
        over = last and loop.batch_progress.is_last_batch
        if over or trainer.global_step == loop.max_steps:
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Log it if the data ended before `max_steps`."""
        data = data_of(trainer)
        once = data is not None and not data.repeats
        used_up = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if once and used_up and 0 < trainer.global_step < trainer.max_steps:
            logger.info(
                "All simulations are used up after %d of %d batches. More of them: "
                "--data.simulations, or null there for as many as it takes.",
                trainer.global_step,
                trainer.max_steps,
            )


class SafeCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that saves nothing on the failure of one of several ranks.

    Saving is collective, and the other ranks may be gone.
    """

    @property
    def state_key(self) -> str:
        """Its name in a checkpoint, which is that of version 0.1."""
        return super().state_key.replace(type(self).__qualname__, "Kept", 1)

    def on_exception(self, trainer: L.Trainer, *args: Any) -> None:
        """Save the state of a run that fails."""
        if trainer.world_size == 1:
            super().on_exception(trainer, *args)
