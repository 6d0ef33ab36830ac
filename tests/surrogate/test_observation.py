"""The loss of each sample: their mean is what is trained on, and each has its own simulation."""

from functools import partial

import numpy as np
import pytest
import pytorch_lightning as L
import torch
from laws import trajectory
from torch import nn

from surrogate_flow.data.module import Cost, SurrogateData
from surrogate_flow.data.online_loader import OnlineLoader
from surrogate_flow.fields.window import Autoregressive
from surrogate_flow.nn import FullyConnected
from surrogate_flow.reservoir import FIRO, PendingBatches
from surrogate_flow.solvers import Heat2D
from surrogate_flow.surrogate.observation import Feedback, sample_losses
from surrogate_flow.surrogate.surrogate import Surrogate

SPEC = Heat2D(cells=(6, 4), steps=7).spec
SIMULATIONS = 5


class RelativeL2(nn.Module):
    """The norm of a batch, of which no sample has a share."""

    def forward(self, prediction, target):
        return (prediction - target).norm() / target.norm()


class Weighted(nn.Module):
    """A user's own mean over elements."""

    reduction = "mean"

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.1, 2.0, 3))

    def forward(self, prediction, target):
        errors = self.weight * (prediction - target) ** 4
        return errors.mean() if self.reduction == "mean" else errors


@pytest.mark.parametrize(
    "loss", [nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(delta=0.3), Weighted()], ids=str
)
def test_the_mean_of_the_samples_is_the_loss(loss):
    """And each is the loss of that sample alone; the module is left as it was."""
    prediction, target = torch.randn(2, 8, 2, 1, 3, generator=torch.manual_seed(0))
    losses = sample_losses(loss, prediction, target)
    torch.testing.assert_close(losses.mean(), loss(prediction, target).detach())
    for k in range(8):
        alone = loss(prediction[k : k + 1], target[k : k + 1])
        torch.testing.assert_close(losses[k], alone.detach())
    assert loss.reduction == "mean"


@pytest.mark.parametrize("loss", [RelativeL2(), nn.MSELoss(reduction="sum")], ids=str)
def test_other_losses_give_every_sample_that_of_the_batch(loss):
    """A ratio of norms, or a sum, is no mean over samples."""
    prediction, target = torch.randn(2, 8, 2, 1, 3, generator=torch.manual_seed(0))
    losses = sample_losses(loss, prediction, target)
    assert losses.tolist() == [loss(prediction, target).item()] * 8


class Filled(SurrogateData):
    """Batches of a reservoir that holds some simulations, and what was observed of them."""

    spec, workflow, held_out, validated = SPEC, "filled", None, 0

    def __init__(self, observes):
        super().__init__()
        self.observes = observes
        self.seen = []
        self.window = Autoregressive(1, 2, unroll=1)
        self.store = FIRO(SPEC, self.window, 4, capacity=60, threshold=4)
        for number in range(SIMULATIONS):
            steps = trajectory(SPEC, number, 0, SPEC.steps)
            self.store.offer(number, 0, steps, parameters_of(number))
            self.store.close(number, complete=True)
        self.store.end_reception()

    def moments(self):
        return np.array([250.0]), np.array([100.0])

    def train_dataloader(self):
        return OnlineLoader(
            self.store, self.window, flight=PendingBatches(), check=lambda: None
        )

    def observe(self, seen):
        self.seen.append(seen)

    def status(self):
        return None

    def effort(self):
        return Cost(0, 0, 0.0)

    def stop(self):
        pass


def parameters_of(number):
    return np.arange(5.0, dtype=np.float32) + 10 * number


class Batches(L.Callback):
    """What was trained, and its loss."""

    def __init__(self):
        self.trained = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.trained.append((batch, outputs["loss"].item()))


def fit(observes, tmp_path):
    data, batches = Filled(observes), Batches()
    torch.manual_seed(0)
    surrogate = Surrogate(
        SPEC, partial(FullyConnected, widths=(8,)), window=data.window
    )
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[batches],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(surrogate, data)
    return surrogate, data, batches.trained


def test_each_training_step_is_observed(tmp_path):
    """Simulation, step and parameters are those that the store drew; the mean is the loss."""
    _, data, trained = fit(True, tmp_path)
    windows = data.window.samples(SPEC.steps)
    assert sum(len(seen.loss) for seen in data.seen) == SIMULATIONS * windows
    assert len(data.seen) == len(trained)
    pairs = set()
    for seen, (batch, loss) in zip(data.seen, trained, strict=True):
        assert seen.loss.mean() == pytest.approx(loss, rel=1e-5)
        assert len(set(seen.loss.tolist())) > 1
        for k, simulation in enumerate(seen.simulation.tolist()):
            first = int(batch.step[k])
            truth = trajectory(SPEC, simulation, first, batch.target.shape[1])
            np.testing.assert_array_equal(batch.target[k], truth)
            np.testing.assert_array_equal(seen.parameters[k], parameters_of(simulation))
            # Unrolled, a batch is trained on its second prediction.
            assert seen.step[k] - first in (0, data.window.outputs)
            pairs.add((simulation, first))
    assert len(pairs) == SIMULATIONS * windows


def test_listening_changes_no_training(tmp_path):
    """With and without somebody who listens the weights are the same, to the last bit."""
    one, _, _ = fit(True, tmp_path)
    other, data, _ = fit(False, tmp_path)
    assert not data.seen
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_padding_is_not_observed():
    """A batch of weight zero is of no simulation."""
    data = Filled(True)
    feedback = Feedback(data)
    batch = next(iter(data.train_dataloader()))
    feedback.add(batch._replace(weight=0.0), torch.ones(4))
    feedback.deliver(wait=True)
    assert not data.seen
    losses = torch.ones(4)
    feedback.add(batch, losses)
    # The memory of a batch is used again for the next one.
    losses.zero_()
    feedback.deliver(wait=True)
    assert data.seen[0].loss.tolist() == [1.0] * 4
