"""What a run leaves to look at: a picture, the errors, and the next command to type."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as L
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn
from rich.console import Console

from surrogate_flow.held_out import HeldOut
from surrogate_flow.surrogate import Surrogate
from surrogate_flow.training_data import TrainingData

__all__ = ["Report", "picture"]

logger = logging.getLogger(__name__)

# Rows of the picture: another simulation, and another share of the time axis, each.
_MOMENTS = (0.03, 0.1, 0.5)


class Report(Callback):
    """The errors in words, and for a fit prediction.png and the next command.

    Parameters
    ----------
    folder : Path
        Of the run.
    console : rich.console.Console, optional
    """

    def __init__(self, folder: Path, console: Console | None = None) -> None:
        self.folder = folder
        self.console = console or Console()
        self._lines: list[str] = []

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw, and note what to print after the progress line has ended."""
        held_out = _held_out(trainer)
        if held_out is None or not isinstance(pl_module, Surrogate):
            return
        if not pl_module.window.inputs:
            path = self.folder / "prediction.png"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                picture(pl_module, held_out).savefig(path)
            except OSError as error:
                path.unlink(missing_ok=True)
                logger.error("%s was not written (%s).", path, error)
        self._lines = [
            *_errors("val", trainer, held_out),
            *_best(trainer),
            f"Run: {self.folder}",
            f"Next: {_next_command(self.folder, pl_module)}",
        ]

    def on_validation_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> None:
        """Note the errors of ``validate``."""
        held_out = _held_out(trainer)
        if held_out is not None and trainer.state.fn != TrainerFn.FITTING:
            self._lines = _errors("val", trainer, held_out)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the errors of ``test``."""
        held_out = _held_out(trainer)
        if held_out is not None:
            self._lines = _errors("test", trainer, held_out)

    def teardown(
        self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str
    ) -> None:
        """Print what was noted."""
        for line in self._lines:
            self.console.print(line, soft_wrap=True, markup=False, highlight=False)
        self._lines = []


def _held_out(trainer: L.Trainer) -> HeldOut | None:
    data = getattr(trainer, "datamodule", None)
    if not (trainer.is_global_zero and isinstance(data, TrainingData)):
        return None
    return data.held_out if data.held_out and data.held_out.finished else None


def _errors(stage: str, trainer: L.Trainer, held_out: HeldOut) -> list[str]:
    metrics = trainer.callback_metrics
    data = getattr(trainer, "datamodule", None)
    count = data.validated if isinstance(data, TrainingData) else len(held_out.finished)
    if f"{stage}_relative_l2" not in metrics:
        return ["No validation has run."]
    title = "Validation" if stage == "val" else "Test"
    lines = [
        f"{title} error: {float(metrics[f'{stage}_relative_l2']):.2%} relative "
        f"(L2, mean over {count} simulations)"
    ]
    for variable, spread in zip(
        held_out.spec.variables, held_out.spread(), strict=True
    ):
        rmse = float(metrics[f"{stage}_rmse_{variable.name}"])
        worst = float(metrics[f"{stage}_max_{variable.name}"])
        units = variable.units
        lines.append(
            f"  {variable.name}: {rmse:.3g} {units} root mean square "
            f"(of a constant field: {spread:.3g} {units}), {worst:.3g} {units} at most"
        )
    return lines


def _best(trainer: L.Trainer) -> list[str]:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor:
            score = callback.best_model_score
            return [] if score is None else [f"  best.ckpt had {float(score):.2%}"]
    return []


def _next_command(folder: Path, surrogate: Surrogate) -> str:
    kept = [folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
    path = next((path for path in kept if path.is_file()), None)
    if path is None:
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
    """Draw solver, surrogate and difference for three held-out simulations.

    Two dims are drawn as maps, one as curves, none as a curve over time. Of three, the
    middle of the last.
    """
    rows = held_out.finished[: len(_MOMENTS)]
    spec = surrogate.spec
    names = [v.name for v in spec.variables]
    height = len(rows) * len(names)
    figure = Figure(figsize=(12, 4 * height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    parts = iter(figure.subfigures(height, 1, squeeze=False)[:, 0])
    for row, moment in zip(rows, _MOMENTS, strict=False):
        values = [float(v) for v in held_out.parameters[row]]
        parameters = {p.name: v for p, v in zip(spec.parameters, values, strict=True)}
        step = min(int(moment * spec.steps), spec.steps - 1)
        # One time of a map, all times of a curve over time.
        shown = slice(step, step + 1) if spec.dims else slice(None)
        times = spec.times[shown]
        truth = spec.dataset(held_out.fields[row, shown], times, parameters)
        guess = surrogate.predict(parameters, times)
        words = [
            f"{p.name} {parameters[p.name]:.4g} {p.units}" for p in spec.parameters
        ]
        for name in names:
            part = next(parts)
            time = _draw_row(part.subplots(1, 3), truth[name], guess[name])
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
