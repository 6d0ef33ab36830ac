"""Points that are given: the rows of a table."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from surrogate_flow.fields.errors import ArgumentError, MissingFileError
from surrogate_flow.fields.quantities import Parameter
from surrogate_flow.sampling.sampler import Sampler

__all__ = ["Table", "numbers_in", "read_table", "units_apart"]

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


def units_apart(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose columns ``speed [m/s]`` have their units in ``attrs``."""
    headers = {c: _HEADER.fullmatch(str(c)) for c in table.columns}
    bare = {c: h["name"] for c, h in headers.items() if h}
    if len({*table.columns.map(lambda c: bare.get(c, c))}) == len(headers):
        table = table.rename(columns=bare)
    units = {h["name"]: h["units"] for h in headers.values() if h}
    there = {c: u for c, u in units.items() if c in table.columns}
    table.attrs = {**table.attrs, "units": table.attrs.get("units", {}) | there}
    return table


def numbers_in(
    table: pd.DataFrame, parameter: Parameter, *, bounded: bool = False
) -> Float[np.ndarray, " row"]:
    """Return the column of a parameter: finite numbers, whole ones if it is whole.

    Raises
    ------
    ArgumentError
        If there is none, in these units, or a value is no such number, or lies outside
        of the bounds; with the line of a file, or else with the index of the row.
    """
    name, source = parameter.name, table.attrs.get("source", "parameters")
    if name not in table:
        columns = f"the columns {', '.join(map(str, table.columns))}"
        expected = f"a column for each parameter, and {name!r} is one"
        raise ArgumentError(source, expected, columns)
    units = table.attrs.get("units", {}).get(name, parameter.units)
    if (units or "1") != (parameter.units or "1"):
        raise ArgumentError(
            f"{source}: {name}",
            f"the units of the spec, {parameter.units or 'none'}",
            units,
            "Convert the column, or correct its header.",
        )
    column, expected, remedy = table[name], "a finite number", ""
    # Dates and complex numbers would become others.
    given = column if column.dtype.kind in "biuf" else column.astype(str)
    numbers: Float[np.ndarray, " row"]
    numbers = pd.to_numeric(given, errors="coerce").to_numpy(
        np.float64, na_value=np.nan
    )
    wrong = ~np.isfinite(numbers)
    if parameter.whole:
        wrong, expected = wrong | (numbers % 1 != 0), "a whole number"
    if bounded:
        low, high = parameter.low, parameter.high
        wrong |= ~((low <= numbers) & (numbers <= high))
        if parameter.whole:
            low, high = math.ceil(low), math.floor(high)
        expected += f" from {low:g} to {high:g}"
        remedy = "These are the bounds of the spec: correct the row, or widen them."
    if wrong.any():
        row = int(wrong.argmax())
        place = f"{table.index.name or 'index'} {table.index[row]}"
        what = f"{source}, {place}: {name}"
        raise ArgumentError(what, expected, column.iloc[row], remedy)
    return numbers


def _separator(text: str) -> str:
    """Return what the header of a CSV file separates; of one column, it has none."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    header = re.sub(r'"[^"]*"|\s*\[[^\[]*\]|\s\([^(]*\)', "x", header).strip()
    most = max(",;\t", key=header.count)
    return most if most in header else _BLANKS if len(header.split()) > 1 else "\t"


class Table(Sampler):
    """p₀, p₁, … are the rows of a table, each once, in an order of the seed.

    The held-out simulations of a study are the first of them, unless they have a
    sampler of their own, and the others are those to train on.

    Parameters
    ----------
    points : Path or mapping of str to list of float
        A CSV file whose header names the parameters, or its columns. Other columns are
        ignored.
    seed : int
        Of the order, >= 0; default 0.
    shuffle : bool
        Whether rows are taken in that order, and not as they stand.

    Raises
    ------
    ArgumentError
        If it has no rows; where it is used, if a parameter has no column, or a value is
        no number within the bounds.

    Examples
    --------
    >>> table = Table({"rate": [0.5, 0.25, 1.0]}, shuffle=False)
    >>> table.ask(1, 2, [Parameter("rate", 0.0, 1.0)])
    array([[0.25],
           [1.  ]])
    """

    def __init__(
        self,
        points: Path | Mapping[str, Sequence[float]],
        *,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        super().__init__(seed)
        self.shuffle = shuffle
        self._rows = _frame(points)
        self.name: str = self._rows.attrs["source"]
        if self._rows.empty:
            raise ArgumentError(self.name, "one row or more", "none")
        self.count = len(self._rows)
        order = np.arange(len(self._rows))
        self._order = (
            np.random.default_rng(seed).permutation(order) if shuffle else order
        )

    def ask(
        self, first: int, count: int, bounds: Sequence[Parameter]
    ) -> Float[np.ndarray, "point parameter"]:
        """Return rows; see `Sampler.ask`."""
        if first + count > len(self._rows):
            raise ArgumentError(self.name, f"{first + count} rows", len(self._rows))
        columns = [numbers_in(self._rows, p, bounded=True) for p in bounds]
        return np.column_stack(columns)[self._order[first : first + count]]


def _frame(points: Path | Mapping[str, Sequence[float]]) -> pd.DataFrame:
    if not isinstance(points, Mapping):
        what = "a CSV file, or columns by name such as {'rate': [0.5, 1.0]}"
        if not isinstance(points, str | Path):
            remedy = "Of a DataFrame: Table(frame.to_dict('list'))."
            raise ArgumentError("Table: points", what, type(points).__name__, remedy)
        return read_table(Path(points))
    try:
        table = pd.DataFrame(points)
    except ValueError as error:
        raise ArgumentError(f"Table: {error}. Give columns of one length.") from error
    table.attrs["source"] = "Table"
    return table
