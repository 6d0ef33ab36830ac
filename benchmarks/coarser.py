"""Cheaper settings of a solver, and what they give on the grid of the full one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy.signal import resample

from surrogate_flow.solvers import (
    Combined1D,
    GridSolver,
    Heat2D,
    NaturalConvection,
    NavierStokes2D,
)

__all__ = ["LADDERS", "Fields", "labelled", "on_grid", "trigonometric"]

Fields = Float[np.ndarray, "time channel *space"]


def heat(solver: Heat2D) -> Iterator[tuple[str, GridSolver]]:
    """Yield coarser settings of the heat solver."""
    (nx, ny), names = solver.cells, ("low", "high", "conductivity_slope")
    for part, stretch in product((1, 2, 5, 10), (1, 2, 5, 10)):
        if nx % part == ny % part == 0 and _divides(stretch, solver.steps):
            coarse = Heat2D(
                (nx // part, ny // part),
                solver.size,
                steps=solver.steps // stretch,
                time_step=solver.time_step * stretch,
                diffusivity=solver.diffusivity,
                **{name: getattr(solver, name) for name in names},
            )
            yield f"{nx // part} x {ny // part} cells, every {_every(stretch)}", coarse


def combined(solver: Combined1D) -> Iterator[tuple[str, GridSolver]]:
    """Yield coarser settings of WENO5."""
    kept = solver.cells
    fine = [n * kept for n in range(solver.fine_cells // kept, 0, -1)]
    cells = [*fine, *(n for n in (32, 20, 16, 10, 8) if n < kept)]
    for n, stretch in product(cells, (1, 5, 25)):
        if _divides(stretch, solver.steps):
            coarse = Combined1D(
                min(n, kept),
                n,
                length=solver.length,
                steps=solver.steps // stretch,
                time_step=solver.time_step * stretch,
                alpha=solver.alpha,
                beta=solver.beta,
                gamma=solver.gamma,
            )
            yield f"WENO5 on {n} cells, every {_every(stretch)}", coarse


def navier_stokes(solver: NavierStokes2D) -> Iterator[tuple[str, GridSolver]]:
    """Yield coarser settings of the pseudo-spectral solver."""
    least = 3 * solver.initial.largest
    sizes = [n for n in (96, 64, 48, 32, 24, 20, 16, 12, 10, 8) if n < solver.points]
    substeps = [s for s in (0.2, 1.0) if s > solver.substep]
    for points, substep in product(
        [solver.points, *sizes], [solver.substep, *substeps]
    ):
        if points > least:
            coarse = NavierStokes2D(
                points,
                steps=solver.steps,
                time_step=solver.time_step,
                modes=solver.modes,
                viscosity=solver.viscosity,
                forcing=solver.forcing,
                substep=substep,
            )
            yield f"{points} x {points} points, substeps of {substep} s", coarse


def natural_convection(
    solver: NaturalConvection,
) -> Iterator[tuple[str, GridSolver]]:
    """Yield finite elements that are wider, on the points of the solver's fields."""
    for cells in (28, 24, 22, 20, 18, 16, 14, 12, 10, 8):
        if cells < solver.cells:
            names = ("points", "size", "flux", "transfer", "ambient", "tilt")
            same = {name: getattr(solver, name) for name in names}
            yield f"{cells} x {cells} elements", NaturalConvection(cells, **same)


# The solvers that can be had coarser, and how.
LADDERS: dict[type, Callable[[Any], Iterator[tuple[str, GridSolver]]]] = {
    Heat2D: heat,
    Combined1D: combined,
    NaturalConvection: natural_convection,
    NavierStokes2D: navier_stokes,
}


def _divides(stretch: int, steps: int) -> bool:
    # Between two steps at least there is something to interpolate.
    return steps % stretch == 0 and steps > stretch


def _every(stretch: int) -> str:
    return "step" if stretch == 1 else f"{stretch} steps"


def labelled(solver: GridSolver, fields: Fields) -> xr.Dataset:
    """Return the steps of a simulation with their grid and times."""
    spec = solver.spec
    return spec.dataset(fields, spec.times, {p.name: p.low for p in spec.parameters})


def on_grid(coarse: xr.Dataset, fine: GridSolver) -> list[Fields]:
    """Return a coarse solution on the grid and times of `fine`, in one or two ways."""
    spec = fine.spec
    targets = {c.name: np.array(c.values) for c in spec.coordinates}
    extrapolate = {"fill_value": "extrapolate"}
    if coarse.sizes["time"] < spec.steps:
        coarse = coarse.interp(time=np.array(spec.times), kwargs=extrapolate)
    ways = [coarse.interp(targets, kwargs=extrapolate)]
    if not isinstance(fine, Heat2D):
        # Both others are periodic; cell averages begin half a cell off.
        ways.append(trigonometric(coarse, targets))
    names, order = [v.name for v in spec.variables], ("time", *spec.dims)
    return [
        np.stack([way[name].transpose(*order).values for name in names], axis=1)
        for way in ways
    ]


def trigonometric(coarse: xr.Dataset, targets: dict[str, np.ndarray]) -> xr.Dataset:
    """Return periodic fields at other points, exact for waves that the grid holds."""
    for name, target in targets.items():
        points = coarse[name].values
        if len(points) == len(target):
            continue
        step = points[1] - points[0]
        shift = (target[0] - points[0]) / step
        axis = next(iter(coarse.data_vars.values())).dims.index(name)
        waves = np.fft.rfftfreq(len(points)) * 2j * np.pi * shift

        def moved(
            values: np.ndarray,
            waves: np.ndarray = waves,
            axis: int = axis,
            count: int = len(target),
        ) -> np.ndarray:
            rows = np.moveaxis(values, axis, -1)
            turned = np.fft.rfft(rows) * np.exp(waves)
            rows = np.fft.irfft(turned, values.shape[axis])
            return np.moveaxis(resample(rows, count, axis=-1), -1, axis)

        coarse = xr.Dataset(
            {key: (value.dims, moved(value.values)) for key, value in coarse.items()},
            {**{k: v for k, v in coarse.coords.items() if k != name}, name: target},
        )
    return coarse
