"""The loss of each sample, on its way to whoever chooses the next simulations."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from surrogate_flow.sampling import Observations
from surrogate_flow.surrogate.batch import Batch

__all__ = ["Feedback", "Observer", "sample_losses"]


@runtime_checkable
class Observer(Protocol):
    """A data module that may want the losses.

    Attributes
    ----------
    observes : bool
        Whether it does; they are not computed otherwise.
    """

    observes: bool

    def observe(self, seen: Observations) -> None:
        """Take the losses of one training step; called by the training's thread."""


@torch.no_grad()
def sample_losses(
    loss: nn.Module,
    prediction: Float[Tensor, "batch time channel *space"],
    target: Float[Tensor, "batch time channel *space"],
) -> Float[Tensor, " batch"]:
    """Return the loss of each sample; their mean is ``loss(prediction, target)``.

    Where `loss` is a mean over elements, as torch's with ``reduction="mean"`` are, each
    sample has the mean over its own elements. Of any other loss (a norm of the batch, a
    ratio of sums) the samples have no shares, so each gets the loss of the batch.

    Parameters
    ----------
    loss : nn.Module
        Unchanged.
    prediction, target : Tensor of shape (batch, ...)
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
    """Hands losses to an `Observer` once they are in the host's memory.

    Where the training runs on a GPU, the copies to the host run behind it, and nothing
    waits for them: the losses of a step are handed over after one of the next steps.

    Parameters
    ----------
    observer : Observer
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._copies: deque[tuple[list[Tensor], Any]] = deque()

    def add(self, batch: Batch, losses: Float[Tensor, " batch"]) -> None:
        """Begin to copy the losses of a batch; padding has none."""
        if not batch.weight:
            return
        tensors = [batch.simulation, batch.step, batch.parameters, losses]
        self._copies.append(_copied(tensors))

    def deliver(self, *, wait: bool) -> None:
        """Hand over what has been copied; with `wait`, all."""
        while self._copies:
            tensors, copied = self._copies[0]
            if copied is not None:
                if wait:
                    copied.synchronize()
                elif not copied.query():
                    return
            self._copies.popleft()
            simulation, step, parameters, losses = (t.numpy() for t in tensors)
            self._observer.observe(
                Observations(simulation, step.astype("int64"), parameters, losses)
            )


def _copied(tensors: list[Tensor]) -> tuple[list[Tensor], Any]:
    """Return copies on the host, and the event of their end if they are under way."""
    on_gpu = tensors[-1].is_cuda
    copies = []
    for tensor in tensors:
        dtype = torch.float32 if tensor.is_floating_point() else torch.int64
        host = torch.empty(tensor.shape, dtype=dtype, pin_memory=on_gpu)
        copies.append(host.copy_(tensor.detach(), non_blocking=on_gpu))
    if not on_gpu:
        return copies, None
    cuda: Any = torch.cuda
    event = cuda.Event()
    event.record()
    return copies, event
