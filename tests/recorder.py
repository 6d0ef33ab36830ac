"""Callbacks that write down what passes, in a file a rank that outlives it."""

import json
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import torch.distributed
from pytorch_lightning.callbacks import Callback


class Recorder(Callback):
    """A line a batch: the optimizer's step before it, and (first parameter, step) of each sample.

    After batch `until` it waits for the SIGKILL that the test has in mind, however late that comes.
    """

    def __init__(self, path, until=None):
        self.path = path
        self.until = until

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
        if trainer.global_step == self.until:
            threading.Event().wait()


class Eavesdropper(Callback):
    """Whatever Python objects the ranks tell each other, pickled as they are sent."""

    def __init__(self, path):
        gather = torch.distributed.all_gather_object

        def record(values, value, group=None):
            with open(f"{path}.{os.environ.get('LOCAL_RANK', 0)}", "ab") as file:
                file.write(pickle.dumps(value))
            gather(values, value, group=group)

        torch.distributed.all_gather_object = record


class ValidatedOn(Callback):
    """Writes parameters and fields of the held-out simulations to the run's folder."""

    def on_validation_end(self, trainer, pl_module):
        validation = trainer.datamodule.validation
        path = Path(trainer.log_dir) / "validated_on.npz"
        np.savez(path, parameters=validation.parameters, fields=validation.fields)
