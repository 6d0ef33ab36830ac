"""Errors of a surrogate, relative and in the units of its fields."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import MeanSquaredError, Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat

from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.surrogate.relative_errors import (
    NormalisedRMSE,
    RelativeL2,
    RelativeL2OfNumbers,
    VarianceScaledRMSE,
)

__all__ = [
    "MaximumError",
    "PercentileRMSE",
    "detailed_metrics",
    "field_metrics",
]


class PercentileRMSE(Metric):
    """99th percentile over samples of sqrt(mean (û - u)²), in the units of u.

    Exact: one number is kept for each sample. The mean error says little of the worst
    simulations, and the maximum is that of a single cell.
    """

    errors: list[Tensor]

    def __init__(self, percent: float = 99.0) -> None:
        super().__init__()
        self.percent = percent
        self.add_state("errors", [], "cat")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch, ``(batch, ...)`` both."""
        error = (prediction - target).flatten(1).square().mean(dim=1).sqrt()
        self.errors.append(error)

    def compute(self) -> Tensor:
        """Return the percentile, interpolated between the two samples next to it."""
        errors = dim_zero_cat(self.errors)
        # torch.quantile refuses more than 16 million numbers.
        value = np.percentile(errors.cpu().numpy(), self.percent)
        return torch.tensor(float(value), device=errors.device)


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
        channel = slice(self.channel, self.channel + 1)
        self.metric.update(
            prediction[:, :, channel].contiguous(), target[:, :, channel].contiguous()
        )

    def compute(self) -> Tensor:
        value: Tensor = self.metric.compute()
        return value

    def reset(self) -> None:
        super().reset()
        self.metric.reset()


def field_metrics(spec: FieldSpec, prefix: str) -> MetricCollection:
    """Return the errors that every validation logs.

    ``relative_l2``, and for each variable ``rmse``, ``p99`` and ``max`` in its units,
    ``nrmse`` and ``vrmse`` without. A variable of one cell has neither: its mean over
    space may be zero, and it has no variance there.

    Parameters
    ----------
    spec : FieldSpec
        Names the variables.
    prefix : str
        Of every name, such as ``"val_"``.
    """
    return _collection(prefix, _short(spec))


def detailed_metrics(spec: FieldSpec, prefix: str) -> MetricCollection:
    """Return those of `field_metrics`, and each variable's ``mse`` and ``relative_l2``.

    Parameters
    ----------
    spec, prefix
        As in `field_metrics`.
    """
    metrics = _short(spec)
    for channel, variable in enumerate(spec.variables):
        metrics[f"mse_{variable.name}"] = _OfVariable(MeanSquaredError(), channel)
        relative = _relative_l2(spec, 1)
        metrics[f"relative_l2_{variable.name}"] = _OfVariable(relative, channel)
    return _collection(prefix, metrics)


def _short(spec: FieldSpec) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {
        "relative_l2": _relative_l2(spec, len(spec.variables))
    }
    for channel, variable in enumerate(spec.variables):
        of_one: dict[str, Metric] = {
            "rmse": MeanSquaredError(squared=False),
            "p99": PercentileRMSE(),
            "max": MaximumError(),
        }
        if math.prod(spec.shape) > 1:
            of_one |= {"nrmse": NormalisedRMSE(), "vrmse": VarianceScaledRMSE()}
        for name, metric in of_one.items():
            metrics[f"{name}_{variable.name}"] = _OfVariable(metric, channel)
    return metrics


def _relative_l2(spec: FieldSpec, variables: int) -> Metric:
    return RelativeL2() if spec.dims else RelativeL2OfNumbers(variables)


def _collection(prefix: str, metrics: dict[str, Metric]) -> MetricCollection:
    named: dict[str, Metric | MetricCollection] = {**metrics}
    return MetricCollection(named, prefix=prefix, compute_groups=False)
