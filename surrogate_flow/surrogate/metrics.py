"""Errors of a surrogate, relative and in the units of its fields."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import MeanSquaredError, Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.wrappers import LambdaInputTransformer

from surrogate_flow.fields.spec import FieldSpec

__all__ = [
    "MaximumError",
    "MeanRatio",
    "MeanSquare",
    "PercentileRMSE",
    "RelativeL2OfNumbers",
    "StandardError",
    "field_metrics",
    "nrmse",
    "relative_l2",
    "vrmse",
]

#: (prediction, target) -> errors and sizes, both of one shape.
Ratios = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_DOT = "\N{ONE DOT LEADER}"


class MeanRatio(Metric):
    """The mean of the ratios of `relative_l2`, `nrmse` or `vrmse`.

    Ratios whose size is zero are left out.
    """

    total: Tensor
    count: Tensor

    def __init__(self, ratios: Ratios) -> None:
        super().__init__()
        self.ratios = ratios
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), "sum")
        self.add_state("count", torch.tensor(0), "sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch, ``(batch, time, channel, *space)`` both."""
        error, size = self.ratios(prediction, target)
        counted = size > 0
        self.total += (error[counted] / size[counted]).sum()
        self.count += counted.sum()

    def compute(self) -> Tensor:
        """Return the mean."""
        return self.total / self.count


def relative_l2(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return |û - u|_2 and |u|_2 of each sample and variable.

    The norms are over all steps of a sample. Zongyi Li et al., Fourier Neural Operator
    for Parametric Partial Differential Equations, ICLR 2021, report the mean ratio.
    """
    error, target, _ = _known(prediction, target)
    error = error.transpose(1, 2).flatten(2).norm(dim=2)
    return error, target.transpose(1, 2).flatten(2).norm(dim=2)


def nrmse(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return sqrt(<(û - u)²>) and sqrt(<u²>) of each sample, step and variable.

    < > is the mean over space. Makoto Takamoto et al., PDEBench: An Extensive Benchmark
    for Scientific Machine Learning, NeurIPS 2022, report the mean ratio, nRMSE.
    """
    error, target, known = _known(prediction, target)
    return _rms(error, known), _rms(target, known)


def vrmse(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return sqrt(<(û - u)²>), sqrt(<(u - <u>)²> + ε) of each sample, step, variable.

    < > is the mean over space: predicting the spatial mean has the ratio 1. Ruben Ohana
    et al., The Well: a Large-Scale Collection of Diverse Physics Simulations for
    Machine Learning, NeurIPS 2024, report the mean ratio, VRMSE, with ε = 1e-7 for
    fields of order one. Here ε is 1e-7 <u²>, so that it does not depend on the units.
    """
    error, target, known = _known(prediction, target)
    away = _cells(target) - _mean(target, known)[..., None]
    if known is not None:
        away = away * _cells(known)
    size = _mean(away.square(), known) + 1e-7 * _mean(target.square(), known)
    return _rms(error, known), size.sqrt()


def _known(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return û - u and u, 0 where u is masked; and where it is not, if it is anywhere.

    In double precision, as all errors are: squares in single precision overflow from
    1.8e19 on, and vanish below 1e-23.
    """
    target = target.double()
    error = prediction - target
    if not target.sum().isnan():
        return error, target, None
    known = ~target.isnan()
    return torch.where(known, error, 0.0), torch.where(known, target, 0.0), known


def _rms(fields: Tensor, known: Tensor | None) -> Tensor:
    return _mean(fields.square(), known).sqrt()


def _mean(fields: Tensor, known: Tensor | None) -> Tensor:
    """Return the mean over space of fields that are 0 where they are not known."""
    if known is None:
        return _cells(fields).mean(dim=3)
    return _cells(fields).sum(dim=3) / _cells(known).sum(dim=3).clamp(min=1)


def _cells(fields: Tensor) -> Tensor:
    # A field without dims has one cell.
    return fields.reshape(*fields.shape[:3], -1)


class RelativeL2OfNumbers(Metric):
    """mean over variables of |û - u|_2 / |u|_2 over all samples, without unit.

    For fields without dims: a single number may be zero, so each sample cannot be
    compared with its own size.

    Parameters
    ----------
    variables : int
        Number of variables.
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
        target = target.double()
        self.error += (prediction - target).square().sum((0, 1))
        self.size += target.square().sum((0, 1))

    def compute(self) -> Tensor:
        """Return the mean."""
        tiny = torch.finfo(self.size.dtype).tiny
        return (self.error / self.size.clamp_min(tiny)).sqrt().mean()


class StandardError(Metric):
    """Standard error of ``relative_l2`` as a mean over simulations, by the jackknife.

    sqrt((n - 1) / n sum (r_i - r̄)²), r_i being ``relative_l2`` without simulation i:
    the standard deviation of the simulations' own errors over sqrt(n) where it is the
    mean of these. NaN for a single simulation.

    Parameters
    ----------
    of_numbers : bool
        Whether the fields have no dims, as in `RelativeL2OfNumbers`.

    Attributes
    ----------
    by_simulation : array of shape (simulation, 2 + channel), optional
        Number, ``relative_l2`` and root mean square error of each variable as stored,
        of all ranks, when it was last computed.

    References
    ----------
    B. Efron, C. Stein, The Jackknife Estimate of Variance, Annals of Statistics, 1981.
    """

    rows: list[Tensor]

    def __init__(self, *, of_numbers: bool) -> None:
        super().__init__()
        self.of_numbers = of_numbers
        self.by_simulation: np.ndarray | None = None
        self.add_state("rows", [], "cat")

    def update(
        self, prediction: Tensor, target: Tensor, simulation: Int[Tensor, " batch"]
    ) -> None:
        """Add a batch, ``(batch, time, channel, *space)``, and whose samples it has."""
        error, size = (part.double() for part in relative_l2(prediction, target))
        if self.of_numbers:
            above, below = error.square(), size.square()
        else:
            counted = size > 0
            ratios = torch.where(counted, error / size, 0.0)
            above = ratios.sum(1, keepdim=True)
            below = counted.sum(1, keepdim=True).double()
        # Of steps and cells; the last column counts the samples.
        values = (~target.isnan()).transpose(1, 2).flatten(2).sum(2).clamp(min=1)
        squares = error.square() / values
        count = torch.ones_like(squares[:, :1])
        numbers = simulation.double()[:, None]
        self.rows.append(torch.cat([numbers, above, below, squares, count], 1))

    def compute(self) -> Tensor:
        """Return the standard error."""
        rows = dim_zero_cat(self.rows)
        numbers, which = torch.unique(rows[:, 0], return_inverse=True)
        sums = rows.new_zeros(len(numbers), rows.shape[1] - 1)
        sums = sums.index_add(0, which, rows[:, 1:])
        # A ratio for each variable, or one for all of them.
        width = (sums.shape[1] - 1) // 3 if self.of_numbers else 1
        ratios = sums[:, : 2 * width]
        squares, count = sums[:, 2 * width : -1], sums[:, -1:]
        own = self._mean_ratio(ratios)
        table = torch.cat([numbers[:, None], own[:, None], (squares / count).sqrt()], 1)
        self.by_simulation = table.cpu().numpy()
        others = self._mean_ratio(ratios.sum(0) - ratios)
        return others.std(correction=0) * math.sqrt(max(len(numbers) - 1, 0))

    def _mean_ratio(self, sums: Tensor) -> Tensor:
        above, below = sums.chunk(2, dim=1)
        ratios = above / below
        return (ratios.sqrt() if self.of_numbers else ratios).mean(1)


class MeanSquare(MeanSquaredError):
    """mean (û - u)², or its root, over all values but masked ones."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch, ``(batch, ...)`` both."""
        known = _known(preds, target)[2]
        if known is not None:
            preds, target = preds[known], target[known]
        super().update(preds, target)


class PercentileRMSE(Metric):
    """99th percentile over samples of sqrt(mean (û - u)²), in the units of u.

    It is exact: one number is kept for each sample. The mean error says little about
    the worst simulations, and the maximum is that of a single cell.
    """

    errors: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("errors", [], "cat")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch, ``(batch, ...)`` both."""
        error, _, known = _known(prediction, target)
        squares, count = error.flatten(1).square(), error[0].numel()
        values = count if known is None else known.flatten(1).sum(dim=1)
        self.errors.append((squares.sum(dim=1) / values).sqrt())

    def compute(self) -> Tensor:
        """Return the percentile, interpolated between the two nearest samples."""
        errors = dim_zero_cat(self.errors)
        # torch.quantile refuses more than 16 million numbers.
        return errors.new_tensor(np.percentile(errors.cpu().numpy(), 99.0))


class MaximumError(Metric):
    """max |û - u|, in the units of u."""

    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("largest", torch.tensor(0.0, dtype=torch.float64), "max")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch, ``(batch, ...)`` both."""
        error = _known(prediction, target)[0].abs().max()
        self.largest = torch.maximum(self.largest, error)

    def compute(self) -> Tensor:
        """Return the maximum."""
        return self.largest


def field_metrics(
    spec: FieldSpec, prefix: str, *, detailed: bool = False
) -> MetricCollection:
    """Return the errors that every validation logs.

    ``relative_l2``, and for each variable ``rmse``, ``p99`` and ``max`` in its units,
    ``nrmse`` and ``vrmse`` without unit, of fields as they are stored, without the
    offset of their variable, and without points at which the target is NaN (masked).
    A variable of one cell has neither of these: its mean over space may be zero, and
    its variance over space is.

    Parameters
    ----------
    spec : FieldSpec
        Names the variables.
    prefix : str
        Of every name, such as ``"val_"``.
    detailed : bool
        Whether each variable has ``mse`` and ``relative_l2``, too.
    """

    def relative(variables: int) -> Metric:
        return MeanRatio(relative_l2) if spec.dims else RelativeL2OfNumbers(variables)

    metrics: dict[str, Metric | MetricCollection] = {
        "relative_l2": relative(len(spec.variables))
    }
    for channel, variable in enumerate(spec.variables):
        of_one: dict[str, Metric] = {
            "rmse": MeanSquare(squared=False),
            "p99": PercentileRMSE(),
            "max": MaximumError(),
        }
        if math.prod(spec.shape) > 1:
            of_one |= {"nrmse": MeanRatio(nrmse), "vrmse": MeanRatio(vrmse)}
        if detailed:
            of_one |= {"mse": MeanSquare(), "relative_l2": relative(1)}
        select = partial(_channel, channel, variable.scale)
        for name, metric in of_one.items():
            metrics[f"{name}_{variable.name}".replace(".", _DOT)] = (
                LambdaInputTransformer(metric.set_dtype(torch.float64), select, select)
            )
    return _Named(metrics, prefix=prefix, compute_groups=False)


class _Named(MetricCollection):
    """Metrics of variables that may have a dot in their name, as no submodule has."""

    def update(self, *fields: Tensor) -> None:  # type: ignore[override]  # as theirs
        """Add a batch, which is converted to double precision once for all metrics."""
        super().update(*(each.double() for each in fields))

    def _set_name(self, base: str) -> str:
        return super()._set_name(base).replace(_DOT, ".")


def _channel(
    channel: int, scale: float, fields: Float[Tensor, "batch time channel *space"]
) -> Float[Tensor, "batch time 1 *space"]:
    one = fields[:, :, channel : channel + 1]
    # torchmetrics views fields as vectors, whatever order a network leaves them in.
    return (one if scale == 1 else one * scale).contiguous()
