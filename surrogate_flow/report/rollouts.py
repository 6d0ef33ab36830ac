"""How the error of a surrogate grows along its rollouts, and what none would err by."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.surrogate.error_curve import ErrorCurve, squared_errors
from surrogate_flow.surrogate.metrics import field_metrics

__all__ = [
    "BASELINES",
    "baseline_curve",
    "baseline_error",
    "draw_curve",
    "extrapolated",
    "write_curve",
]

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


def baseline_curve(held_out: ValidationSet, start: int, order: int) -> ErrorCurve:
    """Extrapolate each finished simulation from the steps before `start`."""
    times, last = np.array(held_out.spec.times), np.array(start - 1)

    def guesses(row: int) -> Iterator[torch.Tensor]:
        fields = held_out.fields[row]
        for step in range(start, held_out.steps(row)):
            guess = extrapolated(fields, times, last, np.array(step), order)
            yield torch.from_numpy(guess)[None, None]

    parts = [
        squared_errors(held_out, [row], start, torch.device("cpu"), guesses(row))
        for row in held_out.finished
        if held_out.steps(row) > start
    ]
    return ErrorCurve.joined(held_out.spec, start, parts)


def write_curve(curve: ErrorCurve, path: Path) -> None:
    """Write a table with a row for each step and two columns for each variable."""
    errors = np.stack([curve.relative_l2, curve.rmse], axis=2)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        names = (v.name for v in curve.spec.variables)
        columns = [f"{e}_{name}" for name in names for e in ("relative_l2", "rmse")]
        table.writerow(["step", "time", *columns])
        for step, (time, row) in enumerate(
            zip(curve.times, errors, strict=True), curve.start
        ):
            values = (f"{value:.6g}" for value in row.flat)
            table.writerow([step, f"{time:.9g}", *values])


def draw_curve(curve: ErrorCurve) -> Figure:
    """Draw both errors of each variable against the time of the solver."""
    count = len(curve.spec.variables)
    figure = Figure(figsize=(11.5, 3.2 * count), dpi=130)
    # Else the title touches the label beside it.
    figure.set_layout_engine("constrained", w_pad=0.1)
    FigureCanvasAgg(figure)
    axes = figure.subplots(count, 2, squeeze=False, sharex=True)
    for channel, variable in enumerate(curve.spec.variables):
        for axis, error, label in zip(
            axes[channel],
            (curve.relative_l2, curve.rmse),
            ("relative L2 error of {} [1]", "RMSE of {} [{}]"),
            strict=True,
        ):
            values = error[:, channel]
            # With marks where there are few: a single step makes no line.
            marker = "." if len(values) < 50 else ""
            axis.plot(curve.times, values, marker=marker, linewidth=2)
            if channel == count - 1:
                axis.set_xlabel(f"time [{curve.spec.time_units or '1'}]")
            axis.set_ylabel(label.format(variable.name, variable.units or "1"))
            axis.set_ylim(bottom=0)
            axis.grid(visible=True, alpha=0.3)
    how = "rolled out" if curve.start else "predicted"
    title = f"{len(curve.squares)} held-out\nsimulations,\n{how}"
    figure.supylabel(title, rotation=0, ha="left", fontsize=10.5)
    return figure
