"""How a data set is read: pieces of simulations, of which blocks are made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from surrogate_flow.fields.window import Window

__all__ = ["Piece", "Table", "blocks", "pieces"]

_SHARE = 8  # pieces of long simulations that a block holds at least


@dataclass(frozen=True)
class Piece:
    """Steps of one simulation that are read together, and the windows in them.

    Attributes
    ----------
    simulation : int
    first, stop : int
        Steps that are read.
    windows : array of int
        The first step of each window.
    """

    simulation: int
    first: int
    stop: int
    windows: Int[np.ndarray, " window"]

    @property
    def steps(self) -> int:
        """How many are read."""
        return self.stop - self.first

    def rounded(self, chunk_steps: int, steps: int) -> int:
        """Return how many come from the disk, where whole chunks are read."""
        first = self.first // chunk_steps * chunk_steps
        return min(steps, -(-self.stop // chunk_steps) * chunk_steps) - first


@dataclass(frozen=True)
class Table:
    """The windows of a block, in the order in which they are trained.

    Attributes
    ----------
    place : array of int
        Of the first step of each, in the block's steps.
    simulation, step : array of int
    """

    place: Int[np.ndarray, " window"]
    simulation: Int[np.ndarray, " window"]
    step: Int[np.ndarray, " window"]

    @classmethod
    def of(cls, block: Sequence[Piece], generator: np.random.Generator) -> Table:
        """Return the windows of all pieces, shuffled together."""
        starts = np.cumsum([0, *(piece.steps for piece in block)])
        place = [p.windows - p.first + s for p, s in zip(block, starts, strict=False)]
        simulation = [np.full(len(p.windows), p.simulation) for p in block]
        order = generator.permutation(sum(map(len, place)))
        return cls(
            np.concatenate(place)[order],
            np.concatenate(simulation)[order],
            np.concatenate([p.windows for p in block])[order],
        )


def pieces(
    simulations: Sequence[int],
    steps: int,
    chunk_steps: int,
    window: Window,
    most: int,
) -> list[Piece]:
    """Cut simulations into pieces, whole ones if they are short.

    Parameters
    ----------
    simulations : sequence of int
    steps : int
        Of each.
    chunk_steps : int
        Steps of a chunk: no chunk is in two pieces, but for windows that reach into the
        next one.
    window : Window
    most : int
        Steps of a block.
    """
    windows = np.arange(0, steps - window.span + 1, window.stride)
    length = steps
    if steps * _SHARE > most:
        length = max(1, most // _SHARE // chunk_steps) * chunk_steps
    found = []
    for first in range(0, steps, length):
        inside = windows[(windows >= first) & (windows < first + length)]
        if len(inside):
            begin, stop = int(inside[0]), int(inside[-1]) + window.span
            found += [Piece(n, begin, stop, inside) for n in simulations]
    return found


def blocks(all_pieces: Sequence[Piece], most: int) -> Iterator[list[Piece]]:
    """Put pieces together, in their order, to blocks of at most so many steps."""
    block: list[Piece] = []
    steps = 0
    for piece in all_pieces:
        if block and steps + piece.steps > most:
            yield block
            block, steps = [], 0
        block.append(piece)
        steps += piece.steps
    if block:
        yield block
