"""What a run leaves to look at: a picture, the errors, and the next command to type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as L
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import Callback
from rich.console import Console

from surrogate_flow.data import OnlineData
from surrogate_flow.held_out import HeldOut
from surrogate_flow.surrogate import Surrogate

__all__ = ["Report", "picture"]

# Rows of the picture: another simulation, and another share of the time axis, each.
_MOMENTS = (0.03, 0.1, 0.5)


class Report(Callback):
    """prediction.png and a few lines of text, at the end of a fit.

    Parameters
    ----------
    folder : Path
        Of the run.
    console : rich.console.Console, optional
    """

    def __init__(self, folder: Path, console: Console | None = None) -> None:
        self.folder = folder
        self.console = console or Console()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw and print, on the first rank."""
        data = getattr(trainer, "datamodule", None)
        if not (
            trainer.is_global_zero
            and isinstance(data, OnlineData)
            and isinstance(pl_module, Surrogate)
            and data.held_out is not None
            and data.held_out.finished
        ):
            return
        if not pl_module.window.inputs:
            self.folder.mkdir(parents=True, exist_ok=True)
            picture(pl_module, data.held_out).savefig(self.folder / "prediction.png")
        # After the progress line has ended, which is at teardown.
        self._lines = [
            *_errors(trainer.callback_metrics, data.held_out),
            f"Run: {self.folder}",
            f"Next: {_next_command(self.folder, pl_module)}",
        ]

    def teardown(
        self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str
    ) -> None:
        """Print what `on_fit_end` has found."""
        for line in getattr(self, "_lines", []):
            self.console.print(line, soft_wrap=True, markup=False, highlight=False)
        self._lines = []


def _errors(metrics: Any, held_out: HeldOut) -> list[str]:
    if "val_relative_l2" not in metrics:
        return ["No validation has run."]
    lines = [
        f"Validation error: {float(metrics['val_relative_l2']):.2%} relative "
        f"(L2, mean over {len(held_out.finished)} simulations)"
    ]
    for variable, spread in zip(
        held_out.spec.variables, held_out.spread(), strict=True
    ):
        rmse = float(metrics[f"val_rmse_{variable.name}"])
        worst = float(metrics[f"val_max_{variable.name}"])
        lines.append(
            f"  {variable.name}: {rmse:.3g} {variable.units} root mean square, "
            f"{worst:.3g} {variable.units} at most (a constant field: {spread:.3g} "
            f"{variable.units})"
        )
    return lines


def _next_command(folder: Path, surrogate: Surrogate) -> str:
    path = folder / "checkpoints" / "last.ckpt"
    if not path.is_file():
        return "fit again with checkpoints, to predict from one"
    parameters = surrogate.spec.parameters
    example = ", ".join(
        f"{p.name}: {p.low + (p.high - p.low) * (k + 1) / (len(parameters) + 1):.4g}"
        for k, p in enumerate(parameters)
    )
    return (
        f"surrogate-flow predict --ckpt_path {path} "
        f"--parameters '{{{example}}}' --output field.nc"
    )


def picture(surrogate: Surrogate, held_out: HeldOut) -> Figure:
    """Draw solver, surrogate and difference for some held-out simulations.

    Two dims are drawn as maps, one as curves, none as a curve over time. Of three, the
    middle of the last.
    """
    rows = held_out.finished[: len(_MOMENTS)]
    spec = surrogate.spec
    figure = Figure(figsize=(12, 4 * len(rows)), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for part, row, moment in zip(parts, rows, _MOMENTS, strict=False):
        names = [p.name for p in spec.parameters]
        values = [float(v) for v in held_out.parameters[row]]
        parameters = dict(zip(names, values, strict=True))
        step = min(int(moment * spec.steps), spec.steps - 1)
        # One time of a map, all times of a curve over time.
        shown = slice(step, step + 1) if spec.dims else slice(None)
        times = spec.times[shown]
        truth = spec.dataset(held_out.fields[row, shown], times, parameters)
        guess = surrogate.predict(parameters, times)
        name = spec.variables[0].name
        time = _draw_row(part.subplots(1, 3), truth[name], guess[name])
        words = [
            f"{p.name} {parameters[p.name]:.4g} {p.units}" for p in spec.parameters
        ]
        part.suptitle(
            f"simulation {row + held_out.first}{time} ({', '.join(words[:8])})"
        )
    return figure


def _draw_row(axes: Any, truth: xr.DataArray, guess: xr.DataArray) -> str:
    """Draw one row; return the time of the picture in words, if it has one."""
    units = truth.attrs.get("units", "1")
    words = ""
    if truth.ndim > 1:
        words = f" at {float(truth.time[0]):.4g} {truth.time.attrs.get('units', '')}"
        truth, guess = truth.isel(time=0), guess.isel(time=0)
    while truth.ndim > 2:
        last = truth.dims[-1]
        middle = {last: truth.sizes[last] // 2}
        truth, guess = truth.isel(middle), guess.isel(middle)
    error = (guess - truth).assign_attrs(units=units)
    colours: dict[str, Any] = {
        "vmin": float(truth.min()),
        "vmax": float(truth.max()),
        "cmap": "inferno",
    }
    width = float(np.abs(error).max()) or 1.0
    around_zero: dict[str, Any] = {"vmin": -width, "vmax": width, "cmap": "RdBu_r"}
    for axis, title, what, options in (
        (axes[0], "solver", truth, colours),
        (axes[1], "surrogate", guess, colours),
        (axes[2], "surrogate - solver", error, around_zero),
    ):
        label = f"{truth.name if axis is not axes[2] else 'difference'} [{units}]"
        if what.ndim == 2:
            what.plot.pcolormesh(
                ax=axis,
                x=what.dims[0],
                y=what.dims[1],
                extend="neither",
                cbar_kwargs={"label": label, "shrink": 0.8},
                **options,
            )
            axis.set_aspect("equal")
        else:
            what.plot.line(ax=axis)
            axis.set_ylabel(label)
        axis.set_title(title)
    return words
