"""The outcomes of a comparison side by side: a table, numbers and curves."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from surrogate_flow.cli.compare.arm import OFFLINE
from surrogate_flow.cli.compare.contest import Contest
from surrogate_flow.report.summary import Outcome

__all__ = ["Verdict"]

_ERROR = "val_relative_l2"
_COLUMNS = {
    "batches": "batches",
    "samples": "samples trained",
    "unique_samples": "different samples",
    "simulations": "simulations, with held-out ones",
    "samples_per_second": "samples/s",
    "training_seconds": "seconds of training",
    "solver_seconds": "seconds in solvers",
}
_VALIDATED = "validated"
_WALL = "wall_seconds"
_UNKNOWN = "-"


class Verdict:
    """error(arm), mean and spread over seeds, and what each arm took.

    Parameters
    ----------
    outcomes : mapping of str to sequence of Outcome
        Of each arm, one a seed.
    curves : mapping of str to sequence of Path
        The metrics.csv of each run.
    wall : mapping of str to sequence of float, optional
        Seconds from the start of each run to its end, as `Contest.seconds` counts them;
        None where they are not known.
    """

    def __init__(
        self,
        outcomes: Mapping[str, Sequence[Outcome]],
        curves: Mapping[str, Sequence[Path]],
        wall: Mapping[str, Sequence[float | None]] | None = None,
    ) -> None:
        self.outcomes = outcomes
        self.curves = curves
        unknown = {arm: [None] * len(runs) for arm, runs in outcomes.items()}
        self.wall = {**unknown, **(wall or {})}

    @classmethod
    def of(cls, contest: Contest) -> Verdict:
        """Gather what has ended of a comparison."""
        outcomes: dict[str, list[Outcome]] = {}
        curves: dict[str, list[Path]] = {}
        wall: dict[str, list[float | None]] = {}
        for arm in contest.arms:
            for seed in range(contest.seeds):
                folder = contest.run_folder(arm, seed)
                if folder and (outcome := Outcome.read(folder)):
                    outcomes.setdefault(arm.name, []).append(outcome)
                    curves.setdefault(arm.name, []).append(folder / "metrics.csv")
                    wall.setdefault(arm.name, []).append(contest.seconds(arm, seed))
        return cls(outcomes, curves, wall)

    def table(self) -> Table:
        """Return the figures, an arm a column."""
        table = Table(title="At the end of training: mean ± spread over the seeds")
        table.add_column("", no_wrap=True)
        for arm in self.outcomes:
            table.add_column(arm, justify="right", no_wrap=True)
        for name in self._errors():
            errors = [[run.errors[name] for run in r] for r in self.outcomes.values()]
            table.add_row(name.removeprefix("val_"), *map(_spread, errors))
        if OFFLINE in self.outcomes:
            table.add_row("relative_l2, change from offline", *self._gains())
        table.add_row("held-out simulations", *map(_range, self._validated().values()))
        table.add_section()
        for name, words in _COLUMNS.items():
            numbers = [
                [float(getattr(run, name)) for run in runs]
                for runs in self.outcomes.values()
            ]
            table.add_row(words, *map(_spread, numbers))
        table.add_row("seconds in all", *(_spread(self.wall[a]) for a in self.outcomes))
        table.caption = (
            "max, p99 and rmse in units of the variable; nrmse, vrmse and relative_l2 "
            "as parts of its size. Seconds in all: wall time, from start to end"
        )
        if OFFLINE in self.outcomes:
            table.caption += (
                "; offline with those of the data set, which is generated once and "
                "counts in each run"
            )
        table.caption += "."
        return table

    def warning(self) -> str | None:
        """Return what to say if not all runs were validated on as many simulations."""
        counts = self._validated()
        known = {count for mine in counts.values() for count in mine}
        if len(known - {None}) < 2:
            return None
        arms = ", ".join(f"{arm} over {_range(mine)}" for arm, mine in counts.items())
        return (
            "Warning: the errors are taken over different numbers of held-out "
            f"simulations: {arms}. They do not compare. Simulations that failed are "
            "the usual cause: the log.txt of the arm, or of generate, names the file "
            "that says why."
        )

    def _validated(self) -> dict[str, list[int | None]]:
        return {
            arm: [run.validated for run in runs] for arm, runs in self.outcomes.items()
        }

    def _gains(self) -> list[str]:
        base, gains = self._error(OFFLINE), []
        for arm in self.outcomes:
            mine = self._error(arm)
            if base is None or mine is None or arm == OFFLINE:
                gains.append("")
            else:
                gains.append(f"{100 * (mine / base - 1):+.0f} %")
        return gains

    def write_csv(self, path: Path) -> None:
        """Write all numbers, a run a row; what is not known stays empty."""
        names = self._errors()
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["arm", "seed", *_COLUMNS, _WALL, _VALIDATED, *names])
            for arm, runs in self.outcomes.items():
                for seed, run in enumerate(runs):
                    numbers = [getattr(run, column) for column in _COLUMNS]
                    numbers += [self.wall[arm][seed], run.validated]
                    writer.writerow(
                        [arm, seed, *numbers, *(run.errors[name] for name in names)]
                    )

    def picture(self) -> Figure:
        """Draw the error over the batches: a line a seed, a colour an arm."""
        figure = Figure(figsize=(8, 5), layout="constrained", dpi=120)
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for colour, (arm, paths) in enumerate(self.curves.items()):
            for seed, path in enumerate(paths):
                steps, errors = _curve(path)
                axes.plot(
                    steps,
                    100 * errors,
                    color=f"C{colour}",
                    alpha=0.8,
                    label="" if seed else arm,
                )
        axes.set_yscale("log")
        axes.set_xlabel("batches")
        axes.set_ylabel("validation error, relative L2 [%]")
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend()
        return figure

    def _errors(self) -> list[str]:
        """Return the names of the errors, in the order in which they were logged.

        Without the loss: each run has a scale of its own for it.
        """
        runs = [run for runs in self.outcomes.values() for run in runs]
        names = dict.fromkeys(name for run in runs for name in run.errors)
        return [name for name in names if name != "val_loss"]

    def _error(self, arm: str) -> float | None:
        runs: Any = self.outcomes.get(arm)
        return float(np.mean([run.errors[_ERROR] for run in runs])) if runs else None


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return _UNKNOWN
    mean = float(np.mean(known))
    spread = float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
    return f"{_short(mean, 3)} ± {_short(spread, 2)}" if spread else _short(mean, 3)


def _range(counts: Sequence[int | None]) -> str:
    known = sorted({count for count in counts if count is not None})
    if not known or None in counts:
        return _UNKNOWN
    return f"{known[0]}" if len(known) == 1 else f"{known[0]} to {known[-1]}"


def _short(value: float, digits: int) -> str:
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def _curve(
    path: Path,
) -> tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]]:
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(_ERROR)]
    steps = np.array([float(row["step"]) + 1 for row in rows])
    return steps, np.array([float(row[_ERROR]) for row in rows])
