"""Callbacks that write down what passes, in a file a rank that outlives it."""

import json
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import torch.distributed
from pytorch_lightning.callbacks import Callback

from surrogate_flow.fields.spec import FieldSpec, Variable
from surrogate_flow.sampling import InputSampler
from surrogate_flow.solvers import GridSolver


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


class Doubles(GridSolver):
    """u = 2 a, of an input field a."""

    spec = FieldSpec(
        (), (Variable("u"),), ("x",), (3,), (1.0,), inputs=(Variable("a"),)
    )

    def __init__(self):
        super().__init__(1, 1.0)

    def fields(self, parameters):
        yield 2 * parameters["a"][None, None]


class Numbered(InputSampler):
    """The number of the simulation, everywhere."""

    def draw(self, number, spec, random):
        return np.full(spec.input_shape, float(number))


class Given(Callback):
    """Writes of each sample its simulation, an input and a target, in a file a rank."""

    def __init__(self, path):
        self.path = path

    def note(self, kind, trainer, batch):
        with open(f"{self.path}/given.{trainer.global_rank}", "a") as file:
            if batch.weight:
                columns = (
                    batch.simulation,
                    batch.inputs[:, 0, 1],
                    batch.target[:, 0, 0, 1],
                )
                for sample in zip(*(c.tolist() for c in columns), strict=True):
                    file.write(json.dumps([kind, sample]) + "\n")

    def on_train_batch_start(self, trainer, module, batch, index):
        self.note("train", trainer, batch)

    def on_validation_batch_start(self, trainer, module, batch, index, loader=0):
        self.note("validate", trainer, batch)
