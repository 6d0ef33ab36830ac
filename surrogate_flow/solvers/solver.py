"""The contract of everything that simulates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import xarray as xr

from surrogate_flow.fields.spec import FieldSpec

__all__ = ["Solver", "spec_of"]


class Solver(ABC):
    """parameters -> u(t_1), u(t_2), ...: a simulation as a stream of datasets.

    A subclass says in `spec` what it will yield, and yields it from `solve`, which may
    be a plain Python generator. Both run without torch: solvers live on workers that
    never import it.

    Examples
    --------
    >>> import numpy as np
    >>> from surrogate_flow.fields import FieldSpec, Parameter, Variable
    >>> class Decay(Solver):
    ...     spec = FieldSpec(
    ...         parameters=(Parameter("rate", 0.1, 1.0, "1/s"),),
    ...         variables=(Variable("mass", "kg"),),
    ...         dims=(), shape=(), times=(1.0, 2.0), time_units="s",
    ...     )
    ...     def solve(self, parameters):
    ...         for t in self.spec.times:
    ...             mass = np.exp(-parameters["rate"] * t)
    ...             yield xr.Dataset({"mass": ("time", [mass])}, {"time": [t]})
    >>> [float(step["mass"][0].round(3)) for step in Decay().solve({"rate": 0.5})]
    [0.607, 0.368]
    """

    @property
    @abstractmethod
    def spec(self) -> FieldSpec:
        """What a simulation yields; known without running anything."""

    @abstractmethod
    def solve(self, parameters: Mapping[str, float]) -> Iterator[xr.Dataset]:
        """Yield the steps in order of time.

        Parameters
        ----------
        parameters : mapping of str to float
            One finite value for each parameter of the spec.

        Yields
        ------
        xarray.Dataset
            Every variable of the spec with the dims ``(time, *spec.dims)``; ``time`` is
            a coordinate, of any length >= 1, holding the next times of the spec. The
            dataset may be reused for the next step: it is copied before the generator
            goes on.
        """


def spec_of(solver: Solver) -> FieldSpec:
    """Return what a solver says that it yields.

    Raises
    ------
    ValueError
        If it is anything else than a `FieldSpec`.
    """
    spec = solver.spec
    if not isinstance(spec, FieldSpec):
        value = "" if callable(spec) else f" {str(spec)[:40]!r}"
        raise ValueError(
            f"{type(solver).__name__}.spec: expected a FieldSpec, got "
            f"{type(spec).__name__}{value}. Write spec = FieldSpec(...) in the class, "
            "or a method that returns one, with @property above it."
        )
    return spec
