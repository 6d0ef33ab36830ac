"""Rollouts: each prediction is the history of the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from surrogate_flow.surrogate.batch import Batch

__all__ = [
    "drawn_noise",
    "drawn_unrolls",
    "predictions",
    "pushed_forward",
    "roll_out",
    "with_inputs",
]

#: (parameters, step, history) -> the next steps; all fields as they are stored.
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


def with_inputs(predict: Callable[..., Tensor], *inputs: Tensor) -> Predict:
    """Return what predicts with input fields, which a rollout does not change."""
    if not inputs:
        return predict
    return lambda parameters, step, history: predict(parameters, step, history, *inputs)


def predictions(
    predict: Predict,
    parameters: Float[Tensor, "batch parameter"],
    step: Float[Tensor, " batch"],
    history: Float[Tensor, "batch inputs channel *space"],
) -> Iterator[Float[Tensor, "batch outputs channel *space"]]:
    """Yield one prediction after the other, without end; see `roll_out`."""
    inputs = history.shape[1]
    while True:
        predicted = predict(parameters, step, history)
        yield predicted
        step = step + predicted.shape[1]
        history = torch.cat([history, predicted], dim=1)
        history = history[:, history.shape[1] - inputs :]


def roll_out(
    predict: Predict,
    parameters: Float[Tensor, "batch parameter"],
    step: Float[Tensor, " batch"],
    history: Float[Tensor, "batch inputs channel *space"],
    steps: int,
) -> Float[Tensor, "batch steps channel *space"]:
    """Predict `steps` steps, each prediction from the last `inputs` steps before it.

    Parameters
    ----------
    predict : callable
        ``predict(parameters, step, history)`` returns one or more steps; such as a
        `Surrogate`. Steps beyond `steps` are cut off.
    parameters : Tensor of shape (batch, parameter)
    step : Tensor of shape (batch,)
        Index of the first step to predict.
    history : Tensor of shape (batch, inputs, channel, *space)
        The steps just before; none for direct windows.
    steps : int

    Examples
    --------
    >>> double = lambda parameters, step, history: 2 * history[:, -1:]
    >>> ones = torch.ones(1, 3, 1)
    >>> roll_out(double, torch.zeros(1, 0), torch.zeros(1), ones, 4).flatten().tolist()
    [2.0, 4.0, 8.0, 16.0]
    """
    following = predictions(predict, parameters, step, history)
    predicted, done = [history[:, :0]], 0
    while done < steps:
        predicted.append(next(following))
        done += predicted[-1].shape[1]
    return torch.cat(predicted, dim=1)[:, :steps]


def drawn_unrolls(most: int, epoch: int, batch: int) -> int:
    """Return how many predictions precede the one that a batch is trained on."""
    if not most:
        return 0
    # The same on all ranks, and in a resumed run.
    return int(_chance(epoch, batch).integers(most + 1))


def drawn_noise(
    like: Tensor, std: float, epoch: int, batch: int, rank: int = 0
) -> Tensor:
    """Return the normal noise of a batch of a rank: the same in a resumed run."""
    generator = torch.Generator(like.device)
    generator.manual_seed(int(_chance(epoch, batch, rank).integers(2**62)))
    shape, device = like.shape, like.device
    return std * torch.randn(shape, generator=generator, device=device)


def _chance(*place: int) -> np.random.Generator:
    return np.random.default_rng([torch.initial_seed(), *place])


@torch.no_grad()
def pushed_forward(
    predict: Callable[..., Tensor], batch: Batch, unrolls: int, outputs: int
) -> Batch:
    """Return the batch of the prediction that comes after `unrolls` others.

    Its history ends with predictions of `outputs` steps each, without gradients, and
    its target is the solver's steps after them: the push-forward trick of Brandstetter,
    Worrall, Welling, Message Passing Neural PDE Solvers, ICLR 2022, section 3.1.
    """
    if not unrolls:
        return batch._replace(target=batch.target[:, :outputs])
    skipped = unrolls * outputs
    given = with_inputs(predict, *batch.given)
    predicted = roll_out(given, batch.parameters, batch.step, batch.history, skipped)
    return batch._replace(
        step=batch.step + skipped,
        history=torch.cat([batch.history, predicted], dim=1)[:, skipped:],
        target=batch.target[:, skipped : skipped + outputs],
    )
