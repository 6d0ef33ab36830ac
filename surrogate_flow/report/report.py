"""What a run leaves: its errors in pictures and tables, and the next command."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as L
import torch
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn
from rich.console import Console

from surrogate_flow.data.module import RunCallback, SurrogateData, data_of
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.ensemble.ledger import ended_early
from surrogate_flow.fields.conventions import about, for_files
from surrogate_flow.fields.inputs import labelled_inputs
from surrogate_flow.fields.quantities import counted, in_units
from surrogate_flow.fields.window import ROLLOUT, SINGLE
from surrogate_flow.files import leave, observing
from surrogate_flow.report.console import print_lines
from surrogate_flow.report.folder.commands import typed
from surrogate_flow.report.folder.cost import RunCost
from surrogate_flow.report.folder.run_folder import REPORT, RunFolder
from surrogate_flow.report.folder.words import skill as in_words
from surrogate_flow.report.pictures.picture import picture
from surrogate_flow.report.rollouts import (
    BASELINES,
    baseline_curve,
    baseline_error,
    draw_curve,
    write_curve,
)
from surrogate_flow.surrogate.error_curve import ErrorCurve
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = ["Report", "held_out_of", "next_command"]

_HISTORY, _INPUTS = "history.nc", "inputs.nc"


class Report(RunCallback):
    """Prints the errors of a run, and leaves pictures of them in its folder.

    ``rollout.csv`` and ``rollout.png``, after a fit and after a test, are the error at
    each step, over the held-out simulations of all ranks. A fit also leaves
    ``prediction.png``, the next command to type and, for ``predict``, of a held-out
    simulation, ``history.nc``: its first steps, for autoregressive windows, and
    ``inputs.nc``: its input fields, if the spec has any.

    Parameters
    ----------
    folder : Path
        Of the run.
    console : rich.console.Console, optional
    drawn : bool
        Whether pictures are, and report.html is written, too.
    """

    def __init__(
        self, folder: Path, console: Console | None = None, *, drawn: bool = True
    ) -> None:
        super().__init__(folder)
        self._drawn = drawn
        self.console = console or Console()
        # Printed after the progress line has ended.
        self._lines: list[str] = []

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write all files."""
        with observing(f"The report of {self.folder}"):
            self._report(trainer, pl_module)

    def _report(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data, held_out = data_of(trainer), held_out_of(trainer)
        if data is None or not isinstance(pl_module, Surrogate):
            return
        if data.ended_untrained(self.trained):
            if held_out is not None:
                self._lines = ["The run was ended before its first batch."]
            return
        curve = self._roll_out(trainer, pl_module, data)
        errors = _errors("val", trainer, data, held_out, curve)
        if not self.trained and trainer.ckpt_path:
            errors = [
                f"Nothing was left to train after {trainer.ckpt_path}. To go on "
                "with it: more --data.simulations, --trainer.max_steps or "
                "--trainer.max_epochs."
            ]
        if held_out is None:
            return
        self._draw("prediction.png", partial(picture, pl_module, held_out))
        if pl_module.window.inputs:
            first = slice(pl_module.window.inputs)
            history = held_out.simulation(held_out.finished[0], first)
            noted = about("First steps of a held-out simulation", data.workflow)
            history = for_files(history).assign_attrs(noted)
            self._write(_HISTORY, history.to_netcdf)
        if (given := held_out.given(held_out.finished[0])) is not None:
            noted = about("Input fields of a held-out simulation", data.workflow)
            fields = for_files(labelled_inputs(data.spec, given)).assign_attrs(noted)
            fields.encoding.clear()  # They have no time.
            self._write(_INPUTS, fields.to_netcdf)
        self._lines += [
            *errors,
            *_best(trainer, self._drawn),
            *(f"Attempts failed, set aside: {at}" for at in data.cost().set_aside),
            *filter(None, [ended_early(data.cost().early)]),
            f"Run: {self.folder}",
            *[f"Report: {self.folder / REPORT}"] * self._drawn,
            f"Next: {next_command(self.folder, trainer, pl_module, held_out)}",
        ]

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Note the errors of ``validate``."""
        data, held_out = data_of(trainer), held_out_of(trainer)
        if data and trainer.state.fn != TrainerFn.FITTING:
            with observing("The report of the validation"):
                self._lines = _errors("val", trainer, data, held_out)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write table and picture of the rollouts; note the errors of ``test``."""
        data, held_out = data_of(trainer), held_out_of(trainer)
        if data is None or not isinstance(pl_module, Surrogate):
            return
        with observing("The report of the test"):
            curve = self._roll_out(trainer, pl_module, data)
            self._lines += _errors("test", trainer, data, held_out, curve)

    def teardown(self, *_: Any, **__: Any) -> None:
        """Print the lines, and after how many evaluations a fit pays."""
        place = [k for k, line in enumerate(self._lines) if line.startswith("Run: ")]
        if place:
            with observing(f"What {self.folder} has cost"):
                cost = RunCost.of(RunFolder(self.folder))
                self._lines[place[0] : place[0]] = [str(cost)] if cost else []
        print_lines(self.console, *self._lines)
        self._lines = []

    def _roll_out(
        self, trainer: L.Trainer, surrogate: Surrogate, data: SurrogateData
    ) -> ErrorCurve | None:
        """Write the error along the rollouts of all ranks, which call this together."""
        if data.validation is None:
            return None
        held_out, ranks = data.validation, data.ranks
        known = surrogate.rollouts
        same = surrogate.rolled_out_at == trainer.global_step
        if same and known is not None and len(known.squares) == data.validated:
            curve = known  # Of the same weights: the last validation, or this test.
        else:
            curve = ErrorCurve.joined(surrogate.spec, surrogate.window.inputs, [])
            with observing("The rollout of this process"):
                curve = ErrorCurve.of(surrogate, held_out)
            # The other ranks wait here.
            curve = curve.of_all(ranks)
        baselines = {
            name: baseline_curve(held_out, curve.start, order).of_all(ranks)
            for name, order in BASELINES.items()
            if order < curve.start
        }
        if not (trainer.is_global_zero and len(curve.squares)):
            return None
        self._write("rollout.csv", partial(write_curve, curve))
        self._draw("rollout.png", partial(draw_curve, curve))
        if surrogate.window.inputs:
            relative = np.nanmean(curve.relative_l2, axis=1)
            worst = int(relative.argmax())
            at = in_units(curve.times[worst], held_out.spec.time_units)
            self._lines += [
                f"Rollout error over {counted(len(relative), 'step')}: "
                f"{curve.mean:.2%} relative (L2, to the size of whole rollouts), "
                f"{relative[worst]:.2%} at time {at}, where it is largest, "
                f"{relative[-1]:.2%} at the last step "
                f"(mean over {counted(len(curve.squares), 'simulation')})",
                _beside(curve.mean, {k: b.mean for k, b in baselines.items()}),
            ]
        return curve

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        leave(self.folder / name, write)

    def _draw(self, name: str, draw: Callable[[], Figure]) -> None:
        if self._drawn:
            self._write(name, lambda part: draw().savefig(part, format="png"))


def held_out_of(trainer: L.Trainer) -> ValidationSet | None:
    """Return the held-out simulations of the first rank, if one has ended."""
    data = data_of(trainer)
    if data is None or not trainer.is_global_zero:
        return None
    return data.validation if data.validation and data.validation.finished else None


def _errors(
    stage: str,
    trainer: L.Trainer,
    data: SurrogateData,
    held_out: ValidationSet | None,
    curve: ErrorCurve | None = None,
) -> list[str]:
    """Return the errors in words, on the first rank; a collective call."""
    metrics = trainer.callback_metrics
    known = f"{stage}_relative_l2" in metrics
    baselines = _baselines(trainer, data.validation) if known else {}
    if held_out is None:
        return []
    if not known:
        return ["No validation has run."]
    units = {v.name: v.units for v in held_out.spec.variables}
    title = "Validation" if stage == "val" else "Test"
    error = float(metrics[f"{stage}_relative_l2"])
    spread = float(metrics[f"{stage}_relative_l2_standard_error"])
    constants = dict(zip(units, held_out.spread().tolist(), strict=True))
    rmse = {n: float(metrics[f"{stage}_rmse_{n}"]) for n in units}
    skills = {n: 1 - (rmse[n] / c) ** 2 for n, c in constants.items() if c}
    skill = np.mean([*skills.values()]) if skills else 1.0
    beside = (
        f", skill {in_words(float(skill))} against a constant field" if skills else ""
    )
    if skills:
        shares = {n: rmse[n] / constants[n] for n in skills}
        beside += _of_variation(error, shares, metrics, stage)
    # For outcome.json.
    of = {f"relative_l2_of_{n.replace(' ', '_')}": e for n, e in baselines.items()}
    numbers = {**of, "skill": skill} if skills else of
    metrics.update({f"{stage}_{n}": torch.tensor(float(e)) for n, e in numbers.items()})
    estimated = spread >= 0  # not of one simulation
    lines = [
        f"{title} error: {error:.2%}{f' ± {spread:.2%}' if estimated else ''} "
        f"relative (L2, mean over {counted(data.validated, 'simulation')}"
        f"{' and its standard error' if estimated else ''}){beside}"
    ]
    if skill <= 0:
        lines.append("  The surrogate is no better than a constant field.")
    if baselines:
        lines.append(_beside(error, baselines))
    if stage == "test" and not data.tests_apart:
        lines.append(
            "  of the held-out simulations by which best.ckpt was chosen; for fresh "
            "ones test with a workflow as --data, without a held_out_sampler"
        )
    for channel, (name, constant) in enumerate(constants.items()):
        least, worst, of_constant = (
            in_units(value, units[name], 3)
            for value in (rmse[name], float(metrics[f"{stage}_max_{name}"]), constant)
        )
        at = ""
        # A rollout's errors are others than those of single predictions.
        if curve and not curve.start and len(curve.times) > 1:
            step = int(curve.rmse[:, channel].argmax())
            most = in_units(curve.rmse[step, channel], units[name], 3)
            time = in_units(curve.times[step], curve.spec.time_units)
            at = f", {most} at time {time}, where it is largest;"
        lines.append(
            f"  {name}: {least} root mean square (of a constant field: {of_constant})"
            f"{at or ','} {worst} at most"
        )
    return lines


def _of_variation(
    error: float, shares: Mapping[str, float], metrics: Mapping[str, Any], stage: str
) -> str:
    """Say what share of the variation remains, if the error is much smaller."""
    name = max(shares, key=lambda n: shares[n])
    if not shares[name] > 2 * error:
        return ""
    of_size, of_rest = (
        float(metrics.get(f"{stage}_{kind}_{name}", 0.0)) for kind in ("nrmse", "vrmse")
    )
    why = ", since its mean is large" if of_rest > 2 * of_size else ""
    return f"; that is {shares[name]:.1%} of the variation of {name}{why}"


def _baselines(trainer: L.Trainer, held_out: ValidationSet | None) -> dict[str, float]:
    if held_out is None or not held_out.window.inputs:
        return {}
    device = trainer.strategy.root_device
    errors = {n: baseline_error(held_out, k, device) for n, k in BASELINES.items()}
    return {name: error for name, error in errors.items() if error is not None}


def _beside(error: float, baselines: Mapping[str, float]) -> str:
    """Return the errors that take no surrogate, and which of them are smaller."""
    line = ", ".join(f"of {name}: {value:.2%}" for name, value in baselines.items())
    better = [name for name, value in baselines.items() if not error <= value]
    return f"  {line}" + (f"; worse than {' and '.join(better)}" if better else "")


def _best(trainer: L.Trainer, drawn: bool) -> list[str]:
    for callback in trainer.checkpoint_callbacks:
        # Users may have others.
        if not isinstance(callback, ModelCheckpoint) or callback.filename != "best":
            continue
        if callback.monitor not in (ROLLOUT, SINGLE):
            continue
        score = callback.best_model_score
        of = " over rollouts" if callback.monitor == ROLLOUT else ""
        if score is not None:
            pictures = ", prediction.png, rollout.png" * drawn
            return [
                f"  of the last weights, as are last.ckpt{pictures} and outcome.json; "
                f"best.ckpt had {float(score):.2%}{of}"
            ]
    return []


def next_command(
    folder: Path, trainer: L.Trainer, surrogate: Surrogate, held_out: ValidationSet
) -> str:
    """Return the command that predicts with the best checkpoint of a run."""
    kept = [folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
    if trainer.ckpt_path:
        last = Path(trainer.ckpt_path)
        kept += [last.with_name("best.ckpt")] * (last.name == "last.ckpt") + [last]
    path = next((path for path in kept if path.is_file()), None)
    if path is None:
        return "fit again with checkpoints, to predict from one"
    conditions, history = surrogate.conditions, []
    parameters = conditions.seen(surrogate.spec).parameters
    shares = np.arange(1, len(parameters) + 1) / (len(parameters) + 1)
    point = [
        # Few digits are easier to read.
        p.at(share) if p.whole else float(f"{p.at(share):.4g}")
        for p, share in zip(parameters, shares, strict=True)
    ]
    if surrogate.window.inputs:
        # The simulation whose first steps are in the file.
        columns = conditions.columns(surrogate.spec)
        point = held_out.parameters[held_out.finished[0]][columns].tolist()
        history = ["--history", str(folder / _HISTORY)]
    if surrogate.spec.inputs:
        history += ["--inputs", str(folder / _INPUTS)]
    example = typed(parameters, point)
    words = ["surrogate-flow", "predict", "--ckpt_path", str(path)]
    words += ["--parameters", f"{{{example}}}"] * bool(parameters)
    words += [*history, "--output", "field.nc"]
    return shlex.join(words)
