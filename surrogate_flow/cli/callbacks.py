"""What happens at the last batch of a run, and when it fails."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as L
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from surrogate_flow.data.module import data_of

__all__ = ["Ending", "Kept"]

logger = logging.getLogger(__name__)


class Ending(Callback):
    """Validates and checkpoints once more with the weights that the run ends with.

    Lightning validates at multiples of an interval only, unless the trainer was told to
    stop.
    """

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Tell the trainer to stop after its last batch."""
        loop = trainer.fit_loop.epoch_loop
        # Data that come in a stream, of unknown length, come once.
        once = trainer.num_training_batches == float("inf")
        last = once or trainer.current_epoch + 1 == trainer.max_epochs
        over = last and loop.batch_progress.is_last_batch
        if over or trainer.global_step == loop.max_steps:
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say so if there was nothing left to train on before `max_steps`."""
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


class Kept(ModelCheckpoint):
    """A checkpoint that a rank does not write alone when it fails."""

    def on_exception(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        exception: BaseException,
    ) -> None:
        # All ranks write a checkpoint together, and the others may not be there.
        if trainer.world_size == 1:
            super().on_exception(trainer, pl_module, exception)
