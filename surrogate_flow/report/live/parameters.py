"""The parameter space as a scatter matrix in the colours of the loss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from bokeh.models import (
    ColorBar,
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    LogColorMapper,
    Title,
)

from surrogate_flow.report.live.series import GREY, panel, shown
from surrogate_flow.report.live.state import DRAWN, LiveState

__all__ = ["Parameters"]

_MARGIN = 0.07  # of a cell
_LONG = 12  # characters of a name


class Parameters:
    """A point a simulation, in a cell for each pair of parameters.

    The cells are parts of one figure, since a browser draws 15 figures slowly. In those
    of the diagonal the loss lies over a parameter.

    Parameters
    ----------
    state : LiveState
    """

    def __init__(self, state: LiveState) -> None:
        units, self._changes = state.parameters, -1
        self._names = [*units][:DRAWN]
        self._units, count = units, len(self._names)
        self._all = int((state.about.get("spec") or {}).get("count", len(units)))
        self._labels: list[str] = []
        self._source = ColumnDataSource({}, name="parameters")
        self.root = made = panel(
            "Parameters",
            "on the diagonal the loss upwards",
            "",
            x_range=(-0.02, count + 0.02),
            y_range=(-0.02, count + 0.02),
        )
        made.height, made.min_width, made.max_width = 480, 340, 440
        made.grid.visible = False
        self._colours = LogColorMapper("Viridis256", low=1e-6, high=1.0)
        self._colours.nan_color = GREY
        colour: Any = {"field": "loss", "transform": self._colours}
        # Rows from the upper left corner downwards.
        cells = [(row, column) for row in range(count) for column in range(row + 1)]
        made.rect(
            x=[column + 0.5 for _, column in cells],
            y=[count - row - 0.5 for row, _ in cells],
            width=1 - _MARGIN / 2,
            height=1 - _MARGIN / 2,
            fill_color=None,
            line_color="#d5d5d5",
        )
        points = []
        for row in range(count):
            for column in range(row + 1):
                up = f"loss{row}" if row == column else f"y{row}"
                drawn = made.scatter(
                    f"x{column}", up, source=self._source, size=4, color=colour
                )
                drawn.nonselection_glyph = None
                points.append(drawn)
        tips = [
            (name, f"@{{value{k}}}{{0.[0000]}}") for k, name in enumerate(self._names)
        ]
        made.add_tools(
            HoverTool(
                renderers=points,
                tooltips=[
                    ("simulation", "@simulation{0}"),
                    ("loss", "@loss{0.[00000]}"),
                    *tips,
                ],
            )
        )
        for axis in (*made.xaxis, *made.yaxis):
            axis.ticker = FixedTicker(ticks=[k + 0.5 for k in range(count)])
            axis.major_tick_line_color = axis.axis_line_color = None
            axis.major_label_text_align = "center"
        made.yaxis.major_label_orientation = "vertical"
        made.axis.major_label_text_font_size = "10px"
        made.yaxis.major_label_overrides = {
            count - k - 0.5: _short(name) for k, name in enumerate(self._names)
        }
        bar = ColorBar(
            color_mapper=self._colours,
            width=8,
            padding=4,
            label_standoff=4,
            background_fill_color=None,
        )
        made.add_layout(bar, "right")
        name = Title(text="loss of the sample, last seen", align="center")
        name.text_font_size, name.text_font_style = "11px", "normal"
        made.add_layout(name, "right")

    def update(self, state: LiveState) -> None:
        """Draw the points, if there are others."""
        if state.changes["losses"] == self._changes:
            return
        self._changes = state.changes["losses"]
        losses, count = state.losses, len(self._names)
        loss = losses["loss"]
        columns = {"simulation": losses["simulation"], "loss": loss}
        usable = loss[np.isfinite(loss) & (loss > 0)]
        if len(usable):
            low, high = np.quantile(usable, [0.02, 0.98])
            self._colours.low, self._colours.high = (
                float(low),
                float(max(high, low * 1.1)),
            )
        logs = np.log(np.where(loss > 0, loss, np.nan))
        labels = []
        for k, name in enumerate(self._names):
            values = losses[name]
            low, high, log = _bounds(state, name, values)
            columns[f"value{k}"] = values
            ends = f"{low:.3g} to {high:.3g}" + " (log)" * log
            if log:
                values, low, high = np.log(values), math.log(low), math.log(high)
            share = _within(values, low, high)
            columns[f"x{k}"] = k + share
            columns[f"y{k}"] = count - 1 - k + share
            finite = logs[np.isfinite(logs)]
            low_loss, high_loss = (
                (finite.min(), finite.max()) if len(finite) else (0, 1)
            )
            columns[f"loss{k}"] = count - 1 - k + _within(logs, low_loss, high_loss)
            units = "" if self._units[name] == "1" else self._units[name]
            labels.append(f"{_short(name)}\n{ends}\n{units}")
        self._source.data = columns
        if labels != self._labels:
            self._labels = labels
            self.root.xaxis.major_label_overrides = {
                k + 0.5: label for k, label in enumerate(labels)
            }
        done = state.series[-1]["simulations_done"] if state.series else math.nan
        of = f" of {shown(done)}" if done >= len(loss) else ""
        words = f"{len(loss):,}{of} simulations, sampled once a second"
        if self._all > count:
            words += f" (the first {count} of {self._all} parameters)"
        self.root.title.text = words


def _short(name: str) -> str:
    return name if len(name) <= _LONG else f"{name[: _LONG - 1]}\u2026"


def _within(values: Any, low: float, high: float) -> Any:
    """Return places in a cell of width 1."""
    span = (high - low) or 1.0
    return (_MARGIN + (1 - 2 * _MARGIN) * (values - low) / span).astype(np.float32)


def _bounds(state: LiveState, name: str, values: Any) -> tuple[float, float, bool]:
    """Return those of the spec, or else of its values, and if it is log-uniform."""
    spec = state.about.get("spec") or {}
    for given in spec.get("parameters", ()):
        low, high = given.get("low"), given.get("high")
        if given.get("name") == name and None not in (low, high):
            return float(low), float(high), bool(given.get("log"))
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0, False
    return float(finite.min()), float(finite.max()), False
