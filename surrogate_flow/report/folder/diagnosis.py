"""What is wrong with a run, in plain words, and what helps."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd

from surrogate_flow.fields.errors import in_a_line
from surrogate_flow.fields.quantities import counted
from surrogate_flow.report.folder.tables import of_last_process, while_training
from surrogate_flow.report.folder.words import arguments, python_path

__all__ = ["Observed", "State", "has_results", "problems_of"]

#: ``ended`` by itself or by Ctrl-C, with its results; ``stopped``: killed, or failed.
State = Literal["running", "ended", "stopped"]

_STALLED = 90.0  # seconds without a step of the optimizer that are worth a word
_RECENT = 60.0  # seconds over which waiting is measured while a run goes on
_MUCH = 0.5  # share of the time
_ENDING = "writing the report"  # when no batch is trained any more
_LONG = 300  # letters of an error
_AGAIN = "surrogate-flow fit, as before, with"  # of a command that is not known


class Observed(Protocol):
    """A run as its files or its events show it; the attributes of `RunFolder`."""

    path: Path

    @property
    def telemetry(self) -> pd.DataFrame:
        """A row a second."""

    @property
    def lost(self) -> tuple[int, Mapping[Any, Any]]:
        """How many simulations failed permanently, and the row of the last one."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of config.yaml."""

    @property
    def about(self) -> Mapping[str, Any]:
        """Of run.json."""

    @property
    def outcome(self) -> Any:
        """The `RunSummary`, or None."""

    @property
    def state(self) -> State:
        """Whether it goes on."""


def problems_of(run: Observed) -> list[str]:
    """Return a sentence a problem, each with what helps; the worst first."""
    found = [_end(run), _divergence(run), _stall(run), *_waits(run), _failed(run)]
    return [sentence for sentence in [*found, _weak(run)] if sentence]


def has_results(outcome: Path, about: Mapping[str, Any]) -> bool:
    """Return whether a run has left them; those of a run before are older than it."""
    with suppress(ValueError, OSError):
        begun = datetime.fromisoformat(str(about.get("started")))
        return outcome.stat().st_mtime >= begun.timestamp()
    return outcome.is_file()


def _end(run: Observed) -> str:
    early = run.state == "ended" and run.about.get("ended_early")
    if run.state != "stopped" and not early:
        return ""
    error, steps = run.about.get("error"), of_last_process(run.telemetry).step.max()
    at = f" at batch {steps:.0f}" if np.isfinite(steps) else ""
    said = f"The run failed{at}: {error}" if error else f"The run was cut off{at}"
    said = f"The run was ended early{at}, by a signal" if early else said
    said = f"{said.rstrip('.')}."
    if (successor := _successor(run.path)) is not None:
        return f"{said} It went on in {successor}."
    last = run.path / "checkpoints" / "last.ckpt"
    if not last.is_file():
        return f"{said} It has left no checkpoint to go on from."
    command = str(run.about.get("command", _AGAIN))
    if not command.startswith("surrogate-flow"):
        return f"{said} To go on: trainer.fit(..., ckpt_path={str(last)!r})."
    command = _AGAIN if "***" in command else command
    command = (
        f"{python_path(run.settings)}{command} --ckpt_path {shlex.quote(str(last))}"
    )
    return f"{said} To go on, type: {command}"


def _successor(folder: Path) -> Path | None:
    """Return the folder beside it of the run that went on from one, if any."""
    for path in sorted(folder.parent.glob("*/run.json"), reverse=True):
        with suppress(OSError, ValueError, LookupError, TypeError):
            source = Path(json.loads(path.read_text("utf-8"))["resumed_from"])
            if source.parts[-3] == folder.resolve().name and path.parent != folder:
                return path.parent
    return None


def _divergence(run: Observed) -> str:
    table = run.telemetry[run.telemetry.samples > 0]
    finite = np.isfinite(table.loss)
    if not len(table) or finite.iloc[-1]:
        return ""
    since = table.step[finite[::-1].cumsum() == 0].min()
    return (
        f"The loss is NaN or infinite since batch {since:.0f} or before. Lower "
        "--model.optimizer.lr, or set --trainer.gradient_clip_val 1."
    )


def _stall(run: Observed) -> str:
    table = run.telemetry
    if run.state != "running" or not len(table):
        return ""
    last = table.iloc[-1]
    since = last.seconds - table.seconds[table.step != table.step.shift()].iloc[-1]
    if _ENDING in last.stage or since < _STALLED:
        return ""
    reason = f" ({last.waiting})" if last.waiting else ""
    return (
        f"No batch has been trained for {since:.0f} s{reason}. Dask's dashboard has "
        f"the logs of workers, {run.path / 'jobs'} those of jobs."
    )


def _waits(run: Observed) -> list[str]:
    table = run.telemetry
    if run.state == "running":
        table = of_last_process(table)
        table = table[~table.stage.str.contains(_ENDING)]
    else:
        table = while_training(table)
    table = table[table.step > 0]
    if run.state == "running" and len(table):
        table = table[table.seconds >= table.seconds.iloc[-1] - _RECENT]
    if not len(table):
        return []
    first, last = table.iloc[0], table.iloc[-1]
    seconds = max(last.seconds - first.seconds, 1.0)
    drawing = (last.draw_wait_seconds - first.draw_wait_seconds) / seconds
    putting = (last.put_wait_seconds - first.put_wait_seconds) / seconds
    found = []
    if drawing >= _MUCH:
        share = f"{min(drawing, 1.0):.0%}"
        found.append(f"The trainer waits for data {share} of its time: {_more(run)}")
    if putting >= _MUCH and last.workers > 1:
        found.append(
            f"Simulations wait for the trainer {min(putting, 1.0):.0%} of the time: "
            "fewer workers would do."
        )
    return found


def _more(run: Observed) -> str:
    """Say how to have more simulations at once."""
    cluster = arguments(arguments(run.settings.get("data")).get("cluster"))
    for name, what in (("maximum_jobs", "jobs"), ("n_workers", "workers")):
        count = cluster.get(name)
        if isinstance(count, int):
            return f"ask for more {what}, --data.cluster.{name} {2 * count}."
    return "ask for more workers, on more cores or as jobs (--data.cluster slurm)."


def _failed(run: Observed) -> str:
    count, last = run.lost
    if not count:
        return ""
    said = in_a_line(f"{last['error']}: {last['message']}".rstrip("."), _LONG)
    return (
        f"{counted(count, 'simulation')} failed permanently, the last of them "
        f"{last['simulation']}: {said}. See {run.path / 'failures.csv'}."
    )


def _weak(run: Observed) -> str:
    known = run.state != "running" and run.outcome  # else that of a run before
    errors = known.errors if known else {}
    skill = errors.get("val_skill", 1.0)
    if skill > 0 or math.isnan(skill):
        return ""
    return (
        "The surrogate is no better than a constant field: train for longer "
        "(--trainer.max_steps), with more --data.simulations or a larger network."
    )
