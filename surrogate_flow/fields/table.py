"""Tables of quantities in CSV files: a header with names and units, rows of numbers."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path

import pandas as pd

from surrogate_flow.fields.errors import ArgumentError, MissingFileError

__all__ = ["read_table", "unit_apart", "units_apart"]

_BLANKS = r"\s+"
_HEADER = re.compile(r"(?P<name>.*\S)(?:\s*\[|\s+\()(?P<units>[^\[\]]*)[\])]")


def read_table(path: Path) -> pd.DataFrame:
    """Return a CSV file with a header; separated by commas, semicolons, tabs or blanks.

    The units of a column ``speed [m/s]`` or ``speed (m/s)`` are in ``attrs["units"]``;
    the index has the lines of the file, and ``attrs["source"]`` its path.

    Raises
    ------
    MissingFileError, ArgumentError
        If there is no such file, or it holds no table.
    """
    try:
        # A byte order mark is Excel's.
        text = path.read_text(encoding="utf-8-sig")
        separator = _separator(text)
        if separator == _BLANKS:
            text = re.sub(r"[ \t]+\[", "[", text)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                io.StringIO(text),
                sep=separator,
                skipinitialspace=True,
                # Else a row that is longer than the header moves by one column.
                index_col=None if separator == _BLANKS else False,
            )
        table = units_apart(table)
        table.attrs["source"] = str(path)
        lines = [n for n, line in enumerate(text.splitlines(), 1) if line.strip()][1:]
        if len(lines) == len(table):  # else a cell has several
            table.index = pd.Index(lines, name="line")
        return table
    except FileNotFoundError as error:
        raise MissingFileError(
            f"No file {str(path)!r} in {Path.cwd()}: expected a CSV file with a header "
            "of parameters and a row for each simulation."
        ) from error
    except (OSError, ValueError, pd.errors.ParserWarning) as error:
        longer = isinstance(error, pd.errors.ParserWarning)
        why = "its rows are longer than its header" if longer else error
        raise ArgumentError(
            f"{path}: cannot be read as CSV ({why}). It needs a header of parameters "
            "and a row for each simulation."
        ) from error


def unit_apart(header: str) -> tuple[str, str]:
    """Return a name and the units behind it, in brackets or parentheses; or none.

    Examples
    --------
    >>> unit_apart("speed [m/s]"), unit_apart("speed")
    (('speed', 'm/s'), ('speed', ''))
    """
    found = _HEADER.fullmatch(header)
    # load[0] is a component.
    apart = found and not found["units"].isdigit()
    return (found["name"], found["units"]) if found and apart else (header, "")


def units_apart(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose columns ``speed [m/s]`` have their units in ``attrs``."""
    headers = {c: _HEADER.fullmatch(str(c)) for c in table.columns}
    for c, h in headers.items():
        # A component of a vector, as load[0], load[1], ...: no units are 0.
        if h and c == f"{h['name']}[{h['units']}]" and f"{h['name']}[0]" in headers:
            headers[c] = None
    bare = {c: h["name"] for c, h in headers.items() if h}
    if len({*table.columns.map(lambda c: bare.get(c, c))}) == len(headers):
        table = table.rename(columns=bare)
    units = {h["name"]: h["units"] for h in headers.values() if h}
    there = {c: u for c, u in units.items() if c in table.columns}
    table.attrs = {**table.attrs, "units": table.attrs.get("units", {}) | there}
    return table


def _separator(text: str) -> str:
    """Return what the header of a CSV file separates; of one column, it has none."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    header = re.sub(r'"[^"]*"|\s*\[[^\[]*\]|\s\([^(]*\)', "x", header).strip()
    most = max(",;\t", key=header.count)
    return most if most in header else _BLANKS if len(header.split()) > 1 else "\t"
