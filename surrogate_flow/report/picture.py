"""The picture of a run: solver, surrogate and difference."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.fields.quantities import in_units
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = ["picture"]

# Rows of the picture: another simulation, and another share of the time axis, each.
_MOMENTS = (0.03, 0.1, 0.5)

# Across, up, and out of the picture, by words in the names or units of coordinates.
_DIRECTIONS = {
    word: direction
    for direction, words in enumerate(
        (
            "x nx ix xc rlon lon longitude east easting west",
            "y ny iy yc rlat lat latitude north northing south",
            "z nz iz zc depth height level lev altitude bottom plev",
        )
    )
    for word in words.split()
}

# How many times longer than wide a domain is drawn, at most.
_LONG = 5.0

# Letters of a title that fit above a row, and parameters that it names.
_LINE = 100
_NAMED = 8

#: Solver, surrogate, difference and title.
_Row = tuple[xr.DataArray, xr.DataArray, xr.DataArray, str]


def picture(surrogate: Surrogate, held_out: ValidationSet) -> Figure:
    """Draw solver, surrogate and difference for three held-out simulations.

    An autoregressive surrogate is rolled out from the first steps to the last one.
    Two dims and meshes are drawn as maps, one dim as a map over time, none as curves
    over time: solver and surrogate in one, the difference beside it. Of three, one is
    cut in its middle: z, or the first. The differences of a variable have one scale.
    """
    spec = surrogate.spec
    cells = spec.cells if len(spec.coordinates) == 2 else None
    rows = [
        row
        for number, moment in zip(held_out.finished, _MOMENTS, strict=False)
        for row in _rows(surrogate, held_out, number, moment)
    ]
    widths: dict[Any, float] = {}
    for truth, _, error, _ in rows:
        finite = np.abs(error.values[np.isfinite(error)]).max(initial=0.0)
        widths[truth.name] = max(widths.get(truth.name, 0.0), float(finite))
    # What is left of a third of the width beside a bar, and of the height below titles.
    across, up = (rows and _extents(rows[0][0], cells)) or (1.0, 1.0)
    height = float(np.clip(2.7 * up / across + 1.2, 1.8, 4.0))
    figure = Figure(figsize=(12, height * len(rows)), dpi=120)
    # Else the label of a bar touches that of the panel beside it.
    figure.set_layout_engine("constrained", w_pad=0.12)
    FigureCanvasAgg(figure)
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for part, (truth, guess, error, title) in zip(parts, rows, strict=True):
        width = widths[truth.name] or 1.0
        if cells is None and truth.ndim == 1:
            _draw_curves(part, truth, guess, error, width)
        else:
            _draw_maps(part, truth, guess, error, width, cells)
        part.suptitle("\n".join(textwrap.wrap(title, _LINE)))
    return figure


def _rows(
    surrogate: Surrogate, held_out: ValidationSet, row: int, moment: float
) -> Iterator[_Row]:
    """Yield what is drawn of each variable of a simulation."""
    spec = surrogate.spec
    values = [float(v) for v in held_out.parameters[row]]
    parameters = {p.name: v for p, v in zip(spec.parameters, values, strict=True)}
    step = min(int(moment * spec.steps), spec.steps - 1)
    inputs = surrogate.window.inputs
    history = held_out.simulation(row, slice(inputs)) if inputs else None
    step = spec.steps - 1 if inputs else step
    # One time of a map, all times where there is room for an axis of time.
    still = len(spec.dims) > 1 or spec.cells is not None
    shown = slice(step, step + 1) if still else slice(inputs, None)
    times = spec.times[shown]
    shown_fields = spec.physical(held_out.fields[row, shown])
    truths = spec.dataset(shown_fields, times, parameters)
    guesses = surrogate.predict(parameters, times, history)
    named = _named(spec, parameters)
    for name in (v.name for v in spec.variables):
        truth, guess, place = _flat(truths[name], guesses[name])
        error = (guess - truth).assign_attrs(truth.attrs)
        title = f"simulation {held_out.number(row)}{place} ({named})"
        yield truth, guess, error, title


def _named(spec: FieldSpec, parameters: Mapping[str, float]) -> str:
    """Return the first parameters in words that no line is broken within."""
    words = [
        f"{p.name} {in_units(parameters[p.name], p.units)}".replace(" ", "\xa0")
        for p in spec.parameters
    ]
    # One that is left out would be named in as much room.
    if len(words) > _NAMED:
        words[_NAMED - 1 :] = [f"and\xa0{len(words) - _NAMED + 1}\xa0more"]
    return ", ".join(words)


def _flat(
    truth: xr.DataArray, guess: xr.DataArray
) -> tuple[xr.DataArray, xr.DataArray, str]:
    """Return what can be drawn of both fields, and where it is cut out, in words."""
    words = ""
    if truth.ndim > 1 and truth.sizes["time"] == 1:
        time = truth.time
        words = f" at {in_units(float(time[0]), time.attrs.get('units', ''))}"
        truth, guess = truth.isel(time=0), guess.isel(time=0)
    if truth.ndim > 1:
        dims = _across_up_and_cut(truth)
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


def _across_up_and_cut(field: xr.DataArray) -> list[Any]:
    """Return the horizontal dim, the vertical one, and those that are cut.

    By their names or coordinates, if these say it; else the last is horizontal, as of
    an image.
    """
    dims = list(field.dims)
    if dims[0] == "time":
        return dims
    directions = {}
    for dim in dims:
        along = [c for c in field.coords.values() if c.dims == (dim,)]
        said = [dim, *(c.name for c in along), *(c.attrs.get("units") for c in along)]
        words = re.findall("[a-z]+", " ".join(map(str, said)).lower())
        known = [_DIRECTIONS[word] for word in words if word in _DIRECTIONS]
        directions[dim] = known[0] if known else None
    if len({*directions.values()} - {None}) == len(dims):
        return sorted(dims, key=lambda dim: directions[dim] or 0)
    return dims[::-1]


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


def _draw_curves(
    part: Any,
    truth: xr.DataArray,
    guess: xr.DataArray,
    error: xr.DataArray,
    width: float,
) -> None:
    units = truth.attrs.get("units", "1")
    both, difference = part.subplots(1, 2)
    truth.plot.line(ax=both, label="solver")
    guess.plot.line(ax=both, label="surrogate", linestyle="--")
    both.legend()
    both.set(title="solver and surrogate", ylabel=f"{truth.name} [{units}]")
    error.plot.line(ax=difference)
    difference.set(title="surrogate - solver", ylabel=f"difference [{units}]")
    difference.set_ylim(-1.05 * width, 1.05 * width)


def _draw_maps(
    part: Any,
    truth: xr.DataArray,
    guess: xr.DataArray,
    error: xr.DataArray,
    width: float,
    cells: Sequence[Sequence[int]] | None,
) -> None:
    units = truth.attrs.get("units", "1")
    colours: dict[str, Any] = {
        "vmin": float(truth.min()),
        "vmax": float(truth.max()),
        "cmap": "inferno",
    }
    around_zero: dict[str, Any] = {"vmin": -width, "vmax": width, "cmap": "RdBu_r"}
    extents = _extents(truth, cells)
    across, up = extents or (1.0, 1.0)
    for axis, title, what, options in zip(
        part.subplots(1, 3),
        ("solver", "surrogate", "surrogate - solver"),
        (truth, guess, error),
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
        axis.set_aspect("equal" if extents else "auto")
        longest = max(across, up)
        for name, extent in (("x", across), ("y", up)):
            axis.locator_params(name, nbins=max(2, round(5 * extent / longest)))
        axis.set_title(title)


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
    """Draw convex cells, each given by its nodes, in the colours of the nodes."""
    x, y = _positions(field)
    triangles = [(cell[0], b, c) for cell in cells for b, c in pairwise(cell[1:])]
    drawn = axis.tripcolor(x, y, triangles, field, shading="gouraud", **colours)
    extend = _beyond(field, colours)
    axis.figure.colorbar(drawn, ax=axis, label=label, shrink=0.8, extend=extend)
    for name, position in (("x", x), ("y", y)):
        units = position.attrs.get("units")
        words = f"{position.name} [{units}]" if units else str(position.name)
        axis.set(**{f"{name}label": words})
