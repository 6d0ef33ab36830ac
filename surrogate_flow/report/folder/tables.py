"""Tables of a run, as CSV files of which parts may be damaged or half written."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import pandas as pd

__all__ = [
    "OFTEN",
    "TEXT",
    "complete_rows",
    "counts_of",
    "read_table",
    "while_training",
]

#: Columns that are no numbers, though they may look like some.
TEXT = ("waiting", "time", "times_seen")
#: Samples that were seen at least so often are counted together.
OFTEN = 64
_LONGEST = 64_000  # bytes of a row


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
    table = pd.read_csv(text, on_bad_lines="skip", dtype=dict.fromkeys(TEXT, str))
    read = sum(record.count(b"\n") + 1 for record in records if record.strip())
    damaged = sum(1 for line in lines if line.strip()) - read
    return table, damaged + sum(map(bool, map(bytes.strip, records))) - 1 - len(table)


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


def while_training(telemetry: pd.DataFrame) -> pd.DataFrame:
    """Return the rows up to the last batch: behind it, pictures and pages are made.

    Examples
    --------
    >>> while_training(pd.DataFrame({"samples": [0, 64, 128, 128]})).samples.tolist()
    [0, 64, 128]
    """
    grown = telemetry.samples.diff() > 0
    return telemetry.loc[: grown[grown].index[-1]] if grown.any() else telemetry


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
