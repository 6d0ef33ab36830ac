"""How the error of a surrogate grows along its rollouts, and what none would err by."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from surrogate_flow.data.ranks import Ranks
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.surrogate.metrics import field_metrics
from surrogate_flow.surrogate.rollout import predictions, with_inputs
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = ["BASELINES", "ErrorCurve", "baseline_error", "extrapolated"]

#: Predictions without a surrogate, and the order of their polynomial in time.
BASELINES = {"no change": 0, "linear extrapolation": 1}


def extrapolated(
    fields: Float[np.ndarray, "time channel *space"],
    times: Float[np.ndarray, " time"],
    last: Int[np.ndarray, " *shape"],
    step: Int[np.ndarray, " *shape"],
    order: int,
) -> Float[np.ndarray, "*shape channel *space"]:
    """Return u_l + order (u_l - u_{l-1}) (t_k - t_l) / (t_l - t_{l-1}), l last, k step.

    Examples
    --------
    >>> u, t = np.array([[1.0], [2.0], [9.0]]), np.array([0.0, 1.0, 3.0])
    >>> extrapolated(u, t, np.array([1]), np.array([2]), 1)
    array([[4.]])
    """
    present: Float[np.ndarray, "*shape channel *space"] = fields[last]
    if not order:
        return present
    ratio = (times[step] - times[last]) / (times[last] - times[last - 1])
    ratio = ratio.astype(fields.dtype).reshape(*last.shape, *[1] * (fields.ndim - 1))
    present = present + ratio * (present - fields[last - 1])
    return present


def baseline_error(
    held_out: ValidationSet, order: int, device: torch.device
) -> float | None:
    """Return ``val_relative_l2`` of `extrapolated` fields, over those of all ranks.

    A collective call. Windows before which there is no second step do not count; None
    if no window does.
    """
    window, spec = held_out.window, held_out.spec
    metric: Any = field_metrics(spec, "")["relative_l2"].to(device)
    times = np.array(spec.times)
    last = np.arange(0, spec.steps - window.span + 1, window.stride) + window.inputs - 1
    every = last[last >= order]
    for row in held_out.finished if len(every) else ():
        fields = held_out.fields[row]
        last = every[every < held_out.steps(row) - window.outputs]
        for part in np.split(
            last, range(held_out.batch_size, len(last), held_out.batch_size)
        ):
            if not len(part):
                continue
            step = part[:, None] + np.arange(1, window.outputs + 1)
            known = np.broadcast_to(part[:, None], step.shape)
            guess = extrapolated(fields, times, known, step, order)
            metric.update(
                *(torch.from_numpy(u).to(device) for u in (guess, fields[step]))
            )
    return float(metric.compute()) if len(every) else None


@dataclass(frozen=True)
class ErrorCurve:
    """<(û - u)²> and <u²> at each step of rollouts, < > the mean over cells.

    Attributes
    ----------
    spec : FieldSpec
    start : int
        Index of the first step predicted.
    squared_errors, squares : array of shape (simulation, time, channel)
        In squared units of the variables; NaN behind the end of a simulation.
    """

    spec: FieldSpec
    start: int
    squared_errors: Float[np.ndarray, "simulation time channel"]
    squares: Float[np.ndarray, "simulation time channel"]

    @classmethod
    @torch.no_grad()
    def of(
        cls, surrogate: Surrogate, held_out: ValidationSet, start: int | None = None
    ) -> ErrorCurve:
        """Roll out each finished simulation from its history to its end.

        Steps of a direct window are each predicted from the parameters, in batches.

        Parameters
        ----------
        surrogate : Surrogate
        held_out : ValidationSet
        start : int, optional
            Index of the first step to predict, as many as the window's inputs or more;
            by default just these. The steps before it are history.

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
        was_training = surrogate.training
        surrogate.eval()
        curve = cls._of(
            held_out, start, lambda row: _guesses(surrogate, held_out, row, start)
        )
        surrogate.train(was_training)
        return curve

    @classmethod
    def empty(cls, surrogate: Surrogate) -> Self:
        """Return that of no simulation."""
        spec, start = surrogate.spec, surrogate.window.inputs
        none = np.empty((0, spec.steps - start, len(spec.variables)))
        return cls(spec, start, none, none)

    @classmethod
    def of_baseline(cls, held_out: ValidationSet, start: int, order: int) -> Self:
        """Extrapolate each finished simulation from the steps before `start`."""
        times, last = np.array(held_out.spec.times), np.array(start - 1)

        def guesses(row: int) -> Iterator[np.ndarray]:
            for step in range(start, held_out.steps(row)):
                fields = held_out.fields[row]
                yield extrapolated(fields, times, last, np.array(step), order)

        return cls._of(held_out, start, guesses)

    @classmethod
    def _of(
        cls,
        held_out: ValidationSet,
        start: int,
        guesses: Callable[[int], Iterator[np.ndarray]],
    ) -> Self:
        spec = held_out.spec
        rows = [row for row in held_out.finished if held_out.steps(row) > start]
        shape = (len(rows), 2, spec.steps - start, len(spec.variables))
        stacked = np.full(shape, np.nan)
        for of_one, row in zip(stacked, rows, strict=True):
            truth = held_out.fields[row, start : held_out.steps(row)]
            of_one[:, : len(truth)] = _squares(truth, guesses(row))
        stacked = stacked * np.square([v.scale for v in spec.variables])
        return cls(spec, start, stacked[:, 0], stacked[:, 1])

    def of_all(self, ranks: Ranks) -> Self:
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

    def _mean(
        self, values: Float[np.ndarray, "simulation time channel"]
    ) -> Float[np.ndarray, "time channel"]:
        """Return the mean over the simulations that have each step."""
        there = ~np.isnan(self.squares)
        with np.errstate(invalid="ignore"):
            mean: Float[np.ndarray, "time channel"] = np.sum(
                values, axis=0, where=there
            ) / there.sum(0)
        return mean

    @property
    def times(self) -> Float[np.ndarray, " time"]:
        """Times of the predicted steps, in the units of the spec."""
        return np.array(self.spec.times[self.start :][: self.squares.shape[1]])

    @property
    def rmse(self) -> Float[np.ndarray, "time channel"]:
        """sqrt(mean over simulations of <(û - u)²>), in the units of the variables."""
        rmse: Float[np.ndarray, "time channel"] = np.sqrt(
            self._mean(self.squared_errors)
        )
        return rmse

    @property
    def relative_l2(self) -> Float[np.ndarray, "time channel"]:
        """Mean over simulations of sqrt(<(û - u)²> / U²), without unit.

        U² is the mean of <u²> over all steps of the rollout, so that a step at which u
        is near zero does not count for more; u has no offset. A simulation whose u is
        0 throughout does not count; NaN if all are. The error of a validation,
        ``val_relative_l2``, is of single predictions, each relative to its own target.
        """
        there = ~np.isnan(self.squares)
        size = np.sum(self.squares, axis=1, keepdims=True, where=there)
        size = size / there.sum(1, keepdims=True)
        counted = (size > 0) & there
        ratios = np.sqrt(self.squared_errors / np.where(counted, size, np.inf))
        with np.errstate(invalid="ignore"):
            mean: Float[np.ndarray, "time channel"] = np.sum(
                ratios, axis=0, where=there
            ) / counted.sum(0)
        return mean

    @property
    def accumulated(self) -> Float[np.ndarray, " channel"]:
        """Mean over simulations of the sum over steps of <(û - u)²>.

        The figure of merit of Brandstetter, Worrall, Welling, Message Passing Neural
        PDE Solvers, ICLR 2022, with ``start=50`` and windows of 25 steps there.
        """
        there = ~np.isnan(self.squares)
        each = np.sum(self.squared_errors, axis=1, where=there)
        total: Float[np.ndarray, " channel"] = each.mean(0)
        return total

    @property
    def mean(self) -> float:
        """`relative_l2`, averaged over steps and variables."""
        return float(np.nanmean(np.nanmean(self.relative_l2, axis=1)))

    def write(self, path: Path) -> None:
        """Write a table with a row for each step and two columns for each variable."""
        errors = np.stack([self.relative_l2, self.rmse], axis=2)
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            names = (v.name for v in self.spec.variables)
            columns = [f"{e}_{name}" for name in names for e in ("relative_l2", "rmse")]
            table.writerow(["step", "time", *columns])
            for step, (time, row) in enumerate(
                zip(self.times, errors, strict=True), self.start
            ):
                values = (f"{value:.6g}" for value in row.flat)
                table.writerow([step, f"{time:.9g}", *values])

    def draw(self) -> Figure:
        """Draw both errors of each variable against the time of the solver."""
        count = len(self.spec.variables)
        figure = Figure(figsize=(11.5, 3.2 * count), dpi=130)
        # Else the title touches the label beside it.
        figure.set_layout_engine("constrained", w_pad=0.1)
        FigureCanvasAgg(figure)
        axes = figure.subplots(count, 2, squeeze=False, sharex=True)
        for channel, variable in enumerate(self.spec.variables):
            for axis, error, label in zip(
                axes[channel],
                (self.relative_l2, self.rmse),
                ("relative L2 error of {} [1]", "RMSE of {} [{}]"),
                strict=True,
            ):
                values = error[:, channel]
                # With marks where there are few: a single step makes no line.
                marker = "." if len(values) < 50 else ""
                axis.plot(self.times, values, marker=marker, linewidth=2)
                if channel == count - 1:
                    axis.set_xlabel(f"time [{self.spec.time_units or '1'}]")
                axis.set_ylabel(label.format(variable.name, variable.units or "1"))
                axis.set_ylim(bottom=0)
                axis.grid(visible=True, alpha=0.3)
        how = "rolled out" if self.start else "predicted"
        title = f"{len(self.squares)} held-out\nsimulations,\n{how}"
        figure.supylabel(title, rotation=0, ha="left", fontsize=10.5)
        return figure


def _guesses(
    surrogate: Surrogate, held_out: ValidationSet, row: int, start: int
) -> Iterator[np.ndarray]:
    window, device = surrogate.window, surrogate.device
    fields = held_out.fields[row, : held_out.steps(row)]
    parameters = torch.from_numpy(held_out.parameters[row]).to(device)[None]
    history = torch.from_numpy(fields[start - window.inputs : start]).to(device)[None]
    given = held_out.inputs[[row]] if held_out.spec.inputs else None
    inputs = [] if given is None else [torch.from_numpy(given).to(device)]
    following: Iterable[torch.Tensor]
    if window.inputs:
        # Prediction by prediction: a whole rollout could be too large to hold.
        first = torch.full((1,), float(start), device=device)
        predict = with_inputs(surrogate, *inputs)
        following = predictions(predict, parameters, first, history)
    else:
        # None needs the one before: as many at once as a validation takes.
        steps = torch.arange(float(start), len(fields), window.outputs, device=device)
        following = (
            surrogate(
                parameters.repeat(len(part), 1),
                part,
                history.expand(len(part), *history.shape[1:]),
                *(u.expand(len(part), *u.shape[1:]) for u in inputs),
            ).flatten(0, 1)[None]
            for part in torch.split(steps, held_out.batch_size)
        )
    return (guess for bundle in following for guess in bundle[0].cpu().numpy())


def _squares(
    fields: Float[np.ndarray, "time channel *space"], guesses: Iterator[np.ndarray]
) -> Float[np.ndarray, "2 time channel"]:
    squares = np.empty((2, *fields.shape[:2]))
    for k, (truth, guess) in enumerate(zip(fields, guesses, strict=False)):
        # Where masked fields are NaN, as they are in all steps.
        left = np.isnan(truth).reshape(len(truth), -1)
        for i, values in enumerate((guess - truth, truth)):
            cells = values.reshape(len(values), -1).astype(np.float64)
            cells[left] = 0
            squares[i, k] = np.square(cells).sum(axis=1) / (~left).sum(axis=1)
    return squares
