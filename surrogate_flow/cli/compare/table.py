"""The results of a comparison side by side: a table, a CSV file and curves."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from surrogate_flow.cli.compare.variant import OFFLINE
from surrogate_flow.report.folder.run_folder import RunSummary

__all__ = ["ComparisonTable", "FinishedRun"]

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
_WALL = "wall_seconds"
_UNKNOWN = "-"


@dataclass(frozen=True)
class FinishedRun:
    """One run of a comparison.

    Attributes
    ----------
    variant : str
    seed : int
    summary : RunSummary
    seconds : float, optional
        Wall time, with that of the data set; None where it is not known.
    metrics : Path, optional
        Its metrics.csv.
    """

    variant: str
    seed: int
    summary: RunSummary
    seconds: float | None = None
    metrics: Path | None = None

    def value(self, name: str) -> float | None:
        """Return an error, a number of the summary or ``wall_seconds``."""
        if name == _WALL:
            return self.seconds
        if name in self.summary.errors:
            return self.summary.errors[name]
        number: float | None = getattr(self.summary, name)
        return number


class ComparisonTable:
    """error(variant), mean and spread over seeds, and what each variant took."""

    def __init__(self, runs: Sequence[FinishedRun]) -> None:
        self.runs = list(runs)
        self.variants = list(dict.fromkeys(run.variant for run in runs))
        # Without the loss, whose scale differs from run to run.
        names = dict.fromkeys(name for run in runs for name in run.summary.errors)
        self.errors = [name for name in names if name != "val_loss"]

    def table(self) -> Table:
        """Return the figures, one variant a column."""
        table = Table(title="At the end of training: mean ± spread over the seeds")
        table.add_column("", no_wrap=True)
        for variant in self.variants:
            table.add_column(variant, justify="right", no_wrap=True)
        for name in self.errors:
            table.add_row(name.removeprefix("val_"), *self._row(name))
        if OFFLINE in self.variants:
            table.add_row("relative_l2, change from offline", *self._changes())
        counts = (self._validated(variant) for variant in self.variants)
        table.add_row("held-out simulations", *counts)
        table.add_section()
        for name, title in {**_COLUMNS, _WALL: "seconds in all"}.items():
            table.add_row(title, *self._row(name))
        table.caption = (
            "max, p99 and rmse in units of the variable; nrmse, vrmse and relative_l2 "
            "as parts of its size. Seconds in all: wall time, from start to end"
        )
        if OFFLINE in self.variants:
            table.caption += (
                "; offline with those of the data set, which is generated once and "
                "counts in each run"
            )
        table.caption += "."
        return table

    def warning(self) -> str | None:
        """Return a warning if runs were validated on different simulations."""
        known = {run.summary.validated for run in self.runs} - {None}
        if len(known) < 2:
            return None
        counts = ", ".join(f"{v} over {self._validated(v)}" for v in self.variants)
        return (
            "Warning: the errors are taken over different numbers of held-out "
            f"simulations: {counts}. They do not compare. Usual cause: simulations "
            "that failed; failures.csv of a run, or of offline_generate, says why."
        )

    def write_csv(self, path: Path) -> None:
        """Write all numbers, one run a row; what is not known stays empty."""
        columns = [*_COLUMNS, _WALL, "validated", *self.errors]
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["variant", "seed", *columns])
            for run in self.runs:
                numbers = map(run.value, columns)
                writer.writerow([run.variant, run.seed, *numbers])

    def plot(self) -> Figure:
        """Draw the error over the batches: one line a seed, one colour a variant."""
        figure = Figure(figsize=(8, 5), layout="constrained", dpi=120)
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        labels: set[str] = set()
        for run in self.runs:
            if run.metrics is not None:
                with run.metrics.open(newline="", encoding="utf-8") as file:
                    rows = [row for row in csv.DictReader(file) if row.get(_ERROR)]
                axes.plot(
                    [float(row["step"]) + 1 for row in rows],
                    [100 * float(row[_ERROR]) for row in rows],
                    color=f"C{self.variants.index(run.variant)}",
                    alpha=0.8,
                    label="" if run.variant in labels else run.variant,
                )
                labels.add(run.variant)
        axes.set_yscale("log")
        axes.set_xlabel("batches")
        axes.set_ylabel("validation error, relative L2 [%]")
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend()
        return figure

    def _values(self, variant: str, name: str) -> list[float | None]:
        return [run.value(name) for run in self.runs if run.variant == variant]

    def _row(self, name: str) -> list[str]:
        return [_spread(self._values(variant, name)) for variant in self.variants]

    def _validated(self, variant: str) -> str:
        counts = self._values(variant, "validated")
        known = sorted({int(count) for count in counts if count is not None})
        if not known or None in counts:
            return _UNKNOWN
        return f"{known[0]}" if len(known) == 1 else f"{known[0]} to {known[-1]}"

    def _changes(self) -> list[str]:
        means = {
            variant: float(np.mean(np.array(self._values(variant, _ERROR), float)))
            for variant in self.variants
        }
        return [
            "" if variant == OFFLINE else f"{100 * (mean / means[OFFLINE] - 1):+.0f} %"
            for variant, mean in means.items()
        ]


def _spread(values: Sequence[float | None]) -> str:
    if None in values:
        return _UNKNOWN
    known = np.array(values, float)
    mean = float(known.mean())
    spread = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    return f"{_short(mean, 3)} ± {_short(spread, 2)}" if spread else _short(mean, 3)


def _short(value: float, digits: int) -> str:
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
