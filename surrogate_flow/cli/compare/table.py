"""The results of a comparison side by side: a table, a CSV file and curves."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from surrogate_flow.cli.compare.variant import OFFLINE, parts_of
from surrogate_flow.fields.window import ROLLOUT, SINGLE
from surrogate_flow.report.folder.run_folder import RunFolder, RunSummary

__all__ = ["ComparisonTable", "FinishedRun", "gains_of"]

#: Those whose change from offline is shown, and that are drawn: of one prediction and,
#: of autoregressive windows, of rollouts.
_ERRORS = {SINGLE: "relative L2", ROLLOUT: "relative L2 of rollouts"}
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
_Gain = tuple[str, str, list[float], list[float], list[float]]
_UNKNOWN = "-"


@dataclass(frozen=True)
class FinishedRun:
    """One run of a comparison.

    Attributes
    ----------
    variant : str
    seed : int
    summary : RunSummary
    wall_seconds : float, optional
        From the start of its command to its end; None where it is not known.
    data_set_seconds : float, optional
        In which the data set was generated that it reads; 0 if it reads none, None
        where it is not known.
    folder : Path, optional
        That of the run.
    """

    variant: str
    seed: int
    summary: RunSummary
    wall_seconds: float | None = None
    data_set_seconds: float | None = 0.0
    folder: Path | None = None

    @property
    def seconds(self) -> float | None:
        """Wall time, with that of the data set; None where it is not known."""
        if self.wall_seconds is None or self.data_set_seconds is None:
            return None
        return self.wall_seconds + self.data_set_seconds

    @functools.cached_property
    def curve(self) -> pd.DataFrame:
        """A row a validation: ``batches``, ``seconds`` in all by then, and errors."""
        if self.folder is None:
            return pd.DataFrame(columns=["batches", "seconds"])
        run = RunFolder(self.folder)
        names = [name for name in _ERRORS if name in run.metrics]
        curve = run.metrics.dropna(subset=names[:1])[["step", *names]]
        curve = curve.rename(columns={"step": "batches"})
        curve["batches"] += 1
        rows = run.telemetry.dropna(subset=["step", "seconds"])
        seconds = np.interp(curve.batches, rows.step, rows.seconds)
        if self.seconds is None or not len(rows):
            return curve.assign(seconds=np.nan)
        # The command was at work before its first row: it started.
        began = self.seconds - rows.seconds.iloc[-1]
        return curve.assign(seconds=seconds + began)

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
        for name in filter(self.errors.__contains__, _ERRORS):
            for offline in self._of_data_sets:
                title = f"{name.removeprefix('val_')}, change from {offline}"
                table.add_row(title, *self._changes(name, offline))
        counts = (self._validated(variant) for variant in self.variants)
        table.add_row("held-out simulations", *counts)
        table.add_section()
        for name, title in {**_COLUMNS, _WALL: "seconds in all"}.items():
            table.add_row(title, *self._row(name))
        table.caption = (
            "max, p99 and rmse in units of the variable; nrmse, vrmse and relative_l2 "
            "as parts of its size. Seconds in all: wall time, from start to end"
        )
        if self._of_data_sets:
            table.caption += (
                "; offline with those of its part of the data set, which is generated "
                "once and counts in each run"
            )
        table.caption += (
            ". Seeds are those of the weights and of the order of samples; the "
            "simulations are the same."
        )
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

    @functools.cached_property
    def rows(self) -> pd.DataFrame:
        """All numbers, one run a row; NaN where one is not known."""
        columns = [*_COLUMNS, _WALL, "validated", *self.errors]
        rows = [[r.variant, r.seed, *map(r.value, columns)] for r in self.runs]
        frame = pd.DataFrame(rows, columns=["variant", "seed", *columns])
        # Counts stay whole where some are not known.
        return frame.astype({"validated": "Int64"})

    def write_csv(self, path: Path) -> None:
        """Write all numbers, one run a row; what is not known stays empty."""
        self.rows.to_csv(path, index=False)

    def plot(self) -> Figure:
        """Draw the errors over batches and seconds, and the gain over the data set.

        One line a seed, one colour a variant; the gain, of means, where there are data
        sets of several sizes.
        """
        gains = [*gains_of(self.rows)]
        panels = 2 + bool(gains)
        figure = Figure(figsize=(6 * panels, 5), layout="constrained", dpi=120)
        FigureCanvasAgg(figure)
        over_batches, over_seconds, *over_sizes = figure.subplots(1, panels)
        for x, axes in (("batches", over_batches), ("seconds", over_seconds)):
            self._draw_errors(axes, x)
        for axes in over_sizes:
            self._draw_gains(axes, gains)
        return figure

    def _draw_errors(self, axes: Axes, x: str) -> None:
        labels: set[str] = set()
        for run in self.runs:
            for name, style in zip(_ERRORS, ("-", "--"), strict=True):
                if name not in run.curve:
                    continue
                label = f"{run.variant}, {_ERRORS[name]}"
                axes.plot(
                    run.curve[x],
                    100 * run.curve[name],
                    style,
                    color=f"C{self.variants.index(run.variant)}",
                    alpha=0.8,
                    label="" if label in labels else label,
                )
                labels.add(label)
        axes.set_yscale("log")
        axes.set_xlabel("batches" if x == "batches" else "seconds in all")
        axes.set_ylabel("validation error [%]")
        axes.grid(visible=True, which="both", alpha=0.3)
        if labels:
            axes.legend()

    def _draw_gains(self, axes: Axes, gains: Sequence[_Gain]) -> None:
        for variant, error, different, _, gained in gains:
            style = dict(zip(_ERRORS.values(), ("o-", "s--"), strict=True))[error]
            color = f"C{self.variants.index(variant)}"
            axes.plot(
                different, gained, style, color=color, label=f"{variant}, {error}"
            )
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(xscale="log", yscale="log")
        axes.set_xlabel("different samples of the data set (each trained so often)")
        axes.set_ylabel("gain: error offline / error online")
        _, _, different, often, _ = gains[0]
        labels = [f"{n:.0f}\n({k:.3g})" for n, k in zip(different, often, strict=True)]
        axes.set_xticks(different, labels)
        axes.minorticks_off()
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend()

    @property
    def _of_data_sets(self) -> list[str]:
        return [v for v in self.variants if parts_of(v)[0] == OFFLINE]

    def _mean(self, variant: str, name: str) -> float:
        return float(np.mean(np.array(self._values(variant, name), float)))

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

    def _changes(self, name: str, offline: str) -> list[str]:
        before = self._mean(offline, name)
        return [
            ""
            if variant in self._of_data_sets
            else f"{100 * (self._mean(variant, name) / before - 1):+.0f} %"
            for variant in self.variants
        ]


def gains_of(rows: pd.DataFrame) -> Iterator[_Gain]:
    """Yield what online training gains, by the size of the data set beside it.

    Parameters
    ----------
    rows : DataFrame
        Those of comparison.csv. There is no gain where it has one data set alone.

    Yields
    ------
    str, str
        The online variant, and the error.
    list of float
        Different samples that were trained, for each size, the smallest first.
    list of float
        How often each of them was trained: samples trained / different samples.
    list of float
        Mean error offline / mean error online, after the same number of batches.
    """
    means = rows.groupby("variant", sort=False).mean(numeric_only=True)
    stored = np.array([parts_of(v)[0] == OFFLINE for v in means.index], bool)
    offline = means[stored]
    if len(offline) < 2:
        return
    often = offline.samples / offline.unique_samples
    for variant, own in means[~stored].iterrows():
        for name in filter(means.__contains__, _ERRORS):
            gained = offline[name] / own[name]
            different = [*offline.unique_samples]
            yield str(variant), _ERRORS[name], different, [*often], [*gained]


def _spread(values: Sequence[float | None]) -> str:
    if None in values:
        return _UNKNOWN
    known = np.array(values, float)
    mean = float(known.mean())
    spread = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    return f"{_short(mean, 3)} ± {_short(spread, 2)}" if spread else _short(mean, 3)


def _short(value: float, digits: int) -> str:
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
