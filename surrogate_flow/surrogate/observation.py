"""The loss of each sample, for a sampler that chooses the next simulations by it."""

from __future__ import annotations

import copy
import logging
import time
from collections import deque
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.sampling import Observations
from surrogate_flow.surrogate.batch import Batch
from surrogate_flow.surrogate.loss import RelativeL2

__all__ = [
    "Feedback",
    "Look",
    "Probe",
    "TrainingData",
    "evaluate",
    "loss_of",
    "require_finite",
    "sample_losses",
]

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


def loss_of(
    loss: nn.Module,
    prediction: Float[Tensor, "batch time channel *space"],
    target: Float[Tensor, "batch time channel *space"],
    known: Bool[Tensor, "batch time channel *space"] | None,
) -> Float[Tensor, ""]:
    """Return the loss of a batch over the points that are known, all of them if None.

    Where `loss` is a mean over elements, it is the mean over those of these points, and
    so with `RelativeL2`. Any other loss sees 0 in prediction and target at the others.
    """
    if known is None:
        of_all: Tensor = loss(prediction, target)
        return of_all
    if isinstance(loss, RelativeL2):
        of_all = loss(prediction, target, known)
        return of_all
    prediction = torch.where(known, prediction, 0.0)
    losses = _elementwise(loss, prediction, target)
    if losses is None:
        of_all = loss(prediction, target)
        return of_all
    return torch.where(known, losses, 0.0).sum() / known.sum()


def _elementwise(loss: nn.Module, prediction: Tensor, target: Tensor) -> Tensor | None:
    """Return the loss of each element, if it is a mean over elements."""
    if getattr(loss, "reduction", None) != "mean":
        return None
    # A shallow copy shares parameters and buffers.
    elementwise: Any = copy.copy(loss)
    elementwise.reduction = "none"
    losses: Tensor = elementwise(prediction, target)
    return losses if losses.shape == prediction.shape else None


def evaluate(surrogate: Any, stage: str, batch: Batch, batch_idx: int) -> None:
    """Add a batch to the errors of a stage, ``val`` or ``test``, and log its loss."""
    normalisation = surrogate.normalisation
    normalised = surrogate.normalised(*batch[:3], *batch.given)
    target = batch.target[:, : surrogate.window.outputs]
    known = normalisation.known(target)
    wanted = normalisation.target(target, batch.history)
    loss = loss_of(surrogate.loss, normalised, wanted, known)
    prediction = normalisation.predicted(normalised, batch.history)
    errors = getattr(surrogate, f"{stage}_errors")
    errors.update(prediction, target)
    spread = surrogate.spreads[stage]
    spread.update(prediction, target, batch.simulation)
    surrogate.log(f"{stage}_loss", loss, batch_size=len(batch.step), sync_dist=True)
    # Lightning keeps the metrics themselves, and computes them in the end.
    if batch_idx == 0:
        surrogate.log_dict(errors)
        surrogate.log(f"{stage}_relative_l2_standard_error", spread)


def sample_losses(
    loss: nn.Module,
    of_batch: Float[Tensor, ""],
    prediction: Float[Tensor, "batch time channel *space"],
    target: Float[Tensor, "batch time channel *space"],
    known: Bool[Tensor, "batch time channel *space"] | None = None,
) -> Float[Tensor, " batch"]:
    """Return the loss of each sample; their mean is that of the batch.

    Where `loss` is a mean over elements, as torch's with ``reduction="mean"`` are, each
    sample has the mean over its own elements, of points that are known; `RelativeL2`
    has one of each sample. Any other loss (a norm of the batch, a ratio of sums) has no
    shares of samples, so each gets the loss of the batch, and it is not called again.
    """
    if isinstance(loss, RelativeL2):
        return loss.of_samples(prediction, target, known)
    losses = _elementwise(loss, prediction, target)
    if losses is None:
        return of_batch.expand(len(prediction))
    if known is None:
        return losses.flatten(1).mean(1)
    losses = torch.where(known, losses, 0.0)
    return losses.flatten(1).sum(1) / known.flatten(1).sum(1)


def _of_torch(loss: nn.Module) -> bool:
    """Whether a loss may be called again: it has no state, and waits for nobody.

    A user's may draw random numbers, count its calls, or wait for other ranks.
    """
    hooks = loss._forward_hooks or loss._forward_pre_hooks
    ours = isinstance(loss, RelativeL2)
    return (ours or type(loss).__module__ == "torch.nn.modules.loss") and not hooks


def _to_host(batch: Batch, losses: Tensor, *more: Tensor) -> tuple[list[Tensor], Any]:
    """Begin to copy what is known of a batch; return copies, and what they wait for."""
    copies = [
        # To the CPU without blocking: torch takes pinned memory by itself.
        tensor.detach().to("cpu", dtype, non_blocking=True, copy=True)
        for tensor, dtype in (
            (batch.simulation, torch.int64),
            (batch.step, torch.int64),
            (batch.parameters, torch.float32),
            (losses, torch.float32),
            *((tensor, torch.float32) for tensor in more),
        )
    ]
    copied: Any = None
    if losses.is_cuda:
        cuda: Any = torch.cuda
        copied = cuda.Event()
        copied.record()
    return copies, copied


class Look(NamedTuple):
    """What a `Probe` has seen of one training step.

    Attributes
    ----------
    seen : Observations
        The losses of the samples of its batch.
    newest : int
        The sample of the newest simulation.
    truth, guess : array of shape (sample, channel, *space)
        The first step that was predicted of this sample alone, or of all if fields have
        no dims; thin, as stored.
    """

    seen: Observations
    newest: int
    truth: Float[np.ndarray, "sample channel *space"]
    guess: Float[np.ndarray, "sample channel *space"]


class Probe:
    """Takes a look at a training step whenever another thread wants one.

    The training copies the losses of a batch and one thin sample; on a GPU it does not
    wait for the copies. A step at which nobody wants a look costs it nothing.

    Parameters
    ----------
    index : tuple of slice
        Of the axes of space: which cells are looked at.

    Attributes
    ----------
    wanted : bool
        Whether the next step is looked at.
    seconds : float
        That the last look took of the training's thread.
    """

    def __init__(self, index: tuple[slice, ...]) -> None:
        self._index = index
        self._copies: tuple[list[Tensor], Any] | None = None
        self.wanted, self.seconds = True, 0.0

    def take(
        self,
        surrogate: Any,
        batch: Batch,
        prediction: Tensor,
        target: Tensor,
        loss: Tensor,
    ) -> None:
        """Look at a step, in the training's thread; padding has nothing to see.

        Prediction and target are normalised; the loss is that of the batch, or of each
        sample. What fails is logged, and ends the looking.
        """
        if not batch.weight:
            return
        try:
            self._take(surrogate, batch, prediction, target, loss.detach())
        except Exception:
            # Of any type: the loss and the networks are the user's.
            surrogate.probe = None
            logger.exception("losses.csv and newest.nc get nothing more.")

    @torch.no_grad()
    def _take(
        self,
        surrogate: Any,
        batch: Batch,
        prediction: Tensor,
        target: Tensor,
        losses: Tensor,
    ) -> None:
        begin = time.thread_time()
        if losses.numel() == 1:
            loss: Any = surrogate.loss if _of_torch(surrogate.loss) else None
            known = surrogate.normalisation.known(batch.target)
            losses = sample_losses(loss, losses, prediction, target, known)
        newest = batch.simulation.argmax()[None]
        guess = surrogate.normalisation.predicted(prediction, batch.history)
        truth, guess = (
            fields[:, 0][(slice(None), slice(None), *self._index)]
            for fields in (batch.target, guess)
        )
        if self._index:
            truth, guess = (each.index_select(0, newest) for each in (truth, guess))
        guess = torch.where(truth.isnan(), torch.nan, guess)
        self.seconds = time.thread_time() - begin
        self._copies = _to_host(batch, losses, newest, truth, guess)
        self.wanted = False

    def look(self) -> Look | None:
        """Return what was seen, once, if its copies have arrived; from any thread."""
        if self._copies is None:
            return None
        (*seen, newest, truth, guess), copied = self._copies
        if copied is not None and not copied.query():
            return None
        self._copies = None
        observed = Observations(*(tensor.numpy() for tensor in seen))
        return Look(observed, int(newest), truth.numpy(), guess.numpy())


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
        self._copies.append(_to_host(batch, losses))

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
