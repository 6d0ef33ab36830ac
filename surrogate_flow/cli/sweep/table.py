"""What the trials of a sweep came to, sorted, with the spread over seeds."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from surrogate_flow.cli.sweep.folder import TrialRow

__all__ = ["Group", "cells", "grouped", "short", "shown", "written"]

_SEED = "seed_everything"


@dataclass(frozen=True)
class Group:
    """Trials that differ in their seed alone."""

    point: dict[str, object]
    rows: Sequence[TrialRow]

    @property
    def errors(self) -> list[float]:
        """Of those that are complete."""
        return [
            row.error
            for row in self.rows
            if row.state == "complete" and row.error is not None
        ]

    @property
    def error(self) -> float:
        """Their mean; infinite without any."""
        return float(np.mean(self.errors)) if self.errors else np.inf

    @property
    def spread(self) -> float | None:
        """Their standard deviation; None of one."""
        return float(np.std(self.errors, ddof=1)) if len(self.errors) > 1 else None


def grouped(rows: Sequence[TrialRow]) -> list[Group]:
    """Return trials by all but their seed: the best mean first."""
    groups: dict[str, list[TrialRow]] = {}
    for row in rows:
        groups.setdefault(str(sorted(_without_seed(row).items())), []).append(row)
    made = [Group(_without_seed(of[0]), of) for of in groups.values()]
    return sorted(made, key=lambda group: group.error)


def cells(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines of the table: one for each point."""
    names = list(dict.fromkeys(name for group in groups for name in group.point))
    head = ["trials", *map(short, names), "error", "training", "in all", "state"]
    lines = [
        [
            ", ".join(str(row.number) for row in group.rows),
            *(_text(group.point.get(name, "")) for name in names),
            _error(group),
            _seconds([row.seconds for row in group.rows]),
            _seconds([row.wall_seconds for row in group.rows]),
            _states(group),
        ]
        for group in groups
    ]
    return head, lines


def shown(rows: Sequence[TrialRow]) -> Table:
    """Return the table for a terminal."""
    head, lines = cells(grouped(rows))
    table = Table(title="Relative L2 error on held-out simulations")
    for title in head:
        table.add_column(title, justify="right")
    for line in lines:
        table.add_row(*line)
    return table


def written(rows: Sequence[TrialRow]) -> str:
    """Return all trials as CSV, one a row."""
    names = list(dict.fromkeys(name for row in rows for name in row.point))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        [
            *("trial", "state", *names, "relative_l2", "training_seconds"),
            *("wall_seconds", "batches", "run"),
        ]
    )
    for row in rows:
        values = [row.point.get(name, "") for name in names]
        numbers = [row.error, row.seconds, row.wall_seconds, row.steps, row.run]
        writer.writerow(
            [row.number, row.state, *values, *("" if n is None else n for n in numbers)]
        )
    return file.getvalue()


def short(name: str) -> str:
    """Return an option without what stands around the arguments of a class.

    Examples
    --------
    >>> short("model.optimizer.init_args.lr"), short("model")
    ('optimizer.lr', 'model')
    """
    parts = [part for part in name.split(".") if part != "init_args"]
    return ".".join(parts[1:] or parts)


def _without_seed(row: TrialRow) -> dict[str, object]:
    return {name: value for name, value in row.point.items() if name != _SEED}


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _error(group: Group) -> str:
    if group.errors:
        spread = group.spread
        return f"{group.error:.2%}" + (f" ± {spread:.2%}" if spread is not None else "")
    known = [row.error for row in group.rows if row.error is not None]
    return f"({min(known):.2%})" if known else "-"


def _seconds(seconds: Sequence[float | None]) -> str:
    known = [number for number in seconds if number is not None]
    return f"{np.mean(known):.0f} s" if known else "-"


def _states(group: Group) -> str:
    states = [row.state for row in group.rows]
    if len({*states}) == 1:
        return states[0]
    return ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
