"""Burgers' equation from an initial state that it is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from surrogate_flow.fields.spec import Coordinate, FieldSpec, Variable
from surrogate_flow.solvers.combined1d import evolve
from surrogate_flow.solvers.grid import GridSolver

__all__ = ["BurgersFromState"]


class BurgersFromState(GridSolver):
    """∂u/∂t + ∂(u²/2)/∂x = ν ∂²u/∂x², periodic on [0, 1): u(x, 0) -> u(x, t).

    The initial state is an input field; there is no parameter.

    Parameters
    ----------
    cells : int
        3 at least; default 256. u is the average over each.
    steps : int
        Number of steps of a simulation; default 1, the state at the end.
    time_step : float
        Time between two steps; default 1.0. Step k is at ``(k + 1) * time_step``.
    viscosity : float
        ν; default 0.1.

    Raises
    ------
    ArgumentError
        If an argument is not positive, or there are fewer than 3 cells.

    Notes
    -----
    The scheme is that of `Combined1D`: fifth-order reconstruction, exact diffusion.

    References
    ----------
    Z. Li et al., "Fourier Neural Operator for Parametric Partial Differential
    Equations", ICLR 2021, arXiv 2010.08895, section 5.1: u(x, 0) is drawn from
    N(0, 625 (-Δ + 25 I)^-2), as in ``workflows/burgers_u0.yaml``, and u(x, 1) is asked
    for.

    Examples
    --------
    >>> solver = BurgersFromState(cells=4)
    >>> (u,) = solver.solve({"initial": np.array([1.0, 2.0, 1.0, 0.0])})
    >>> u.u[0].values.round(3)
    array([1.004, 1.002, 0.996, 0.998])
    """

    def __init__(
        self,
        cells: int = 256,
        *,
        steps: int = 1,
        time_step: float = 1.0,
        viscosity: float = 0.1,
    ) -> None:
        super().__init__(steps, time_step, "")
        self.cells = self._count("cells", cells)
        if cells < 3:
            raise self._wrong("cells", "3 at least", cells)
        self.viscosity = self._positive("viscosity", viscosity, "")

    @cached_property
    def spec(self) -> FieldSpec:
        """The initial state in, averages of u out."""
        centres = tuple((i + 0.5) / self.cells for i in range(self.cells))
        return FieldSpec(
            parameters=(),
            variables=(Variable("u", "1", "velocity"),),
            dims=("x",),
            shape=(self.cells,),
            times=self.times,
            coordinates=(Coordinate("x", "x", centres, "1"),),
            inputs=(Variable("initial", "1", "initial velocity"),),
        )

    def fields(
        self, parameters: Mapping[str, Any]
    ) -> Iterator[Float[np.ndarray, "1 1 x"]]:
        """Yield the averages of u of each step; see `GridSolver.fields`."""
        course = evolve(
            parameters["initial"], self.times, length=1.0, beta=self.viscosity
        )
        for u in course:
            yield u[np.newaxis, np.newaxis]
