"""A data module without a cluster: its reservoir holds some simulations from the beginning."""

from functools import partial

import numpy as np
import pytorch_lightning as L
import torch
from pytorch_lightning.callbacks import ProgressBar

from surrogate_flow.data.module import Cost, Status, SurrogateData
from surrogate_flow.data.online_loader import OnlineLoader
from surrogate_flow.fields.window import Autoregressive
from surrogate_flow.nn import FullyConnected
from surrogate_flow.reservoir import FIRO, PendingBatches, Store
from surrogate_flow.solvers import Heat2D
from surrogate_flow.surrogate.surrogate import Surrogate
from surrogate_flow.testing.store import trajectory

SPEC = Heat2D(cells=(6, 4), steps=7).spec
SIMULATIONS = 5


class Filled(SurrogateData):
    """Batches of a reservoir that holds some simulations, and what was observed of them."""

    spec, workflow = SPEC, "filled"
    waiting = ""

    def __init__(self, observes=False):
        super().__init__()
        self.observes = observes
        self.seen = []
        self.window = Autoregressive(1, 2, unroll=1)
        self.store = Store(SPEC, self.window, 4, FIRO(capacity=60, threshold=4))
        for number in range(SIMULATIONS):
            steps = trajectory(SPEC, number, 0, SPEC.steps)
            self.store.offer(number, 0, steps, parameters_of(number))
            self.store.close(number, complete=True)
        self.store.end_reception()

    def moments(self):
        return np.array([250.0]), np.array([100.0])

    def train_dataloader(self):
        return OnlineLoader(self.store, pending=PendingBatches())

    def observe(self, seen):
        self.seen.append(seen)

    def status(self):
        return Status(store=self.store.stats(), waiting=self.waiting)

    def cost(self):
        return Cost(0, 0, 0.0)


def parameters_of(number):
    return np.arange(5.0, dtype=np.float32) + 10 * number


def fit(data, folder, *callbacks, logger=False):
    """Train a small surrogate on all of it; return it and the trainer."""
    torch.manual_seed(0)
    network = partial(FullyConnected, widths=(8,))
    surrogate = Surrogate(SPEC, network, window=data.window)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=logger,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(surrogate, data)
    return surrogate, trainer
