"""Panels of the live page over time, and the histogram of times seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from bokeh.models import (
    AdaptiveTicker,
    ColumnDataSource,
    CustomJSTickFormatter,
    HoverTool,
    NumeralTickFormatter,
    Span,
)
from bokeh.plotting import figure

from surrogate_flow.report.folder.tables import OFTEN
from surrogate_flow.report.live.state import SERIES, LiveState, number

__all__ = [
    "BLUE",
    "GREY",
    "HEIGHT",
    "ORANGE",
    "RED",
    "Panel",
    "Series",
    "TimesSeen",
    "panel",
    "tidy",
]

# Of what comes from the solver, from the trainer or its surrogate, and of limits.
BLUE, ORANGE, GREY, GREEN, RED = "#3a6ea5", "#e07b28", "#8c8c8c", "#3f9b6c", "#c0392b"
HEIGHT = 232  # of a panel, in pixels
_BARS = 40  # of the histogram
_WORDS = 3  # moments from one title to the next: each takes as long as the curves
_KEPT = 1200  # moments that a browser keeps
_MOMENT = """
const last = ticks[ticks.length - 1];
const [unit, size] = last < 180 ? ["s", 1] : last < 7200 ? ["min", 60] : ["h", 3600];
return tick == 0 ? "0" : `${+(tick / size).toFixed(2)} ${unit}`;
"""


class Panel(Protocol):
    """A part of the page."""

    def update(self, state: LiveState) -> None:
        """Show the state, as far as it has changed."""


def panel(title: str, across: str, up: str, **options: Any) -> Any:
    """Return an empty figure in the style of the page."""
    made = figure(
        title=title,
        x_axis_label=across,
        y_axis_label=up,
        height=HEIGHT,
        min_width=260,
        sizing_mode="stretch_width",
        tools="pan,wheel_zoom,reset,save",
        active_drag=None,  # or a finger that scrolls the page would move the plot
        toolbar_location="above",
        **options,
    )
    made.title.text_font_size, made.title.standoff = "11.5px", 3
    made.toolbar.autohide = made.toolbar_inner = True
    made.axis.axis_label_text_font_style = "normal"
    made.axis.axis_label_text_font_size = "11px"
    made.axis.axis_label_standoff = 3
    made.axis.minor_tick_line_color = None
    made.grid.grid_line_alpha = 0.4
    return made


class Series:
    """Reservoir, flow, waits, losses, simulations and workers over time.

    One source of data feeds all of them, to which each moment is added once.

    Parameters
    ----------
    state : LiveState
        Panels that its run does not have are left out.
    """

    def __init__(self, state: LiveState) -> None:
        self.source = ColumnDataSource({name: [] for name in SERIES}, name="series")
        self.validations = ColumnDataSource(
            {"step": [], "error": []}, name="validations"
        )
        self._rows, self._thinned, self._validated = 0, -1, 0
        self._titled, self._state = 0, ""
        self._titles: list[tuple[Any, Callable[[LiveState], str]]] = []
        # Of all figures, since each model makes each message longer.
        self._moments = AdaptiveTicker(base=60, mantissas=[1, 2, 5, 10, 15, 20, 30])
        self._moment = CustomJSTickFormatter(code=_MOMENT)
        self._count = NumeralTickFormatter(format="0.[00]a")
        self.figures = [*self._figures(state)]

    def _figures(self, state: LiveState) -> Iterator[Any]:
        has = {n for n, v in state.series[-1].items() if v == v} if state.rows else {}
        if "population" in has:
            yield self._reservoir()
        yield self._flow("steps_per_second" in has, "megabytes_per_second" in has)
        if {"trainer_waits", "reservoir_waits"} & {*has} or "population" in has:
            yield self._waits()
        yield self._losses()
        if "simulations_done" in has:
            yield self._simulations("simulations_planned" in has)
            yield self._workers("jobs_wanted" in has)

    def update(self, state: LiveState) -> None:
        """Add the moments since the last time."""
        if self._thinned != state.thinned:
            self._thinned = state.thinned
            columns = {n: np.array([r[n] for r in state.series]) for n in SERIES}
            self.source.data = columns
        elif count := min(state.rows - self._rows, len(state.series)):
            new = state.series[-count:]
            self.source.stream({n: [r[n] for r in new] for n in SERIES}, _KEPT)
        self._rows = state.rows
        if state.changes["validations"] != self._validated:
            self._validated = state.changes["validations"]
            steps, errors = ([each[k] for each in state.validations] for k in (0, 1))
            self.validations.data = {"step": steps, "error": errors}
        if 0 < state.rows - self._titled < _WORDS and state.state == self._state:
            return
        self._titled, self._state = state.rows, state.state
        for made, words in self._titles:
            if made.title.text != (title := words(state)):
                made.title.text = title

    def _figure(
        self,
        words: Callable[[LiveState], str],
        up: str,
        lines: Sequence[tuple[str, str, str, str]],
        *,
        stacked: Sequence[tuple[str, str, str]] = (),
        hover: str = "",
        **options: Any,
    ) -> Any:
        """Return a figure with lines (column, legend, colour, dash) over time."""
        made = panel(words(LiveState("")), "time since the start", up, **options)
        made.xaxis.ticker, made.xaxis.formatter = self._moments, self._moment
        made.yaxis.formatter = self._count
        if stacked:
            names, legends, colours = zip(*stacked, strict=True)
            made.varea_stack(
                [*names],
                x="seconds",
                color=[*colours],
                fill_alpha=0.55,
                legend_label=[*legends],
                source=self.source,
            )
        drawn = [
            made.line(
                "seconds",
                name,
                source=self.source,
                color=colour,
                line_width=1.8,
                line_dash=dash,
                legend_label=legend,
            )
            for name, legend, colour, dash in lines
        ]
        shown = [(legend, name) for name, legend, *_ in [*stacked, *lines]]
        made.add_tools(
            HoverTool(
                renderers=drawn[:1],
                mode="vline",
                tooltips=[
                    ("time", "@seconds{00:00:00}"),
                    *((legend, f"@{name}{{0,0.[0]}}{hover}") for legend, name in shown),
                ],
            )
        )
        tidy(made)
        made.y_range.start = 0
        self._titles.append((made, words))
        return made

    def _reservoir(self) -> Any:
        def words(state: LiveState) -> str:
            if not state.rows:
                return "Reservoir"
            now = state.series[-1]
            kept = things(now["population"], "sample")
            return f"Reservoir: {kept}, {shown(now['unseen'])} unseen"

        return self._figure(
            words,
            "samples",
            [
                ("capacity", "capacity (steps)", GREY, "dashed"),
                ("threshold", "threshold", RED, "dotted"),
            ],
            stacked=[("seen", "seen", ORANGE), ("unseen", "unseen", BLUE)],
        )

    def _flow(self, arrives: bool, read: bool) -> Any:
        def words(state: LiveState) -> str:
            if not state.rows:
                return "Rates"
            now = state.series[-1]
            if state.state != "running":
                trained = things(number_of(state, "samples"), "sample")
                steps = things(number_of(state, "steps_received"), "step")
                return f"{trained} trained{f', {steps} arrived' if arrives else ''}"
            trained = f"{shown(now['samples_per_second'])} samples/s trained"
            if arrives:
                steps = shown(now["steps_per_second"])
                return f"{steps} steps/s arrive, {trained}"
            amount = f", {now['megabytes_per_second']:.1f} MB/s read" if read else ""
            return f"{trained.capitalize()}{amount}"

        lines = [("samples_per_second", "samples trained", ORANGE, "solid")]
        if arrives:
            lines.append(("steps_per_second", "steps that arrive", BLUE, "solid"))
        elif read:
            lines.append(("megabytes_per_second", "MB read", BLUE, "solid"))
        return self._figure(words, "a second", lines, hover=" /s")

    def _waits(self) -> Any:
        def words(state: LiveState) -> str:
            trainer = number_of(state, "draw_wait_seconds")
            simulations = number_of(state, "put_wait_seconds")
            return (
                f"Waited: trainer {seconds(trainer)}, "
                f"simulations {seconds(simulations)}"
            )

        return self._figure(
            words,
            "share of the time [%]",
            [
                ("trainer_waits", "trainer for a batch", ORANGE, "solid"),
                ("reservoir_waits", "simulations for room", BLUE, "solid"),
            ],
            hover=" %",
            y_range=(0, 105),
        )

    def _losses(self) -> Any:
        def words(state: LiveState) -> str:
            if not state.validations:
                return "Training loss"
            return f"Loss; validation error {state.validations[-1][1]:.2%}"

        made = panel(words(LiveState("")), "batch", "error", y_axis_type="log")
        options: dict[str, Any] = {"line_width": 1.8}
        lines = [
            made.line(
                *("step", "loss"),
                source=self.source,
                color=ORANGE,
                legend_label="training (normalised)",
                **{**options, "line_width": 1.2},
            ),
            made.line(
                *("step", "error"),
                source=self.validations,
                color=BLUE,
                legend_label="validation (relative L2)",
                **options,
            ),
        ]
        made.scatter("step", "error", source=self.validations, size=5, color=BLUE)
        for line, name in zip(lines, ("loss", "error"), strict=True):
            tips = [("batch", "@step{0,0}"), (name, f"@{name}{{0.0000}}")]
            made.add_tools(HoverTool(renderers=[line], mode="vline", tooltips=tips))
        tidy(made)
        self._titles.append((made, words))
        return made

    def _simulations(self, planned: bool) -> Any:
        def words(state: LiveState) -> str:
            if not state.rows:
                return "Simulations"
            now = state.series[-1]
            all_ = now["simulations_planned"]
            held_out = all_ - number(state.about.get("simulations"))
            of = f" of {shown(all_)}" if planned else ""
            # The last, since a narrow panel cuts its title.
            rest = f", {shown(held_out)} held out" if held_out > 0 else ""
            return (
                f"Simulations: {shown(now['simulations_done'])}{of}, "
                f"{shown(now['simulations_failed'])} failed{rest}"
            )

        lines = [
            ("simulations_done", "done", GREEN, "solid"),
            ("simulations_failed", "failed", RED, "solid"),
            ("simulations_planned", "planned", GREY, "dashed"),
        ]
        made = self._figure(words, "simulations", lines[: 3 if planned else 2])
        made.yaxis[0].ticker.min_interval = 1
        return made

    def _workers(self, jobs: bool) -> Any:
        def words(state: LiveState) -> str:
            if not state.rows:
                return "Workers"
            now = state.series[-1]
            running = things(now["simulations_running"], "simulation")
            if jobs:
                return (
                    f"Jobs: {shown(now['jobs_at_work'])} of "
                    f"{shown(now['jobs_wanted'])} at work; {running}"
                )
            return f"Workers: {shown(now['workers'])}; {running}"

        lines = [
            ("workers", "workers", GREY, "solid"),
            ("simulations_running", "simulations", BLUE, "solid"),
            ("jobs_at_work", "jobs", GREEN, "solid"),
            ("jobs_wanted", "wanted", GREEN, "dashed"),
        ]
        made = self._figure(words, "number", lines[: 4 if jobs else 2])
        made.yaxis[0].ticker.min_interval = 1
        return made


class TimesSeen:
    """How many samples were seen how many times; those that left count, too."""

    def __init__(self) -> None:
        self._source = ColumnDataSource(
            {"times": [], "width": [], "samples": [], "label": []}, name="times_seen"
        )
        self._drawn = -_WORDS, ""
        self.root = panel("Times seen", "times seen", "samples")
        self.root.xaxis[0].ticker.min_interval = 1
        bars = self.root.vbar(
            "times", top="samples", width="width", source=self._source, color=ORANGE
        )
        self._mean = Span(location=math.nan, dimension="height", line_dash="dashed")
        self.root.add_layout(self._mean)
        tips = [("seen", "@label times"), ("samples", "@samples{0,0}")]
        self.root.add_tools(HoverTool(renderers=[bars], tooltips=tips))
        self.root.y_range.start = 0

    def update(self, state: LiveState) -> None:
        """Draw the histogram, if there is another one."""
        now = state.changes["rows"], state.state
        if now[1] == self._drawn[1] and now[0] - self._drawn[0] < _WORDS:
            return
        self._drawn = now
        counts = np.array(state.times_seen)
        wide = max(1, math.ceil(len(counts) / _BARS))
        padded = np.pad(counts, (0, -len(counts) % wide))
        binned = padded.reshape(-1, wide).sum(axis=1)
        first = np.arange(len(binned)) * wide
        # Nothing but numbers: a new ticker would have all models counted again.
        self._source.data = {
            "times": first + (wide - 1) / 2,
            "width": np.full(len(first), 0.9 * wide),
            "samples": binned,
            "label": [_bar(a, a + wide - 1) for a in first],
        }
        if entered := number_of(state, "inserted"):
            mean = self._mean.location = number_of(state, "drawn") / entered
            self.root.title.text = f"Times seen: {mean:,.1f} on average"


def _bar(low: Any, high: Any) -> str:
    if high >= OFTEN:
        return f"{low} or more"
    return f"{low}" if low == high else f"{low} to {high}"


def number_of(state: LiveState, name: str) -> float:
    """Return a number of the last row, 0 if it has none."""
    value = state.last.get(name)
    return float(value) if isinstance(value, int | float) and value == value else 0.0


def shown(value: float) -> str:
    """Return a count in words; a dash if it is not known."""
    return f"{value:,.0f}" if math.isfinite(value) else "-"


def things(value: float, noun: str) -> str:
    """Return a count of things in words."""
    return f"{shown(value)} {noun}{'s' * (value != 1)}"


def seconds(value: float) -> str:
    """Return a duration in words."""
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def tidy(made: Any) -> None:
    """Put the legend above the data, which it would hide."""
    legend = made.legend[0]
    made.center.remove(legend)
    made.add_layout(legend, "above")
    legend.orientation, legend.click_policy = "horizontal", "hide"
    legend.location = "left"
    legend.label_text_font_size, legend.spacing, legend.padding = "10px", 8, 0
    legend.glyph_width = legend.label_height = legend.glyph_height = 12
    legend.margin, legend.label_standoff, legend.border_line_color = 0, 3, None
    legend.background_fill_color = None
