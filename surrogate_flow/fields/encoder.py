"""Conversion of a solver's datasets to arrays, on the worker."""

from __future__ import annotations

import numpy as np
import xarray as xr
from jaxtyping import Float32

from surrogate_flow.fields.errors import UserError, line_at
from surrogate_flow.fields.names import nearest
from surrogate_flow.fields.spec import FieldSpec

__all__ = ["TIME_TOLERANCE", "Encoder", "SpecMismatch"]

TIME_TOLERANCE = 0.01  # of the distance between steps


class SpecMismatch(UserError, ValueError):
    """A solver has yielded something else than its spec describes."""


class Encoder:
    """xr.Dataset -> float32 ``(time, channel, *space)``, checked against the spec.

    Parameters
    ----------
    spec : FieldSpec
        Describes what the solver yields.
    simulation : int or str
        Named in every error: the number of a simulation, or a name.
    source : generator, optional
        Yields the datasets; errors have the line of the user's code at which it waits.

    Examples
    --------
    >>> from surrogate_flow.fields import Variable
    >>> spec = FieldSpec((), (Variable("u"),), ("x",), (3,), times=(0.5, 1.0))
    >>> encoder = Encoder(spec, simulation=7)
    >>> u = xr.Dataset({"u": (("x", "time"), np.ones((3, 1)))}, {"time": [0.5]})
    >>> encoder.convert(u, step=0).shape
    (1, 1, 3)
    """

    def __init__(
        self, spec: FieldSpec, simulation: int | str, source: object = None
    ) -> None:
        self.spec = spec
        self.simulation, self._source = simulation, source
        self._names = [v.name for v in spec.variables]
        self._known = frozenset(self._names)
        self._dims = ("time", *spec.dims)
        self._times = np.array(spec.times, dtype=np.float64)
        gaps = np.diff(self._times)
        if len(gaps):
            near = np.minimum(np.append(gaps, gaps[-1]), np.append(gaps[0], gaps))
        else:
            near = np.maximum(np.abs(self._times), 1.0)
        self._tolerance = TIME_TOLERANCE * near

    def convert(
        self, dataset: xr.Dataset, step: int
    ) -> Float32[np.ndarray, "time channel *space"]:
        """Return the steps of the dataset as a new contiguous array.

        Parameters
        ----------
        dataset : xarray.Dataset
            Every variable of the spec, its dims in any order, and the coordinate
            ``time``.
        step : int
            The step that the dataset must begin with.

        Raises
        ------
        SpecMismatch
            If it is no dataset; if a variable is unknown or missing, has other dims,
            another shape or no real numbers; if ``time`` is missing, out of order,
            repeated, skipped or not in the spec (within a hundredth of the distance
            between steps); if there are too many steps; if a value is NaN or infinite,
            before or after the cast.
        """
        if not isinstance(dataset, xr.Dataset):
            raise self._mismatch(
                step,
                "expected an xarray.Dataset with the variable(s) "
                f"{', '.join(map(repr, self._names))} and the coordinate 'time', got "
                f"{type(dataset).__name__}. Yield xr.Dataset({{name: (dims, array)}}, "
                "{'time': [t]}), or data_array.to_dataset(name=name).",
            )
        if set(dataset.data_vars) != self._known:
            raise self._wrong_names(dataset, step)
        variables = dataset.variables
        count = self._check_time(dataset, step)
        steps = np.empty((count, len(self._names), *self.spec.shape), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for channel, name in enumerate(self._names):
                steps[:, channel] = self._values(name, variables[name], step, count)
            # A sum is finite only if every term is, and takes no second array.
            finite = np.isfinite(steps.sum())
        if not finite and not np.isfinite(steps).all():
            raise self._not_finite(dataset, step, steps)
        return steps

    def begins_at(self, dataset: xr.Dataset, step: int) -> bool:
        """Whether a dataset begins with a step, as far as its time is one at all."""
        try:
            time = float(dataset["time"].values.flat[0])
        except (AttributeError, TypeError, LookupError, ValueError):
            return False  # `convert` says what is wrong with it.
        return bool(abs(time - self._times[step]) <= self._tolerance[step])

    def _mismatch(self, step: int, text: str) -> SpecMismatch:
        number = isinstance(self.simulation, int)
        name = f"Simulation {self.simulation}" if number else self.simulation
        return SpecMismatch(f"{name}, step {step}: {text}{line_at(self._source)}")

    def _values(
        self, name: str, variable: xr.Variable, step: int, count: int
    ) -> np.ndarray:
        dims = variable.dims
        if dims != self._dims:
            if sorted(map(str, dims)) != sorted(self._dims):
                raise self._mismatch(
                    step,
                    f"variable {name!r} expected the dims {self._dims}, got {dims}. "
                    "Use rename or expand_dims in the solver, or correct its spec.",
                )
            variable = variable.transpose(*self._dims)
        values = variable.values
        if values.shape != (count, *self.spec.shape):
            raise self._mismatch(
                step,
                f"variable {name!r} expected the shape {(count, *self.spec.shape)} "
                f"along {self._dims}, got {values.shape}. Cut off boundary or ghost "
                "cells, or correct the spec.",
            )
        if values.dtype.kind not in "fiu":
            parts = "Yield its real and imaginary part as two variables."
            raise self._mismatch(
                step,
                f"variable {name!r} expected real numbers, got dtype {values.dtype}. "
                + (parts if values.dtype.kind == "c" else "Cast it in the solver."),
            )
        return values

    def _check_time(self, dataset: xr.Dataset, step: int) -> int:
        time = dataset.variables["time"] if "time" in dataset.coords else None
        if time is None or not _are_numbers(time):
            shown = "none"
            if time is not None:
                shown = f"dims {time.dims}, shape {time.shape}, dtype {time.dtype}"
            raise self._mismatch(
                step,
                "expected a coordinate 'time' as one or more numbers along the dim "
                f"'time', got {shown}. Use dataset.expand_dims(time=[t]) with t as a "
                "plain number.",
            )
        got = time.values
        first, last = step, step + len(got)
        if last > self.spec.steps:
            raise self._mismatch(
                step,
                f"expected {self.spec.steps} steps in all, got at least {last}. If the "
                "solver yields its initial state, add its time to the spec, or leave "
                "it out.",
            )
        # Written so that a NaN is wrong as well.
        right = np.abs(got - self._times[first:last]) <= self._tolerance[first:last]
        if not right.all():
            raise self._wrong_time(first + int(right.argmin()), got[right.argmin()])
        return len(got)

    def _wrong_time(self, step: int, got: float) -> SpecMismatch:
        near = int(np.abs(self._times - got).argmin())
        if not abs(self._times[near] - got) <= self._tolerance[near]:
            what = f"no time of the spec (the nearest is {self._times[near]:.9g})"
            cause = "another time step, or rounding that adds up"
        elif near < step:
            what = f"the time of step {near}, which it has yielded before"
            cause = "a time loop that yields a step twice, or runs backwards"
        else:
            what = f"the time of step {near}: steps {step} to {near - 1} are skipped"
            cause = "a solver that writes only every n-th step"
        units = f" {self.spec.time_units}" if self.spec.time_units else ""
        return self._mismatch(
            step,
            f"expected time {self._times[step]:.9g}{units}, got {got:.9g}{units}, "
            f"{what}. Usual cause: {cause}. Yield each of the spec's times once.",
        )

    def _wrong_names(self, dataset: xr.Dataset, step: int) -> SpecMismatch:
        names = [str(name) for name in dataset.data_vars]
        missing = [name for name in self._names if name not in names]
        if missing:
            return self._mismatch(
                step,
                f"expected the variable {missing[0]!r}, got {names}. Spell it as the "
                "spec does; it must not be a coordinate.",
            )
        unknown = next(name for name in names if name not in self._known)
        return self._mismatch(
            step,
            f"unknown variable {unknown!r}. {nearest(unknown, self._names)} Drop it in "
            "the solver, or add it to the spec.",
        )

    def _not_finite(
        self, dataset: xr.Dataset, step: int, steps: np.ndarray
    ) -> SpecMismatch:
        bad = ~np.isfinite(steps)
        row, channel = np.argwhere(bad.any(axis=tuple(range(2, bad.ndim))))[0]
        name = self._names[channel]
        source = dataset.variables[name].transpose(*self._dims).values[row]
        got = source[bad[row, channel]].flat[0] if source.ndim else source
        what, cause = "NaN or infinite", ""
        if np.isfinite(got):
            what, cause = "too large for single precision", "a field not scaled, or "
        return self._mismatch(
            step + row,
            f"variable {name!r} expected finite numbers, got "
            f"{np.count_nonzero(bad[row, channel])} of {bad[row, channel].size} cells "
            f"{what} (the first: {got:.6g}). Usual cause: {cause}an unstable time "
            "step. Lower it, or narrow the parameters.",
        )


def _are_numbers(time: xr.Variable) -> bool:
    return time.dims == ("time",) and bool(time.size) and time.dtype.kind in "fiu"
