"""The loss of each sample, for a sampler that chooses the next simulations by it."""

from __future__ import annotations

import copy
import logging
from collections import deque
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.sampling import Observations
from surrogate_flow.surrogate.batch import Batch

__all__ = ["Feedback", "TrainingData", "require_finite", "sample_losses"]

logger = logging.getLogger(__name__)


@runtime_checkable
class TrainingData(Protocol):
    """What a surrogate uses of the data module that it is trained from.

    Attributes
    ----------
    observes : bool
        Whether `observe` is called; if not, the losses are not computed.
    """

    observes: bool

    def moments(
        self,
    ) -> tuple[Float[np.ndarray, " channel"], Float[np.ndarray, " channel"]]:
        """Return mean and std of each variable, over the first samples to train on."""

    def observe(self, seen: Observations) -> None:
        """Take the losses of one training step; called by the training's thread."""


@torch.no_grad()
def require_finite(surrogate: Any, loss: Tensor, said: bool) -> bool:
    """Say that a loss is not finite, once; refuse weights that are not.

    All ranks have the same weights, and so end together.
    """
    steps = surrogate.trainer.global_step
    remedy = "lower --model.optimizer.lr, or set --trainer.gradient_clip_val 1"
    if surrogate.recipe["normalisation"] == "none":
        remedy = (
            "take --model.normalisation standard, or write a scale of each Variable in "
            "the spec, Variable(..., scale=...)"
        )
    weights = sum(p.detach().sum() for p in surrogate.network.parameters())
    if not torch.isfinite(torch.as_tensor(weights)):
        raise ArgumentError(
            f"Training has diverged: at batch {steps} weights of the network are "
            f"NaN or infinite, and stay so. Usual remedy: {remedy}."
        )
    finite = bool(torch.isfinite(loss))
    if not finite and not said:
        logger.warning(
            "The loss is %s at batch %d, of which nothing is learnt. Usual remedy: %s.",
            float(loss),
            steps,
            remedy,
        )
    return said or not finite


def sample_losses(
    loss: nn.Module,
    prediction: Float[Tensor, "batch time channel *space"],
    target: Float[Tensor, "batch time channel *space"],
) -> Float[Tensor, " batch"]:
    """Return the loss of each sample; their mean is ``loss(prediction, target)``.

    Where `loss` is a mean over elements, as torch's with ``reduction="mean"`` are, each
    sample has the mean over its own elements. Any other loss (a norm of the batch, a
    ratio of sums) has no shares of samples, so each gets the loss of the batch.
    """
    if getattr(loss, "reduction", None) == "mean":
        # A shallow copy shares parameters and buffers.
        elementwise: Any = copy.copy(loss)
        elementwise.reduction = "none"
        losses: Tensor = elementwise(prediction, target)
        if losses.shape == prediction.shape:
            return losses.flatten(1).mean(1)
    of_batch: Tensor = loss(prediction, target)
    return of_batch.expand(len(prediction))


class Feedback:
    """Passes losses to a data module once they are in the host's memory.

    On a GPU the copies to the host run behind the training, and nothing waits for them:
    the losses of a step are passed on after one of the next steps.

    Parameters
    ----------
    data : TrainingData
    """

    def __init__(self, data: TrainingData) -> None:
        self._data = data
        self._copies: deque[tuple[list[Tensor], Any]] = deque()

    def add(self, batch: Batch, losses: Float[Tensor, " batch"]) -> None:
        """Begin to copy the losses of a batch; padding has none."""
        if not batch.weight:
            return
        copies = [
            # To the CPU without blocking: torch takes pinned memory by itself.
            tensor.detach().to("cpu", dtype, non_blocking=True, copy=True)
            for tensor, dtype in (
                (batch.simulation, torch.int64),
                (batch.step, torch.int64),
                (batch.parameters, torch.float32),
                (losses, torch.float32),
            )
        ]
        copied: Any = None
        if losses.is_cuda:
            cuda: Any = torch.cuda
            copied = cuda.Event()
            copied.record()
        self._copies.append((copies, copied))

    def deliver(self, *, wait: bool) -> None:
        """Pass on what has been copied; with `wait`, all."""
        while self._copies:
            copies, copied = self._copies[0]
            if copied is not None and not copied.query():
                if not wait:
                    return
                copied.synchronize()
            self._copies.popleft()
            self._data.observe(Observations(*(t.numpy() for t in copies)))
