"""The curves of runs, to hover over and to zoom into: one label, one colour a run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from bokeh.models import ColumnDataSource, HoverTool, NumeralTickFormatter, Range1d
from bokeh.models.annotations import Span
from bokeh.plotting import figure

from surrogate_flow.fields.window import ROLLOUT, SINGLE
from surrogate_flow.report.folder.tables import OFTEN

__all__ = [
    "ENOUGH",
    "GREY",
    "Line",
    "draw",
    "figure_of",
    "learning",
    "over_parameters",
    "population",
    "rates",
    "rollout",
    "times_seen",
    "waiting",
]

GREY = "#7c7c7c"  # legible on white and on black
# Of curves: legible on both, too.
_COLOURS = (
    *("#2f8fdd", "#f28c28", "#2ca02c", "#e04b4b", "#a778d8"),
    *("#a5765b", "#e377c2", "#8c8c8c", "#b5b52f", "#22b8cf"),
)
_POINTS = 600  # of a curve
_DOTS = 1000  # simulations that are shown, evenly over a parameter
_LETTERS = 46  # of a legend in one line, on a phone
_FEW = 30  # points that have marks: one alone makes no line
_ENTRY = 20  # pixels of a legend's height, for each of its lines
#: Simulations that a running median takes, or more.
ENOUGH = 30

_DASHES = ("solid", "dashed", "dotted", "dotdash")


class Line(NamedTuple):
    """A curve of a run; one colour a run, or a name where there is one run."""

    run: str
    name: str
    x: Any
    y: Any


Tables = Mapping[str, pd.DataFrame]


def learning(metrics: Tables) -> list[tuple[Any, str]]:
    """Return the loss, the validation error and the learning rate over the batches."""
    columns = {str(c) for table in metrics.values() for c in table}
    rates = sorted(c for c in columns if c == "lr" or c.startswith("lr-"))
    rolled_out, best = ROLLOUT in columns, "; best.ckpt is where it is least"
    found = []
    for names, label, caption in (
        (
            ["train_loss", "val_loss"],
            "loss [1]",
            "The loss in normalised units, of training batches and of the held-out "
            "simulations: where the second rises and the first falls, the network "
            "overfits.",
        ),
        (
            [SINGLE],
            "relative L2 error [1]",
            "The relative L2 error over the held-out simulations"
            f"{' of single predictions' if rolled_out else best}.",
        ),
        (
            [ROLLOUT],
            "relative L2 error of rollouts [1]",
            f"The relative L2 error over the held-out simulations, rolled out{best}.",
        ),
        (rates, "learning rate [1]", "The learning rate of the optimizer."),
    ):
        lines = []
        for run, table in metrics.items():
            for name in names:
                if name in table and "step" in table:
                    known = table[["step", name]].dropna()
                    known = known[known[name] > 0]
                    if len(known):
                        shown = name if len(names) > 1 else ""
                        lines.append(Line(run, shown, known["step"] + 1, known[name]))
        if lines:
            plot = figure_of("batches", label, log=names is not rates)
            if names in ([SINGLE], [ROLLOUT]):
                plot.yaxis.formatter = NumeralTickFormatter(format="0.[00] %")
            draw(plot, lines)
            found.append((plot, caption))
    return found


def rollout(tables: Tables, units: str) -> Any:
    """Return the relative error at each time of a rollout, of each variable."""
    lines = []
    for run, table in tables.items():
        for name in table:
            if str(name).startswith("relative_l2_") and "time" in table:
                variable = str(name).removeprefix("relative_l2_")
                lines.append(Line(run, variable, table["time"], table[name]))
    if not lines:
        return None
    plot = figure_of(f"time [{units or '1'}]", "relative L2 error [1]")
    plot.y_range.start = 0
    plot.yaxis.formatter = NumeralTickFormatter(format="0.[00] %")
    draw(plot, lines)
    return plot


def over_parameters(
    validation: pd.DataFrame,
    units: Mapping[str, str],
    bounds: Mapping[str, tuple[float, float]],
    logarithmic: Collection[str] = (),
) -> Iterator[Any]:
    """Yield the error of each held-out simulation over each parameter in its bounds."""
    errors = pd.to_numeric(validation["relative_l2"], errors="coerce")
    for name, unit in units.items():
        if name not in validation:
            continue
        values = pd.to_numeric(validation[name], errors="coerce")
        known = pd.DataFrame({"x": values, "y": errors}).dropna().sort_values("x")
        known["simulation"] = validation.get("simulation", known.index)
        every = max(1, -(-len(known) // _DOTS))
        plot = figure_of(
            f"{name} [{unit or '1'}]",
            "relative L2 error [1]",
            log_x=name in logarithmic,
            hover=False,
        )
        plot.yaxis.formatter = NumeralTickFormatter(format="0.[00] %")
        if name in bounds and len(known):
            low = min(bounds[name][0], known["x"].min())
            high = max(bounds[name][1], known["x"].max())
            room = 0.03 * (high - low)
            if name in logarithmic:
                room = (high / low) ** 0.03
                plot.x_range = Range1d(low / room, high * room)
            else:
                plot.x_range = Range1d(low - room, high + room)
        dots = plot.scatter(
            "x", "y", source=dict(known[::every]), size=7, alpha=0.6, color=_COLOURS[0]
        )
        said = [("simulation", "@simulation"), (name, "@x"), ("error", "@y{0.00 %}")]
        plot.add_tools(HoverTool(tooltips=said, renderers=[dots]))
        if len(known) >= ENOUGH:
            window = max(9, len(known) // 5)
            median = known.rolling(window, center=True).median().dropna()
            shown = median[::every]
            plot.line(shown["x"], shown["y"], line_width=3, color=_COLOURS[1])
        yield plot


def times_seen(counts: Sequence[int]) -> Any:
    """Return how many samples were seen how often."""
    plot = figure_of("times seen", "samples", hover=False)
    plot.xaxis.ticker.min_interval = 1
    seen = [*range(len(counts))]
    words = [f"{n} or more" if n == OFTEN else f"{n}" for n in seen]
    data = ColumnDataSource({"x": seen, "top": [*counts], "seen": words})
    bars = plot.vbar(x="x", top="top", source=data, width=0.85, color=_COLOURS[0])
    said = [("seen", "@seen times"), ("samples", "@top{0,0}")]
    plot.add_tools(HoverTool(tooltips=said, renderers=[bars]))
    plot.yaxis.formatter = NumeralTickFormatter(format="0,0")
    plot.y_range.start = 0
    return plot


def waiting(telemetry: pd.DataFrame) -> Any:
    """Return the shares of the time in which either side waits, over the time."""
    table = telemetry[["seconds", "put_wait_seconds", "draw_wait_seconds"]].dropna()
    # A minute has one row a second: bins of several are smoother.
    table = table.iloc[:: max(1, len(table) // 100)]
    if len(table) < 3:
        return None
    change = table.diff().iloc[1:]
    middle = table["seconds"].iloc[1:] - change["seconds"] / 2
    shares = {
        words: (change[name] / change["seconds"]).clip(0, 1)
        for words, name in (
            ("the trainer waits for samples", "draw_wait_seconds"),
            ("simulations wait for room", "put_wait_seconds"),
        )
    }
    plot = figure_of("time [s]", "share of the time [1]")
    plot.yaxis.formatter = NumeralTickFormatter(format="0 %")
    plot.y_range.start, plot.y_range.end = 0, 1.02
    draw(plot, [Line("", words, middle, share) for words, share in shares.items()])
    return plot


def population(telemetry: pd.DataFrame) -> Any:
    """Return how many samples are in the reservoir, seen and unseen."""
    table = telemetry[telemetry["population"].notna()]
    if len(table) < 2:
        return None
    table = table.iloc[:: max(1, len(table) // _POINTS)]
    plot = figure_of("time [s]", "samples")
    plot.yaxis.formatter = NumeralTickFormatter(format="0,0")
    seen = table["population"] - table["unseen"]
    lines = [
        Line("", "in the reservoir", table["seconds"], table["population"]),
        Line("", "seen", table["seconds"], seen),
        Line("", "unseen", table["seconds"], table["unseen"]),
    ]
    draw(plot, lines)
    top = float(table["population"].max())
    for name in ("capacity", "threshold"):
        if name in table and len(known := table[name].dropna()):
            value = float(known.iloc[-1])
            level = Span(location=value, dimension="width")
            level.line_color, level.line_dash = GREY, "dashed"
            plot.add_layout(level)
            top = max(top, value)
    plot.y_range.end = 1.05 * top
    plot.y_range.start = 0
    return plot


def rates(telemetry: Tables) -> Any:
    """Return the samples trained in a second, over the time."""
    lines = []
    for run, table in telemetry.items():
        known = table[["seconds", "samples_per_second"]].dropna()
        known = known.iloc[:: max(1, len(known) // _POINTS)]
        if len(known) > 1:
            rate = known["samples_per_second"]
            lines.append(Line(run, "", known["seconds"], rate))
    if not lines:
        return None
    plot = figure_of("time [s]", "samples/s")
    plot.y_range.start = 0
    plot.yaxis.formatter = NumeralTickFormatter(format="0,0.[000]")
    draw(plot, lines)
    return plot


def figure_of(
    x: str, y: str, *, log: bool = False, log_x: bool = False, hover: bool = True
) -> Any:
    """Return an empty plot with labelled axes."""
    plot: Any = figure(
        height=280,
        sizing_mode="stretch_width",
        x_axis_label=x,
        y_axis_label=y,
        x_axis_type="log" if log_x else "linear",
        y_axis_type="log" if log else "linear",
        tools="pan,box_zoom,wheel_zoom,reset,save",
        # Neither a page's background nor its print has a colour of ours.
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=GREY,
    )
    plot.toolbar.logo, plot.toolbar.autohide = None, True
    for axis in plot.axis:
        for part in ("axis_label_text", "major_label_text", "axis_line"):
            setattr(axis, f"{part}_color", GREY)
        axis.major_tick_line_color, axis.minor_tick_line_color = GREY, None
        axis.axis_label_text_font_style = "normal"
    for line in plot.grid:
        line.grid_line_color, line.grid_line_alpha = GREY, 0.25
    if hover:
        said = [("", "$name"), (x, "@x{0.[0000]}"), (y, "@y{0.[000000]}")]
        plot.add_tools(HoverTool(tooltips=said))
    return plot


def draw(plot: Any, lines: Sequence[Line]) -> None:
    """Draw curves, thinned, with a legend below if there are several."""
    runs, names = (
        [*dict.fromkeys(x)] for x in zip(*(n[:2] for n in lines), strict=True)
    )
    for run, name, x, y in lines:
        every = max(1, len(x) // _POINTS)
        told = name if len(names) > 1 or not run else ""
        label = ", ".join(part for part in (run, told) if part)
        number = runs.index(run) if len(runs) > 1 else names.index(name)
        options = {
            "source": {"x": np.asarray(x)[::every], "y": np.asarray(y)[::every]},
            "color": _COLOURS[number % len(_COLOURS)],
            "name": label,
            **({"legend_label": label} if len(lines) > 1 else {}),
        }
        dash = _DASHES[names.index(name) % len(_DASHES)] if len(runs) > 1 else "solid"
        plot.line("x", "y", line_width=2, line_dash=dash, **options)
        if len(x) < _FEW:
            # Open ones of dashed lines, since in a legend they hide the dashes.
            plot.scatter("x", "y", size=6, fill_alpha=float(dash == "solid"), **options)
    if plot.legend:
        legend = plot.legend[0]
        legend.label_text_color, legend.background_fill_color = GREY, None
        legend.border_line_color, legend.click_policy = None, "hide"
        legend.location, legend.margin, legend.padding = "left", 0, 2
        # Side by side where that fits.
        if sum(len("".join(line[:2])) + 6 for line in lines) > _LETTERS:
            legend.orientation = "vertical"
            plot.height += _ENTRY * len(lines)
        else:
            legend.orientation = "horizontal"
        plot.add_layout(legend, "below")
