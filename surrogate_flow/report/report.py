"""What a run leaves to look at: a picture, the errors, and the next command to type."""

from __future__ import annotations

import logging
from pathlib import Path

import pytorch_lightning as L
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn
from rich.console import Console

from surrogate_flow.data.module import data_of
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.fields.quantities import in_units
from surrogate_flow.report.picture import picture
from surrogate_flow.report.rollout import HISTORY
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = ["Report"]

logger = logging.getLogger(__name__)


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
            f"Next: {_next_command(self.folder, pl_module, held_out)}",
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


def _held_out(trainer: L.Trainer) -> ValidationSet | None:
    data = data_of(trainer)
    if data is None or not trainer.is_global_zero:
        return None
    return data.held_out if data.held_out and data.held_out.finished else None


def _errors(stage: str, trainer: L.Trainer, held_out: ValidationSet) -> list[str]:
    metrics = trainer.callback_metrics
    data = data_of(trainer)
    count = len(held_out.finished) if data is None else data.validated
    if f"{stage}_relative_l2" not in metrics:
        return ["No validation has run."]
    title = "Validation" if stage == "val" else "Test"
    lines = [
        f"{title} error: {float(metrics[f'{stage}_relative_l2']):.2%} relative "
        f"(L2, mean over {count} simulations)"
    ]
    if stage == "test" and data is not None and not data.tests_apart:
        lines.append(
            "  of the held-out simulations of the data set, by which best.ckpt was "
            "chosen: test with the workflow as --data for fresh ones"
        )
    for variable, spread in zip(
        held_out.spec.variables, held_out.spread(), strict=True
    ):
        rmse = float(metrics[f"{stage}_rmse_{variable.name}"])
        worst = float(metrics[f"{stage}_max_{variable.name}"])
        units = variable.units
        lines.append(
            f"  {variable.name}: {in_units(rmse, units, 3)} root mean square (of a "
            f"constant field: {in_units(spread, units, 3)}), "
            f"{in_units(worst, units, 3)} at most"
        )
    return lines


def _best(trainer: L.Trainer) -> list[str]:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor:
            score = callback.best_model_score
            return [] if score is None else [f"  best.ckpt had {float(score):.2%}"]
    return []


def _next_command(folder: Path, surrogate: Surrogate, held_out: ValidationSet) -> str:
    kept = [folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
    path = next((path for path in kept if path.is_file()), None)
    if path is None:
        return "fit again with checkpoints, to predict from one"
    parameters = surrogate.spec.parameters
    example = ", ".join(
        f"{p.name}: {p.low + (p.high - p.low) * (k + 1) / (len(parameters) + 1):.4g}"
        for k, p in enumerate(parameters)
    )
    history = ""
    if surrogate.window.inputs:
        # The simulation of which the file has the first steps.
        row = held_out.parameters[held_out.finished[0]]
        example = ", ".join(
            f"{p.name}: {value:.6g}" for p, value in zip(parameters, row, strict=True)
        )
        history = f"--history {folder / HISTORY} "
    return (
        f"surrogate-flow predict --ckpt_path {path} "
        f"--parameters '{{{example}}}' {history}--output field.nc"
    )
