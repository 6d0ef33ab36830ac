"""Errors of a surrogate, relative and in the units of its fields."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import MeanSquaredError, Metric, MetricCollection

from surrogate_flow.fields import FieldSpec

__all__ = ["MaximumError", "RelativeL2", "RelativeL2OfNumbers", "field_metrics"]


class RelativeL2(Metric):
    """mean over samples and variables of |û - u|_2 / |u|_2, without unit.

    Zongyi Li et al., Fourier Neural Operator for Parametric Partial Differential
    Equations, ICLR 2021, report it.
    """

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), "sum")
        self.add_state("count", torch.tensor(0), "sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch, ``(batch, time, channel, *space)`` both."""
        error = (prediction - target).transpose(1, 2).flatten(2).norm(dim=2)
        size = target.transpose(1, 2).flatten(2).norm(dim=2)
        self.total += (error / size.clamp_min(torch.finfo(size.dtype).tiny)).sum()
        self.count += error.numel()

    def compute(self) -> Tensor:
        """Return the mean."""
        return self.total / self.count


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


class MaximumError(Metric):
    """max |û - u|, in the units of u."""

    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("largest", torch.tensor(0.0), "max")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch, ``(batch, ...)`` both."""
        self.largest = torch.maximum(self.largest, (prediction - target).abs().max())

    def compute(self) -> Tensor:
        """Return the maximum."""
        return self.largest


class _OfVariable(Metric):
    """A metric of one channel of ``(batch, time, channel, *space)``."""

    def __init__(self, metric: Metric, channel: int) -> None:
        super().__init__()
        self.metric = metric
        self.channel = channel

    def update(
        self,
        prediction: Float[Tensor, "batch time channel *space"],
        target: Float[Tensor, "batch time channel *space"],
    ) -> None:
        self.metric.update(
            prediction[:, :, self.channel].contiguous(),
            target[:, :, self.channel].contiguous(),
        )

    def compute(self) -> Tensor:
        value: Tensor = self.metric.compute()
        return value

    def reset(self) -> None:
        super().reset()
        self.metric.reset()


def field_metrics(spec: FieldSpec, prefix: str) -> MetricCollection:
    """Return the errors that are logged: one relative, two in units for each variable.

    Parameters
    ----------
    spec : FieldSpec
        Names the variables.
    prefix : str
        Of every name, such as ``"val_"``.
    """
    relative = RelativeL2() if spec.dims else RelativeL2OfNumbers(len(spec.variables))
    metrics: dict[str, Metric | MetricCollection] = {"relative_l2": relative}
    for channel, variable in enumerate(spec.variables):
        metrics[f"rmse_{variable.name}"] = _OfVariable(
            MeanSquaredError(squared=False), channel
        )
        metrics[f"max_{variable.name}"] = _OfVariable(MaximumError(), channel)
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)
