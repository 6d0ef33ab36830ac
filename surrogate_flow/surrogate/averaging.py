"""The running average of the weights, which is what is validated and saved."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as L
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor
from torch.nn.parameter import is_lazy

__all__ = ["AveragedWeights"]

_EVERY = 10  # steps between two updates, which read all weights
_POWER = 17  # so that the mean age of the weights is 5 % of their number of updates


@torch.no_grad()
def _add(averages: Iterable[Tensor], weights: Iterable[Tensor], updates: Any) -> None:
    share = 1.0 - (1.0 - 1.0 / (float(updates) + 1.0)) ** (_POWER + 1)
    torch._foreach_lerp_(list(averages), list(weights), share)


class AveragedWeights(WeightAveraging):
    """θ̄_k = θ̄_{k-1} + (1 - β_k) (θ_k - θ̄_{k-1}),  β_k = (1 - 1/k)^18.

    θ_k are the weights at update k. The average is over the last tenth of the training,
    roughly, however long it is, so it needs no decay to be chosen and forgets the first
    weights. It takes the place of the weights in validations, in checkpoints (whose
    ``current_model_state`` training goes on from) and when a fit ends; buffers are not
    averaged. Weights that are lazy when a fit begins are not averaged at all.

    Parameters
    ----------
    at_first : int
        Steps that are each followed by an update; of those behind them each tenth is.

    References
    ----------
    Karras et al., *Analyzing and Improving the Training Dynamics of Diffusion Models*,
    CVPR 2024, https://arxiv.org/abs/2312.02696, equation 4
    """

    def __init__(self, at_first: int = 50) -> None:
        super().__init__(use_buffers=False, multi_avg_fn=_add)
        self._at_first = at_first
        self._swapped = False

    def should_update(
        self, step_idx: int | None = None, epoch_idx: int | None = None
    ) -> bool:
        """Return whether the average is updated after a step: not after each."""
        if step_idx is None:
            return False
        return step_idx < self._at_first or step_idx % _EVERY == 0

    def setup(
        self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str
    ) -> None:
        """Copy the weights when a fit begins."""
        if not any(map(is_lazy, pl_module.parameters())):
            super().setup(trainer, pl_module, stage)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Update the average."""
        if self._average_model is not None:
            super().on_train_batch_end(*args, **kwargs)

    def on_train_epoch_end(self, *args: Any) -> None:
        """Do nothing: steps count."""

    def on_validation_epoch_start(self, *args: Any) -> None:
        """Leave the weights: they were exchanged before."""

    def on_validation_epoch_end(self, *args: Any) -> None:
        """Leave them: the module's own end of the epoch is still to come."""

    def on_validation_start(self, _: Any, pl_module: L.LightningModule) -> None:
        """Validate the average."""
        self._exchange(pl_module, True)

    def on_validation_end(self, _: Any, pl_module: L.LightningModule) -> None:
        """Go on with the weights; rollouts of the validation have ended, too."""
        self._exchange(pl_module, False)

    def on_exception(self, _: Any, pl_module: L.LightningModule, *args: Any) -> None:
        """Put the weights back, before they are saved, if a validation has failed."""
        self._exchange(pl_module, False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the average in the place of the weights."""
        if self._average_model is not None:
            super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: Any
    ) -> None:
        """Save the average, and beside it the weights that training goes on from."""
        if self._average_model is not None:
            self._with_buffers_of(pl_module)
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: Any
    ) -> None:
        """Go on with both; a checkpoint without an average begins one."""
        average = self._average_model
        if average is None:
            return
        state = {f"module.{k}": v for k, v in checkpoint["state_dict"].items()}
        noted = checkpoint.get("averaging_state", {"n_averaged": torch.tensor(0)})
        average.load_state_dict(state | noted)
        if (trained := checkpoint.get("current_model_state")) is not None:
            pl_module.load_state_dict(trained)

    def _exchange(self, module: L.LightningModule, swapped: bool) -> None:
        if self._average_model is not None and swapped != self._swapped:
            self._with_buffers_of(module)
            self._swap_models(module)
            self._swapped = swapped

    def _with_buffers_of(self, module: L.LightningModule) -> None:
        average: Any = self._average_model
        pairs = zip(average.module.buffers(), module.buffers(), strict=True)
        for copied, buffer in pairs:
            copied.copy_(buffer)
