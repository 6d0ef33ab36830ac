"""Losses of a surrogate, of the points that are known."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from surrogate_flow.fields.errors import ArgumentError

__all__ = ["RelativeL2"]


class RelativeL2(nn.Module):
    """mean over samples and variables of ‖û - u‖₂ / max(‖u‖₂, ε √n).

    û and u are normalised, so their mean square over a run is one; n is the number of
    known values of a variable in a sample. Each sample counts by its relative error,
    not by its squares, of which large fields have most.

    Parameters
    ----------
    floor : float
        ε: a field that is close to the mean of all is not compared with less.

    Raises
    ------
    ArgumentError
        If the floor is not above 0.

    References
    ----------
    Zongyi Li et al., *Fourier Neural Operator for Parametric Partial Differential
    Equations*, ICLR 2021, https://arxiv.org/abs/2010.08895, section 5
    """

    def __init__(self, floor: float = 0.1) -> None:
        super().__init__()
        if floor <= 0:
            raise ArgumentError(
                "model.loss.floor of RelativeL2",
                "a number above 0",
                floor,
                "1e-6 compares each field with hardly more than itself.",
            )
        self.floor = floor

    def of_samples(
        self,
        prediction: Float[Tensor, "batch time channel *space"],
        target: Float[Tensor, "batch time channel *space"],
        known: Bool[Tensor, "batch time channel *space"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Return the loss of each sample, over the points that are known if not all."""
        if known is not None:
            prediction = torch.where(known, prediction, target)
        error, size = map(_values, (prediction - target, target))
        count: Any = size.shape[2]
        if known is not None:
            count = _values(known).sum(2).clamp_min(1)
        # A number, or a tensor of the same device.
        ratio = error.norm(dim=2) / size.norm(dim=2).clamp(min=self.floor * count**0.5)
        losses: Tensor = ratio.mean(dim=1)
        return losses

    def forward(
        self, prediction: Tensor, target: Tensor, known: Tensor | None = None
    ) -> Float[Tensor, ""]:
        """Return their mean."""
        return self.of_samples(prediction, target, known).mean()


def _values(fields: Tensor) -> Tensor:
    """Return the values of each sample and variable, one after the other."""
    return fields.transpose(1, 2).flatten(2)
