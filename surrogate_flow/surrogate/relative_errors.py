"""Errors as shares of the size of the fields, means over samples."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = [
    "NormalisedRMSE",
    "RelativeL2",
    "RelativeL2OfNumbers",
    "VarianceScaledRMSE",
]


class _MeanRatio(Metric, ABC):
    """The mean of ratios, error by size, without those whose size is zero."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), "sum")
        self.add_state("count", torch.tensor(0), "sum")

    @abstractmethod
    def ratios(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return errors and sizes, both of one shape."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch, ``(batch, time, channel, *space)`` both."""
        error, size = self.ratios(prediction, target)
        counted = size > 0
        self.total += (error[counted] / size[counted]).sum()
        self.count += counted.sum()

    def compute(self) -> Tensor:
        """Return the mean."""
        return self.total / self.count


class RelativeL2(_MeanRatio):
    """mean over samples and variables of |û - u|_2 / |u|_2, without unit.

    The norms are over all steps of a sample. Zongyi Li et al., Fourier Neural Operator
    for Parametric Partial Differential Equations, ICLR 2021, report it.
    """

    def ratios(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two norms of each sample and variable."""
        error = (prediction - target).transpose(1, 2).flatten(2).norm(dim=2)
        return error, target.transpose(1, 2).flatten(2).norm(dim=2)


class RelativeL2OfNumbers(Metric):
    """mean over variables of |û - u|_2 / |u|_2 over all samples, without unit.

    For fields without dims: a single number may be zero, so that it is no measure of
    its own error.

    Parameters
    ----------
    variables : int
        How many there are.
    """

    error: Tensor
    size: Tensor

    def __init__(self, variables: int) -> None:
        super().__init__()
        for name in ("error", "size"):
            zeros = torch.zeros(variables, dtype=torch.float64)
            self.add_state(name, zeros, "sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch, ``(batch, time, channel)`` both."""
        self.error += (prediction - target).double().square().sum((0, 1))
        self.size += target.double().square().sum((0, 1))

    def compute(self) -> Tensor:
        """Return the mean."""
        tiny = torch.finfo(torch.float32).tiny
        return (self.error / self.size.clamp_min(tiny)).sqrt().mean()


class NormalisedRMSE(_MeanRatio):
    """nRMSE: mean over samples and steps of sqrt(<(û - u)²> / <u²>), without unit.

    < > is the mean over space. Makoto Takamoto et al., PDEBench: An Extensive Benchmark
    for Scientific Machine Learning, NeurIPS 2022, report it.
    """

    def ratios(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two root mean squares of each sample, step and variable."""
        return _rms(prediction - target), _rms(target)


class VarianceScaledRMSE(_MeanRatio):
    """VRMSE: mean over samples and steps of sqrt(<(û - u)²> / (<(u - <u>)²> + ε)).

    < > is the mean over space: predicting the spatial mean gives 1. Ruben Ohana et al.,
    The Well: a Large-Scale Collection of Diverse Physics Simulations for Machine
    Learning, NeurIPS 2024, report it, with ε = 1e-7 for fields of order one. Here ε is
    1e-7 <u²>, so that it does not depend on the units.
    """

    def ratios(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the error and the deviation of each sample, step and variable."""
        flat = _cells(target)
        variance = (flat - flat.mean(dim=3, keepdim=True)).square().mean(dim=3)
        size = (variance + 1e-7 * flat.square().mean(dim=3)).sqrt()
        return _rms(prediction - target), size


def _rms(fields: Tensor) -> Tensor:
    return _cells(fields).square().mean(dim=3).sqrt()


def _cells(fields: Tensor) -> Tensor:
    # A field without dims has one cell.
    return fields.reshape(*fields.shape[:3], -1)
