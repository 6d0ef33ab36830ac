"""What a run leaves to look at: a picture, the errors, and the next command to type."""

from __future__ import annotations

import logging
import textwrap
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

from surrogate_flow.data import OnlineData
from surrogate_flow.held_out import HeldOut
from surrogate_flow.surrogate import Surrogate

__all__ = ["Report", "picture"]

logger = logging.getLogger(__name__)

# Rows of the picture: another simulation, and another share of the time axis, each.
_MOMENTS = (0.03, 0.1, 0.5)

# Letters of a title that fit above a row.
_LINE = 120


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
    if not (trainer.is_global_zero and isinstance(data, OnlineData)):
        return None
    return data.held_out if data.held_out and data.held_out.finished else None


def _errors(stage: str, trainer: L.Trainer, held_out: HeldOut) -> list[str]:
    metrics = trainer.callback_metrics
    data = getattr(trainer, "datamodule", None)
    count = data.validated if isinstance(data, OnlineData) else len(held_out.finished)
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
            f"  {variable.name}: {_words(rmse, units, 3)} root mean square (of a "
            f"constant field: {_words(spread, units, 3)}), {_words(worst, units, 3)} "
            "at most"
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

    Two dims are drawn as maps, one as a map over time, none as curves over time: solver
    and surrogate in one, the difference beside it. Of three, the middle of the last.
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
        # One time of a map, all times where there is room for an axis of time.
        still = len(spec.dims) > 1 or spec.cells is not None
        shown = slice(step, step + 1) if still else slice(None)
        times = spec.times[shown]
        truth = spec.dataset(held_out.fields[row, shown], times, parameters)
        guess = surrogate.predict(parameters, times)
        words = [
            f"{p.name} {_words(parameters[p.name], p.units)}" for p in spec.parameters
        ]
        for name in names:
            part = next(parts)
            time = _draw_row(part, truth[name], guess[name])
            title = f"simulation {row + held_out.first}{time} ({', '.join(words[:8])})"
            part.suptitle("\n".join(textwrap.wrap(title, _LINE)))
    return figure


def _draw_row(part: Any, truth: xr.DataArray, guess: xr.DataArray) -> str:
    """Draw one row; return the time of the picture in words, if it has one."""
    units = truth.attrs.get("units", "1")
    words = ""
    if truth.ndim > 1 and truth.sizes["time"] == 1:
        time = truth.time
        words = f" at {_words(float(time[0]), time.attrs.get('units', ''))}"
        truth, guess = truth.isel(time=0), guess.isel(time=0)
    while truth.ndim > 2:
        last = truth.dims[-1]
        middle = {last: truth.sizes[last] // 2}
        truth, guess = truth.isel(middle), guess.isel(middle)
    error = (guess - truth).assign_attrs(units=units)
    draw = _draw_maps if truth.ndim == 2 else _draw_curves
    draw(part, truth, guess, error, units)
    return words


def _draw_curves(
    part: Any, truth: xr.DataArray, guess: xr.DataArray, error: xr.DataArray, units: str
) -> None:
    both, difference = part.subplots(1, 2)
    truth.plot.line(ax=both, label="solver")
    guess.plot.line(ax=both, label="surrogate", linestyle="--")
    both.legend()
    both.set(title="solver and surrogate", ylabel=f"{truth.name} [{units}]")
    error.plot.line(ax=difference)
    difference.set(title="surrogate - solver", ylabel=f"difference [{units}]")


def _draw_maps(
    part: Any, truth: xr.DataArray, guess: xr.DataArray, error: xr.DataArray, units: str
) -> None:
    colours: dict[str, Any] = {
        "vmin": float(truth.min()),
        "vmax": float(truth.max()),
        "cmap": "inferno",
    }
    width = float(np.abs(error).max()) or 1.0
    around_zero: dict[str, Any] = {"vmin": -width, "vmax": width, "cmap": "RdBu_r"}
    for axis, title, what, options in zip(
        part.subplots(1, 3),
        ("solver", "surrogate", "surrogate - solver"),
        (truth, guess, error),
        (colours, colours, around_zero),
        strict=True,
    ):
        label = f"{'difference' if what is error else truth.name} [{units}]"
        what.plot.pcolormesh(
            ax=axis,
            x=what.dims[0],
            y=what.dims[1],
            extend="neither",
            cbar_kwargs={"label": label, "shrink": 0.8},
            **options,
        )
        axis.set_aspect("auto" if "time" in what.dims else "equal")
        axis.set_title(title)


def _words(value: float, units: str, digits: int = 4) -> str:
    """Write a number with its units; "1" stands for none."""
    return f"{value:.{digits}g}" + (f" {units}" if units not in ("", "1") else "")
