"""What a trial of a sweep has come to, by its folder."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from math import isnan, nan
from pathlib import Path
from typing import Any

from surrogate_flow.ensemble.sharing import Sharing
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.window import monitored
from surrogate_flow.report.folder.run_folder import RunFolder
from surrogate_flow.report.folder.tables import typed
from surrogate_flow.report.live.follow import Tail

__all__ = ["Training", "TrialRow", "validations_of"]


@dataclass(frozen=True)
class TrialRow:
    """What a trial has come to.

    Attributes
    ----------
    number : int
    state : str
        waiting, running, interrupted, complete, pruned, failed.
    point : dict
        Its values of the space.
    error : float, optional
        Relative L2 error over the held-out simulations of its best checkpoint: the
        least of its validations; of rollouts for autoregressive windows.
    seconds : float, optional
        Of training, of all its parts.
    wall_seconds : float, optional
        From its start to its end; None if the sweep was interrupted in between.
    steps : int
        Batches trained.
    validated : int, optional
        Held-out simulations that its last errors are averaged over, where it is known.
    why : str
        Why it failed, or has no room for steps now.
    run : Path, optional
        Folder of its newest run.
    attempts : int
        How many times it was started.
    missed : int
        Simulations of which it has missed steps, with ``late: drop``.
    lag : str
        Of one that runs, whether it holds up the simulations, or what others do to it.
    """

    number: int
    state: str
    point: dict[str, Any]
    error: float | None = None
    seconds: float | None = None
    wall_seconds: float | None = None
    steps: int = 0
    validated: int | None = None
    why: str = ""
    run: Path | None = None
    attempts: int = 0
    missed: int = 0
    lag: str = ""

    @property
    def words(self) -> str:
        """Its state, and whether it lags."""
        return f"{self.state}, {self.lag}" if self.lag else self.state

    def among(self, sharing: Sharing, late: str) -> TrialRow:
        """Return it with how trials hold each other up, and what it has missed."""
        missed = {k: sum(b - a for a, b in r) for k, r in sharing.missed.items()}
        row = replace(self, missed=sum(n for k, n in missed.items() if self._is(k)))
        full = sharing.full if self.state == "running" else {}
        if why := "; ".join(why for name, why in full.items() if self._is(name)):
            lags = {"drop": "misses steps", "spool": "reads steps later"}
            return replace(row, lag=lags.get(late, "holds up the simulations"), why=why)
        if full and late == "wait":
            by = dict.fromkeys(name.partition("/")[0] for name in full)
            return replace(row, lag=f"held up by {', '.join(by)}")
        return row

    def _is(self, member: str) -> bool:
        """Whether a training of the shared study is this trial, or a rank of it."""
        return member.partition("/")[0] == f"trial {self.number}"


def validations_of(run: Path) -> dict[int, float]:
    """Return the errors of a run's validations, by batch."""
    with contextlib.suppress(UserError):
        table = RunFolder(run).metrics
        if {"step", metric := monitored(table)} <= {*table}:
            known = table[["step", metric]].dropna()
            return dict(zip(known["step"].astype(int), known[metric], strict=True))
    return {}


class Training:
    """What telemetry.csv of a run says of its training; only new rows are read."""

    def __init__(self, run: Path) -> None:
        self._path = run / "telemetry.csv"
        self._tail, self._size = Tail(self._path), 0
        self._begun = self._error = nan
        self.steps, self.seconds = 0, 0.0
        #: Seconds of training and error of each validation.
        self.curve: list[tuple[float, float]] = []

    def update(self) -> None:
        """Read what was written since the last time."""
        try:
            size = self._path.stat().st_size
            if size == self._size:
                return
            self._size = size
            table, other = self._tail.rows()
        except (OSError, ValueError):
            return
        if other:
            self._begun = self._error = nan
            self.curve = []
        table = typed(table)
        trains = table[table["step"] > 0]
        names = ["seconds", "step", "validation"]
        for second, step, error in trains[names].itertuples(index=False):
            self._begun = second if isnan(self._begun) else self._begun
            self.steps, self.seconds = int(step), second - self._begun
            if not isnan(error) and error != self._error:
                self._error = error
                self.curve.append((self.seconds, error))
