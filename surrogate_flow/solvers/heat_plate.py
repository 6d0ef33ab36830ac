"""The heat equation on a plate with a hole: finite elements on triangles."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse
from scipy.sparse.linalg import SuperLU, splu
from scipy.spatial import Delaunay

from surrogate_flow.fields.spec import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.solvers.grid import GridSolver

__all__ = ["HeatPlate"]


class HeatPlate(GridSolver):
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
    ArgumentError
        If an argument is not positive, the hole does not fit, or the bounds are not
        ascending.

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
        super().__init__(steps, time_step)
        around, across = self._pair("cells", cells)
        self.cells = self._count("cells[0]", around), self._count("cells[1]", across)
        self.size = self._positive("size", size, "m")
        self.hole = self._positive("hole", hole, "m")
        self.outline = outline
        self.diffusivity = self._positive("diffusivity", diffusivity, "m²/s")
        self.low, self.high = self._bounds("low and high", (low, high), "K")
        if self.cells[0] % 8:
            raise self._wrong("cells[0]", "a multiple of 8", self.cells[0])
        if 2 * self.hole >= self.size:
            raise self._wrong("hole", f"2 hole < size = {self.size} m", self.hole)
        if outline not in ("square", "circle"):
            raise self._wrong("outline", "'square' or 'circle'", repr(outline))
        flat = math.cos(math.pi / around) < (2 * hole / size) ** (1 / across)
        if outline == "circle" and flat:
            raise self._wrong(
                "cells",
                "triangles that are not too flat for a circle",
                self.cells,
                "Take more around, or fewer across.",
            )

    @cached_property
    def mesh(self) -> PlateMesh:
        """The nodes and triangles."""
        return PlateMesh(self.cells, self.size, self.hole, self.outline)

    @cached_property
    def spec(self) -> FieldSpec:
        """Six temperatures in, the temperature at the nodes of the mesh out."""
        points = self.mesh.points
        return FieldSpec(
            parameters=tuple(
                Parameter(name, self.low, self.high, "K", initial=name == "initial")
                for name in ("initial", "left", "right", "bottom", "top", "hole")
            ),
            variables=(Variable("temperature", "K", "temperature"),),
            dims=("node",),
            shape=(len(points),),
            times=self.times,
            time_units="s",
            coordinates=tuple(
                Coordinate(name, "node", tuple(values), "m")
                for name, values in zip("xy", points.T, strict=True)
            ),
            cells=tuple(map(tuple, self.mesh.triangles)),
        )

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

    def fields(
        self, parameters: Mapping[str, float]
    ) -> Iterator[Float[np.ndarray, "1 1 node"]]:
        """Yield the temperature of each step; see `GridSolver.fields`."""
        initial, *boundary = self.spec.vector(parameters)
        inner = self.mesh.inner
        lu, lumped, stiffness = self._system
        # All given temperatures at once: zero at the inner nodes.
        given = self.mesh.boundary @ np.array(boundary)
        source = -self.diffusivity * self.time_step * (stiffness @ given)
        temperature = given + initial * inner
        for _ in range(self.steps):
            temperature[inner] = lu.solve(lumped * temperature[inner] + source)
            yield temperature[np.newaxis, np.newaxis]


class PlateMesh:
    """Triangles between a round hole at the origin and the outline of a plate.

    The nodes lie on rings that turn from the hole into the outline and widen outwards
    by a constant factor, so that triangles grow without getting flat; every other ring
    is turned by half an edge. The same arguments give the same mesh, node for node.

    Parameters
    ----------
    cells, size, hole, outline
        As of `HeatPlate`, which checks them.

    Attributes
    ----------
    points : array of float, (node, 2)
        Positions in m, ring by ring from the hole outwards.
    triangles : array of int, (triangle, 3)
        Node numbers, counterclockwise.
    boundary : array of float, (node, 5)
        Shares of left, right, bottom, top and hole at each node, in that order.
    inner : array of bool, (node,)
        Which nodes lie neither on the hole nor on the outline.
    """

    def __init__(
        self, cells: tuple[int, int], size: float, hole: float, outline: str
    ) -> None:
        around, across = cells
        outer = size / 2
        ring = np.arange(across + 1)
        growth = outer / hole
        share = ((growth ** (ring / across) - 1) / (growth - 1))[:, None, None]
        turned = (across - ring) % 2 / 2
        # In eighths of the way round, from the middle of the right wall.
        eighth = 8 * (np.arange(around) + turned[:, None]) / around
        angle = eighth * np.pi / 4
        circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        wall = circle if outline == "circle" else _square(eighth)
        self.points: Float[np.ndarray, "node 2"]
        self.points = (1 - share) * hole * circle + share * outer * wall
        self.points = self.points.reshape(-1, 2)

        corners = Delaunay(self.points / size).simplices.astype(np.int64)
        corners = corners[(corners >= around).any(axis=1)]  # none in the hole
        a, b, c = (self.points[corners[:, k]] for k in range(3))
        (ux, uy), (vx, vy) = (b - a).T, (c - a).T
        clockwise = ux * vy < uy * vx
        corners[clockwise] = corners[clockwise][:, ::-1]
        self.triangles: Int[np.ndarray, "triangle 3"] = corners

        # The wall of each eighth, counterclockwise from the middle of the right wall,
        # on either side of a node: they differ at the corners alone.
        walls = np.array([1, 3, 3, 0, 0, 2, 2, 1])
        node = np.arange(around)
        shares: Float[np.ndarray, "node 5"] = np.zeros((len(self.points), 5))
        shares[:around, 4] = 1
        for side in (8 * node // around, (8 * node - 1) // around % 8):
            shares[len(shares) - around + node, walls[side]] += 0.5
        self.boundary = shares
        self.inner: Bool[np.ndarray, " node"] = shares.sum(axis=1) == 0


def _square(eighth: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n 2"]:
    """Return the place on the square [-1, 1]² so many eighths of the way round."""
    # y is 0 at 0, 1 from 1 to 3, -1 from 5 to 7 and straight between; x is ahead by 2.
    way = np.stack([eighth + 2, eighth], axis=-1)
    place: Float[np.ndarray, "*n 2"] = np.clip(2 - np.abs((way + 2) % 8 - 4), -1, 1)
    return place
