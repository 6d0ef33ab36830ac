"""What solvers share that compute arrays on one grid: checks, time axis, labels."""

from __future__ import annotations

import copyreg
import math
import sys
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from surrogate_flow.fields.encoder import SpecMismatch
from surrogate_flow.fields.errors import ArgumentError, line_at
from surrogate_flow.fields.inputs import split_inputs, stacked_inputs
from surrogate_flow.fields.quantities import number
from surrogate_flow.solvers.solver import TOGETHER, Run, Solver

__all__ = ["GridSolver"]

# Labels and conversion of one step alone would take as long as a step of `Heat2D`.
_SMALL = 2**18  # bytes of steps that go to the trainer together


def _reduced(made: cached_property[Any]) -> tuple[Any, ...]:
    state = {name: value for name, value in vars(made).items() if name != "lock"}
    return cached_property, (made.func,), state


# A solver of a script goes to the workers with its class, whose cached properties have
# a lock in Python 3.11, and could not be pickled by anybody.
if sys.version_info < (3, 12):
    copyreg.pickle(cached_property, _reduced)


class GridSolver(Solver):
    """A solver that yields arrays at evenly spaced times; its datasets are made here.

    A subclass defines `spec`, as a cached property, and `fields`. It checks its
    arguments with `_count`, `_positive` and `_bounds`, which name them in their errors.
    Cached properties are left out when the solver is pickled, since they are as long as
    the grid; a worker computes them again.

    Parameters
    ----------
    steps : int
        Number of steps of a simulation; the initial state is not one.
    time_step : float
        Time between two steps. Step k is at ``(k + 1) * time_step``.
    units : str
        Of the time step, for its error; "" for none.

    Raises
    ------
    ArgumentError
        If the steps are no whole number or the time step is not positive.
    """

    def __init__(self, steps: int, time_step: float, units: str = "s") -> None:
        self.steps = self._count("steps", steps)
        self.time_step = self._positive("time_step", time_step, units)

    @property
    def times(self) -> tuple[float, ...]:
        """The time of each step."""
        return tuple((k + 1) * self.time_step for k in range(self.steps))

    @abstractmethod
    def fields(
        self, parameters: Mapping[str, Any]
    ) -> Iterator[Float[np.ndarray, "time channel *space"]]:
        """Yield the next steps, one or more at once, in the order of the spec.

        Parameters
        ----------
        parameters : mapping of str to float or array
            As of `Solver.solve`.

        Yields
        ------
        array
            Of real numbers.
        """

    def solve(self, parameters: Mapping[str, Any]) -> Iterator[xr.Dataset]:
        """Yield `fields` as datasets; see `Solver.solve`.

        They share their coordinates.

        Raises
        ------
        ArgumentError
            If a parameter is unknown, missing or not a finite number, or an input field
            is missing.
        SpecMismatch
            If `fields` yields another shape, no real numbers, or too many steps.
        """
        yield from self._labelled(parameters, 0.0)

    def start(self, run: Run) -> Iterator[xr.Dataset]:
        """Yield what `solve` does, small steps that take little time together."""
        if type(self).solve is not GridSolver.solve:
            return self.solve(run.given)
        return self._labelled(run.given, TOGETHER)

    def _labelled(
        self, parameters: Mapping[str, Any], seconds: float
    ) -> Iterator[xr.Dataset]:
        spec = self.spec
        own, given = split_inputs(spec, parameters)
        spec.vector(own)
        if spec.inputs:
            stacked_inputs(spec, given, type(self).__name__)
        blank = np.broadcast_to(np.float32(0), (spec.steps, *spec.step_shape))
        labels = spec.dataset(blank, spec.times, parameters)
        variables, indexes = dict(labels.variables), dict(labels.xindexes)
        coords, sizes = set(labels.coords), dict(labels.sizes)
        named = [
            (v.name, labels[v.name].dims, labels[v.name].attrs) for v in spec.variables
        ]
        first, staggered = 0, spec.staggered
        for steps in self._blocks(self.fields(parameters), seconds):
            last = first + len(steps)
            if (first, last) not in self._times:
                time = labels["time"][first:last].to_dataset(name="_")
                self._times[first, last] = (
                    time.variables["time"],
                    time.xindexes["time"],
                )
            variables["time"], indexes["time"] = self._times[first, last]
            sizes["time"] = last - first
            for i, (name, dims, attrs) in enumerate(named):
                values = spec.part(steps, i) if staggered else steps[:, i]
                variables[name] = xr.Variable(dims, values, attrs, fastpath=True)
            # Xarray's checks would take three times as long as a step of `Heat2D`.
            yield xr.Dataset._construct_direct(
                dict(variables), set(coords), dict(sizes), indexes=dict(indexes)
            )
            first = last

    def _blocks(
        self, fields: Iterator[np.ndarray], seconds: float
    ) -> Iterator[Float[np.ndarray, "time channel *space"]]:
        """Yield checked steps: those of so many seconds together, as far as small."""
        shape, most = self.spec.step_shape, self.spec.steps
        held: list[np.ndarray] = []
        count, begin = 0, perf_counter()
        try:
            for given in fields if isinstance(fields, Iterable) else [fields]:
                steps, got = _real(given)
                if steps.shape[1:] != shape or count + len(steps) > most:
                    raise SpecMismatch(
                        f"{type(self).__name__}.fields: expected (time, channel, "
                        f"*space) = (up to {most - count}, {shape}), got {got} after "
                        f"{count} steps. Usual causes: ghost cells, return in place of "
                        "yield, a step without its axis of time (yield u[None]), or an "
                        f"initial state that the spec's times lack.{line_at(fields)}"
                    )
                count += len(steps)
                held.append(steps)
                full = steps.nbytes * (len(held) + 1) > _SMALL
                if full or perf_counter() - begin >= seconds:
                    block, held = held, []
                    yield block[0] if len(block) == 1 else np.concatenate(block)
                    begin = perf_counter()
        except Exception:
            if held:
                yield np.concatenate(held)
            raise
        if held:
            yield np.concatenate(held)

    @cached_property
    def _times(self) -> dict[tuple[int, int], tuple[xr.Variable, xr.Index]]:
        """The labels of the steps from one to another, which all simulations share."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        kind = type(self)
        return {
            name: value
            for name, value in vars(self).items()
            if not isinstance(getattr(kind, name, None), cached_property)
        }

    def _wrong(
        self, argument: str, expected: str, got: object, remedy: str = ""
    ) -> ArgumentError:
        """Return the error for an argument or a parameter."""
        name = f"{type(self).__name__}: {argument}"
        return ArgumentError(name, expected, got, remedy)

    def _number(self, name: str, value: float) -> float:
        return number(value, f"{type(self).__name__}: {name}")

    def _count(self, name: str, value: float) -> int:
        """Check and return a whole number >= 1."""
        if not (self._number(name, value) >= 1 and value % 1 == 0):
            raise self._wrong(name, "a whole number >= 1", value)
        return int(value)

    def _positive(self, name: str, value: float, units: str) -> float:
        """Check and return a finite quantity > 0."""
        if not 0 < self._number(name, value) < math.inf:
            remedy = f"Give it in {units}." if units else ""
            raise self._wrong(name, "finite and > 0", value, remedy)
        return float(value)

    def _pair(self, name: str, values: tuple[float, float]) -> tuple[float, float]:
        """Check that there are two values, and return them."""
        if not isinstance(values, Sequence | np.ndarray) or len(values) != 2:
            got = tuple(values) if isinstance(values, Iterable) else values
            raise self._wrong(name, "two values", got)
        return values[0], values[1]

    def _bounds(
        self,
        name: str,
        values: tuple[float, float],
        units: str,
        *,
        least: float = -math.inf,
        may_be_equal: bool = False,
    ) -> tuple[float, float]:
        """Check and return a lower and an upper bound, in that order."""
        low, high = (self._number(name, v) for v in self._pair(name, values))
        ordered = low <= high if may_be_equal else low < high
        if not (ordered and least <= low and -math.inf < low and high < math.inf):
            expected = f"finite, low {'<=' if may_be_equal else '<'} high"
            if least > -math.inf:
                expected += f", low >= {least:g}"
            remedy = f"Give both in {units}." if units else ""
            raise self._wrong(name, expected, (low, high), remedy)
        return low, high


def _real(given: Any) -> tuple[np.ndarray, str]:
    """Return numbers in one of two precisions, and their shape as text; none else."""
    try:
        array = np.asarray(given)
    except Exception:  # of any type, by what was given
        array = np.empty(())
    if array.ndim and array.dtype.kind in "biuf":
        # In double precision a small variation around a large value is still there; a
        # copy in both, because a solver may go on with its array.
        double = array.dtype == np.float64
        array = array.astype(np.float64 if double else np.float32, order="C")
        return array, f"the shape {array.shape}"
    kind = f" of {array.dtype}" if isinstance(given, np.ndarray) else ""
    return np.empty((0,)), f"{type(given).__name__}{kind}"
