"""What the trials of a sweep came to, sorted, with the spread over seeds."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from surrogate_flow.cli.sweep.folder import SweepFolder
from surrogate_flow.cli.sweep.recipe import SEED
from surrogate_flow.cli.sweep.trial import TrialRow
from surrogate_flow.dataset import Archive, ArchiveError
from surrogate_flow.fields.quantities import counted
from surrogate_flow.report.folder.words import percent, seconds

__all__ = [
    "Group",
    "cells",
    "cost",
    "grouped",
    "headline",
    "leader",
    "short",
    "shown",
    "told",
    "unlike",
    "written",
]

_ALIKE = 0.01  # share of its batches by which one training may be shorter than another
_CURVES = 20  # trials whose errors are drawn, the first ones
_POINTS = 100  # of each
# Options that say how many batches a trial trains, and what it is validated on.
_LENGTH = re.compile(
    r"trainer\.(max_\w+|accumulate_grad_batches|devices)$"
    r"|data\.(init_args\.)?(batch_size|simulations)$"
)
_PROBLEM = re.compile(r"data(\.(init_args\.)?(solver|held_out\w*|path)\b.*)?$")


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


def leader(rows: Sequence[TrialRow]) -> TrialRow | None:
    """Return the best trial of the first line; None if none is complete."""
    groups = grouped(rows)
    complete = [r for r in groups[0].rows if r.state == "complete"] if groups else []
    return min(complete, key=lambda row: row.error or 0.0, default=None)


def headline(rows: Sequence[TrialRow], count: int) -> str:
    """Return how many trials are complete, and which is the best."""
    complete = [row for row in rows if row.state == "complete"]
    verb = "is" if len(complete) == 1 else "are"
    said = f"{len(complete)} of {count} trials {verb} complete"
    if (best := leader(rows)) is None or best.error is None:
        return said
    return f"{said}; best: trial {best.number}, {percent(best.error)}"


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
    rows = [row for group in groups for row in group.rows]
    more: dict[str, Callable[[TrialRow], object]] = {}
    if len({row.validated for row in rows} - {None}) > 1:
        more["held out"] = lambda row: "-" if row.validated is None else row.validated
    if any(row.missed for row in rows):
        more["missed"] = lambda row: f"{row.missed:,}"
    if any(row.attempts > 1 for row in rows):
        more["attempts"] = lambda row: row.attempts
    head = ["trials", "error", "state", *map(short, names)]
    timed = ["in all"] if any(row.wall_seconds is not None for row in rows) else []
    head += ["batches", "training", *timed, *more]
    lines = [
        [
            ", ".join(str(row.number) for row in group.rows),
            _error(group),
            _states(group),
            *(_text(group.point.get(name, "")) for name in names),
            _each(group, lambda row: f"{row.steps:,}"),
            _seconds([row.seconds for row in group.rows]),
            *([_seconds([row.wall_seconds for row in group.rows])] if timed else []),
            *(_each(group, of) for of in more.values()),
        ]
        for group in groups
    ]
    return head, lines


def shown(rows: Sequence[TrialRow]) -> Table:
    """Return the table for a terminal."""
    head, lines = cells(grouped(rows))
    table = Table(
        title="Relative L2 error of each best checkpoint on held-out simulations"
    )
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
    after = ["relative_l2", "training_seconds", "wall_seconds", "batches"]
    after += ["validated", "missed", "attempts", "run"]
    writer.writerow(["trial", "state", *names, *after])
    for row in rows:
        values = [row.point.get(name, "") for name in names]
        came_to = [row.error, row.seconds, row.wall_seconds, row.steps, row.validated]
        came_to += [row.missed, row.attempts]
        known = ["" if n is None else n for n in (*came_to, row.run)]
        writer.writerow([row.number, row.state, *values, *known])
    return file.getvalue()


def told(folder: SweepFolder, rows: Sequence[TrialRow]) -> dict[str, Any]:
    """Return the table of the live page, in plain values."""
    names = list(dict.fromkeys(name for row in rows for name in row.point))
    seconds = {row.number: folder.curve(row.number) for row in rows[:_CURVES]}
    best = leader(rows)
    return {
        "name": folder.path.name,
        "folder": str(folder.path.resolve()),
        "headline": headline(rows, folder.recipe.count),
        "names": [short(name) for name in names],
        "best": None if best is None else best.number,
        "trials": [
            {
                "number": row.number,
                "values": [_text(row.point.get(name, "")) for name in names],
                "state": row.state,
                "words": row.words,
                "why": row.why,
                "error": row.error,
                "steps": row.steps,
                "seconds": row.seconds,
                "missed": row.missed,
                "attempts": row.attempts,
                "run": str(row.run.resolve()) if row.run else "",
                "curve": _thinned(seconds.get(row.number, [])),
            }
            for row in rows
        ],
    }


def _thinned(curve: Sequence[tuple[float, float]]) -> list[list[float]]:
    every = -(-len(curve) // _POINTS) or 1
    # The last one stays.
    return [[round(at, 1), error] for at, error in curve[::-1][::every][::-1]]


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
    return {name: value for name, value in row.point.items() if name != SEED}


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _each(group: Group, of: Callable[[TrialRow], object]) -> str:
    """Return a value of each trial, or that of all."""
    values = [str(of(row)) for row in group.rows]
    return values[0] if len({*values}) == 1 else " / ".join(values)


def _error(group: Group) -> str:
    if group.errors:
        return percent(group.error, group.spread)
    known = [row.error for row in group.rows if row.error is not None]
    return f"({percent(min(known))})" if known else "-"


def _seconds(seconds: Sequence[float | None]) -> str:
    known = [number for number in seconds if number is not None]
    return f"{np.mean(known):.0f} s" if known else "-"


def _states(group: Group) -> str:
    states = [row.words for row in group.rows]
    if len({*states}) == 1:
        return states[0]
    return ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))


def cost(folder: SweepFolder) -> str:
    """Return what one ensemble took for all trials, in words; "" without one."""
    path = folder.path / "simulations.zarr"
    if not folder.recipe.share_simulations or not path.is_dir():
        return ""
    try:
        archive = Archive(path)
        count, spent = len(archive.complete()), archive.solver_seconds
    except ArchiveError as error:
        return f"What the ensemble took is not known: {error}"
    said = f"One ensemble, {counted(count, 'simulation')}: {seconds(spent)} in solvers"
    # Each would have run those that it has taken.
    ended = filter(None, (folder.outcome(trial.number) for trial in folder.trials()))
    alone = [outcome.simulations for outcome in ended]
    if count and len(alone) > 1:
        each = seconds(spent / count * sum(alone))
        said += f"; with one for each of {len(alone)} trials, {each}"
    return f"{said}."


def unlike(folder: SweepFolder, rows: Sequence[TrialRow]) -> list[str]:
    """Return why errors of complete trials do not compare, and what would help."""
    rows = [row for row in rows if row.state == "complete"]
    words = [folder.recipe.words(row.point) for row in rows]
    options = [
        {k.removeprefix("--"): v for k, v in zip(of[::2], of[1::2], strict=True)}
        for of in words
    ]
    notes = []
    if differ := _fewer([row.steps for row in rows], _chosen(options, _LENGTH), _ALIKE):
        said, least = differ
        late = ", and late: wait" * any(row.missed for row in rows)
        notes.append(
            f"Fewer batches were trained in {said} For trainings of equal length set "
            f"a trainer.max_steps of at most {least:,}, more data.simulations, or "
            f"data.reservoir: FIRO or FIFO, which train each sample once{late}."
        )
    # A data set that the sweep has made is of the simulations of its other trials.
    mine, found = folder.path.resolve(), _chosen(options, _PROBLEM)
    others = [of for of in found if Path(of["data"]).resolve().parent != mine]
    problems = [of if of in others else others[0] for of in found] if others else []
    if differ := _fewer([row.validated for row in rows], problems or found):
        said, _ = differ
        notes.append(
            f"Fewer held-out simulations were validated in {said} Their errors do not "
            "compare. Usual cause: simulations that failed; failures.csv in the runs "
            "of a trial says why."
        )
    names = dict.fromkeys(name for of in problems for name in of)
    if differing := [n for n in names if len({of.get(n) for of in problems}) > 1]:
        notes.append(
            f"Trials differ in {', '.join(differing)}, and so in the simulations that "
            "their errors are taken over: between these the order of the table is no "
            "ranking."
        )
    return notes


def _chosen(
    options: Sequence[dict[str, str]], names: re.Pattern[str]
) -> list[dict[str, str]]:
    return [{k: v for k, v in of.items() if names.match(k)} for of in options]


def _fewer(
    counts: Sequence[int | None], options: Sequence[dict[str, str]], alike: float = 0
) -> tuple[str, int] | None:
    """Say how many have less than others of the same options; return the least, too.

    A share of `alike` less is as many.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for count, of in zip(counts, options, strict=True):
        if count is not None:
            groups[str(sorted(of.items()))].append(count)
    least = {of: (1 - alike) * max(known) for of, known in groups.items()}
    differ = [known for of, known in groups.items() if min(known) < least[of]]
    short = sorted(n for of, known in groups.items() for n in known if n < least[of])
    if not short:
        return None
    span = " to ".join(f"{n:,}" for n in dict.fromkeys([short[0], short[-1]]))
    most = max(map(max, differ))
    return (
        f"{len(short)} of {len(counts)} complete trials than in others: {span} of "
        f"{most:,}.",
        short[0],
    )
