"""Fields of solver and surrogate beside each other, and their difference."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from surrogate_flow.fields.quantities import in_units
from surrogate_flow.report.pictures.axes import across_up_and_cut

__all__ = ["Row", "draw", "flat", "titled"]

# How many times longer than wide a domain is drawn, at most.
_LONG = 5.0

# Letters in a line of a title, and parameters that it names.
_LETTERS = 24
_NAMED = 8

# Inches of a figure's width, of a line of its title, and of what surrounds a panel.
_WIDTH, _LINE, _FRAME = 11.5, 0.19, 1.0
_PANEL = 1.9  # inches of a map's width, beside its bar and the title


class Row(NamedTuple):
    """A field of the solver and of the surrogate, and what stands beside them.

    The range of the colours, and of the difference around zero, is that of the fields
    if it is not given.
    """

    truth: xr.DataArray
    guess: xr.DataArray
    title: str
    range: tuple[float, float] | None = None
    width: float | None = None

    @property
    def error(self) -> xr.DataArray:
        """Surrogate - solver."""
        return (self.guess - self.truth).assign_attrs(self.truth.attrs)


def draw(rows: Sequence[Row], cells: Sequence[Sequence[int]] | None = None) -> Figure:
    """Draw each row: solver, surrogate and difference, its title to the left.

    Two dims and meshes are drawn as maps, one as curves: solver and surrogate in one,
    the difference beside it. The differences of a variable have one scale.

    Parameters
    ----------
    rows : sequence of Row
        Of fields as `flat` returns them.
    cells : sequence of sequence of int, optional
        Node numbers of the cells of a mesh; without any, its nodes are drawn.
    """
    widths: dict[Any, float] = {}
    for row in rows:
        finite = np.abs(row.error.values[np.isfinite(row.error)]).max(initial=0.0)
        widths[row.truth.name] = max(widths.get(row.truth.name, 0.0), float(finite))
    across, up = (rows and _extents(rows[0].truth, cells)) or (1.0, 0.8)
    lines = max((row.title.count("\n") + 1 for row in rows), default=1)
    least = max(2.3, _LINE * lines + 0.3)
    height = max(least, min(_PANEL * up / across + _FRAME, 4.5))
    figure = Figure(figsize=(_WIDTH, height * len(rows)), dpi=130)
    # Else the label of a bar touches that of the panel beside it.
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08)
    FigureCanvasAgg(figure)
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for part, row in zip(parts, rows, strict=True):
        width = row.width or widths[row.truth.name] or 1.0
        if cells is None and row.truth.ndim == 1:
            _draw_curves(part, row, width)
        else:
            _draw_maps(part, row, width, cells)
        part.supylabel(
            row.title, rotation=0, ha="left", multialignment="left", fontsize=10.5
        )
    return figure


def titled(first: str, parameters: Mapping[str, tuple[float, str]]) -> str:
    """Return a title of short lines: what it is, then a parameter a line.

    Parameters
    ----------
    first : str
        Such as ``"simulation 3 at 0.1 s"``.
    parameters : mapping of str to (float, str)
        Value and units of each.

    Examples
    --------
    >>> print(titled("simulation 3 at 0.1 s", {"left": (300.0, "K")}))
    simulation 3 at 0.1 s
    left 300 K
    """
    words = [f"{name} {in_units(*value)}" for name, value in parameters.items()]
    # One that is left out would be named in as much room.
    if len(words) > _NAMED:
        words[_NAMED - 1 :] = [f"and {len(words) - _NAMED + 1} more"]
    lines = [textwrap.wrap(text, _LETTERS) for text in (first, *words)]
    return "\n".join(line for wrapped in lines for line in wrapped)


def flat(
    truth: xr.DataArray, guess: xr.DataArray
) -> tuple[xr.DataArray, xr.DataArray, str]:
    """Return what can be drawn of both fields, and where it is cut out, in words."""
    words = ""
    if truth.ndim > 1 and truth.sizes["time"] == 1:
        time = truth.time
        words = f" at {in_units(float(time[0]), time.attrs.get('units', ''))}"
        truth, guess = truth.isel(time=0), guess.isel(time=0)
    if truth.ndim > 1:
        dims = across_up_and_cut(truth)
        for dim in dims[2:]:
            middle = {dim: truth.sizes[dim] // 2}
            truth, guess = truth.isel(middle), guess.isel(middle)
            here = truth.coords.get(dim)
            place = f"cell {middle[dim]}"
            if here is not None:
                place = in_units(float(here), here.attrs.get("units", ""))
            words += f", cut at {dim} = {place}"
        truth, guess = truth.transpose(*dims[:2]), guess.transpose(*dims[:2])
    return truth, guess, words


def _extents(
    field: xr.DataArray, cells: Sequence[Sequence[int]] | None
) -> tuple[float, float] | None:
    """Return the width and the height of a domain, if they can be drawn to scale."""
    if cells is not None:
        positions = _positions(field)
    elif field.ndim < 2 or "time" in field.dims:
        return None
    else:
        positions = [field[dim] for dim in field.dims]
    across, up = (float(np.ptp(p.values)) or 1.0 for p in positions)
    return (across, up) if 1 / _LONG <= up / across <= _LONG else None


def _positions(field: xr.DataArray) -> list[xr.DataArray]:
    """Return where the nodes of a mesh are."""
    return [c for c in field.coords.values() if c.dims == field.dims][:2]


def _draw_curves(part: Any, row: Row, width: float) -> None:
    units = row.truth.attrs.get("units", "1")
    both, difference = part.subplots(1, 2)
    row.truth.plot.line(ax=both, label="solver", linewidth=2)
    row.guess.plot.line(ax=both, label="surrogate", linestyle="--", linewidth=2)
    both.legend()
    both.set(title="solver and surrogate", ylabel=f"{row.truth.name} [{units}]")
    if row.range is not None:
        room = 0.05 * (row.range[1] - row.range[0] or 1.0)
        both.set_ylim(row.range[0] - room, row.range[1] + room)
    row.error.plot.line(ax=difference, color="C3")
    difference.set(title="surrogate - solver", ylabel=f"difference [{units}]")
    difference.set_ylim(-1.05 * width, 1.05 * width)
    for axis in (both, difference):
        axis.grid(visible=True, alpha=0.3)


def _draw_maps(
    part: Any, row: Row, width: float, cells: Sequence[Sequence[int]] | None
) -> None:
    truth, error = row.truth, row.error
    units = truth.attrs.get("units", "1")
    low, high = row.range or (float(truth.min()), float(truth.max()))
    colours: dict[str, Any] = {"vmin": low, "vmax": high, "cmap": "inferno"}
    around_zero: dict[str, Any] = {"vmin": -width, "vmax": width, "cmap": "RdBu_r"}
    extents = _extents(truth, cells)
    across, up = extents or (1.0, 1.0)
    for axis, title, what, options in zip(
        part.subplots(1, 3, sharey=True),
        ("solver", "surrogate", "surrogate - solver"),
        (truth, row.guess, error),
        (colours, colours, around_zero),
        strict=True,
    ):
        label = f"{'difference' if what is error else truth.name} [{units}]"
        if cells is not None:
            _draw_mesh(axis, what, cells, label, **options)
        else:
            what.plot.pcolormesh(
                ax=axis,
                x=what.dims[0],
                y=what.dims[1],
                extend=_beyond(what, options),
                cbar_kwargs={"label": label, "shrink": 0.8},
                **options,
            )
            # Where masked fields are NaN.
            axis.set_facecolor("lightgrey")
        axis.set_aspect("equal" if extents else "auto")
        longest = max(across, up)
        for name, extent in (("x", across), ("y", up)):
            axis.locator_params(name, nbins=max(2, round(4 * extent / longest)))
        axis.set_title(title)
        axis.label_outer()


def _beyond(field: xr.DataArray, colours: Mapping[str, Any]) -> str:
    """Return at which ends of a colour bar values are clipped."""
    ends = float(field.min()) < colours["vmin"], float(field.max()) > colours["vmax"]
    words = {(True, True): "both", (True, False): "min", (False, True): "max"}
    return words.get(ends, "neither")


def _draw_mesh(
    axis: Any,
    field: xr.DataArray,
    cells: Sequence[Sequence[int]],
    label: str,
    **colours: Any,
) -> None:
    """Draw convex cells, given by their nodes, or these alone, in their colours."""
    x, y = _positions(field)
    triangles = [(cell[0], b, c) for cell in cells for b, c in pairwise(cell[1:])]
    drawn = (
        axis.tripcolor(x, y, triangles, field, shading="gouraud", **colours)
        if triangles
        else axis.scatter(x, y, s=9, c=field, **colours)
    )
    extend = _beyond(field, colours)
    axis.figure.colorbar(drawn, ax=axis, label=label, shrink=0.8, extend=extend)
    for name, position in (("x", x), ("y", y)):
        units = position.attrs.get("units")
        words = f"{position.name} [{units}]" if units else str(position.name)
        axis.set(**{f"{name}label": words})
