"""How the error of a surrogate grows along its rollouts."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.surrogate.rollout import predictions, with_inputs

__all__ = [
    "FIGURES",
    "ErrorCurve",
    "HeldOutFields",
    "log_rollouts",
    "squared_errors",
    "validated_rollouts",
]

logger = logging.getLogger(__name__)

#: Of rollouts, by the names that follow ``val_rollout_``.
FIGURES = "relative_l2", "relative_l2_standard_error", "relative_l2_at_end"

_WORST = 100.0  # relative error of a step: of one that is not finite, or errs by more
_VALUES = 2**24  # that a validation predicts in rollouts, of all ranks together


class HeldOutFields(Protocol):
    """Simulations that are held out, in memory: those of one process."""

    spec: FieldSpec
    batch_size: int
    fields: np.ndarray
    parameters: np.ndarray
    inputs: np.ndarray

    @property
    def finished(self) -> list[int]:
        """Rows of those that are complete."""

    def steps(self, row: int) -> int:
        """Return the number of steps of one of them."""


class _Processes(Protocol):
    """The ranks of a run."""

    rank: int
    world: int

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all of them."""


@dataclass(frozen=True)
class ErrorCurve:
    """<(û - u)²> and <u²> at each step of rollouts, < > the mean over cells.

    Attributes
    ----------
    spec : FieldSpec
    start : int
        Index of the first step predicted.
    squared_errors, squares : array of shape (simulation, time, channel)
        In squared units of the variables; `squares` are NaN behind the end of a
        simulation.
    """

    spec: FieldSpec
    start: int
    squared_errors: Float[np.ndarray, "simulation time channel"]
    squares: Float[np.ndarray, "simulation time channel"]

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        surrogate: Any,
        held_out: HeldOutFields,
        start: int | None = None,
        most: int | None = None,
    ) -> Self:
        """Roll out finished simulations from their history to their end.

        They are rolled out together, in batches. Steps of a direct window are each
        predicted from the parameters.

        Parameters
        ----------
        surrogate : Surrogate
        held_out : ValidationSet
        start : int, optional
            Index of the first step to predict, as many as the window's inputs or more;
            by default just these. The steps before it are history.
        most : int, optional
            How many simulations are, at most; all by default.

        Raises
        ------
        ArgumentError
            If `start` leaves too little history, or nothing to predict.
        """
        spec, inputs = surrogate.spec, surrogate.window.inputs
        start = inputs if start is None else start
        if not inputs <= start < spec.steps:
            valid = f"{inputs} (the inputs of the window) to {spec.steps - 1}"
            raise ArgumentError("ErrorCurve.start", f"a step from {valid}", start)
        rows = [r for r in held_out.finished if held_out.steps(r) > start][:most]
        size = held_out.batch_size if inputs else 1
        was_training = surrogate.training
        surrogate.eval()
        try:
            parts = [
                squared_errors(
                    *(held_out, part, start, surrogate.device),
                    _guesses(surrogate, held_out, part, start),
                )
                for part in (rows[k : k + size] for k in range(0, len(rows), size))
            ]
        finally:
            surrogate.train(was_training)
        return cls.joined(spec, start, parts)

    @classmethod
    def joined(cls, spec: FieldSpec, start: int, parts: Sequence[np.ndarray]) -> Self:
        """Return that of all simulations of some `squared_errors`."""
        none = np.empty((2, 0, spec.steps - start, len(spec.variables)))
        both = np.concatenate([none, *parts], axis=1)
        both *= np.square([v.scale for v in spec.variables])
        return cls(spec, start, both[0], both[1])

    def of_all(self, ranks: _Processes) -> Self:
        """Return that of the simulations of all ranks; a collective call.

        It ends with the last step that one of them has.
        """
        shares = ranks.gather([self.squared_errors.tolist(), self.squares.tolist()])
        errors, squares = (
            np.array([s for share in shares for s in share[k]]) for k in range(2)
        )
        if len(squares):
            steps = int((~np.isnan(squares[..., 0])).sum(1).max())
            errors, squares = errors[:, :steps], squares[:, :steps]
        return replace(self, squared_errors=errors, squares=squares)

    @property
    def _there(self) -> np.ndarray:
        there: np.ndarray = ~np.isnan(self.squares)
        return there

    def _mean(
        self, values: Float[np.ndarray, "simulation time channel"], where: np.ndarray
    ) -> Float[np.ndarray, "time channel"]:
        """Return the mean over the simulations that have each step."""
        with np.errstate(invalid="ignore"):
            total = np.sum(values, axis=0, where=where)
            mean: Float[np.ndarray, "time channel"] = total / where.sum(0)
        return mean

    @property
    def times(self) -> Float[np.ndarray, " time"]:
        """Times of the predicted steps, in the units of the spec."""
        return np.array(self.spec.times[self.start :][: self.squares.shape[1]])

    @property
    def rmse(self) -> Float[np.ndarray, "time channel"]:
        """sqrt(mean over simulations of <(û - u)²>), in the units of the variables."""
        rmse: Float[np.ndarray, "time channel"] = np.sqrt(
            self._mean(self.squared_errors, self._there)
        )
        return rmse

    @property
    def _ratios(self) -> Float[np.ndarray, "simulation time channel"]:
        """sqrt(<(û - u)²> / U²); NaN where there is no step, or u is 0 throughout."""
        there = self._there
        size = np.sum(self.squares, axis=1, keepdims=True, where=there)
        size = size / np.maximum(there.sum(1, keepdims=True), 1)
        counted = (size > 0) & there
        with np.errstate(invalid="ignore"):
            ratios = np.sqrt(self.squared_errors / np.where(counted, size, np.inf))
        # NaN is no less than the worst.
        ratios = np.where(ratios < _WORST, ratios, _WORST)
        return np.where(counted, ratios, np.nan)

    @property
    def relative_l2(self) -> Float[np.ndarray, "time channel"]:
        """Mean over simulations of sqrt(<(û - u)²> / U²), without unit.

        U² is the mean of <u²> over all steps of the rollout, so that a step at which u
        is near zero does not count for more; u has no offset. A simulation whose u is
        0 throughout does not count; NaN if all are. A step that is not finite, or errs
        by more, counts as 100. The error of a validation, ``val_relative_l2``, is of
        single predictions, each relative to its own target.
        """
        ratios = self._ratios
        return self._mean(ratios, ~np.isnan(ratios))

    @property
    def accumulated(self) -> Float[np.ndarray, " channel"]:
        """Mean over simulations of the sum over steps of <(û - u)²>.

        The figure of merit of Brandstetter, Worrall, Welling, Message Passing Neural
        PDE Solvers, ICLR 2022, with ``start=50`` and windows of 25 steps there.
        """
        each = np.sum(self.squared_errors, axis=1, where=self._there)
        total: Float[np.ndarray, " channel"] = each.mean(0)
        return total

    @property
    def mean(self) -> float:
        """`relative_l2`, averaged over steps and variables."""
        return float(np.nanmean(np.nanmean(self.relative_l2, axis=1)))

    @property
    def errors(self) -> dict[str, float]:
        """The figures that validations log; NaN where there is no simulation.

        ``relative_l2``, its standard error over simulations, and that at the end, of
        the last step.
        """
        ratios = self._ratios
        known = ~np.isnan(ratios)
        counts = known.sum((1, 2))
        own = np.nansum(ratios, axis=(1, 2))[counts > 0] / counts[counts > 0]
        several = len(own) > 1
        spread = own.std(ddof=1) / math.sqrt(len(own)) if several else math.nan
        at_end = self.relative_l2[-1][known[:, -1].any(0)] if len(own) else own
        figures = (
            self.mean if len(own) else math.nan,
            float(spread),
            float(at_end.mean()) if len(at_end) else math.nan,
        )
        return dict(zip(FIGURES, figures, strict=True))


def log_rollouts(surrogate: Any, stage: str, data: Any) -> None:
    """Log the errors of rollouts of a stage, ``val`` or ``test``, if there are any."""
    if (curve := validated_rollouts(surrogate, data)) is not None:
        surrogate.rollouts = curve
        surrogate.rolled_out_at = surrogate.trainer.global_step
        errors = {f"{stage}_rollout_{k}": e for k, e in curve.errors.items()}
        surrogate.log_dict(errors, sync_dist=True)


def validated_rollouts(surrogate: Any, data: Any) -> ErrorCurve | None:
    """Return the errors of rollouts, of the simulations of all ranks together.

    A collective call. Of long simulations of large fields it is a share of them, the
    same each time. None without a history to begin with, or held-out simulations.
    """
    spec, window = surrogate.spec, surrogate.window
    held_out: HeldOutFields | None = getattr(data, "validation", None)
    if not window.inputs or held_out is None or surrogate.trainer.sanity_checking:
        return None
    ranks: _Processes = data.ranks
    each = max(1, spec.steps - window.inputs) * math.prod(spec.step_shape)
    most = max(1, _VALUES // each // ranks.world)
    count = sum(ranks.gather(len(held_out.finished)))
    if surrogate.rollouts is None and most * ranks.world < count and not ranks.rank:
        logger.info(
            "Validations roll out %d of %d held-out simulations, which are long; at "
            "the end of the run all are.",
            most * ranks.world,
            count,
        )
    return ErrorCurve.of(surrogate, held_out, most=most).of_all(ranks)


def _guesses(
    surrogate: Any, held_out: HeldOutFields, rows: Sequence[int], start: int
) -> Iterator[Float[Tensor, "simulation outputs channel *space"]]:
    """Yield consecutive steps of some simulations, from `start` on."""
    window: Window = surrogate.window
    device = surrogate.device
    parameters = torch.from_numpy(held_out.parameters[rows]).to(device)
    past = held_out.fields[rows, start - window.inputs : start]
    history = torch.from_numpy(past).to(device)
    given: list[Tensor] = []
    if held_out.spec.inputs:
        given = [torch.from_numpy(held_out.inputs[rows]).to(device)]
    if window.inputs:
        # Prediction by prediction: a whole rollout could be too large to hold.
        first = torch.full((len(rows),), float(start), device=device)
        predict = with_inputs(surrogate, *given)
        yield from predictions(predict, parameters, first, history)
        return
    # None needs the one before: as many at once as a validation takes.
    last = held_out.steps(rows[0])
    steps = torch.arange(float(start), last, window.outputs, device=device)
    for part in torch.split(steps, held_out.batch_size):
        yield surrogate(
            parameters.expand(len(part), -1),
            part,
            history.expand(len(part), *history.shape[1:]),
            *(u.expand(len(part), *u.shape[1:]) for u in given),
        ).flatten(0, 1)[None]


def squared_errors(
    held_out: HeldOutFields,
    rows: Sequence[int],
    start: int,
    device: torch.device,
    guesses: Iterator[Float[Tensor, "simulation outputs channel *space"]],
) -> Float[np.ndarray, "2 simulation time channel"]:
    """Return <(û - u)²> and <u²> of some simulations, NaN behind the end of each.

    `guesses` are consecutive steps of theirs, from `start` on.
    """
    steps, spec = [held_out.steps(row) for row in rows], held_out.spec
    shape = (2, len(rows), spec.steps - start, len(spec.variables))
    squares, step = np.full(shape, np.nan), start
    while step < max(steps):
        guess = next(guesses)[:, : max(steps) - step]
        end = step + guess.shape[1]
        truth = torch.from_numpy(held_out.fields[rows, step:end]).to(device)
        # Where masked fields are NaN, as they are in all steps.
        cells_of = (*truth.shape[:3], -1)  # one, of a variable without dims
        known = ~truth.isnan().reshape(cells_of)
        for k, values in enumerate((guess - truth, truth)):
            cells = torch.where(known, values.reshape(cells_of).double(), 0.0)
            means = cells.square().sum(3) / known.sum(3)
            squares[k, :, step - start : end - start] = means.cpu().numpy()
        step = end
    for k, count in enumerate(steps):
        squares[:, k, count - start :] = np.nan
    return squares
