"""Cheaper settings of a solver, and what they give on the grid of the full one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy.signal import resample

from surrogate_flow.solvers import Combined1D, Heat2D, NavierStokes2D, Solver

__all__ = ["LADDERS", "Fields", "on_grid", "trigonometric"]

Fields = Float[np.ndarray, "time channel *space"]


def heat(solver: Heat2D) -> Iterator[tuple[str, Solver]]:
    """Yield coarser settings of the heat solver."""
    nx, ny = solver.cells
    bounds = {"low": solver.low, "high": solver.high}
    for part in (1, 2, 5, 10):
        for stretch in (1, 2, 5, 10):
            yield (
                f"{nx // part} x {ny // part} cells, steps {stretch} x as long",
                Heat2D(
                    (nx // part, ny // part),
                    solver.size,
                    steps=solver.steps // stretch,
                    time_step=solver.time_step * stretch,
                    diffusivity=solver.diffusivity,
                    **bounds,
                ),
            )


def combined(solver: Combined1D) -> Iterator[tuple[str, Solver]]:
    """Yield coarser settings of WENO5."""
    kept = solver.cells
    fine = [n * kept for n in range(solver.fine_cells // kept, 0, -1)]
    for n in (*fine, *(n for n in (32, 25, 20, 16, 12, 10, 8) if n < kept)):
        yield (
            f"WENO5 on {n} cells",
            Combined1D(
                min(n, kept),
                n,
                length=solver.length,
                steps=solver.steps,
                time_step=solver.time_step,
                alpha=solver.alpha,
                beta=solver.beta,
                gamma=solver.gamma,
            ),
        )


def navier_stokes(solver: NavierStokes2D) -> Iterator[tuple[str, Solver]]:
    """Yield coarser settings of the pseudo-spectral solver."""
    modes = len(solver.initial.parameters)
    for points in (32, 24, 20, 16, 12, 10):
        for substep in (0.05, 0.2, 1.0):
            if points <= solver.points and substep >= solver.substep:
                yield (
                    f"{points} x {points} points, substeps of {substep} s",
                    NavierStokes2D(
                        points,
                        steps=solver.steps,
                        time_step=solver.time_step,
                        modes=modes,
                        viscosity=solver.viscosity,
                        forcing=solver.forcing,
                        substep=substep,
                    ),
                )


# The solvers that can be had coarser, and how.
LADDERS: dict[type, Callable[[Any], Iterator[tuple[str, Solver]]]] = {
    Heat2D: heat,
    Combined1D: combined,
    NavierStokes2D: navier_stokes,
}


def on_grid(coarse: xr.Dataset, fine: Solver) -> list[Fields]:
    """Return a coarse solution on the grid and times of `fine`, in two ways."""
    spec = fine.spec
    targets = {c.name: np.array(c.values) for c in spec.coordinates}
    extrapolate = {"fill_value": "extrapolate"}
    times = coarse.interp(time=np.array(spec.times), kwargs=extrapolate)
    linear = times.interp(targets, kwargs=extrapolate)
    ways = [linear]
    if not isinstance(fine, Heat2D):
        # Both others are periodic; cell averages begin half a cell off.
        ways.append(trigonometric(times, targets))
    names = [v.name for v in spec.variables]
    order = ("time", *spec.dims)
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
