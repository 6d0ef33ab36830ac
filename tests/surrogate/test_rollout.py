"""Rolling out: exact powers of a known map, and gradients through the last step alone."""

import numpy as np
import pytest
import torch
from torch import nn

from surrogate_flow.fields.spec import FieldSpec, Variable
from surrogate_flow.fields.window import Autoregressive
from surrogate_flow.surrogate.batch import Batch
from surrogate_flow.surrogate.rollout import pushed_forward, roll_out
from surrogate_flow.surrogate.surrogate import Surrogate

A = torch.tensor([[2.0, 1.0, 0.0], [0.0, -1.0, 3.0], [1.0, 0.0, 1.0]])
START = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 1.0]])
SPEC = FieldSpec((), (Variable("u"),), ("x",), (3,), times=tuple(map(float, range(9))))


def powers(first, last):
    """A^k u_0 of both samples, exactly."""
    return torch.stack(
        [START @ torch.linalg.matrix_power(A, k).T for k in range(first, last)], dim=1
    )


@pytest.mark.parametrize("outputs", [1, 2, 3, 7, 9])
@pytest.mark.parametrize("inputs", [1, 3])
def test_powers_of_a_linear_map(inputs, outputs):
    """Whatever is predicted at once, step k is A^k u_0, to the last bit."""

    def predict(parameters, step, history):
        assert history.shape[1] == inputs
        return torch.stack(
            [
                history[:, -1] @ torch.linalg.matrix_power(A, k + 1).T
                for k in range(outputs)
            ],
            dim=1,
        )

    history = powers(0, inputs)
    out = roll_out(predict, torch.zeros(2, 0), torch.full((2,), 1.0), history, 7)
    assert out.equal(powers(inputs, inputs + 7))


def test_history_is_longer_than_a_prediction():
    """What the prediction does not fill stays of the old history: Fibonacci's numbers."""
    out = roll_out(
        lambda parameters, step, history: history.sum(1, keepdim=True),
        torch.zeros(1, 0),
        torch.zeros(1),
        torch.tensor([[[0.0], [1.0]]]),
        8,
    )
    assert out.flatten().tolist() == [1, 2, 3, 5, 8, 13, 21, 34]


@pytest.mark.parametrize("inputs", [0, 2])
def test_step_and_parameters_reach_every_prediction(inputs):
    """Each prediction is told its own first step, of each sample, and the parameters."""

    def predict(parameters, step, history):
        assert history.shape == (2, inputs, 1)
        return (parameters + step[:, None])[:, None].repeat(1, 2, 1)

    out = roll_out(
        predict,
        torch.tensor([[0.5], [0.25]]),
        torch.tensor([3.0, 10.0]),
        torch.zeros(2, inputs, 1),
        5,
    )
    assert out[..., 0].tolist() == [
        [3.5, 3.5, 5.5, 5.5, 7.5],
        [10.25, 10.25, 12.25, 12.25, 14.25],
    ]


def test_no_steps():
    """Nothing to predict is nothing predicted."""
    out = roll_out(None, torch.zeros(2, 0), torch.zeros(2), powers(0, 1), 0)
    assert out.shape == (2, 0, 3)


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (3, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("unrolls", [0, 1, 2])
def test_pushed_forward_is_the_same_where_predictions_are_true(
    inputs, outputs, unrolls
):
    """With a perfect predictor the batch is just another one of the same trajectory."""
    fields = powers(0, inputs + 3 * outputs)

    def predict(parameters, step, history):
        k = int(step[0])
        return fields[:, k : k + outputs]

    batch = Batch(
        torch.zeros(2, 0),
        torch.full((2,), float(inputs)),
        fields[:, :inputs],
        fields[:, inputs:],
        torch.arange(2),
    )
    got = pushed_forward(predict, batch, unrolls, outputs)
    first = unrolls * outputs
    assert got.step.tolist() == [inputs + first] * 2
    assert got.history.equal(fields[:, first : first + inputs])
    assert got.target.equal(fields[:, first + inputs : first + inputs + outputs])


def batch_of(fields):
    """Windows of one step of history, as a batch."""
    count = len(fields)
    return Batch(
        torch.zeros(count, 0),
        torch.ones(count),
        fields[:, :1],
        fields[:, 1:],
        torch.arange(count),
    )


class Linear(nn.Module):
    """z_k = W z_{k-1}."""

    def __init__(self, spec, window):
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.arange(9.0).reshape(3, 3))

    def forward(self, parameters, step, history):
        return history[:, -1:] @ self.weight.T


def test_gradient_goes_through_the_last_prediction_alone():
    """By hand: dL/dW = 2/n (W h - y) h', with h = W z as a constant, as often as not."""
    torch.manual_seed(0)
    surrogate = Surrogate(SPEC, Linear, window=Autoregressive(unroll=1))
    surrogate.normalisation.freeze(np.array([5.0]), np.array([2.0]))
    surrogate.log = lambda *args, **kwargs: None
    fields = torch.randn(4, 3, 1, 3) * 2 + 5
    batch = batch_of(fields)

    z = ((fields - 5) / 2)[:, :, 0]
    weight = surrogate.network.weight.detach()
    by_hand = []
    for seen, target in ((z[:, 0], z[:, 1]), (z[:, 0] @ weight.T, z[:, 2])):
        error = seen @ weight.T - target
        by_hand.append(2 / error.numel() * error.T @ seen)

    drawn = []
    for k in range(200):
        surrogate.zero_grad()
        surrogate.training_step(batch, k).backward()
        gradient = surrogate.network.weight.grad
        near = [torch.allclose(gradient, g, rtol=1e-4, atol=1e-6) for g in by_hand]
        assert sum(near) == 1, gradient
        drawn.append(near.index(True))
    # Binomial: four standard deviations around a half.
    assert 70 < sum(drawn) < 130


def test_all_ranks_and_a_resumed_run_unroll_alike():
    """How often is drawn from the seed and the number of the batch, not from a state."""

    def losses(batches, seed=3):
        torch.manual_seed(seed)
        surrogate = Surrogate(SPEC, Linear, window=Autoregressive(unroll=3))
        surrogate.log = lambda *args, **kwargs: None
        fields = torch.arange(15.0).reshape(1, 5, 1, 3)
        batch = batch_of(fields)
        return [surrogate.training_step(batch, k).item() for k in batches]

    whole = losses(range(40))
    assert len(set(whole)) == 4
    assert losses(range(25, 40)) == whole[25:]
    assert losses(range(40), seed=4) != whole


def test_validation_is_one_prediction():
    """A batch that is longer, as training has it, is validated without unrolling."""
    surrogate = Surrogate(SPEC, Linear, window=Autoregressive(unroll=2))
    surrogate.log = surrogate.log_dict = lambda *args, **kwargs: None
    fields = torch.randn(2, 4, 1, 3)
    batch = batch_of(fields)
    surrogate.validation_step(batch, 0)
    error = fields[:, :1] @ surrogate.network.weight.T - fields[:, 1:2]
    expected = float(error.detach().square().mean().sqrt())
    assert float(surrogate.val_errors.compute()["val_rmse_u"]) == pytest.approx(
        expected
    )
