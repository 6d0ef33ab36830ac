"""Losses of a surrogate, of the points that are known."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["RelativeL2"]


class RelativeL2(nn.Module):
    """mean over samples and variables of ‖û - u‖₂ / max(‖u‖₂, ε √n).

    û and u are normalised, so their mean square over a run is one; n is the number of
    values of a variable in a sample. Each sample counts by its relative error, not by
    its squares, of which large fields have most.

    Parameters
    ----------
    floor : float
        ε: a field that is close to the mean of all is not compared with less.

    References
    ----------
    Zongyi Li et al., *Fourier Neural Operator for Parametric Partial Differential
    Equations*, ICLR 2021, https://arxiv.org/abs/2010.08895, section 5
    """

    def __init__(self, floor: float = 0.1) -> None:
        super().__init__()
        if floor <= 0:
            raise ValueError(f"RelativeL2: expected a floor above 0, got {floor}")
        self.floor = floor

    def of_samples(
        self,
        prediction: Float[Tensor, "batch time channel *space"],
        target: Float[Tensor, "batch time channel *space"],
    ) -> Float[Tensor, " batch"]:
        """Return the loss of each sample."""
        error, size = (
            part.transpose(1, 2).flatten(2) for part in (prediction - target, target)
        )
        least = self.floor * size.shape[2] ** 0.5
        ratio = error.norm(dim=2) / size.norm(dim=2).clamp_min(least)
        losses: Tensor = ratio.mean(dim=1)
        return losses

    def forward(self, prediction: Tensor, target: Tensor) -> Float[Tensor, ""]:
        """Return their mean."""
        return self.of_samples(prediction, target).mean()
