"""What is new in a run's folder, for its live page."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from surrogate_flow.fields.window import monitored
from surrogate_flow.report.folder.cost import RunCost
from surrogate_flow.report.folder.run_folder import FILES, OUTCOME, RunFolder
from surrogate_flow.report.folder.tables import (
    complete_rows,
    joined_ranks,
    lost_of,
    newest_rows,
    point_of,
    read_table,
    typed,
)
from surrogate_flow.report.folder.words import arguments
from surrogate_flow.report.live.state import DRAWN, LiveState

__all__ = ["Changes", "Follower", "Tail", "name_of"]

_ROWS = 1200  # of telemetry.csv, at most: of a long run, not all
_RECENT = 600  # rows of it in which problems are looked for
_FAILURES = 100
# Characters of what the page shows of a failure: all of them are 64 KB at most.
_SHOWN = {"simulation": 20, "attempt": 10, "outcome": 20, "worker": 40, "error": 40}
_SHOWN |= {"message": 200}


def _point(text: str) -> dict[str, Any]:
    """Return the first parameters of an attempt, in few characters."""
    point = [*point_of(text).items()][:DRAWN]
    return {
        name[:20]: v[:20] if isinstance(v, str) else float(f"{v:.4g}")
        for name, v in point
    }


def name_of(folder: Path) -> str:
    """Return the name of a run on its page.

    Examples
    --------
    >>> name_of(Path("/runs/heat2d/now")), name_of(Path("/s/trials/0012/heat2d/now"))
    ('heat2d/now', 'trial 12')
    """
    *_, trials, number, workflow, name = ("", "", "", *folder.resolve().parts)
    of_sweep = trials == "trials" and number.isdigit()
    return f"trial {int(number)}" if of_sweep else f"{workflow}/{name}"


class Tail:
    """The rows that were appended to a CSV file since the last look.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self._path, self._file, self._end, self._head = path, -1, 0, b""

    def rows(self) -> tuple[pd.DataFrame, bool]:
        """Return them, and whether the file is another one, of which they are all."""
        with self._path.open("rb") as file:
            stat = self._path.stat()
            other = stat.st_ino != self._file or stat.st_size < self._end
            if other:
                self._file, self._end, self._head = stat.st_ino, 0, b""
            file.seek(self._end)
            data = complete_rows(file.read())
        self._end += len(data)
        if not self._head:
            self._head = data[: data.find(b"\n") + 1]
            return (read_table(data)[0] if data else pd.DataFrame()), other
        return read_table(self._head + data)[0], other


class Changes:
    """Messages about the files of a run that were written since the last time.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamps: dict[str, tuple[int, int]] = {}
        self._tails: dict[Path, Tail] = {}
        self._lost = lost_of(pd.DataFrame())

    def message(self, run: RunFolder) -> dict[str, Any]:
        """Return what `LiveState.update` takes; empty if nothing is new."""
        message: dict[str, Any] = {}
        if self._changed("run.json"):
            # Of the spec, only what is shown: a mesh is large.
            known = arguments(run.about.get("spec")).get("parameters")
            known = [
                p
                for p in (known if isinstance(known, list) else ())
                if isinstance(p, dict) and isinstance(p.get("name"), str)
            ]
            spec = {"parameters": known[:DRAWN], "count": len(known)}
            data = arguments(run.settings.get("data"))
            message["about"] = {"spec": spec, "simulations": data.get("simulations")}
        if self._changed("losses.csv") and len(table := self._losses()):
            message["losses"] = {
                str(name): table[name].to_numpy(np.float32).tobytes() for name in table
            }
        if self._changed("failures*.csv") and len(table := self._new_failures()):
            count, last = lost_of(table)
            self._lost = self._lost[0] + count, last or self._lost[1]
            rows = table.tail(_FAILURES).fillna("").astype(str).to_dict("records")
            message["failures"] = [
                {k: row[k][:most] for k, most in _SHOWN.items() if k in row}
                | {"parameters": _point(row.get("parameters", ""))}
                for row in rows
            ]
        if self._changed(OUTCOME) and (cost := RunCost.of(run)) is not None:
            message["cost"] = str(cost)
        # Else it is read with each look for problems.
        vars(run)["lost"] = self._lost
        if self._changed("newest.nc"):
            # Replaced whole, so never half of it.
            message["newest"] = (self._folder / "newest.nc").read_bytes()
        return message

    def _losses(self) -> pd.DataFrame:
        """Return what is drawn of losses.csv, as few columns as that."""
        path = self._folder / "losses.csv"
        try:
            names = [*pd.read_csv(path, nrows=0, encoding_errors="replace")]
            points = [n for n in names if n not in ("step", "seconds")]
            some = points[: 2 + DRAWN]
            table = pd.read_csv(path, usecols=some, encoding_errors="replace")
        except (OSError, ValueError):
            return pd.DataFrame()  # `RunFolder.missing` says why.
        known = {"simulation", "loss"} <= {*table}
        return table.select_dtypes("number") if known else pd.DataFrame()

    def _new_failures(self) -> pd.DataFrame:
        tables = []
        for path in sorted(self._folder.glob("failures*.csv")):
            tables.append(self._tails.setdefault(path, Tail(path)).rows()[0])
        table = pd.concat(tables, ignore_index=True)
        return table.sort_values("time", kind="stable") if "time" in table else table

    def _changed(self, pattern: str) -> bool:
        """Whether files of a name are others than at the last time."""
        found = [path.stat() for path in self._folder.glob(pattern)]
        stamp = sum(s.st_mtime_ns for s in found), sum(s.st_size for s in found)
        changed = bool(found) and self._stamps.get(pattern) != stamp
        self._stamps[pattern] = stamp
        return changed


class Follower:
    """Keeps the state of a page that of a run's folder, whoever writes it.

    Parameters
    ----------
    folder : Path
    state : LiveState, optional
        To be kept; a new one by default.

    Attributes
    ----------
    state : LiveState
    runs, sweeps
        As `document` takes them.

    Raises
    ------
    UserError
        If it is no folder of a run.
    """

    def __init__(self, folder: Path, state: LiveState | None = None) -> None:
        self._folder, self._changes = folder, Changes(folder)
        self._known: set[str] = set()
        self._tails: dict[Path, Tail] = {}
        self._last: dict[Path, pd.DataFrame] = {}
        self._recent = typed(pd.DataFrame())
        self._unlogged: set[str] = set()
        self.state = state or LiveState(name_of(folder))
        self.runs = {self.state.name: self.state}
        self.sweeps: dict[str, dict[str, Any]] = {}
        RunFolder(folder)
        with suppress(Exception):  # The next look says why: a page opens at any.
            self.update()

    def update(self) -> None:
        """Read what has been written since the last time."""
        run = RunFolder(self._folder)
        message = self._changes.message(run)
        table = _with_losses(self._rows(), run, self._unlogged)
        if len(table):
            recent = [self._recent, table] if len(self._recent) else [table]
            whole = pd.concat(recent, ignore_index=True)
            self._recent = newest_rows(whole, _RECENT)
        if len(table) > _ROWS:
            places = np.unique(np.linspace(0, len(table) - 1, _ROWS).astype(int))
            table = table.iloc[places]
        if len(table):
            message["rows"] = table.to_dict("records")
        vars(run)["telemetry"] = self._recent
        message |= {"problems": run.problems, "state": run.state}
        files = [p for name in FILES for p in self._folder.glob(name)]
        known = {run.state, *(path.name for path in files if path.stat().st_size)}
        if known != self._known:
            # Else every file would be read each time.
            self._known, message["missing"] = known, RunFolder(self._folder).missing
        self.state.update(message)

    @property
    def running(self) -> bool:
        """Whether the run goes on."""
        return self.state.state == "running"

    @property
    def asked(self) -> bool:
        """Whether a page shows what was not read yet: nothing is."""
        return False

    def fail(self, why: str) -> None:
        """Show why it cannot be read; what is known stays."""
        self.state.update({"problems": [why]})

    def _rows(self) -> pd.DataFrame:
        """Return the new rows of telemetry.csv, joined with those of other ranks."""
        tables: list[pd.DataFrame] = []
        for path in sorted(self._folder.glob("telemetry*.csv")):
            rows, other = self._tails.setdefault(path, Tail(path)).rows()
            if other:
                self._unlogged = {"validation", "loss"} - {
                    *rows.dropna(how="all", axis=1)
                }
            rows, before = typed(rows), self._last.get(path)
            if other and before is not None:
                before = None
                self.state.restart()
                self._recent = rows[:0]
            if len(rows):
                self._last[path] = rows.tail(1)
            # The last row of another rank counts until there is a newer one.
            again = before is not None and bool(tables)
            tables.append(pd.concat([before, rows]) if again else rows)
        if not tables or not len(tables[0]):
            return typed(pd.DataFrame())
        return joined_ranks([t.reset_index(drop=True) for t in tables])


def _with_losses(
    table: pd.DataFrame, run: RunFolder, unlogged: Collection[str]
) -> pd.DataFrame:
    """Return telemetry with errors of metrics.csv, as older versions wrote them."""
    logged = {"validation": monitored(run.metrics), "loss": "train_loss"}
    for name in unlogged:
        if len(table) and table[name].isna().all() and logged[name] in run.metrics:
            known = run.metrics[["step", logged[name]]].dropna().sort_values("step")
            values = np.append(known[logged[name]], np.nan)  # -1: before the first
            at = np.searchsorted(known.step, table.step, side="right") - 1
            table = table.assign(**{name: values[at]})
    return table
