"""A callback that writes down every batch that was trained, in a file a rank that outlives it."""

import json
import os

from pytorch_lightning.callbacks import Callback


class Recorder(Callback):
    """A line a batch: the optimizer's step before it, and (first parameter, step) of each sample."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        samples = zip(
            batch.parameters[:, 0].tolist(), batch.step.int().tolist(), strict=True
        )
        line = json.dumps(
            [trainer.global_step - 1, list(samples) if batch.weight else []]
        )
        several = f".{trainer.global_rank}" if trainer.world_size > 1 else ""
        with open(f"{self.path}{several}", "ab", buffering=0) as file:
            file.write(f"{line}\n".encode())
            os.fsync(file.fileno())
