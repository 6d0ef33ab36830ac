"""The loss of each sample: their mean is what is trained on, and each has its own simulation."""

from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as L
import torch
from filled import SIMULATIONS, SPEC, Filled, fit, parameters_of
from torch import nn

from surrogate_flow.fields.errors import UserError
from surrogate_flow.surrogate import loss as relative
from surrogate_flow.surrogate.metrics import MeanRatio, relative_l2
from surrogate_flow.surrogate.observation import (
    Feedback,
    loss_of,
    require_finite,
    sample_losses,
)
from surrogate_flow.testing.store import trajectory


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
    losses = sample_losses(loss, torch.nan, prediction, target)
    torch.testing.assert_close(losses.mean(), loss(prediction, target).detach())
    for k in range(8):
        alone = loss(prediction[k : k + 1], target[k : k + 1])
        torch.testing.assert_close(losses[k], alone.detach())
    assert loss.reduction == "mean"


@pytest.mark.parametrize("loss", [RelativeL2(), nn.MSELoss(reduction="sum")], ids=str)
def test_other_losses_give_every_sample_that_of_the_batch(loss):
    """A ratio of norms, or a sum, is no mean over samples; it is not called again."""
    prediction, target = torch.randn(2, 8, 2, 1, 3, generator=torch.manual_seed(0))
    losses = sample_losses(loss, torch.tensor(7.0), prediction, target)
    assert losses.tolist() == [7.0] * 8


class Batches(L.Callback):
    """What was trained, and its loss."""

    def __init__(self):
        self.trained = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.trained.append((batch, outputs["loss"].item()))


def observed(observes, tmp_path):
    """The surrogate, its data and the batches of a fit."""
    data, batches = Filled(observes), Batches()
    surrogate, _ = fit(data, tmp_path, batches)
    return surrogate, data, batches.trained


def test_each_training_step_is_observed(tmp_path):
    """Simulation, step and parameters are those that the store drew; the mean is the loss."""
    _, data, trained = observed(True, tmp_path)
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
    one, _, _ = observed(True, tmp_path)
    other, data, _ = observed(False, tmp_path)
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


@pytest.mark.parametrize(
    ("normalisation", "remedy"), [("standard", "lower"), ("none", "scale of each")]
)
def test_a_loss_that_is_not_finite_is_said_once(normalisation, remedy, caplog):
    """Weights that are not end the training: no batch changes them any more."""
    surrogate = SimpleNamespace(
        trainer=SimpleNamespace(global_step=1),
        network=nn.Linear(2, 2),
        recipe={"normalisation": normalisation},
    )
    assert not require_finite(surrogate, torch.tensor(1.0), False)
    said = False
    for value in (np.inf, np.nan, 1.0):
        said = require_finite(surrogate, torch.tensor(value), said)
        assert said
    (record,) = caplog.records
    assert record.getMessage().startswith("The loss is inf at batch 1,")
    assert remedy in record.getMessage()
    surrogate.network.weight.data[0, 1] = np.nan
    with pytest.raises(UserError, match=f"diverged: at batch 1 weights.*{remedy}"):
        require_finite(surrogate, torch.tensor(1.0), False)


def test_the_relative_loss_is_the_metric_of_each_sample():
    """Over the points that are known; small fields are compared with the floor."""
    prediction, target = torch.randn(2, 8, 2, 3, 5, generator=torch.manual_seed(0))
    loss = relative.RelativeL2(floor=1e-9)
    metric = MeanRatio(relative_l2)
    metric.update(prediction, target)
    of_batch = loss(prediction, target)
    assert of_batch == pytest.approx(float(metric.compute()), rel=1e-6)
    losses = sample_losses(loss, of_batch, prediction, target)
    assert losses.mean() == pytest.approx(of_batch)
    known = torch.rand(8, 2, 3, 5, generator=torch.manual_seed(1)) > 0.3
    metric.reset()
    metric.update(prediction, torch.where(known, target, torch.nan))
    masked = torch.where(known, target, 0.0)
    of_known = loss_of(loss, prediction, masked, known)
    assert of_known == pytest.approx(float(metric.compute()), rel=1e-6)
    losses = sample_losses(loss, of_known, prediction, masked, known)
    assert losses.mean() == pytest.approx(of_known)
    floored = relative.RelativeL2(floor=2.0)(prediction, 0 * target)
    norms = prediction.transpose(1, 2).flatten(2).norm(dim=2)
    assert floored == pytest.approx(float((norms / (2 * 10**0.5)).mean()))
    with pytest.raises(UserError, match=r"a number above 0, got 0\. 1e-6 compares"):
        relative.RelativeL2(floor=0)


def test_a_field_is_compared_with_the_floor_of_the_points_that_are_known():
    """Points that are masked change nothing, whether the floor acts or not."""
    prediction, target = torch.randn(2, 4, 2, 3, 50, generator=torch.manual_seed(2))
    known = torch.zeros(target.shape, dtype=torch.bool)
    known[..., :10] = True
    masked = torch.where(known, target, 0.0)
    for floor in (1e-9, 0.9, 5.0):
        loss = relative.RelativeL2(floor)
        alone = loss(prediction[..., :10], target[..., :10])
        of_known = loss_of(loss, prediction, masked, known)
        torch.testing.assert_close(of_known, alone)
        losses = sample_losses(loss, of_known, prediction, masked, known)
        torch.testing.assert_close(losses.mean(), alone)
