"""report.html of a sweep: its trials, sorted, and what made them good."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import optuna
from bokeh.models import (
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    NumeralTickFormatter,
    Range1d,
)
from bokeh.palettes import Viridis256
from markupsafe import Markup

from surrogate_flow.cli.sweep.folder import SweepFolder, TrialRow
from surrogate_flow.cli.sweep.table import (
    cells,
    cost,
    grouped,
    headline,
    leader,
    short,
    unlike,
)
from surrogate_flow.report.folder.run_folder import REPORT
from surrogate_flow.report.html import plots
from surrogate_flow.report.html.page import Section, filled, render
from surrogate_flow.report.live.trials import ERRORS

__all__ = ["sweep_page"]

_CURVES = 20  # trials whose errors are drawn, the best ones
_BRIGHT = 230  # of the 256 colours; the last are hardly seen on white
_LEAST = 8  # complete trials for which an importance means something
_CHOICES = 5  # different numbers that are written, each
_APART = 0.08  # of the height, between two texts
_DECADE = 10.0  # ratio of the greatest to the least from which an axis is logarithmic


def sweep_page(folder: SweepFolder, rows: list[TrialRow]) -> str:
    """Return the page; what a sweep does not have yet is said."""
    makers = (
        ("trials", "Trials", _trials),
        ("space", "Where the good ones lie", _space),
        ("training", "Error against training time", _training),
        ("failed", "Failed trials", _failed),
    )
    sections = [
        filled(name, title, partial(fill, folder, rows)) for name, title, fill in makers
    ]
    said = headline(rows, folder.recipe.count)
    return render(f"Sweep {folder.path.name}", f"{said}.", sections)


def _trials(folder: SweepFolder, rows: list[TrialRow], section: Section) -> None:
    section.absent = "None has begun."
    groups = grouped(rows)
    if groups:
        head, lines = cells(groups)
        lines = [
            [Markup(", ").join(_linked(folder, row) for row in group.rows), *line[1:]]
            for group, line in zip(groups, lines, strict=True)
        ]
        caption = (
            "By the relative L2 error of each trial's best checkpoint on held-out "
            "simulations, the least of its validations; the mean and the spread over "
            "seeds, in brackets where no trial is complete. A number leads to the "
            "report of the trial. " + cost(folder)
        )
        section.add("table", head=head, rows=lines, caption=caption)
    for note in unlike(folder, rows):
        section.add("warning", note)
    if (best := leader(rows)) is not None:
        words = ["surrogate-flow", "fit", *folder.recipe.words(best.point)]
        said = f"To train the best one again, in {folder.working_folder}:"
        section.add("code", shlex.join(words), said)


def _linked(folder: SweepFolder, row: TrialRow) -> Markup:
    """Return the number of a trial, which leads to its report where there is one."""
    report = row.run and row.run / REPORT
    if report is None or not report.is_file():
        return Markup(row.number)
    return _link(folder, report, str(row.number))


def _link(folder: SweepFolder, path: Path, text: str) -> Markup:
    # Relative, so that the folder may move.
    there = quote(path.resolve().relative_to(folder.path.resolve()).as_posix())
    return Markup('<a href="{}">{}</a>').format(there, text)


def _space(folder: SweepFolder, rows: list[TrialRow], section: Section) -> None:
    complete = [row for row in rows if row.state == "complete" and row.error]
    section.absent = "No trial is complete."
    if not complete:
        return
    section.plot(
        _parallel(complete),
        "A line a trial, through its values; dark ones have the least error.",
    )
    if len(complete) < _LEAST or len(folder.recipe.space) < 2:
        return
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    with contextlib.suppress(RuntimeError, ValueError):
        # Of values that are all alike nothing is known.
        found = optuna.importance.get_param_importances(
            folder.study, evaluator=evaluator
        )
        names = [_label(name) for name in reversed(found)]
        places = [*range(len(names))]
        plot = plots.figure_of("importance [1]", "", hover=False)
        plot.height = 90 + 36 * len(names)
        plot.hbar(y=places, right=[*reversed(found.values())], height=0.6)
        plot.yaxis.ticker = FixedTicker(ticks=places)
        plot.yaxis.major_label_overrides = dict(zip(places, names, strict=True))
        plot.ygrid.visible = False
        caption = (
            "How much each option matters for being among the best (PED-ANOVA, "
            "Watanabe, Bansal and Hutter, 2023)."
        )
        section.plot(plot, caption)


def _training(folder: SweepFolder, rows: list[TrialRow], section: Section) -> None:
    section.absent = "No trial has been validated."
    drawn = [row for row in rows[:_CURVES] if folder.curve(row.number)]
    if not drawn:
        return
    best = leader(rows)
    curves = [[*zip(*folder.curve(row.number), strict=True)] for row in drawn]
    plot = plots.figure_of(
        "training time [s]", "relative L2 error [1]", log=True, hover=False
    )
    plot.yaxis.formatter = NumeralTickFormatter(format="0.[000] %")
    # Bokeh's own names none below 5 % where all is within two decades.
    plot.yaxis.ticker = FixedTicker(ticks=ERRORS)
    source = {
        "xs": [seconds for seconds, _ in curves],
        "ys": [errors for _, errors in curves],
        # Where each ends: of one validation there is no line.
        "x": [seconds[-1] for seconds, _ in curves],
        "y": [errors[-1] for _, errors in curves],
        "error": [100 * errors[-1] for _, errors in curves],
        "trial": [row.number for row in drawn],
        "width": [3.0 if row is best else 1.5 for row in drawn],
    }
    ends = ColumnDataSource(source)
    shade = {"field": "error", "transform": _colours(source["error"])}
    lines = plot.multi_line(
        *("xs", "ys"),
        source=ends,
        line_width="width",
        line_color=shade,
    )
    plot.scatter("x", "y", source=ends, size=6, color=shade)
    said = [("trial", "@trial"), ("error", "$y{0.00 %}"), ("time", "$x{0,0} s")]
    plot.add_tools(HoverTool(tooltips=said, renderers=[lines]))
    many = f"the first {_CURVES} of the table" if len(rows) > _CURVES else "each trial"
    section.plot(
        plot,
        f"Of {many}, since it began to train; dark ones end with the least error, and "
        "the best one is thick.",
    )


def _failed(folder: SweepFolder, rows: list[TrialRow], section: Section) -> None:
    section.absent = "None."
    failed = [row for row in rows if row.state == "failed"]
    if failed:
        logs = [folder.log(row.number) for row in failed]
        lines = [
            (
                _linked(folder, row),
                row.why,
                _link(folder, log, log.name) if log.is_file() else "",
            )
            for row, log in zip(failed, logs, strict=True)
        ]
        section.add("table", head=("trial", "why", "log"), rows=lines)


def _parallel(rows: list[TrialRow]) -> Any:
    """Return parallel coordinates: an axis an option, and one of the error."""
    names = list(dict.fromkeys(name for row in rows for name in row.point))
    errors = [100 * (row.error or 0.0) for row in rows]
    scales = [_scaled([row.point.get(name) for row in rows]) for name in names]
    scales.append(_scaled(errors))
    plot = plots.figure_of("", "", hover=False)
    plot.height = 340
    plot.x_range = Range1d(-0.35, len(scales) - 0.55)
    plot.y_range = Range1d(-0.08, 1.14)
    source = {
        "xs": [list(range(len(scales)))] * len(rows),
        "ys": np.array([heights for heights, _ in scales]).T.tolist(),
        "error": errors,
        "trial": [row.number for row in rows],
    }
    colour = {"field": "error", "transform": _colours(errors)}
    drawn = plot.multi_line(
        "xs", "ys", source=source, line_width=2, alpha=0.8, line_color=colour
    )
    said = [("trial", "@trial"), ("error", "@error{0.00} %")]
    plot.add_tools(HoverTool(tooltips=said, renderers=[drawn]))
    ticks = [*range(len(scales))]
    plot.xaxis.ticker = FixedTicker(ticks=ticks)
    labels = [*map(_label, names), "error [%]"]
    plot.xaxis.major_label_overrides = dict(zip(ticks, labels, strict=True))
    plot.yaxis.visible = plot.ygrid.visible = False
    for at, (_, marks) in enumerate(scales):
        plot.text(
            [at] * len(marks),
            [*marks.values()],
            [*marks],
            text_font_size="11px",
            text_color=plots.GREY,
            x_offset=4,
            y_offset=-2,
            text_baseline="bottom",
        )
    return plot


def _label(name: str) -> str:
    """Return the last parts of an option, a line each, for a narrow page."""
    return ".\n".join(short(name).split(".")[-2:])


def _colours(errors: Sequence[float]) -> LinearColorMapper:
    return LinearColorMapper(Viridis256[:_BRIGHT], low=min(errors), high=max(errors))


def _scaled(values: list[Any]) -> tuple[list[float], dict[str, float]]:
    """Return values as heights from 0 to 1, and the texts at some heights."""
    if not all(isinstance(v, int | float) for v in values):
        kinds = sorted({*values}, key=lambda v: (str(type(v)), v))
        places = {kind: at / max(1, len(kinds) - 1) for at, kind in enumerate(kinds)}
        return [places[v] for v in values], {_text(k): at for k, at in places.items()}
    low, high = min(values), max(values)
    log = low > 0 and high / low > _DECADE
    ends = np.array([low, high if high > low else low + 1.0])
    share = np.log(ends) if log else ends
    at = np.log(values) if log else np.array(values, dtype=float)
    heights = (at - share[0]) / (share[1] - share[0])
    places = dict(sorted(zip(values, heights.tolist(), strict=True)))
    marks = {_text(low): 0.0}
    for value, height in places.items():
        # Each of few, but for those whose texts would lie on each other.
        few = len(places) <= _CHOICES and height < 1 - _APART
        if height == 1 or (few and height - max(marks.values()) > _APART):
            marks[_text(value)] = height
    return heights.tolist(), marks


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
