"""Tells the live page what is new in a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from surrogate_flow.report.live.state import LiveState
from surrogate_flow.report.run_folder import COLUMNS, RunFolder

__all__ = ["Changes", "Follower"]

_ROWS = 1200  # of telemetry.csv, at most: of a long run, not all
_FAILURES = 100


class Changes:
    """Messages about the files of a run that were written since the last time.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamps: dict[str, tuple[int, int]] = {}
        self._failures = 0

    def message(self, run: RunFolder) -> dict[str, Any]:
        """Return what `LiveState.update` takes; empty if nothing is new."""
        message: dict[str, Any] = {}
        if self._changed("run.json"):
            # Of the spec, only what is shown: a mesh is large.
            spec = run.about.get("spec")
            known = spec.get("parameters", []) if isinstance(spec, dict) else []
            message["about"] = {"spec": {"parameters": known}}
        if self._changed("losses.csv") and {"simulation", "loss"} <= {*run.losses}:
            table = run.losses.select_dtypes("number")
            message["losses"] = {
                str(name): table[name].to_numpy(np.float32).tobytes() for name in table
            }
        if self._changed("failures*.csv"):
            failures = run.failures[self._failures :]
            self._failures += len(failures)
            rows = failures.tail(_FAILURES).fillna("").to_dict("records")
            message["failures"] = [
                {str(k): str(v)[:500] for k, v in row.items()} for row in rows
            ]
        if self._changed("newest.nc"):
            # Replaced whole, so never half of it.
            message["newest"] = (self._folder / "newest.nc").read_bytes()
        return message

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

    Attributes
    ----------
    state : LiveState

    Raises
    ------
    UserError
        If it is no folder of a run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._rows, self._changes = folder, 0, Changes(folder)
        self._files: set[str] = set()
        self.state = LiveState("/".join(folder.resolve().parts[-2:]))
        self.update()

    def update(self) -> None:
        """Read what has been written since the last time."""
        run = RunFolder(self._folder)
        message = self._changes.message(run)
        table = run.telemetry.iloc[self._rows :]
        self._rows += len(table)
        if len(table) > _ROWS:
            places = np.unique(np.linspace(0, len(table) - 1, _ROWS).astype(int))
            table = table.iloc[places]
        if len(table):
            known = [name for name in COLUMNS if name in table]
            message["rows"] = table[known].to_dict("records")
        message |= {"problems": run.problems, "state": run.state}
        files = {path.name for path in self._folder.iterdir()}
        if files != self._files:
            # Else every file would be read each time.
            self._files, message["missing"] = files, run.missing
        self.state.update(message)
