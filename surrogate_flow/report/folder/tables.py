"""Tables of a run: columns, rows that are complete, and ranks that are joined."""

from __future__ import annotations

import ast
import csv
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

__all__ = ["COLUMNS", "OFTEN", "complete_rows", "counts_of", "joined_column"]
__all__ += [
    "joined_ranks",
    "lost_of",
    "newest_rows",
    "of_last_process",
    "point_of",
    "read_table",
]
__all__ += ["typed", "while_training"]

#: Samples that were seen at least so often are counted together.
OFTEN = 64
_LONGEST = 64_000  # bytes of a row


class Column(NamedTuple):
    """A column of telemetry.csv.

    Attributes
    ----------
    source : str
        The attribute of `Status`, such as ``"store.drawn"``.
    meaning : str
    digits : int, optional
        Decimal places that are kept.
    ranks : str
        How the values of several ranks become one: ``sum``, ``mean``, ``first``.
    """

    source: str
    meaning: str
    digits: int | None = None
    ranks: str = "sum"


#: Counts are totals since the run began, so they never fall; a column is empty in runs
#: that have no such thing.
COLUMNS: Mapping[str, Column] = {
    "seconds": Column("seconds", "since the run began to be watched", 3, "first"),
    "step": Column("training.step", "steps of the optimizer", None, "first"),
    "loss": Column(
        "training.loss", "of the last batch, in normalised units", None, "mean"
    ),
    "samples": Column(
        "training.samples", "trained by this process, repetitions counted"
    ),
    "samples_per_second": Column(
        "training.samples_per_second", "over the last five seconds", 1
    ),
    "simulations_done": Column("ensemble.done", "simulations that are complete"),
    "simulations_running": Column("ensemble.running", "now"),
    "simulations_failed": Column("ensemble.failed", "permanently"),
    "simulations_retried": Column(
        "ensemble.retried", "attempts that failed and were repeated"
    ),
    "workers": Column("ensemble.workers", "now"),
    "steps_received": Column(
        "stream.steps", "time steps that arrived, without duplicates"
    ),
    "bytes_received": Column("stream.bytes", "their size, in bytes"),
    "connections": Column("stream.connections", "of simulations, now"),
    "bytes_pending": Column(
        "stream.pending", "that arrived and wait for the reservoir, now"
    ),
    "population": Column("store.population", "samples in the reservoir, now"),
    "unseen": Column("store.unseen", "those of them that were never drawn"),
    "inserted": Column("store.inserted", "samples that entered the reservoir"),
    "drawn": Column("store.drawn", "samples that were drawn, repetitions counted"),
    "evicted": Column("store.evicted", "samples that left the reservoir to make room"),
    "put_wait_seconds": Column(
        "store.put_wait", "in which the reservoir refused steps", 3, "mean"
    ),
    "draw_wait_seconds": Column(
        "store.draw_wait", "in which the trainer waited for a batch", 3, "mean"
    ),
    "epoch": Column(
        "dataset.epoch", "number of the pass over the data set, from 0", None, "first"
    ),
    "bytes_read": Column("dataset.read", "from the data set, in bytes"),
    "waiting": Column("waiting", "which side waits for the other, in words"),
    "time": Column("time", "of the row, in ISO 8601 with the time zone", None, "first"),
    "capacity": Column("store.capacity", "steps that the reservoir has room for"),
    "threshold": Column("store.threshold", "samples that it waits for at first"),
    "simulations_planned": Column(
        "ensemble.planned", "in all, those that are held out included; none if endless"
    ),
    "jobs_wanted": Column("ensemble.jobs_wanted", "of a batch system, now"),
    "jobs_at_work": Column("ensemble.jobs_at_work", "those of them with workers"),
    "validation": Column(
        "training.validation",
        "error of the last validation: `val_relative_l2`, or `val_rollout_relative_l2`",
        None,
        "first",
    ),
    "times_seen": Column(
        "store.times_seen", f"samples seen 0, 1, ... {OFTEN} or more times, in all"
    ),
    "stage": Column(
        "training.stage", "`fit`, `test`, and what it does meanwhile", None, "first"
    ),
}
#: Columns that are no numbers, though they may look like some.
_TEXT = ("waiting", "time", "times_seen", "stage")


def complete_rows(data: bytes) -> bytes:
    """Return the complete rows of a table: the last may be half written."""
    data = data[: data.rfind(b"\n") + 1]
    _, rest = _records(data.split(b"\n")[:-1])
    begun = sum(len(line) + 1 for line in rest)
    # A text that goes on for so long is damage, which `read_table` leaves out.
    return data[: len(data) - begun] if begun < _LONGEST else data


def read_table(data: bytes) -> tuple[pd.DataFrame, int]:
    """Return the complete rows of a table, and how many damaged lines are left out.

    The last row may be half written, which is no damage.

    Raises
    ------
    ValueError
        If there is no complete line.

    Examples
    --------
    >>> table, damaged = read_table(b'step,why\\n1,a\\n2,"b\\n3,c\\n5,')
    >>> table.step.tolist(), damaged
    ([1, 3], 1)
    """
    *lines, _ = data.split(b"\n")
    if not any(lines):
        raise ValueError("it is empty")
    records, rest = _records(lines)
    if rest:
        # A quoted text has no end, which the first of these lines has begun.
        columns = _fields(records[0] if records else rest[0])
        behind, _ = _records(rest[1:])
        records += [record for record in behind if _fields(record) == columns]
    text = io.BytesIO(b"\n".join([*records, b""]))
    table = pd.read_csv(
        text,
        on_bad_lines="skip",
        dtype=dict.fromkeys(_TEXT, str),
        encoding_errors="replace",
    )
    read = sum(record.count(b"\n") + 1 for record in records if record.strip())
    damaged = sum(1 for line in lines if line.strip()) - read
    return table, damaged + sum(map(bool, map(bytes.strip, records))) - 1 - len(table)


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """Return telemetry with all columns, each of its type."""
    table = table.reindex(columns=[*COLUMNS])
    for name in table:
        if name == "time":
            table[name] = pd.to_datetime(table[name], utc=True, errors="coerce")
        elif name in _TEXT:
            table[name] = table[name].astype(object).where(table[name].notna(), "")
        else:
            table[name] = pd.to_numeric(table[name], errors="coerce")
    return table


def joined_ranks(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of the first rank, joined with the others' at these moments."""
    tables = [table for table in tables if len(table)] or [*tables[:1]]
    if len(tables) == 1:
        return tables[0]
    moments = tables[0].seconds.to_numpy()
    at = [np.searchsorted(t.seconds, moments, side="right") - 1 for t in tables]
    rows = [t.iloc[np.maximum(k, 0)] for t, k in zip(tables, at, strict=True)]
    joined = {n: joined_column(n, [r[n].to_numpy() for r in rows]) for n in COLUMNS}
    return rows[0].assign(**joined).reset_index(drop=True)


def joined_column(name: str, ranks: Sequence[Sequence[Any]]) -> Any:
    """Return a column of all ranks together, of those of each at the same moments."""
    if name == "times_seen":
        return [_added(texts) for texts in zip(*ranks, strict=True)]
    if name == "waiting":
        return [_listed(texts) for texts in zip(*ranks, strict=True)]
    if COLUMNS[name].ranks == "first":
        return ranks[0]
    values = np.array(ranks, dtype=float)
    known = (~np.isnan(values)).sum(axis=0)
    total: Any = np.where(known, np.nansum(values, axis=0), np.nan)
    return total / np.maximum(known, 1) if COLUMNS[name].ranks == "mean" else total


def _added(texts: Iterable[str | None]) -> str:
    counts = itertools.zip_longest(*map(counts_of, texts), fillvalue=0)
    return " ".join(str(sum(ranks)) for ranks in counts)


def _listed(texts: Iterable[str | None]) -> str:
    return "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(texts) if text)


def counts_of(text: object) -> list[int]:
    """Return the numbers of a text in ``times_seen``; none, if it is damaged.

    Examples
    --------
    >>> counts_of("3 2.0"), counts_of("3 nan"), counts_of(None)
    ([3, 2], [], [])
    """
    try:
        return [int(float(word)) for word in str(text or "").split()]
    except ValueError:
        return []


def point_of(text: str) -> dict[str, Any]:
    """Return the parameters in a row of failures.csv; none in one that is cut off."""
    try:
        return {
            str(name): v if isinstance(v, str) else float(v)
            for name, v in ast.literal_eval(text).items()
        }
    except (ValueError, SyntaxError, TypeError, AttributeError):
        return {}


def lost_of(failures: pd.DataFrame) -> tuple[int, Mapping[Any, Any]]:
    """Return how many simulations failed permanently, and the row of the last one."""
    if not {"simulation", "outcome", "error", "message"} <= {*failures}:
        return 0, {}
    lost = failures[failures.outcome == "failed permanently"]
    return len(lost), next(iter(lost.tail(1).to_dict("records")), {})


def while_training(telemetry: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the last training: behind it, pictures and pages are made.

    Examples
    --------
    >>> table = pd.DataFrame({"samples": [0, 64, 128, 128]})
    >>> while_training(table).samples.tolist()
    [0, 64, 128]
    """
    grown = telemetry.samples.diff() > 0
    last = telemetry.loc[: grown[grown].index[-1]] if grown.any() else telemetry
    return of_last_process(last)


def of_last_process(telemetry: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the last run of a folder: the totals of each begin at 0.

    Examples
    --------
    >>> of_last_process(pd.DataFrame({"samples": [0, 64, 0, 32]})).samples.tolist()
    [0, 32]
    """
    falls = telemetry.samples.diff() < 0
    return telemetry.loc[falls[falls].index[-1] :] if falls.any() else telemetry


def newest_rows(telemetry: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return the last rows, and before them the one in which their last step began.

    Examples
    --------
    >>> newest_rows(pd.DataFrame({"step": [1, 2, 2, 2]}), 2).index.tolist()
    [1, 2, 3]
    """
    begun = telemetry[telemetry.step != telemetry.step.shift()].tail(1)
    last = telemetry.tail(count)
    return last if begun.index[0] >= last.index[0] else pd.concat([begun, last])


def _records(lines: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Return texts of a row each, and the lines of a last one whose quotes are open."""
    records: list[bytes] = []
    begun: list[bytes] = []
    quotes = 0
    for line in lines:
        begun.append(line)
        quotes += line.count(b'"')
        if quotes % 2 == 0:
            records.append(b"\n".join(begun))
            begun = []
    return records, begun


def _fields(record: bytes) -> int:
    text = io.StringIO(record.decode("utf-8", "replace"), newline="")
    return len(next(csv.reader(text), ()))
