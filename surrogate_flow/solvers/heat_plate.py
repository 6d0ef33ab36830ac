"""The heat equation on a plate with a hole: finite elements on triangles."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy import sparse
from scipy.sparse.linalg import SuperLU, splu

from surrogate_flow.fields.spec import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.solvers.arguments import require_counts, require_positive
from surrogate_flow.solvers.plate_mesh import PlateMesh
from surrogate_flow.solvers.solver import Solver

__all__ = ["HeatPlate"]


class HeatPlate(Solver):
    """∂u/∂t = a Δu on a plate with a round hole, u constant on the hole and each wall.

    u(x, y, t) is the temperature and a the diffusivity. The six parameters of a
    simulation are temperatures in K: ``initial``, uniform in space at t = 0, those of
    the walls ``left``, ``right``, ``bottom`` and ``top``, and that of the ``hole``. A
    corner has the mean of its two walls.

    Parameters
    ----------
    cells : tuple of int
        Number of triangle edges around the hole, a multiple of 8, and from the hole to
        a wall; default (64, 12), that is 832 nodes and 1536 triangles.
    size : float
        Length of a side, in m; default 0.1. The hole is at the centre, the origin.
    hole : float
        Radius of the hole, in m; default 0.02.
    outline : {"square", "circle"}
        Of the plate. The walls of a circle, of diameter `size`, are its quarters.
    steps : int
        Number of steps of a simulation; default 50. The initial state is not one.
    time_step : float
        Time between two steps, in s; default 0.1. Step k is at ``(k + 1) * time_step``.
    diffusivity : float
        a, in m²/s; default 1.1e-4, about that of copper.
    low, high : float
        Bounds of all six temperatures, in K; default 100.0 and 500.0.

    Raises
    ------
    ValueError
        If a size, a number or a step is not positive, the hole does not fit, or the
        bounds are not in ascending order.

    Notes
    -----
    Linear finite elements in space with a lumped mass M (diagonal) and the stiffness
    K, second order; implicit Euler in time, first order:

        (M + a Δt K) uᵐ⁺¹ = M uᵐ   at the inner nodes,

    one sparse LU for all steps of all simulations of a worker. The mesh is a Delaunay
    triangulation, so no entry of K off the diagonal is positive between inner nodes:
    no node is ever colder than the coldest or hotter than the hottest temperature
    given, however long the step.

    Examples
    --------
    >>> solver = HeatPlate(cells=(16, 3), steps=3, time_step=2.0)
    >>> walls = {"left": 300.0, "right": 300.0, "bottom": 300.0, "top": 300.0}
    >>> for step in solver.solve({"initial": 400.0, "hole": 300.0, **walls}):
    ...     print(f"{float(step.time[0]):.0f} s {float(step.temperature.max()):.0f} K")
    2 s 341 K
    4 s 317 K
    6 s 307 K
    """

    def __init__(
        self,
        cells: tuple[int, int] = (64, 12),
        size: float = 0.1,
        hole: float = 0.02,
        *,
        outline: Literal["square", "circle"] = "square",
        steps: int = 50,
        time_step: float = 0.1,
        diffusivity: float = 1.1e-4,
        low: float = 100.0,
        high: float = 500.0,
    ) -> None:
        require_counts("HeatPlate", {"steps": steps})
        require_positive(
            "HeatPlate",
            {
                "time_step": (time_step, "s"),
                "diffusivity": (diffusivity, "m²/s"),
            },
        )
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(
                f"HeatPlate: expected finite temperatures low < high, got low={low} "
                f"and high={high}. Give both in K, the lower bound first."
            )
        self.mesh = PlateMesh(cells, size, hole, outline)
        self.steps = int(steps)
        self.time_step = float(time_step)
        self.diffusivity = float(diffusivity)
        self.low = float(low)
        self.high = float(high)

    @cached_property
    def spec(self) -> FieldSpec:
        """Six temperatures in, the temperature at the nodes of the mesh out."""
        points = self.mesh.points
        return FieldSpec(
            parameters=tuple(
                Parameter(name, self.low, self.high, "K")
                for name in ("initial", "left", "right", "bottom", "top", "hole")
            ),
            variables=(Variable("temperature", "K", "temperature"),),
            dims=("node",),
            shape=(len(points),),
            times=tuple((k + 1) * self.time_step for k in range(self.steps)),
            time_units="s",
            coordinates=tuple(
                Coordinate(name, "node", tuple(values), "m")
                for name, values in zip(("x", "y"), points.T, strict=True)
            ),
            cells=tuple(map(tuple, self.mesh.triangles)),
        )

    def __getstate__(self) -> dict[str, Any]:
        # Both are as long as the mesh and cheap to rebuild where they are needed.
        return {k: v for k, v in self.__dict__.items() if k not in ("spec", "_system")}

    @cached_property
    def _system(self) -> tuple[SuperLU, Float[np.ndarray, " inner"], sparse.csr_matrix]:
        """Return LU of M + a Δt K at the inner nodes, M there, and their rows of K."""
        # Scheduler and trainer know a solver by its spec: only workers assemble.
        from skfem import Basis, ElementTriP1, MeshTri
        from skfem.models.poisson import laplace, mass

        mesh = MeshTri(
            np.ascontiguousarray(self.mesh.points.T),
            np.ascontiguousarray(self.mesh.triangles.T),
        )
        basis = Basis(mesh, ElementTriP1())
        inner = self.mesh.inner
        lumped = np.asarray(mass.assemble(basis).sum(axis=1)).ravel()[inner]
        stiffness = laplace.assemble(basis).tocsr()[inner]
        rate = self.diffusivity * self.time_step
        matrix = sparse.diags(lumped) + rate * stiffness[:, inner]
        return splu(matrix.tocsc()), lumped, stiffness

    def setup(self, cores: int) -> None:
        """Assemble and factorise, once for all simulations of a worker."""
        self._system  # noqa: B018 - it is cached

    def solve(self, parameters: Mapping[str, float]) -> Iterator[xr.Dataset]:
        """Yield one dataset per step; see `Solver.solve`.

        Raises
        ------
        ValueError
            If a parameter is unknown, missing or not a finite number.
        """
        initial, *boundary = self.spec.vector(parameters)
        inner = self.mesh.inner
        lu, lumped, stiffness = self._system
        # All given temperatures at once: zero at the inner nodes.
        given = self.mesh.boundary @ np.array(boundary)
        source = -self.diffusivity * self.time_step * (stiffness @ given)
        temperature = given + initial * inner

        blank = np.broadcast_to(np.float32(0), (self.steps, *self.spec.step_shape))
        labels = self.spec.dataset(blank, self.spec.times, parameters)
        for step in range(self.steps):
            temperature[inner] = lu.solve(lumped * temperature[inner] + source)
            yield labels.isel(time=slice(step, step + 1)).copy(
                data={"temperature": temperature[np.newaxis].astype(np.float32)}
            )
