"""The graph of a grid, of scattered points or of a mesh."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.spec import FieldSpec

__all__ = ["Graph", "graph_of"]


@dataclass(frozen=True)
class Graph:
    """Nodes in the order of the flattened ``*space``, and the edges between them.

    Parameters
    ----------
    places : array
        Position of each node, from -1 to 1 along the longest side; sine and cosine of
        the angle along each dim if periodic.
    edges : array
        Sender and receiver of each message, sorted by receiver.
    offsets : array
        From sender to receiver, divided by the root mean square of all.
    """

    places: Float[np.ndarray, "node place"]
    edges: Int[np.ndarray, "2 edge"]
    offsets: Float[np.ndarray, "edge dim"]


def graph_of(spec: FieldSpec, neighbours: int = 3, periodic: bool = False) -> Graph:
    """Return the graph of a spec's grid, points or mesh.

    On a mesh, nodes that share a cell are joined. On a grid of d dims each node
    receives from the 2 d `neighbours` nearest, counted in cells, and from all as near
    as the farthest of them; a scattered point from as many nearest.

    Parameters
    ----------
    spec : FieldSpec
    neighbours : int
        On each side of a node in one dim; not used on a mesh.
    periodic : bool
        Whether the last cell of each dim of a grid is followed by the first.
    """
    nodes = int(np.prod(spec.shape))
    if not spec.dims or nodes < 2:
        raise ArgumentError(
            "MessagePassingSolver: expected fields on a grid or a mesh, between whose "
            f"nodes messages pass, got the dims {spec.dims} of the sizes {spec.shape}. "
            "Use surrogate_flow.nn.FullyConnected (--model fully_connected)."
        )
    if neighbours < 1 or neighbours != int(neighbours):
        raise ArgumentError("neighbours", "a whole number >= 1", neighbours)
    along = [c for c in spec.coordinates if c.dim == spec.dims[0]]
    if len(spec.dims) == 1 and (spec.cells is not None or len(along) > 1):
        if periodic:
            raise ArgumentError(
                "periodic: expected a grid, got a mesh or scattered points along "
                f"{spec.dims[0]!r}. Set periodic=False."
            )
        if not along:
            raise ArgumentError(
                f"MessagePassingSolver: expected coordinates along {spec.dims[0]!r}, "
                "got none. Add the positions of the nodes to the solver's spec."
            )
        points = np.stack([c.values for c in along], axis=-1)
        pairs = (
            _near(points, 2 * points.shape[1] * neighbours)
            if spec.cells is None
            else _in_a_cell(spec.cells)
        )
        return _graph(points, pairs, None)
    axes = [spec.axis(dim) for dim in spec.dims]
    points = np.stack([x.ravel() for x in np.meshgrid(*axes, indexing="ij")], axis=-1)
    pairs = _on_a_grid(spec.shape, neighbours, periodic)
    # The last cell is as wide as the others are in the mean.
    period = [(x[-1] - x[0]) * len(x) / max(len(x) - 1, 1) for x in axes]
    return _graph(points, pairs, np.array(period) if periodic else None)


def _near(
    points: Float[np.ndarray, "node dim"], count: int
) -> Int[np.ndarray, "pair 2"]:
    count = min(count, len(points) - 1)
    _, near = cKDTree(points).query(points, k=range(2, count + 2))
    return np.stack([np.repeat(np.arange(len(points)), count), near.ravel()], axis=-1)


def _in_a_cell(cells: tuple[tuple[int, ...], ...]) -> Int[np.ndarray, "pair 2"]:
    pairs = [pair for cell in cells for pair in itertools.combinations(cell, 2)]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _on_a_grid(
    shape: tuple[int, ...], neighbours: int, periodic: bool
) -> Int[np.ndarray, "pair 2"]:
    around = itertools.product(range(-neighbours, neighbours + 1), repeat=len(shape))
    distances = np.sort([np.hypot.reduce(way) for way in around])
    # The first is the node's own.
    reach = distances[2 * len(shape) * neighbours] + 1e-6
    if periodic and min(shape) <= 2 * reach:
        raise ArgumentError(
            f"periodic: expected more than {int(2 * reach)} cells along each dim, got "
            f"{shape}: a node would be its neighbour's on both sides. Lower neighbours."
        )
    cells = np.indices(shape).reshape(len(shape), -1).T.astype(np.float64)
    tree = cKDTree(cells, boxsize=np.array(shape) if periodic else None)
    pairs: Int[np.ndarray, "pair 2"] = tree.query_pairs(reach, output_type="ndarray")
    return pairs


def _graph(
    points: Float[np.ndarray, "node dim"],
    pairs: Int[np.ndarray, "pair 2"],
    period: Float[np.ndarray, " dim"] | None,
) -> Graph:
    receiver, sender = np.unique(np.vstack([pairs, pairs[:, ::-1]]), axis=0).T
    offsets = points[receiver] - points[sender]
    if period is None:
        low, high = points.min(axis=0), points.max(axis=0)
        places = (2 * points - low - high) / (np.max(high - low) or 1.0)
    else:
        offsets -= period * np.round(offsets / period)
        angle = 2 * np.pi * points / period
        places = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    length = np.sqrt(np.mean(np.sum(np.square(offsets), axis=1))) or 1.0
    return Graph(places, np.stack([sender, receiver]), offsets / length)
