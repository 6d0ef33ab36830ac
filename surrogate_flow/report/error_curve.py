"""How the error of a surrogate grows along its rollouts."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.surrogate.rollout import predictions
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = ["ErrorCurve"]


@dataclass(frozen=True)
class ErrorCurve:
    """<(û - u)²> and <u²> at each step of rollouts, < > the mean over cells.

    Attributes
    ----------
    spec : FieldSpec
    start : int
        Index of the first step predicted.
    squared_errors, squares : array of shape (simulation, time, channel)
        In squared units of the variables.
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

        Those of a direct window are predicted step by step, from their parameters.

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
        curves = [
            _squares(surrogate, held_out, row, start) for row in held_out.finished
        ]
        surrogate.train(was_training)
        shape = (0, 2, spec.steps - start, len(spec.variables))
        stacked = np.stack(curves) if curves else np.empty(shape)
        return cls(spec, start, stacked[:, 0], stacked[:, 1])

    @property
    def times(self) -> Float[np.ndarray, " time"]:
        """Times of the predicted steps, in the units of the spec."""
        return np.array(self.spec.times[self.start :])

    @property
    def rmse(self) -> Float[np.ndarray, "time channel"]:
        """sqrt(mean over simulations of <(û - u)²>), in the units of the variables."""
        rmse: Float[np.ndarray, "time channel"] = np.sqrt(self.squared_errors.mean(0))
        return rmse

    @property
    def relative_l2(self) -> Float[np.ndarray, "time channel"]:
        """Mean over simulations of sqrt(<(û - u)²> / U²), without unit.

        U² is the mean of <u²> over all steps of the rollout, so that a step at which u
        is near zero does not count for more. A simulation whose u is 0 throughout does
        not count; NaN if all are. The error of a validation, ``val_relative_l2``, is of
        single predictions, each relative to its own target.
        """
        size = self.squares.mean(1, keepdims=True)
        counted = size > 0
        ratios = np.sqrt(self.squared_errors / np.where(counted, size, np.inf))
        with np.errstate(invalid="ignore"):
            mean: Float[np.ndarray, "time channel"] = ratios.sum(0) / counted.sum(0)
        return mean

    @property
    def accumulated(self) -> Float[np.ndarray, " channel"]:
        """Mean over simulations of the sum over steps of <(û - u)²>.

        The figure of merit of Brandstetter, Worrall, Welling, Message Passing Neural
        PDE Solvers, ICLR 2022, with ``start=50`` and windows of 25 steps there.
        """
        total: Float[np.ndarray, " channel"] = self.squared_errors.sum(1).mean(0)
        return total

    def write(self, path: Path) -> None:
        """Write a table with a row for each step and two columns for each variable."""
        errors = np.stack([self.relative_l2, self.rmse], axis=2)
        with path.open("w", newline="") as file:
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
        figure = Figure(figsize=(12, 4 * count), layout="constrained", dpi=120)
        FigureCanvasAgg(figure)
        axes = figure.subplots(count, 2, squeeze=False, sharex=True)
        for channel, variable in enumerate(self.spec.variables):
            for axis, error, label in zip(
                axes[channel],
                (self.relative_l2, self.rmse),
                ("RMSE of {} / its RMS over all steps [1]", "RMSE of {} [{}]"),
                strict=True,
            ):
                values = error[:, channel]
                # With marks where there are few: a single step makes no line.
                axis.plot(self.times, values, marker="." if len(values) < 50 else "")
                if channel == count - 1:
                    axis.set_xlabel(f"time [{self.spec.time_units or '1'}]")
                axis.set_ylabel(label.format(variable.name, variable.units or "1"))
                axis.set_ylim(bottom=0)
                axis.grid(visible=True, alpha=0.3)
        how = "rolled out" if self.start else "predicted"
        figure.suptitle(f"{len(self.squares)} held-out simulations, {how}")
        return figure


def _squares(
    surrogate: Surrogate, held_out: ValidationSet, row: int, start: int
) -> Float[np.ndarray, "2 time channel"]:
    # Prediction by prediction: a whole rollout could be too large to hold.
    inputs, steps = surrogate.window.inputs, surrogate.spec.steps - start
    fields, device = held_out.fields[row], surrogate.device
    following = predictions(
        surrogate,
        torch.from_numpy(held_out.parameters[row]).to(device)[None],
        torch.full((1,), float(start), device=device),
        torch.from_numpy(fields[start - inputs : start]).to(device)[None],
    )
    guesses = (guess for bundle in following for guess in bundle[0].cpu().numpy())
    squares = np.empty((2, steps, fields.shape[1]))
    for k, (truth, guess) in enumerate(zip(fields[start:], guesses, strict=False)):
        for i, values in enumerate((guess - truth, truth)):
            cells = values.reshape(len(values), -1).astype(np.float64)
            squares[i, k] = np.square(cells).mean(axis=1)
    return squares
