"""Steady flow through a porous medium."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import sparse
from scipy.sparse.linalg import spsolve

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.spec import Coordinate, FieldSpec, Variable
from surrogate_flow.solvers.grid import GridSolver

__all__ = ["Darcy"]


class Darcy(GridSolver):
    """-∇·(a ∇u) = 1 on (0, 1)², u = 0 at the border: a(x, y) -> u(x, y).

    a is the permeability, an input field, and u the pressure, both at the centres of
    square cells. There is no parameter, and a single time, 1.

    Parameters
    ----------
    cells : int
        Along each side; default 64.

    Raises
    ------
    ArgumentError
        If there is no cell, or a permeability is not positive.

    Notes
    -----
    Finite volumes of second order: what flows through a face is driven by the
    difference between both centres, through a medium whose a is the harmonic mean of
    both cells, which is exact for layers between cells. Faces of the border are half a
    cell away from a centre. SuperLU solves the sparse system.

    References
    ----------
    Z. Li et al., "Fourier Neural Operator for Parametric Partial Differential
    Equations", ICLR 2021, arXiv 2010.08895, section 5.2: a is 12 or 3, by the sign of a
    Gaussian random field; ``workflows/darcy.yaml`` draws it so.

    Examples
    --------
    >>> solver = Darcy(cells=2)
    >>> (u,) = solver.solve({"permeability": np.full((2, 2), 3.0)})
    >>> u.pressure[0].values.round(4)  # a u = h² / 4
    array([[0.0208, 0.0208],
           [0.0208, 0.0208]])
    """

    def __init__(self, cells: int = 64) -> None:
        super().__init__(1, 1.0, "")
        self.cells = self._count("cells", cells)

    @cached_property
    def spec(self) -> FieldSpec:
        """The permeability in, the pressure out."""
        centres = tuple((i + 0.5) / self.cells for i in range(self.cells))
        return FieldSpec(
            parameters=(),
            variables=(Variable("pressure", "1", "pressure"),),
            dims=("x", "y"),
            shape=(self.cells, self.cells),
            times=self.times,
            coordinates=tuple(Coordinate(d, d, centres, "1") for d in "xy"),
            inputs=(Variable("permeability", "1", "permeability"),),
        )

    def fields(
        self, parameters: Mapping[str, Any]
    ) -> Iterator[Float[np.ndarray, "1 1 x y"]]:
        """Yield the pressure; see `GridSolver.fields`."""
        a = np.asarray(parameters["permeability"], dtype=np.float64)
        if not a.min() > 0:
            raise ArgumentError("Darcy: permeability", "more than 0", f"{a.min():g}")
        yield self._pressure(a, np.ones_like(a))[np.newaxis, np.newaxis]

    def _pressure(
        self, a: Float[np.ndarray, "x y"], source: Float[np.ndarray, "x y"]
    ) -> Float[np.ndarray, "x y"]:
        """Return u of -∇·(a ∇u) = source."""
        n = self.cells
        number = np.arange(n * n).reshape(n, n)
        total = np.zeros((n, n))
        rows, columns, values = [], [], []
        for axis in (0, 1):
            low, high = (a.take(range(k, n - 1 + k), axis) for k in (0, 1))
            through = 2 * low * high / (low + high)
            one, other = (number.take(range(k, n - 1 + k), axis) for k in (0, 1))
            for here, there in ((one, other), (other, one)):
                total.flat[here.ravel()] += through.ravel()
                rows.append(here.ravel())
                columns.append(there.ravel())
                values.append(-through.ravel())
            for end in (0, n - 1):
                border = number.take(end, axis)
                total.flat[border] += 2 * a.flat[border]
        entries = np.concatenate([*values, total.ravel()])
        places = (
            np.concatenate([*rows, number.ravel()]),
            np.concatenate([*columns, number.ravel()]),
        )
        matrix = sparse.csc_array((entries, places), shape=(n * n, n * n))
        right = source.ravel() / n**2
        solved = spsolve(matrix, right, permc_spec="MMD_AT_PLUS_A")
        pressure: Float[np.ndarray, "x y"] = solved.reshape(n, n)
        return pressure
