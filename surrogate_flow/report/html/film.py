"""Held-out simulations as pictures and as frames, of what cases.nc has."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

from surrogate_flow.fields.quantities import counted, in_units
from surrogate_flow.fields.thinning import SURROGATE, cells_of, variables_of
from surrogate_flow.report.folder.words import percent
from surrogate_flow.report.pictures.drawing import Row, draw, flat, titled

__all__ = ["Film", "film_of", "stills"]

_VARIABLES = 3  # of a simulation, which are drawn: a page has a size
_FRAMES = 24  # of a rollout
_DPI = 84  # so that a picture is as wide as a page

Cells = Sequence[Sequence[int]]


class Film(NamedTuple):
    """Frames of one simulation, as addresses of pictures, and the time of each."""

    frames: list[str]
    times: list[str]
    caption: str


def stills(cases: xr.Dataset, *, mesh: bool = False) -> Iterator[tuple[str, str]]:
    """Yield a picture of each case at the time of its largest error, and a caption.

    Fields on a line are drawn over all times, numbers as curves.

    Parameters
    ----------
    cases : xr.Dataset
        As cases.nc has them.
    mesh : bool
        Whether they are of nodes, of which not all may be there.
    """
    cells = _cells(cases, mesh=mesh)
    left = max(0, len(variables_of(cases)) - _VARIABLES)
    for name in map(str, cases.case.values):
        case, moments = _of(cases, name), []
        rows = []
        for variable in variables_of(cases)[:_VARIABLES]:
            truth, guess = _pair(case, variable)
            if truth.ndim > 2 or (cells is not None and truth.ndim > 1):
                step = _worst_step(truth, guess)
                moments.append(float(truth.time[step]))
                truth, guess = truth.isel(time=[step]), guess.isel(time=[step])
            truth, guess, place = flat(truth, guess)
            title = titled(
                f"simulation {int(case.simulation)}{place}{_cut(cases)}",
                _parameters(case),
            )
            rows.append(Row(truth, guess, title))
        when = " at the time of its largest error" if moments else ""
        caption = (
            f"The {name} of the held-out simulations, of relative error "
            f"{percent(float(case.relative_l2))}: solver, surrogate and their "
            f"difference{when}."
            + (f" {counted(left, 'variable')} more are in cases.nc." if left else "")
        )
        figure = draw(rows, cells)
        figure.set_dpi(_DPI)
        figure.canvas.draw()
        yield _encoded(figure, 85), caption


def film_of(cases: xr.Dataset, *, mesh: bool = False) -> Film | None:
    """Return a rollout of the median case as frames; None of fields without dims."""
    cells = _cells(cases, mesh=mesh)
    names = [*map(str, cases.case.values)]
    case = _of(cases, "median" if "median" in names else names[0])
    variable = variables_of(cases)[0]
    truth, guess = _pair(case, variable)
    # Behind an early end there are no steps of the solver.
    there = np.isfinite(truth.values).reshape(len(truth), -1).any(1)
    truth, guess = truth.isel(time=there), guess.isel(time=there)
    if truth.ndim < 2 or truth.sizes["time"] < 2:
        return None
    shown = np.linspace(0, truth.sizes["time"] - 1, _FRAMES).round().astype(int)
    truth, guess = truth.isel(time=np.unique(shown)), guess.isel(time=np.unique(shown))
    errors = np.abs((guess - truth).values)
    limits = float(truth.min()), float(truth.max())
    width = float(errors[np.isfinite(errors)].max(initial=0.0)) or 1.0
    title = titled(f"simulation {int(case.simulation)}{_cut(cases)}", _parameters(case))
    moments = [
        Row(*flat(truth.isel(time=[k]), guess.isel(time=[k]))[:2], title, limits, width)
        for k in range(truth.sizes["time"])
    ]
    figure = draw(moments[:1], cells)
    figure.set_dpi(_DPI)
    units = truth.time.attrs.get("units", "")
    return Film(
        _frames(figure, moments),
        [in_units(float(t), units) for t in truth.time.values],
        f"{variable} of the median held-out simulation, step by step; solver and "
        "surrogate are shown in one range, that of the solver over all times.",
    )


def _frames(figure: Figure, rows: Sequence[Row]) -> list[str]:
    """Draw all but the fields once, and the fields of each row into it."""
    figure.canvas.draw()
    figure.set_layout_engine("none")
    panels = [axis for axis in figure.axes if axis.get_title()]
    artists: list[tuple[Any, Any]] = [
        (axis, artist) for axis in panels for artist in (*axis.collections, *axis.lines)
    ]
    for _, artist in artists:
        artist.set_visible(False)
    figure.canvas.draw()
    empty: Any = figure.canvas.copy_from_bbox(figure.bbox)  # type: ignore[attr-defined]
    for _, artist in artists:
        artist.set_visible(True)
    frames = []
    for row in rows:
        figure.canvas.restore_region(empty)  # type: ignore[attr-defined]
        fields = (row.truth, row.guess, row.error)
        for (axis, artist), field in zip(artists, fields, strict=True):
            if hasattr(artist, "set_array"):
                transposed = field if field.ndim < 2 else field.T
                artist.set_array(transposed.values)
            else:
                artist.set_ydata(field.values)
            axis.draw_artist(artist)
        for axis in panels:
            # Below the field they would be hidden in part.
            for spine in axis.spines.values():
                axis.draw_artist(spine)
        frames.append(_encoded(figure, 70))
    return frames


def _encoded(figure: Figure, quality: int) -> str:
    """Return a figure that is drawn as the address of a picture that holds it."""
    image, file = np.asarray(figure.canvas.buffer_rgba()), io.BytesIO()  # type: ignore[attr-defined]
    # The quickest of its methods: forty pictures are to take a second or two.
    Image.fromarray(image).convert("RGB").save(file, "WEBP", quality=quality, method=1)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def _pair(case: xr.Dataset, name: str) -> tuple[xr.DataArray, xr.DataArray]:
    truth, guess = case[name], case[f"{name}{SURROGATE}"]
    dims = ("time", *(dim for dim in truth.dims if dim != "time"))
    return truth.transpose(*dims), guess.transpose(*dims).rename(name)


def _cells(cases: xr.Dataset, *, mesh: bool) -> Cells | None:
    """Return the cells of a mesh, none if there are nodes alone; None of a grid."""
    cells = cells_of(cases)
    return () if cells is None and mesh else cells


def _worst_step(truth: xr.DataArray, guess: xr.DataArray) -> int:
    errors = np.square((guess - truth).values)
    errors = errors.reshape(len(errors), -1).mean(1)
    return int(np.nan_to_num(errors, nan=-1.0).argmax())


def _cut(cases: xr.Dataset) -> str:
    """Return in words where fields are cut out."""
    planes = [c for n, c in cases.coords.items() if c.ndim == 0 and n != "time"]
    return "".join(
        f", cut at {c.name} = {in_units(float(c), c.attrs.get('units', ''))}"
        for c in planes
        if np.issubdtype(c.dtype, np.number)
    )


def _parameters(case: xr.Dataset) -> dict[str, tuple[float, str]]:
    """Return what varies from case to case, beside the fields: the parameters."""
    names = case.attrs["parameters"]
    return {
        name: (float(case[name]), case[name].attrs.get("units", "")) for name in names
    }


def _of(cases: xr.Dataset, name: str) -> xr.Dataset:
    """Return one case, and the names of its parameters."""
    besides = ("case", "simulation", "relative_l2")
    along = [n for n, c in cases.variables.items() if c.dims == ("case",)]
    known = [n for n in along if n not in besides and n not in variables_of(cases)]
    numbers = [
        str(n)
        for n in known
        if not str(n).endswith(SURROGATE) and np.issubdtype(cases[n].dtype, np.number)
    ]
    return cases.sel(case=name).assign_attrs(parameters=numbers)
