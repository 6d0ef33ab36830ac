"""A run in a sentence: what it was, its error, its skill and its cost."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pandas as pd

from surrogate_flow.fields.quantities import counted
from surrogate_flow.fields.window import ROLLOUT, SINGLE, monitored
from surrogate_flow.report.folder.cost import RunCost
from surrogate_flow.report.folder.run_folder import RunFolder, RunSummary
from surrogate_flow.report.folder.words import (
    arguments,
    number,
    percent,
    seconds,
    skill,
)

__all__ = ["error_of", "headline", "model_of", "name_of", "of_error", "rollout_of"]

logger = logging.getLogger(__name__)

_OF = {ROLLOUT: " of rollouts", SINGLE: ""}


def headline(run: RunFolder) -> str:
    """Return what was run, its error, its skill and its cost, in one sentence."""
    try:
        return _sentence(run)
    except Exception as error:
        # Of any type, by what a damaged file or another version holds.
        logger.exception("The numbers of %s cannot be shown.", run.path)
        said = f"its numbers cannot be shown ({type(error).__name__}: {error})"
        return f"The {model_of(run)} of {name_of(run)}: {said}."


def _sentence(run: RunFolder) -> str:
    what = f"The {model_of(run)} of {name_of(run)}"
    outcome, cost = run.outcome, RunCost.of(run)
    if outcome is None or cost is None:
        return f"{what}: {_progress(run)}"
    batches = counted(outcome.batches, "batch", "batches")
    trained = max(cost.simulations - (outcome.validated or 0), 0)
    simulations, error = counted(trained, "simulation"), _error(run, outcome)
    data = f"{batches} from {simulations}"
    if cost.part:
        data = f"{batches}, the last of them from {simulations} of this part"
    parts = [f"{what}, trained on {data}, {error}"]
    solver = f"{seconds(cost.solver)} of solvers and " if cost.solver else ""
    part = " in this part" if cost.part else ""
    parts.append(f"took {solver}{seconds(cost.training)} of training{part}")
    if cost.break_even is not None:
        # Beside the training, a solver takes longer than alone.
        after = f"breaks even after {cost.break_even:,} evaluations"
        beside = "ran its simulations beside the training (break-even: see Cost)"
        parts.append(beside if cost.beside else after)
    elif cost.never:
        parts.append(
            "never breaks even, since an evaluation takes "
            f"{seconds(cost.evaluation)} and the solver {seconds(cost.per_simulation)}"
        )
    return f"{', '.join(parts[:-1])}, and {parts[-1]}."


def _error(run: RunFolder, outcome: RunSummary) -> str:
    errors, count = outcome.errors, outcome.validated
    name = monitored(errors)
    error, spread = errors.get(name), errors.get(f"{name}_standard_error")
    if error is None:
        return "has no validation error"
    of = f" over {counted(count, 'held-out simulation')}" if count else ""
    if lost := _lost(run):
        of += f", without {lost} that failed"
    inside = [f"relative L2{_OF[name]}{of}"]
    if name == ROLLOUT and SINGLE in errors:
        inside.append(f"of single predictions {percent(errors[SINGLE])}")
    if "val_skill" in errors:
        inside.append(f"skill {skill(errors['val_skill'])}")
    return f"has an error of {percent(error, spread)} ({'; '.join(inside)})"


def _lost(run: RunFolder) -> int:
    """Return how many held-out simulations have failed permanently."""
    table = run.failures
    if not {"part", "outcome", "simulation"} <= {*table}:
        return 0
    lost = (table.outcome == "failed permanently") & (table.part == "validation")
    return int(table.simulation[lost].nunique())


def name_of(run: RunFolder) -> str:
    """Return the name of the workflow."""
    data = arguments(run.settings.get("data"))
    name = run.about.get("name") or data.get("name") or run.path.resolve().parent.name
    return str(name)


def model_of(run: RunFolder) -> str:
    """Return the kind of the network."""
    model: Any = run.settings.get("model") or {}
    network = model.get("network") if isinstance(model, Mapping) else None
    path = network.get("class_path") if isinstance(network, Mapping) else network
    return (
        f"{path.rpartition('.')[2]} surrogate" if isinstance(path, str) else "surrogate"
    )


def error_of(run: RunFolder) -> float | None:
    """Return the validation error at the end, or the last one that is known."""
    errors = {} if run.outcome is None else run.outcome.errors
    if (name := monitored(errors)) in errors:
        return errors[name]
    name = monitored(run.metrics)
    # That table has errors of single predictions.
    table = run.validation if name == SINGLE else {}
    if "relative_l2" in table and len(table):
        return float(table["relative_l2"].mean())
    if name in run.metrics and len(known := run.metrics[name].dropna()):
        return float(known.iloc[-1])
    return None


def of_error(run: RunFolder) -> str:
    """Return what `error_of` is the error of, as words that follow it."""
    errors = {} if run.outcome is None else run.outcome.errors
    return _OF[monitored(errors or run.metrics)]


def rollout_of(run: RunFolder) -> pd.DataFrame:
    """Return rollout.csv, empty where there is none."""
    try:
        return pd.read_csv(run.path / "rollout.csv")
    except (OSError, ValueError):
        return pd.DataFrame()


def _progress(run: RunFolder) -> str:
    """Say how far a run without outcome.json is."""
    said = {
        "running": "it goes on",
        "stopped": "it was cut off",
        "ended": "it has ended",
    }
    parts = [said[run.state]]
    if len(run.telemetry):
        last = run.telemetry.iloc[-1]
        if pd.notna(last.step):
            parts.append(f"after {last.step:,.0f} batches")
        if pd.notna(last.loss):
            parts.append(f"with a loss of {number(last.loss)}")
    if (error := error_of(run)) is not None:
        count = len(run.validation)
        of = f" over {counted(count, 'held-out simulation')}" if count else ""
        what = f"relative L2{of_error(run)}{of}"
        parts.append(f"and has an error of {percent(error)} ({what})")
    return f"{' '.join(parts)}."
