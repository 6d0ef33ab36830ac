"""What the live page shows of a run, from messages: bounded, however long it runs."""

from __future__ import annotations

import io
import math
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np
import xarray as xr
from jaxtyping import Float

from surrogate_flow.files import not_netcdf
from surrogate_flow.report.folder.tables import COLUMNS, counts_of, joined_column

__all__ = ["DRAWN", "SERIES", "LiveState", "names_of", "number"]

_ROWS = 1200  # that are kept; older ones become sparse
DRAWN = 6  # parameters
_WINDOW = 5.0  # seconds over which rates and shares are taken
_FAILURES = 100  # the last ones, that are kept
_SILENT = 30.0  # seconds without a message until the page says so

#: The numbers of a moment that are drawn over time: those of telemetry.csv, and
#: ``seen``, rates a second, and shares of the time in percent.
SERIES = (
    *("seconds", "step", "loss", "samples_per_second", "population", "unseen", "seen"),
    *("capacity", "threshold", "steps_per_second", "trainer_waits", "reservoir_waits"),
    *("simulations_planned", "simulations_done", "simulations_running"),
    *("simulations_failed", "workers", "jobs_wanted", "jobs_at_work", "epoch"),
    "megabytes_per_second",
)
_RATES = {
    "steps_per_second": ("steps_received", 1.0),
    "megabytes_per_second": ("bytes_read", 1e-6),
    "trainer_waits": ("draw_wait_seconds", 100.0),
    "reservoir_waits": ("put_wait_seconds", 100.0),
}


class LiveState:
    """The state of a run, as far as messages have said it.

    Parameters
    ----------
    name : str
        Of the run.

    Attributes
    ----------
    series : list of dict
        `SERIES` of up to 1,200 moments, the newest last.
    rows : int
        Number of moments that were received.
    thinned : int
        How many times older moments were left out.
    last : dict
        The last row of telemetry.csv.
    validations : list of tuple
        Batch and error of up to 1,200 validations, the newest last.
    failures : deque of dict
        Rows of failures.csv, the newest last.
    losses : dict of str to array
        Columns of losses.csv.
    about : dict
        That of run.json.
    problems : list of str
        What is wrong, in plain words, the worst first.
    missing : list of str
        What is not in the run's folder, and why, in words.
    state : str
        ``running``, ``ended`` or ``stopped``.
    folder : str
        Of the run.
    cost : str
        After how many evaluations it pays, once it has ended.
    looked : float
        When a page has shown it last, by `time.monotonic`.
    changes : Counter
        How many times each part was received, ``validations`` among them.

    Examples
    --------
    >>> state = LiveState("heat2d")
    >>> state.update({"rows": [{"seconds": 60.0, "population": 5, "unseen": 2}]})
    >>> state.series[-1]["seconds"], state.series[-1]["seen"]
    (60.0, 3.0)
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.series: list[dict[str, float]] = []
        self.rows = self.thinned = 0
        self.last: dict[str, Any] = {}
        self.validations: list[tuple[float, float]] = []
        self.failures: deque[dict[str, Any]] = deque(maxlen=_FAILURES)
        self.losses: dict[str, Float[np.ndarray, " simulation"]] = {}
        self.about: dict[str, Any] = {}
        self.problems: list[str] = []
        self.missing: list[str] = []
        self.state = "running"
        self.folder, self.cost, self.looked = "", "", 0.0
        self.changes: Counter[str] = Counter()
        self.received = time.monotonic()
        self._others: dict[int, Mapping[str, Any]] = {}
        self._recent: deque[Mapping[str, Any]] = deque(maxlen=60)
        self._newest: bytes | xr.Dataset | None = None
        self._shown: xr.Dataset | None = None

    def update(self, message: Mapping[str, Any]) -> None:
        """Take what a message has of any part; unknown parts are ignored.

        Parameters
        ----------
        message : mapping
            ``about`` (as run.json), ``rows`` (of telemetry.csv), ``failures`` (rows of
            failures.csv), ``losses`` (columns of losses.csv, as arrays of float32 or
            their bytes), ``newest`` (newest.nc, as bytes or a data set), ``problems``,
            ``missing``, ``state``, ``folder``, ``cost``; ``rank`` of the rows.
        """
        self.received = time.monotonic()
        rank = int(message.get("rank", 0))
        for row in message.get("rows", ()):
            if rank:
                self._others[rank] = row
            else:
                self._append(_joined([row, *self._others.values()]))
        self.failures.extend(message.get("failures", ()))
        if "losses" in message:
            self.losses = {
                name: np.frombuffer(column, np.float32)
                if isinstance(column, bytes)
                else np.asarray(column, np.float32)
                for name, column in message["losses"].items()
            }
        if "newest" in message:
            self._newest = message["newest"]
        self.about.update(message.get("about", {}))
        self.problems = list(message.get("problems", self.problems))
        self.missing = list(message.get("missing", self.missing))
        self.state = str(message.get("state", self.state))
        self.folder = str(message.get("folder", self.folder))
        self.cost = str(message.get("cost", self.cost))
        self.changes.update(message.keys())

    def restart(self) -> None:
        """Forget all moments: another table has taken the place of theirs."""
        self.series.clear()
        self.validations.clear()
        self._recent.clear()
        self._others.clear()
        self.last, self.rows = {}, 0
        self.thinned += 1
        self.changes["validations"] += 1

    @property
    def newest(self) -> xr.Dataset | None:
        """A sample of the newest batch: fields ``<name>`` and ``<name>_surrogate``."""
        if isinstance(self._newest, bytes):
            data, self._newest = io.BytesIO(self._newest), None
            try:
                self._newest = self._shown = _decoded(data, self._shown)
            except Exception as error:
                # Of any type, by the damage; the rest of the page goes on.
                self.missing = [f"newest.nc {not_netcdf(error)}"]
        return self._newest

    @property
    def parameters(self) -> dict[str, str]:
        """Names of the parameters in `losses`, and their units."""
        spec = self.about.get("spec") or {}
        units = {p["name"]: p.get("units", "") for p in spec.get("parameters", ())}
        known = [n for n in self.losses if n not in ("simulation", "step", "loss")]
        # The table has a suffix where its own columns are called alike.
        plain = {n: n if n in units else n.removesuffix("_parameter") for n in known}
        return {n: units.get(plain[n], "") for n in known if n != "seconds"}

    @property
    def silent(self) -> float:
        """Seconds since the last message of a run that goes on, if they are many."""
        seconds = time.monotonic() - self.received
        return seconds if self.state == "running" and seconds > _SILENT else 0.0

    @property
    def times_seen(self) -> list[int]:
        """Numbers of samples, of those that left too, seen 0, 1, 2, ... times."""
        return counts_of(self.last.get("times_seen"))

    def _append(self, row: dict[str, Any]) -> None:
        totals = "samples", "steps_received"
        if any(number(row.get(n)) < number(self.last.get(n)) for n in totals):
            self._recent.clear()  # Another run goes on in the folder.
        self.last, numbers = row, {n: number(row.get(n)) for n in SERIES}
        numbers["seen"] = numbers["population"] - numbers["unseen"]
        now = numbers["seconds"]
        recent = self._recent
        while len(recent) > 1 and number(recent[1].get("seconds")) <= now - _WINDOW:
            recent.popleft()
        before = recent[0] if recent else {}
        span = now - number(before.get("seconds"))
        for name, (total, factor) in _RATES.items():
            gained = number(row.get(total)) - number(before.get(total))
            numbers[name] = factor * gained / span if span > 0 else math.nan
        recent.append(row)
        self.series.append(numbers)
        self.rows += 1
        if len(self.series) > _ROWS:
            del self.series[1 : _ROWS // 2 : 2]
            self.thinned += 1
        error = number(row.get("validation"))
        if math.isfinite(error):
            known = self.validations[-1:] and self.validations[-1][1]
            if known != error:
                self.validations.append((numbers["step"], error))
                self.changes["validations"] += 1
                if len(self.validations) > _ROWS:
                    del self.validations[1 : _ROWS // 2 : 2]


def _decoded(file: io.BytesIO, before: xr.Dataset | None) -> xr.Dataset:
    """Return a file's fields; where only numbers are others, in a tenth of the time."""
    if before is not None:
        with h5py.File(file) as stored:
            variables = before.variables
            shapes = {n: v.shape for n, v in stored.items()}
            if all(shapes.get(str(n)) == v.shape for n, v in variables.items()):
                numbers = {
                    n: v.copy(deep=False, data=stored[str(n)][()])
                    for n, v in variables.items()
                    if n not in before.indexes and v.dtype.kind == "f"
                }
                # netCDF keeps a number as an array of one.
                attrs = {
                    n: np.ravel(stored.attrs[n])[0]
                    for n in before.attrs
                    if n in stored.attrs
                }
                return before.assign(numbers).assign_attrs(attrs)
        file.seek(0)
    return xr.load_dataset(file, engine="h5netcdf")


def names_of(runs: Mapping[str, LiveState]) -> dict[str, str]:
    """Return the names that are shown: where two are the same, with their starts."""
    times = Counter(state.name for state in runs.values())
    return {
        key: f"{state.name}, {key.rpartition('#')[2]}"
        if times[state.name] > 1
        else state.name
        for key, state in runs.items()
    }


def number(value: Any) -> float:
    """Return a number; NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _joined(ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the row of the first rank, joined with the last ones of the others."""
    if len(ranks) == 1:
        return dict(ranks[0])
    known = [name for name in ranks[0] if name in COLUMNS]
    return {n: joined_column(n, [[row.get(n)] for row in ranks])[0] for n in known}
