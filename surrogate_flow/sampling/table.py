"""Points that are given: the rows of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.parameter import Parameter
from surrogate_flow.fields.table import read_table
from surrogate_flow.sampling.sampler import Sampler

__all__ = ["Table", "numbers_in"]


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
    if parameter.choices:
        return _indices(table, parameter)
    # Dates and complex numbers would become others.
    given = column if column.dtype.kind in "biuf" else column.astype(str)
    numbers: Float[np.ndarray, " row"]
    numbers = pd.to_numeric(given, errors="coerce").to_numpy(
        np.float64, na_value=np.nan
    )
    wrong = ~np.isfinite(numbers)
    if parameter.whole:
        wrong, expected = wrong | (numbers % 1 != 0), "a whole number"
    if parameter.log:
        wrong, expected = wrong | (numbers <= 0), f"{expected} > 0"
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


def _indices(table: pd.DataFrame, parameter: Parameter) -> Float[np.ndarray, " row"]:
    """Return a column of choices, each a word or its index, as indices."""
    found = []
    for line, given in table[parameter.name].items():
        try:
            found.append(parameter.number(given))
        except ArgumentError as error:
            source = table.attrs.get("source", "parameters")
            place = f"{source}, {table.index.name or 'index'} {line}"
            raise ArgumentError(f"{place}: {error}") from error
    return np.array(found, dtype=np.float64)


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
        none = np.empty((len(self._rows), 0))
        return np.column_stack([none, *columns])[self._order[first : first + count]]


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
