"""The live page of a sweep, from its folder alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from surrogate_flow.cli.sweep.folder import SweepFolder
from surrogate_flow.cli.sweep.table import told
from surrogate_flow.report.live.follow import Follower, name_of
from surrogate_flow.report.live.state import LiveState

__all__ = ["SweepFollower"]

_EVERY = 4.0  # seconds between two looks at the trials
_SEEN = 60.0  # seconds since a page has shown a run in which its files are read


class SweepFollower:
    """Keeps a page that of a sweep's folder, whoever runs the sweep, or nobody.

    Of the runs, those alone are read that a page shows.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    runs, sweeps
        As `document` takes them.
    running : bool
        Whether somebody runs it.

    Raises
    ------
    SweepError
        If it is not the folder of a sweep.
    """

    def __init__(self, path: Path) -> None:
        self._folder = SweepFolder(path)
        self._read = 0.0
        self._followers: dict[str, Follower] = {}
        self.runs: dict[str, LiveState] = {}
        self.sweeps: dict[str, dict[str, Any]] = {}
        self.running = True
        self.update()

    def update(self) -> None:
        """Read what was written since the last time."""
        now = time.monotonic()
        if now - self._read > _EVERY:
            self._read_trials()
            self._read = time.monotonic()
        for key in self._shown:
            if key in self._followers:
                self._followers[key].update()
            else:
                self._followers[key] = Follower(Path(key), self.runs[key])

    @property
    def _shown(self) -> list[str]:
        now = time.monotonic()
        return [k for k, state in self.runs.items() if now - state.looked < _SEEN]

    @property
    def asked(self) -> bool:
        """Whether a page shows a run that was not read yet."""
        return any(key not in self._followers for key in self._shown)

    def fail(self, why: str) -> None:
        """Show why it cannot be read; what is known stays."""
        for sweep in self.sweeps.values():
            sweep["headline"] = why

    def _read_trials(self) -> None:
        folder = self._folder
        rows = folder.rows()
        self.running = bool(folder.holder)
        stopped = "stopped" if folder.left else "ended"
        state = {"state": "running" if self.running else stopped}
        self.sweeps[folder.path.name] = told(folder, rows) | state
        # The newest is shown first; of a sweep that has ended, the best.
        best_last = rows[::-1] if not self.running else sorted(rows, key=_begun)
        for run in [row.run for row in best_last if row.run]:
            key = str(run.resolve())
            state_of = self.runs.pop(key, None) or LiveState(name_of(run))
            state_of.folder = key
            self.runs[key] = state_of


def _begun(row: Any) -> str:
    return row.run.name if row.run else ""
