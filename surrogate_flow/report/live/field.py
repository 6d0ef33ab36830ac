"""The newest field beside the surrogate's prediction, and their difference."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from bokeh.models import (
    ColorBar,
    ColumnDataSource,
    HoverTool,
    LinearColorMapper,
    Range1d,
    Slope,
)
from bokeh.palettes import Inferno256, RdBu11, interp_palette
from jaxtyping import Float, Int

from surrogate_flow.fields.quantities import counted
from surrogate_flow.fields.thinning import SURROGATE, cells_of
from surrogate_flow.report.live.series import BLUE, GREY, ORANGE, panel, tidy
from surrogate_flow.report.live.state import LiveState
from surrogate_flow.report.pictures.axes import across_up_and_cut

__all__ = ["NewestField"]

_LONG = 5.0  # how many times longer than wide a domain is drawn to scale
_MAPS = ("solver", "surrogate", "difference")
# Blue where the surrogate is too low, red where it is too high.
_AROUND_ZERO = interp_palette(RdBu11, 255)


class NewestField:
    """One variable: maps for two dims, three dims and meshes, else curves.

    Parameters
    ----------
    fields : xr.Dataset
        As newest.nc.
    variable : str

    Attributes
    ----------
    figures : list
        Solver, surrogate and difference; of curves both, and the difference.
    """

    def __init__(self, fields: xr.Dataset, variable: str) -> None:
        self._variable, self._changes = variable, -1
        field = _still(fields[variable])
        units = str(field.attrs.get("units", ""))
        self._units = "" if units == "1" else units
        self._source = ColumnDataSource({}, name="newest")
        self._mappers = {
            "field": LinearColorMapper(Inferno256, low=0.0, high=1.0),
            "difference": LinearColorMapper(_AROUND_ZERO, low=-1.0, high=1.0),
        }
        for mapper in self._mappers.values():
            mapper.nan_color = GREY
        self._cells = _corners(fields)
        self._mesh = _is_mesh(field)
        if field.ndim > 1 or self._mesh:
            self.figures = self._maps(field)
        else:
            self.figures = self._curves(field)

    def update(self, state: LiveState) -> None:
        """Draw the newest field, if there is another one."""
        fields = state.newest
        if fields is None or state.changes["newest"] == self._changes:
            return
        self._changes = state.changes["newest"]
        truth = _still(fields[self._variable])
        guess = _still(fields[f"{self._variable}{SURROGATE}"])
        data = {"solver": truth, "surrogate": guess, "difference": guess - truth}
        if truth.ndim > 1:
            self._source.data = _images(data)
        elif self._mesh:
            self._draw_nodes(data)
        else:
            self._source.data = _points(data)
        finite = truth.values[np.isfinite(truth.values)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
        self._scale("field", float(low), float(high if high > low else low + 1))
        error = np.abs(data["difference"].values)
        width = float(error[np.isfinite(error)].max(initial=0.0)) or 1.0
        self._scale("difference", -width, width)
        units = f" {self._units}" if self._units else ""
        words = [self._variable, *_named(fields, fields[self._variable])]
        self.figures[0].title.text = ", ".join(words)
        self.figures[-1].title.text = f"surrogate - solver: {width:.3g}{units} at most"

    def _scale(self, name: str, low: float, high: float) -> None:
        """Have colours, or an axis, from one value to another, if others are too far.

        What changes little stays: it is easier to read, and each change is a message.
        """
        mapper = self._mappers[name]
        span = mapper.high - mapper.low
        least = min(low - mapper.low, mapper.high - high)
        if -0.02 * span <= least and high - low >= 0.7 * span:
            return
        mapper.low, mapper.high = low, high
        if name == "difference" and len(self.figures) == 2:
            scale = self.figures[1].y_range
            scale.start, scale.end = 1.1 * low, 1.1 * high

    def _maps(self, field: xr.DataArray) -> list[Any]:
        labels = _labels(field)
        figures: list[Any] = []
        for name in _MAPS:
            made = panel(name, *labels)
            mapper = self._mappers["difference" if name == "difference" else "field"]
            if self._mesh and self._cells is not None:
                drawn = made.patches(
                    *("xs", "ys"),
                    source=self._source,
                    color={"field": name, "transform": mapper},
                )
            elif self._mesh:
                drawn = made.scatter(
                    *("x", "y"),
                    source=self._source,
                    size=4,
                    color={"field": name, "transform": mapper},
                )
            else:
                drawn = made.image(
                    name,
                    *("x", "y", "dw", "dh"),
                    source=self._source,
                    color_mapper=mapper,
                )
            if (field.ndim == 2 and _to_scale(field)) or self._mesh:
                made.match_aspect = True
            for axis_range in (made.x_range, made.y_range):
                axis_range.range_padding = 0.0 if field.ndim > 1 else 0.02
            if figures:
                made.x_range, made.y_range = figures[0].x_range, figures[0].y_range
            value = f"@{name}" if self._mesh else "@image"
            tips = [self._tip(name, value), ("at", "$x, $y")]
            made.add_tools(HoverTool(renderers=[drawn], tooltips=tips))
            made.add_layout(
                ColorBar(
                    color_mapper=mapper,
                    width=8,
                    padding=4,
                    background_fill_color=None,
                ),
                "right",
            )
            made.grid.visible = False
            figures.append(made)
        return figures

    def _curves(self, field: xr.DataArray) -> list[Any]:
        units = f" [{self._units}]" if self._units else ""
        across, whole = _labels(field)[0], field.dims == ("sample",)
        difference = panel("", across, f"difference{units}")
        difference.y_range = Range1d(-1.0, 1.0)
        lines = [("difference", "#444444", difference)]
        if whole:
            # Over time the values of many simulations are a cloud.
            both = self._pairs(units)
        else:
            both = panel("", across, f"{self._variable}{units}")
            difference.x_range = both.x_range
            lines = [("solver", BLUE, both), ("surrogate", ORANGE, both), *lines]
        curve = bool(field.dims) and field.dims[0] in field.coords
        for name, colour, made in lines:
            options: dict[str, Any] = (
                {} if made is difference else {"legend_label": name}
            )
            if curve:
                dash = "dashed" if name == "surrogate" else "solid"
                options |= {"line_width": 2, "line_dash": dash}
                drawn = made.line(
                    "x", name, source=self._source, color=colour, **options
                )
            else:
                size = 4 if whole else 7
                drawn = made.scatter(
                    "x", name, source=self._source, color=colour, size=size, **options
                )
            tips = [(across, "@x"), self._tip(name, f"@{name}")]
            made.add_tools(HoverTool(renderers=[drawn], tooltips=tips))
        if not whole:
            tidy(both)
        return [both, difference]

    def _tip(self, name: str, value: str) -> tuple[str, str]:
        """Return a line of a tooltip: its label is text, its value would be HTML."""
        units = f" [{self._units}]" if self._units else ""
        return f"{name}{units}", f"{value}{{0.[0000]}}"

    def _pairs(self, units: str) -> Any:
        """Return the surrogate over the solver, which are equal on the diagonal."""
        made = panel("", f"solver{units}", f"surrogate{units}")
        made.add_layout(Slope(gradient=1, y_intercept=0, line_color=GREY))
        drawn = made.scatter(
            "solver", "surrogate", source=self._source, size=4, color=ORANGE
        )
        tips = [self._tip(name, f"@{name}") for name in _MAPS]
        made.add_tools(HoverTool(renderers=[drawn], tooltips=tips))
        return made

    def _draw_nodes(self, data: dict[str, xr.DataArray]) -> None:
        """Draw nodes, or the means of their values over each cell; places once."""
        columns: dict[str, Any] = {n: v.values for n, v in data.items()}
        cells = self._cells
        if cells is not None:
            count = (cells >= 0).sum(axis=1)
            columns = {
                n: np.where(cells >= 0, v[cells], 0).sum(axis=1) / count
                for n, v in columns.items()
            }
        if self._source.data:
            self._source.data.update(columns)
            return
        for name, along in zip("xy", _along(data["solver"])[:2], strict=True):
            at = along.values.astype(float)
            if cells is None:
                columns[name] = at
            else:
                columns[f"{name}s"] = [at[cell[cell >= 0]].tolist() for cell in cells]
        self._source.data = columns


def _still(field: xr.DataArray) -> xr.DataArray:
    """Return one moment, and the middle of a third dim; of no dims all moments."""
    if "time" in field.dims and field.ndim > 1:
        field = field.isel(time=-1)
    if field.ndim > 2:
        dims = across_up_and_cut(field)
        field = field.isel({dim: field.sizes[dim] // 2 for dim in dims[2:]})
    return field


def _corners(fields: xr.Dataset) -> Int[np.ndarray, "cell corner"] | None:
    """Return the nodes of each cell, -1 for none; None if there are no cells."""
    return None if cells_of(fields) is None else np.asarray(fields["cells"].values)


def _is_mesh(field: xr.DataArray) -> bool:
    """Whether its one dim has nodes; not times, nor samples of several simulations."""
    return field.ndim == 1 and field.dims != ("sample",) and len(_along(field)) > 1


def _along(field: xr.DataArray) -> list[xr.DataArray]:
    return [c for c in field.coords.values() if c.dims == field.dims and c.ndim]


def _labels(field: xr.DataArray) -> list[str]:
    """Return the names of the axes, across and up, with units."""
    if _is_mesh(field):
        return [_label(c.name, c) for c in _along(field)[:2]]
    if field.dims == ("sample",) and "time" in field.coords:
        return [_label("time", field.coords["time"]), ""]
    dims = across_up_and_cut(field)[:2] if field.ndim else []
    labels = [_label(dim, field.coords.get(dim)) for dim in dims]
    return [*labels, *[""] * (2 - len(labels))]


def _label(name: Any, coordinate: xr.DataArray | None) -> str:
    units = coordinate.attrs.get("units") if coordinate is not None else None
    return f"{name} [{units}]" if units not in (None, "", "1") else str(name)


def _to_scale(field: xr.DataArray) -> bool:
    extents = [_line(field, dim) for dim in field.dims]
    across, up = (float(np.ptp(x)) or 1.0 for x in extents)
    alike = {
        field.coords[d].attrs.get("units") for d in field.dims if d in field.coords
    }
    return len(alike) <= 1 and 1 / _LONG <= up / across <= _LONG


def _line(field: xr.DataArray, dim: Any) -> Float[np.ndarray, " point"]:
    """Return the positions along a dim: its coordinate, or the numbers of cells."""
    along = field.coords.get(dim)
    if along is None or along.dtype.kind not in "fiu":
        return np.arange(field.sizes[dim], dtype=float)
    return np.asarray(along.values, float)


def _images(data: dict[str, xr.DataArray]) -> dict[str, Any]:
    """Return images with even pixels, of the nearest points of a grid."""
    truth = data["solver"]
    across, up = across_up_and_cut(truth)
    x, y = _line(truth, across), _line(truth, up)
    columns, rows = _even(x), _even(y)
    edges = [(_edges(line)) for line in (x, y)]
    (left, width), (bottom, height) = edges
    images = {
        name: [np.asarray(v.transpose(up, across).values, np.float32)[rows][:, columns]]
        for name, v in data.items()
    }
    return {**images, "x": [left], "y": [bottom], "dw": [width], "dh": [height]}


def _even(line: Float[np.ndarray, " point"]) -> Any:
    """Return the points nearest to evenly spaced ones, in ascending order."""
    even = np.linspace(line.min(), line.max(), len(line))
    return np.abs(even[:, None] - line[None]).argmin(axis=1)


def _edges(line: Float[np.ndarray, " point"]) -> tuple[float, float]:
    """Return the lower edge of the first cell, and the width of all."""
    span = float(np.ptp(line))
    cell = span / (len(line) - 1) if len(line) > 1 else 1.0
    return float(line.min()) - cell / 2, span + cell


def _points(data: dict[str, xr.DataArray]) -> dict[str, Any]:
    truth = data["solver"]
    x = _line(truth, truth.dims[0]) if truth.dims else np.zeros(1)
    if truth.dims == ("sample",) and "time" in truth.coords:
        x = truth.coords["time"].values
    return {"x": x, **{n: np.atleast_1d(v.values) for n, v in data.items()}}


def _named(fields: xr.Dataset, field: xr.DataArray) -> list[str]:
    """Return which simulation, moment and slice it is, in words."""
    if field.dims == ("sample",):
        known = int(np.isfinite(field.values).sum())
        return [f"{counted(known, 'sample')} of the last batch"]
    words = []
    if "simulation" in fields.attrs:
        words.append(f"simulation {fields.attrs['simulation']}")
    time = field.coords.get("time")
    if time is not None and time.ndim == 0:
        words.append(_amount(time))
    elif "step" in fields.attrs:
        words.append(f"step {fields.attrs['step']}")
    for name, at in _still(field).coords.items():
        # Of the plain numbers beside a field, a parameter has no long name.
        cut = name in field.dims or "long_name" in at.attrs
        if name != "time" and at.ndim == 0 and cut:
            words.append(f"middle slice {name} = {_amount(at)}")
    return words


def _amount(number: xr.DataArray) -> str:
    units = number.attrs.get("units", "")
    return f"{float(number):.4g} {'' if units == '1' else units}".rstrip()
