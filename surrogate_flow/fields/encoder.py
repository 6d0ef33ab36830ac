"""Conversion of a solver's datasets to arrays, on the worker."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import xarray as xr
from jaxtyping import Float32

from surrogate_flow.fields.errors import UserError, line_at
from surrogate_flow.fields.masks import (
    KNOWN_FILLS,
    MASKED,
    declared_fills,
    only_marks,
    without_fills,
)
from surrogate_flow.fields.names import nearest
from surrogate_flow.fields.positions import Misplaced, Positions
from surrogate_flow.fields.quantities import LEVELS, Variable
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.staggered import boxed, grids

__all__ = ["TIME_TOLERANCE", "Encoder", "SpecMismatch"]

TIME_TOLERANCE = 0.01  # of the distance between steps


class SpecMismatch(UserError, ValueError):
    """A solver has yielded something else than its spec describes."""


class Encoder:
    """xr.Dataset -> float32 ``(time, channel, *space)``, checked against the spec.

    Fields become z = (u - offset) / scale, with the offset and scale of each variable.
    Points in another order than the spec's are put right by their coordinates.

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
        self._grids: list[Encoder] = []
        if spec.staggered:
            self._grids = [Encoder(grid, simulation, source) for grid in grids(spec)]
        vectors = dict.fromkeys(v.of for v in spec.variables if v.of)
        self._vectors = {
            name: [v.name for v in spec.variables if v.of == name] for name in vectors
        }
        self._times = np.array(spec.times, dtype=np.float64)
        self._exact = self._times.tolist()
        gaps = np.diff(self._times)
        if len(gaps):
            near = np.minimum(np.append(gaps, gaps[-1]), np.append(gaps[0], gaps))
        else:
            near = np.maximum(np.abs(self._times), 1.0)
        self._tolerance = TIME_TOLERANCE * near
        self._positions = Positions(spec)
        # Of each variable: extremes in single and in double precision.
        self._extremes = [(np.inf, -np.inf, np.inf, -np.inf)] * len(self._names)
        self._cast: dict[str, str] = {}
        # Where masked variables, by channel, are NaN.
        self._masks: dict[int, np.ndarray] = {}

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
            between steps); if there are too many steps; if a coordinate of the spec has
            other values, in any order; if a value is NaN, infinite or a fill value,
            before or after the cast; if a masked variable is NaN at all points of a
            step, or at others than in the first one.
        """
        if not isinstance(dataset, xr.Dataset):
            raise self._mismatch(
                step,
                "expected an xarray.Dataset with the variable(s) "
                f"{', '.join(map(repr, self._names))} and the coordinate 'time', got "
                f"{type(dataset).__name__}. Yield xr.Dataset({{name: (dims, array)}}, "
                "{'time': [t]}), or data_array.to_dataset(name=name).",
            )
        if self._vectors:
            dataset = self._in_components(dataset, step)
        if set(dataset.data_vars) != self._known:
            raise self._wrong_names(dataset, step)
        if self._grids:
            return self._on_their_grids(dataset, step)
        variables = dataset.variables
        count = self._check_time(dataset, step)
        try:
            orders = self._positions.orders(variables)
        except Misplaced as error:
            raise self._mismatch(step, str(error)) from error
        steps = np.empty((count, len(self._names), *self.spec.shape), np.float32)
        finite = True
        with np.errstate(over="ignore", invalid="ignore"):
            for channel, name in enumerate(self._names):
                values = self._values(name, variables[name], step, count)
                if values.dtype != np.float32:
                    self._cast[name] = str(values.dtype)
                for axis, order in orders:
                    values = values.take(order, axis + 1)
                variable, of_one = self.spec.variables[channel], steps[:, channel]
                if variable.masked:
                    values = without_fills(variables[name], values)
                of_one[...] = variable.normalised(values)
                low, high = _ends(of_one, variable.masked)
                finite &= -np.inf < low <= high < np.inf
                ends = (low, high) if variable.plain else _ends(values, variable.masked)
                self._require_no_fill(name, variables[name], values, ends, step)
                self._extend(channel, low, high, values)
                if variable.masked:
                    self._require_mask(channel, of_one, step)
        if not finite:
            raise self._not_finite(dataset, step, steps)
        return steps

    @property
    def cast(self) -> str:
        """Which variables have come in another type than they are kept in, or ""."""
        given = ", ".join(f"{name} ({kind})" for name, kind in self._cast.items())
        return f"{given}: cast to single precision (float32) on the workers" * bool(
            given
        )

    @property
    def lost(self) -> str:
        """Which variable has varied by too little for single precision, or ""."""
        for encoder in self._grids:
            if encoder.lost:
                return encoder.lost
        for variable in self.spec.variables if not self._grids else ():
            kept = self.kept(variable)
            if kept != variable:
                offset, scale = f"{kept.offset:.6g}", f"{kept.scale:.0e}"
                # Without a number that differs from simulation to simulation.
                return (
                    f"Variable {variable.name!r} varies by about {scale} around "
                    f"{offset}, of which single precision keeps a few values at most. "
                    f"Write Variable({variable.name!r}, ..., offset={offset}, "
                    f"scale={scale}) in the solver's spec: it is then kept and learnt "
                    "as (u - offset) / scale."
                )
        return ""

    def kept(self, variable: Variable) -> Variable:
        """Return it, with offset and scale if single precision loses its variation."""
        channel = self.spec.variables.index(variable)
        low, high, least, most = self._extremes[channel]
        spacing = np.spacing(np.float32(max(abs(low), abs(high))))
        # Less than the rounding of double precision is no variation.
        if high - low >= LEVELS * spacing or most - least <= 1e-12 * abs(most):
            return variable
        mean = variable.offset + variable.scale * (least + most) / 2
        scale = 10.0 ** round(np.log10(variable.scale * (most - least)))
        return replace(variable, offset=float(f"{mean:.6g}"), scale=scale)

    def _extend(
        self, channel: int, low: float, high: float, values: np.ndarray
    ) -> None:
        """Note the extremes, in double precision only while the others are close."""
        variable = self.spec.variables[channel]
        below, above, least, most = self._extremes[channel]
        low, high = min(low, below), max(high, above)
        if high - low < 1e-4 * max(abs(low), abs(high)):
            exact = variable.normalised(values.astype(np.float64, copy=False))
            least = min(least, float(np.fmin.reduce(exact, axis=None)))
            most = max(most, float(np.fmax.reduce(exact, axis=None)))
        self._extremes[channel] = low, high, least, most

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

    def _on_their_grids(
        self, dataset: xr.Dataset, step: int
    ) -> Float32[np.ndarray, "time channel *space"]:
        """Convert the variables of each grid, and put them into the box of all."""
        found = dict[str, np.ndarray]()
        for encoder in self._grids:
            names = encoder._names
            on_it = encoder.convert(dataset[names], step)
            found |= {name: on_it[:, k] for k, name in enumerate(names)}
            self._cast |= encoder._cast
        spec = self.spec
        fields = [boxed(spec, v, found[v.name]) for v in spec.variables]
        return np.stack(fields, axis=1)

    def _in_components(self, dataset: xr.Dataset, step: int) -> xr.Dataset:
        """Return a dataset with the components of its vectors, each by its name."""
        for name, parts in self._vectors.items():
            if name not in dataset.data_vars:
                continue
            variable = dataset.variables[name]
            more = [dim for dim in variable.dims if dim not in self._dims]
            if [variable.sizes[dim] for dim in more] != [len(parts)]:
                raise self._mismatch(
                    step,
                    f"vector {name!r} expected the dims {self._dims} and one of its "
                    f"{len(parts)} components, got {dict(variable.sizes)}. Or yield "
                    f"{', '.join(map(repr, parts))}, each as a variable.",
                )
            fields = {part: variable.isel({more[0]: k}) for k, part in enumerate(parts)}
            dataset = dataset.drop_vars(name).assign(fields)
        return dataset

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
        # `time.values` takes four times as long.
        indexed = isinstance(time, xr.IndexVariable)
        got = dataset.get_index("time").values if indexed else time.values
        first, last = step, step + len(got)
        if last > self.spec.steps:
            raise self._mismatch(
                step,
                f"expected {self.spec.steps} steps in all, got at least {last}. If the "
                "solver yields its initial state, add its time to the spec, or leave "
                "it out.",
            )
        if got.tolist() == self._exact[first:last]:
            return len(got)
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
        for channel, variable in enumerate(self.spec.variables):
            values = steps[:, channel].reshape(len(steps), -1)
            if variable.masked and not np.isnan(values).all(axis=1).any():
                bad[:, channel] = np.isinf(steps[:, channel])
        row, channel = np.argwhere(bad.any(axis=tuple(range(2, bad.ndim))))[0]
        name = self._names[channel]
        source = dataset.variables[name].transpose(*self._dims).values[row]
        got = source[bad[row, channel]].flat[0] if source.ndim else source
        count, size = np.count_nonzero(bad[row, channel]), bad[row, channel].size
        what, cause = "NaN or infinite", ""
        if np.isfinite(got):
            what, cause = "too large for single precision", "a field not scaled, or "
        remedy = f"{cause}an unstable time step. Lower it, or narrow the parameters."
        if np.isnan(got) and step + row == 0 and count < size:
            remedy = f"points where the field is not defined (a mask). {MASKED}"
        return self._mismatch(
            step + row,
            f"variable {name!r} expected finite numbers, got {count} of {size} cells "
            f"{what} (the first: {got:.6g}). Usual cause: {remedy}",
        )

    def _require_mask(
        self, channel: int, values: Float32[np.ndarray, " time *space"], step: int
    ) -> None:
        """Refuse NaN at other points than in the first step that was seen."""
        missing = np.isnan(values)
        mask = self._masks.setdefault(channel, missing[0])
        changed = (missing != mask).reshape(len(missing), -1).sum(axis=1)
        if changed.any():
            row = int((changed > 0).argmax())
            more = np.count_nonzero(missing[row] & ~mask)
            raise self._mismatch(
                step + row,
                f"variable {self._names[channel]!r}, which is masked, expected NaN at "
                f"the same {np.count_nonzero(mask)} of {mask.size} points in all steps "
                f"of a simulation, got {more} more and {changed[row] - more} fewer. "
                "Usual cause: an unstable time step, or a mask that moves. Fill that "
                "with a number, such as dataset.fillna(0).",
            )

    def _require_no_fill(
        self,
        name: str,
        given: xr.Variable,
        values: np.ndarray,
        ends: tuple[float, float],
        step: int,
    ) -> None:
        """Refuse what is declared to mark points, or is known to and far from all."""
        declared = declared_fills(given)
        guessed = set() if "_FillValue" in given.attrs else {*ends} & KNOWN_FILLS
        for fill in declared | guessed:
            marked = values.astype(np.float32) == fill
            counts = marked.reshape(len(marked), -1).sum(axis=1)
            if fill in declared:
                wrong = counts.any()
            else:
                others = values[~(marked | np.isnan(values))].astype(float)
                wrong = only_marks(fill, counts.max() > 1, others)
            if wrong:
                row = int(counts.argmax())
                raise self._mismatch(
                    step + row,
                    f"variable {name!r} expected numbers at every point, got the fill "
                    f"value {fill:.6g} at {counts[row]} of {marked[0].size} (a mask). "
                    f"{MASKED} A field in which it is a number has "
                    "attrs={'_FillValue': np.nan}.",
                )


def _ends(values: np.ndarray, masked: bool) -> tuple[float, float]:
    """Return the extremes: NaN if there is any, or, of masked values, nothing else."""
    low = (np.fmin if masked else np.minimum).reduce(values, axis=None)
    high = (np.fmax if masked else np.maximum).reduce(values, axis=None)
    return float(np.float32(low)), float(np.float32(high))


def _are_numbers(time: xr.Variable) -> bool:
    return time.dims == ("time",) and bool(time.size) and time.dtype.kind in "fiu"
