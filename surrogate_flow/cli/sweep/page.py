"""report.html of a sweep: its trials, sorted, and what made them good."""

from __future__ import annotations

import contextlib
import shlex
from functools import partial
from typing import Any

import numpy as np
import optuna
from bokeh.models import (
    ColorBar,
    FactorRange,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    NumeralTickFormatter,
)
from bokeh.palettes import Viridis256

from surrogate_flow.cli.sweep.folder import SweepFolder, TrialRow
from surrogate_flow.cli.sweep.table import cells, grouped, headline, short
from surrogate_flow.report.html import plots
from surrogate_flow.report.html.page import Section, filled, render

__all__ = ["sweep_page"]

_CURVES = 20  # trials whose errors are drawn, the best ones
_LEAST = 8  # complete trials for which an importance means something
_CHOICES = 5  # different values that have a place each, in order
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
        caption = (
            "By the error of the last validation, the mean and the spread over seeds; "
            f"in brackets where no trial is complete yet. {folder.cost()}"
        )
        section.add("table", head=head, rows=lines, caption=caption)
    complete = [row for row in rows if row.state == "complete"]
    if complete:
        words = ["surrogate-flow", "fit", *folder.recipe.words(complete[0].point)]
        section.add("code", shlex.join(words), "To train the best one again:")


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
        names = [short(name) for name in reversed(found)]
        plot = plots.figure_of("importance [1]", "", hover=False)
        plot.y_range = FactorRange(factors=names)
        plot.hbar(y=names, right=[*reversed(found.values())], height=0.6)
        caption = (
            "How much each option matters for being among the best (PED-ANOVA, "
            "Watanabe, Bansal and Hutter, 2023)."
        )
        section.plot(plot, caption)


def _training(folder: SweepFolder, rows: list[TrialRow], section: Section) -> None:
    section.absent = "No trial has been validated."
    lines = []
    for row in rows[:_CURVES]:
        if known := folder.curve(row.number):
            seconds, errors = zip(*known, strict=True)
            lines.append(plots.Line(f"trial {row.number}", "", seconds, errors))
    if lines:
        plot = plots.figure_of("training time [s]", "relative L2 error [1]", log=True)
        plots.draw(plot, lines)
        plot.yaxis.formatter = NumeralTickFormatter(format="0.[00] %")
        section.plot(plot, "Of the best trials, since each began to train.")


def _failed(folder: SweepFolder, rows: list[TrialRow], section: Section) -> None:
    section.absent = "None."
    failed = [row for row in rows if row.state == "failed"]
    if failed:
        lines = [
            (str(row.number), row.why, str(folder.log(row.number))) for row in failed
        ]
        section.add("table", head=("trial", "why", "log"), rows=lines)


def _parallel(rows: list[TrialRow]) -> Any:
    """Return parallel coordinates: an axis an option, and one of the error."""
    names = list(dict.fromkeys(name for row in rows for name in row.point))
    errors = [100 * (row.error or 0.0) for row in rows]
    axes = {short(name): [row.point.get(name) for row in rows] for name in names}
    scales = [_scaled(values) for values in axes.values()] + [_scaled(errors)]
    plot = plots.figure_of("", "", hover=False)
    plot.height = 340
    mapper = LinearColorMapper(Viridis256, low=min(errors), high=max(errors))
    source = {
        "xs": [list(range(len(scales)))] * len(rows),
        "ys": np.array([heights for heights, _ in scales]).T.tolist(),
        "error": errors,
        "trial": [row.number for row in rows],
    }
    colour = {"field": "error", "transform": mapper}
    drawn = plot.multi_line(
        "xs", "ys", source=source, line_width=2, alpha=0.8, line_color=colour
    )
    said = [("trial", "@trial"), ("error", "@error{0.00} %")]
    plot.add_tools(HoverTool(tooltips=said, renderers=[drawn]))
    plot.add_layout(ColorBar(color_mapper=mapper, title="error [%]"), "right")
    ticks = [*range(len(scales))]
    plot.xaxis.ticker = FixedTicker(ticks=ticks)
    labels = [*axes, "error [%]"]
    plot.xaxis.major_label_overrides = dict(zip(ticks, labels, strict=True))
    plot.yaxis.visible = False
    for at, (_, marks) in enumerate(scales):
        plot.text(
            [at] * len(marks),
            [*marks.values()],
            [*marks],
            text_font_size="11px",
            text_color=plots.GREY,
            x_offset=6,
            text_baseline="middle",
        )
    return plot


def _scaled(values: list[Any]) -> tuple[list[float], dict[str, float]]:
    """Return values as heights from 0 to 1, and the texts at some heights."""
    numbers = [v for v in values if isinstance(v, int | float)]
    if len(numbers) < len(values) or len({*numbers}) <= _CHOICES:
        kinds = sorted({*values}, key=lambda v: (str(type(v)), v))
        places = {kind: at / max(1, len(kinds) - 1) for at, kind in enumerate(kinds)}
        return [places[v] for v in values], {_text(k): at for k, at in places.items()}
    low, high = min(numbers), max(numbers)
    log = low > 0 and high / low > _DECADE
    scale = np.log10 if log else np.asarray
    heights = (scale(numbers) - scale(low)) / (scale(high) - scale(low))
    return heights.tolist(), {_text(low): 0.0, _text(high): 1.0}


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
