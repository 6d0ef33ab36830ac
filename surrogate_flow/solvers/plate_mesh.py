"""Triangles on a plate with a round hole."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import Delaunay

__all__ = ["PlateMesh"]


class PlateMesh:
    """Rings of nodes that turn from the hole into the outline, triangulated.

    The rings widen outwards by a constant factor, so that triangles grow without
    getting flat, and every other one is turned by half an edge. The same arguments give
    the same mesh, node for node.

    Parameters
    ----------
    cells : tuple of int
        Edges around the hole, a multiple of 8, and from the hole to the outline.
    size : float
        Side of a square or diameter of a circle; the origin is at its centre.
    hole : float
        Radius of the hole.
    outline : {"square", "circle"}

    Raises
    ------
    ValueError
        If a number or a length makes no mesh.
    """

    def __init__(
        self, cells: tuple[int, int], size: float, hole: float, outline: str
    ) -> None:
        if len(cells) != 2 or any(n != int(n) or n < 1 for n in cells) or cells[0] % 8:
            raise ValueError(
                f"HeatPlate: expected two whole numbers in cells, around the hole (a "
                f"multiple of 8) and from the hole to a wall, got {tuple(cells)}."
            )
        if not (math.isfinite(size) and 0 < 2 * hole < size):
            raise ValueError(
                f"HeatPlate: expected a hole within the plate, 0 < 2 hole < size, got "
                f"hole={hole} and size={size}. Give the radius and the side in m."
            )
        if outline not in ("square", "circle"):
            raise ValueError(
                f"HeatPlate: expected outline 'square' or 'circle', got {outline!r}."
            )
        around, across = cells
        if outline == "circle" and (2 * hole / size) ** (1 / across) > math.cos(
            math.pi / around
        ):
            raise ValueError(
                f"HeatPlate: expected wider cells across, got triangles too flat for a "
                f"circle: got {around} and {across} cells. Take more around."
            )
        self.cells = (int(cells[0]), int(cells[1]))
        self.size = float(size)
        self.hole = float(hole)
        self.outline = outline

    def __getstate__(self) -> dict[str, Any]:
        made = ("points", "triangles", "boundary", "inner")
        return {k: v for k, v in self.__dict__.items() if k not in made}

    @cached_property
    def points(self) -> Float[np.ndarray, "node 2"]:
        """Positions, ring by ring from the hole outwards."""
        around, across = self.cells
        outer = self.size / 2
        ring = np.arange(across + 1)
        growth = outer / self.hole
        share = (growth ** (ring / across) - 1) / (growth - 1)
        turned = (across - ring) % 2 / 2
        # In eighths of the way round, from the middle of the right wall.
        eighth = 8 * (np.arange(around) + turned[:, None]) / around
        angle = eighth * np.pi / 4
        circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        wall = circle if self.outline == "circle" else _square(eighth)
        share = share[:, None, None]
        points: Float[np.ndarray, "node 2"] = (
            (1 - share) * self.hole * circle + share * outer * wall
        ).reshape(-1, 2)
        return points

    @cached_property
    def triangles(self) -> Int[np.ndarray, "triangle 3"]:
        """Node numbers of each triangle, counterclockwise."""
        corners: Int[np.ndarray, "triangle 3"] = Delaunay(
            self.points / self.size
        ).simplices.astype(np.int64)
        corners = corners[(corners >= self.cells[0]).any(axis=1)]  # none in the hole
        a, b, c = (self.points[corners[:, k]] for k in range(3))
        (ux, uy), (vx, vy) = (b - a).T, (c - a).T
        clockwise = ux * vy < uy * vx
        corners[clockwise] = corners[clockwise][:, ::-1]
        return corners

    @cached_property
    def boundary(self) -> Float[np.ndarray, "node 5"]:
        """Shares of left, right, bottom, top and hole at each node, in that order."""
        around, _ = self.cells
        # The wall of each eighth, anticlockwise from the middle of the right wall, on
        # either side of a node: they differ at the corners alone.
        walls = np.array([1, 3, 3, 0, 0, 2, 2, 1])
        node = np.arange(around)
        shares = np.zeros((len(self.points), 5))
        shares[:around, 4] = 1
        for side in (8 * node // around, (8 * node - 1) // around % 8):
            shares[len(shares) - around + node, walls[side]] += 0.5
        return shares

    @cached_property
    def inner(self) -> Bool[np.ndarray, " node"]:
        """Which nodes lie neither on the hole nor on the outline."""
        inner: Bool[np.ndarray, " node"] = self.boundary.sum(axis=1) == 0
        return inner


def _square(eighth: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n 2"]:
    """Return the place on the square [-1, 1]² so many eighths of the way round."""
    # y is 0 at 0, 1 from 1 to 3, -1 from 5 to 7 and straight between; x is ahead by 2.
    way = np.stack([eighth + 2, eighth], axis=-1)
    place: Float[np.ndarray, "*n 2"] = np.clip(2 - np.abs((way + 2) % 8 - 4), -1, 1)
    return place
