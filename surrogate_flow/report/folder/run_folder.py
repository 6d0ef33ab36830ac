"""A run's folder, read without the process that wrote it, and without torch."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import xarray as xr
import yaml

from surrogate_flow.fields.errors import ArgumentError, MissingFileError
from surrogate_flow.report.folder.diagnosis import State, has_results, problems_of
from surrogate_flow.report.folder.tables import joined_ranks, lost_of, read_table, typed

__all__ = ["FILES", "INTERRUPTED", "OUTCOME", "REPORT", "RunFolder", "RunSummary"]
__all__ += ["is_run", "newest_in", "runs_below"]

Read = TypeVar("Read")

OUTCOME, REPORT = "outcome.json", "report.html"
#: The error of a run that a signal has ended before it could save anything.
INTERRUPTED = "it was interrupted"

_ALIVE = 30.0  # seconds since its last row in which a run is taken to go on
_BEGINNING = 300.0  # and since its settings, before there is a row


#: What a run writes, and when; the patterns of files of several ranks.
FILES: Mapping[str, str] = {
    "config.yaml": "A run writes its settings as it begins.",
    "run.json": "Command, versions and units are not known; only a run writes it, as "
    "it begins.",
    "telemetry*.csv": "A run writes a row a second.",
    "metrics.csv": "A fit writes the losses every --trainer.log_every_n_steps batches.",
    "failures*.csv": "It is written when a simulation fails.",
    "losses.csv": "A fit writes it while it trains.",
    "newest.nc": "A fit writes it while it trains.",
    "validation.csv": "A fit and a test write it at their end.",
    "cases.nc": "A fit writes it at its end.",
    OUTCOME: "Skill and cost are not known; only a fit writes it, at its end.",
}
_PARTS = (
    *("settings", "about", "telemetry", "metrics", "failures", "losses", "newest"),
    *("validation", "cases", "outcome"),
)


@dataclass(frozen=True)
class RunSummary:
    """Errors at the end of a fit, and what it took.

    Attributes
    ----------
    batches : int
        Steps of the optimizer.
    samples : int
        Trained by this process, repetitions counted.
    unique_samples : int
        Different ones among them. Online, where up to four batches are drawn ahead
        and not trained at the end of the run, it may be too large by as many.
    simulations : int
        Complete ones, the held-out ones included.
    solver_seconds : float
        Of these together, without waits for the reservoir.
    training_seconds : float
        From the first batch to the last, with the validations in between.
    samples_per_second : float
        ``samples / training_seconds``.
    errors : dict of str to float
        Every ``val_*`` metric of the last validation, the relative L2 errors of
        guesses beside it, and ``val_skill``: ``1 - (rmse / rmse of the best constant
        field)^2``, the mean over the variables.
    validated : int, optional
        Held-out simulations of all ranks that the errors are averaged over, without
        those that failed. None in the files of older versions.
    set_aside : list of str
        Workers and hosts that began no attempts for a while, since those there failed.
    early_simulations : dict of str to int
        How many have ended before their last step, by the reason that solvers gave.
    surrogate_seconds : float, optional
        Of one evaluation at the end of the fit: a whole simulation, predicted.
    batch_seconds : float, optional
        The same where `batch` are predicted by one call.
    batch : int
        How many these are.
    history : float
        Share of a simulation's steps that such a prediction goes on from. 0 in the
        files of older versions, whose seconds of one have the solver's in them.
    quickest_seconds : float, optional
        Of the quickest simulation of all steps, from which the others and the training
        took the least.
    ended_early : bool
        Whether a signal has ended it before its last batch.
    """

    batches: int
    samples: int
    unique_samples: int
    simulations: int
    solver_seconds: float
    training_seconds: float
    samples_per_second: float
    errors: dict[str, float]
    validated: int | None = None
    set_aside: list[str] = field(default_factory=list)
    early_simulations: dict[str, int] = field(default_factory=dict)
    surrogate_seconds: float | None = None
    batch_seconds: float | None = None
    batch: int = 1
    history: float = 0.0
    quickest_seconds: float | None = None
    ended_early: bool = False

    @classmethod
    def read(cls, folder: Path) -> RunSummary | None:
        """Return that of a run's folder, or None if the run has not ended.

        Raises
        ------
        ValueError
            If the file is damaged, or lacks what each version has.
        """
        path = folder / OUTCOME
        if not path.is_file():
            return None
        read = json.loads(path.read_text("utf-8"))
        known = {f.name: f for f in fields(cls)}
        needed = {n for n, f in known.items() if f.default is f.default_factory}
        lacking = sorted(name for name in needed if read.get(name) is None)
        if lacking:
            raise ValueError(f"it has no {', '.join(lacking)}")
        read["errors"] = {n: e for n, e in read["errors"].items() if e is not None}
        # A newer version may write more.
        return cls(**{name: value for name, value in read.items() if name in known})


class RunFolder:
    """The folder of a run that goes on, has ended, or was killed, at one moment.

    Each file is read when it is first asked for, and then kept: make another
    `RunFolder` to read what has been written since. A file that is absent, empty, cut
    off, or of another version gives an empty table or None, and a sentence in
    `missing`.

    Parameters
    ----------
    path : str or Path
    now : callable, optional
        The time, in seconds since 1970.

    Raises
    ------
    UserError
        If it is no folder of a run, naming the newest one below it or under ``runs``.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "telemetry.csv").write_text("seconds,step\\n1.0,7\\n2.0,")
    >>> run = RunFolder(folder)
    >>> int(run.telemetry.step.iloc[-1]), run.outcome, run.state
    (7, None, 'running')
    """

    def __init__(
        self, path: str | Path, *, now: Callable[[], float] = time.time
    ) -> None:
        self.path = Path(path)
        self._now = now
        self._missing: dict[str, str] = {}
        self._damaged: list[str] = []
        self._cut: list[str] = []
        if not is_run(self.path):
            # Below a folder that is none of runs there may be millions of others.
            runs = self.path if self.path.name == "runs" else Path("runs")
            found = runs_below(runs)
            kind = ArgumentError if self.path.exists() else MissingFileError
            raise kind(
                "The folder of a run",
                "one with config.yaml and telemetry.csv, as runs/heat2d/<time>",
                path if self.path.is_dir() else f"{path}, no folder in {Path.cwd()}",
                f"The newest is {found[-1]}."
                if found
                else "Go to where fit was typed, or name the folder that it printed.",
            )

    @functools.cached_property
    def telemetry(self) -> pd.DataFrame:
        """A row a second, with all of `COLUMNS`; of several ranks, their sum.

        Rates and counts are those of all ranks together, the seconds of waiting their
        mean. ``time`` is a timestamp in UTC, ``waiting`` and ``times_seen`` are text,
        the others are numbers, NaN where a run has no such thing.
        """
        tables = [typed(table) for table in self._tables("telemetry*.csv")]
        return joined_ranks(tables) if tables else typed(pd.DataFrame())

    @functools.cached_property
    def metrics(self) -> pd.DataFrame:
        """metrics.csv: ``step``, ``train_loss``, and ``val_*`` of each validation."""
        return next(iter(self._tables("metrics.csv")), pd.DataFrame())

    @functools.cached_property
    def failures(self) -> pd.DataFrame:
        """A row an attempt that failed, of all ranks, by time."""
        tables = self._tables("failures*.csv")
        table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
        return table.sort_values("time", kind="stable") if "time" in table else table

    @functools.cached_property
    def lost(self) -> tuple[int, Mapping[Any, Any]]:
        """How many simulations failed permanently, and the row of the last one."""
        return lost_of(self.failures)

    @functools.cached_property
    def losses(self) -> pd.DataFrame:
        """``simulation, step, loss, seconds`` and the parameters, by simulation."""
        return next(iter(self._tables("losses.csv")), pd.DataFrame())

    @functools.cached_property
    def validation(self) -> pd.DataFrame:
        """A row a held-out simulation: parameters, ``relative_l2``, ``rmse_*``."""
        return next(iter(self._tables("validation.csv")), pd.DataFrame())

    @functools.cached_property
    def outcome(self) -> RunSummary | None:
        """Errors at the end of a fit, and what it took."""
        return self._read(OUTCOME, lambda path: RunSummary.read(path.parent))

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """config.yaml; empty without one, as in runs from Python."""
        return (
            self._read("config.yaml", lambda path: _mapping(yaml.safe_load, path)) or {}
        )

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """run.json: name, command, started, versions, git, host, ..., spec, next."""
        return self._read("run.json", lambda path: _mapping(json.load, path)) or {}

    @functools.cached_property
    def newest(self) -> xr.Dataset | None:
        """A sample of the newest batch: ``<name>``, ``<name>_surrogate``; thinned."""
        return self._read("newest.nc", _fields)

    @functools.cached_property
    def cases(self) -> xr.Dataset | None:
        """The best, the median and the worst held-out simulation, along ``case``."""
        return self._read("cases.nc", _fields)

    @property
    def missing(self) -> list[str]:
        """What is not there, and why, in words; reads everything."""
        for part in _PARTS:
            getattr(self, part)
        known = [self._missing[name] for name in FILES if name in self._missing]
        return known + self._damaged + self._cut * (self.state != "running")

    @functools.cached_property
    def state(self) -> State:
        """Whether it goes on, by its last row; or has ended, and how."""
        if "error" in self.about:
            return "stopped"
        if "ended" in self.about or has_results(self.path / OUTCOME, self.about):
            return "ended"
        age = self._now() - self._last_seen
        patience = _ALIVE if len(self.telemetry) else _BEGINNING
        return "running" if age < patience else "stopped"

    @property
    def resumed_from(self) -> str:
        """The checkpoint that a fit has gone on from; empty if from none."""
        # Older versions have it in the settings alone, as they have that of a test.
        asked = self.settings.get("ckpt_path") if self.outcome else None
        return str(self.about.get("resumed_from") or asked or "")

    @property
    def problems(self) -> list[str]:
        """What is wrong, in plain words, each with what helps; as `problems_of`."""
        return problems_of(self)

    @property
    def _last_seen(self) -> float:
        if len(times := self.telemetry.time.dropna()):
            return float(times.iloc[-1].timestamp())
        written = [p.stat().st_mtime for f in FILES for p in self.path.glob(f)]
        return max(written, default=0.0)

    def _tables(self, pattern: str) -> list[pd.DataFrame]:
        paths = sorted(self.path.glob(pattern))
        if not paths:
            self._read(pattern, lambda path: None)
        tables = (self._read(path.name, self._table, pattern) for path in paths)
        return [table for table in tables if table is not None]

    def _table(self, path: Path) -> pd.DataFrame:
        data = path.read_bytes()
        table, damaged = read_table(data)
        if damaged:
            said = f"Of {path.name} damaged lines are left out: {damaged}."
            self._damaged.append(said)
        if not data.endswith(b"\n"):
            self._cut.append(f"The last row of {path.name} is cut off, and left out.")
        return table

    def _read(
        self, name: str, read: Callable[[Path], Read | None], pattern: str = ""
    ) -> Read | None:
        """Read a file, or note that and why this is not possible."""
        path, key = self.path / name, pattern or name
        shown = name.replace("*", "")
        if not path.exists():
            if shown != "failures.csv":  # All simulations are well.
                self._missing[key] = f"{shown} is not there. {FILES[key]}"
            return None
        try:
            return read(path)
        except Exception as error:
            # Of any type, by the library and the damage.
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            self._missing[key] = f"{shown} cannot be read: {reason}."
            return None


def runs_below(root: Path) -> list[Path]:
    """Return the folders of runs below a folder, last the one that wrote last."""
    found: dict[str, Path | None] = {}
    for folder, inside, files in os.walk(root, followlinks=True):
        run, place = "telemetry.csv" in files, os.path.realpath(folder)
        # In a run there is no other, and links may lead back.
        if run or place in found:
            inside.clear()
        found.setdefault(place, Path(folder) if run else None)
    runs = [run for run in found.values() if run is not None]
    return sorted(runs, key=lambda run: (run / "telemetry.csv").stat().st_mtime)


def is_run(path: Path) -> bool:
    """Whether a folder has any file of a run."""
    return any(any(path.glob(pattern)) for pattern in FILES)


def newest_in(path: Path) -> Path:
    """Return a run's folder, or that of the run below it that wrote last."""
    return path if is_run(path) else (runs_below(path) or [path])[-1]


def _mapping(load: Callable[[Any], Any], path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8") as file:
        read = load(file)
    if not isinstance(read, dict):
        raise ValueError("it holds no names and values")
    return read


def _fields(path: Path) -> xr.Dataset:
    # Into memory: the run replaces the file.
    return xr.load_dataset(path, engine="h5netcdf")
