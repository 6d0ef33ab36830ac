"""The parameters of runs from a table with a row for each file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.quantities import named
from surrogate_flow.fields.table import read_table
from surrogate_flow.solvers.stored.run import StoredRun, quantity

__all__ = ["of_the_run", "with_rows"]

# A column of such words has the numbers of files.
_NUMBERS = {"case", "file", "id", "index", "no", "nr", "number", "run", "sim"}
_NUMBERS |= {"sample", "simulation", "trajectory", "unnamed"}
# With these, a name says how and when it ran; with the others, no less.
_RUNS = _NUMBERS | {"created", "creation", "date", "elapsed", "job", "pid", "rng"}
_RUNS |= {"runtime", "seed", "timestamp", "version", "wall", "wallclock", "walltime"}
_MORE = {"at", "clock", "code", "cpu", "end", "hours", "in", "minutes", "of", "random"}
_MORE |= {"s", "sec", "seconds", "slurm", "start", "time"}


def of_the_run(name: str) -> bool:
    """Whether a name is of a run's number, seed, date or duration, and no physics.

    Examples
    --------
    >>> [*map(of_the_run, ["run_id", "wall_time_seconds", "wall_temperature", "time"])]
    [True, True, False, False]
    """
    words = _words(name)
    return bool(words & _RUNS) and words <= _RUNS | _MORE


def _words(name: str) -> set[str]:
    # camelCase, too
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    return set(re.findall(r"[^\W\d_]+", parted))


def with_rows(files: Sequence[StoredRun], path: Path) -> list[StoredRun]:
    """Return the files with the numbers of their rows of a table."""
    table = read_table(path)
    units = table.attrs["units"]
    numbered = [column for column in table.columns if _words(str(column)) <= _NUMBERS]
    texts = {name for file in files for name in file.texts}
    # A parameter may be 1, 2, 3, too: digits are those of a column that says so.
    keys: list[tuple[Callable[[StoredRun, str], Any], Iterable[str]]] = [
        (lambda file, _: file.path.name, table.columns),
        (lambda file, _: file.path.stem, table.columns),
        (lambda file, _: str(file.path), table.columns),
        (lambda file, _: _last_digits(file.path.stem), numbered),
        (lambda file, _: file.index, numbered),
        (lambda file, _: file.path.absolute().parent.name, table.columns),
        (lambda file, _: _last_digits(file.path.absolute().parent.name), numbered),
        (lambda file, name: file.label(name), [*texts & {*table.columns}, *numbered]),
    ]
    best, by, fitting = 0, keys[0][0], dict[str, list[Any]]()
    for key, columns in keys:
        for column in columns:
            labels = [key(file, column) for file in files]
            distinct = {*labels}
            count = len(distinct & {*table[column]}) * (len(distinct) == len(labels))
            if count > best:
                best, by, fitting = count, key, {}
            # What a file says of itself is no chance, whatever its name is.
            own = key is keys[-1][0] and column in texts
            if 0 < count == best and (key is by or own):
                fitting[column] = labels
    if not best:
        raise ArgumentError(
            f"{path}: expected a column with the name of each file, such as "
            f"{files[0].path.name}, one 'run' with its number, or one with what an "
            f"attribute of the same name says of it, each once, got "
            f"{', '.join(map(str, table.columns))}."
        )
    places = [dict(zip(table[column], table.index, strict=True)) for column in fitting]
    rows = [
        [*map(place.get, labels)]
        for place, labels in zip(places, fitting.values(), strict=True)
    ]
    if any(row != rows[0] for row in rows):
        raise ArgumentError(
            f"{path}: expected one column that says which row is of which file, "
            f"got {', '.join(fitting)}. Take the others out."
        )
    (name, labels), *_ = fitting.items()
    table = table.set_index(name).drop(columns=[*fitting][1:])
    table = table[table.index.isin(labels)]
    if (twice := table.index[table.index.duplicated()]).size:
        raise ArgumentError(f"{path}: {name}: {twice[0]} is in two rows.")
    said: dict[Any, StoredRun] = {
        label: replace(file, quantities={}, texts={})
        for label, file in zip(labels, files, strict=True)
    }
    for column in table.columns:
        cells = table[column].to_dict()
        numbers = {label: quantity(cell) for label, cell in cells.items()}
        words = table[column].map(quantity).isna()[table[column].notna()].all()
        if not words:
            named(column, "", f"{path}: column {column!r}")
        for label, one in numbers.items():
            file = said[label]
            if words:
                more = {**file.texts, column: str(cells[label])}
                said[label] = replace(file, texts=more)
            elif one is None:
                raise ArgumentError(
                    f"{path}: {column} of {label}",
                    "a number",
                    repr(cells[label]),
                    "Correct it, or take the column out.",
                )
            else:
                got = one[0], one[1] or units.get(column, "")
                said[label] = replace(file, quantities={**file.quantities, column: got})
    return [*said.values()]


def _last_digits(stem: str) -> int:
    return int((re.findall(r"\d+$", stem) or [-1])[0])
