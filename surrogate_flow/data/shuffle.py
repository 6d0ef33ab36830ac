"""The samples of a data set, in a new order each epoch."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float32, Int

from surrogate_flow.dataset import Archive
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir import Draw, Moments

__all__ = ["ReadPlan", "ShuffledReader"]

_SHARE = 8  # pieces of long simulations that a block has at least

Steps = Float32[np.ndarray, "time channel *space"]
_Reading = tuple[Steps, list[Future[int]]]


@dataclass(frozen=True)
class Piece:
    """Steps first, ..., stop - 1 of one simulation, read together, and their windows.

    Attributes
    ----------
    simulation, first, stop : int
    windows : array of int
        The first step of each window.
    """

    simulation: int
    first: int
    stop: int
    windows: Int[np.ndarray, " window"]

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.stop - self.first


@dataclass(frozen=True)
class Block:
    """Pieces that are in memory together, and their windows in the order of training.

    Attributes
    ----------
    pieces : list of Piece
    place : array of int
        Of the first step of each window among the steps of all pieces.
    simulation, step : array of int
        Of each window.
    """

    pieces: list[Piece]
    place: Int[np.ndarray, " window"]
    simulation: Int[np.ndarray, " window"]
    step: Int[np.ndarray, " window"]

    @classmethod
    def shuffled(cls, pieces: list[Piece], generator: np.random.Generator) -> Block:
        """Permute the windows of all pieces together."""
        starts = np.cumsum([0, *(piece.steps for piece in pieces)])
        place = [p.windows - p.first + s for p, s in zip(pieces, starts, strict=False)]
        simulation = [np.full(len(p.windows), p.simulation) for p in pieces]
        order = generator.permutation(sum(map(len, place)))
        return cls(
            pieces,
            np.concatenate(place)[order],
            np.concatenate(simulation)[order],
            np.concatenate([p.windows for p in pieces])[order],
        )


@final
class ReadPlan:
    """Cuts simulations into pieces, complete ones if they are short, and makes blocks.

    No chunk is in two pieces, but for windows that reach into the next piece.

    Parameters
    ----------
    simulations : sequence of int
    steps : int
        Of each simulation.
    chunk_steps : int
        Of a chunk on the disk.
    window : Window
    limit : int
        Steps of a block; None for one block of everything, read once.
    """

    def __init__(
        self,
        simulations: Sequence[int],
        steps: int,
        chunk_steps: int,
        window: Window,
        limit: int | None,
    ) -> None:
        self._limit = limit
        self._chunk_steps = chunk_steps
        self._total = steps
        length = steps
        if limit is not None and steps * _SHARE > limit:
            length = max(1, limit // _SHARE // chunk_steps) * chunk_steps
        windows = np.arange(0, steps - window.span + 1, window.stride)
        self.pieces: list[Piece] = []
        for first in range(0, steps, length):
            inside = windows[(windows >= first) & (windows < first + length)]
            if len(inside):
                begin, stop = int(inside[0]), int(inside[-1]) + window.span
                self.pieces += [Piece(n, begin, stop, inside) for n in simulations]

    @property
    def steps_read(self) -> int:
        """Steps that an epoch reads from the disk, where complete chunks are read."""
        return sum(map(self.chunked, self.pieces))

    def chunked(self, piece: Piece) -> int:
        """Return the number of steps in the chunks of a piece."""
        size = self._chunk_steps
        stop = min(self._total, -(-piece.stop // size) * size)
        return stop - piece.first // size * size

    def blocks(self, generator: np.random.Generator) -> Iterator[Block]:
        """Yield the blocks of an epoch."""
        pieces = self.pieces
        if self._limit is not None:
            order = np.arange(len(pieces))
            generator.shuffle(order)
            pieces = [pieces[k] for k in order]
        together: list[Piece] = []
        steps = 0
        for piece in pieces:
            if together and self._limit and steps + piece.steps > self._limit:
                yield Block.shuffled(together, generator)
                together, steps = [], 0
            together.append(piece)
            steps += piece.steps
        if together:
            yield Block.shuffled(together, generator)


@final
class ShuffledReader:
    """Windows of some simulations, shuffled: each once an epoch.

    What fits into `memory` is read once and stays there; every epoch is a new
    permutation of all windows. Of more, the pieces are permuted, and read ahead in
    blocks of half the memory; the windows of a block are permuted together.

    A simulation larger than a sixteenth of the memory is cut into pieces of that size,
    of k chunks, at least one. Windows that reach into the next piece have its first
    chunks read for both: 1 + ceil((span - 1) / chunk_steps) / k times the bytes, at
    most. Windows of one step, and complete simulations, are read once.

    Parameters
    ----------
    archive : Archive
    simulations : sequence of int
        Complete ones.
    window : Window
    memory : int
        Bytes.
    threads : int
        Number of threads that read.
    seed : sequence of int
        Of the order.

    Attributes
    ----------
    in_memory : bool
        Whether everything is read once and stays.
    epoch_bytes, bytes_read : int
        Of fields, in an epoch and since the beginning.

    Raises
    ------
    UserError
        If a simulation is shorter than a window, or a piece does not fit into half the
        memory.
    """

    def __init__(
        self,
        archive: Archive,
        simulations: Sequence[int],
        window: Window,
        *,
        memory: int,
        threads: int,
        seed: Sequence[int],
    ) -> None:
        self.spec = spec = archive.spec
        self.window = window
        self._archive = archive
        self._seed = tuple(seed)
        window.require(spec.steps)
        size = len(simulations) * spec.steps * spec.step_bytes
        self.in_memory = size <= memory
        limit = memory // 2 // spec.step_bytes
        self._plan = ReadPlan(
            simulations,
            spec.steps,
            archive.chunk_steps,
            window,
            None if self.in_memory else limit,
        )
        largest = max((piece.steps for piece in self._plan.pieces), default=0)
        if not self.in_memory and largest > limit:
            raise UserError(
                "data.memory",
                f"at least {2 * largest * spec.step_bytes} bytes (twice the {largest} "
                "steps that are read at once)",
                memory,
            )
        self.epoch_bytes = self._plan.steps_read * spec.step_bytes
        self.bytes_read = 0
        self._excess = self.epoch_bytes / size if size else 1.0
        self._readers = ThreadPoolExecutor(threads, "reader")
        # Epoch, number and steps of the first block read, until it is used; for ever
        # if it is all.
        self._first: tuple[int, int, Steps] | None = None

    def close(self) -> None:
        """Read no more; may be called again."""
        self._readers.shutdown(wait=True, cancel_futures=True)

    def describe(self) -> str:
        """Return how the data set is read, as text."""
        if self.in_memory:
            return "kept in memory"
        if self._excess <= 1:
            return "read anew in each epoch"
        return (
            f"read anew in each epoch, {self._excess:.2f} times as many bytes: windows "
            f"of {self.window.span} steps cross the borders of what is read at once; "
            "more data.memory makes that fewer"
        )

    def moments(self) -> Moments:
        """Return the moments of the fields: of all, or of the first block."""
        moments = Moments(len(self.spec.variables))
        if self._plan.pieces:
            if self._first is None:
                steps = self._finish(self._start(next(self._blocks(0))))
                self._first = (0, 0, steps)
            for step in self._first[2]:
                moments.update(step[None])
        return moments

    def draws(self, epoch: int, batch_size: int, skip: int = 0) -> Generator[Draw]:
        """Yield the batches of an epoch, but for the first `skip`.

        The last one may be smaller. Of a block that is skipped nothing is read.
        """
        if not self.in_memory and self._first is not None and self._first[0] != epoch:
            self._first = None
        parts: list[Draw] = []
        readings = self._readings(epoch, skip * batch_size)
        following = next(readings, None)
        while following is not None:
            block, at, reading = following
            steps = self._finish(reading)
            # The next block is read while this one is used.
            following = next(readings, None)
            while at < len(block.step):
                stop = at + batch_size - sum(len(draw.step) for draw in parts)
                parts.append(self._draw(steps, block, slice(at, stop)))
                at = stop
                if sum(len(draw.step) for draw in parts) == batch_size:
                    yield _joined(parts)
                    parts = []
        if parts:
            yield _joined(parts)

    def _blocks(self, epoch: int) -> Iterator[Block]:
        return self._plan.blocks(np.random.default_rng([*self._seed, epoch]))

    def _readings(self, epoch: int, skip: int) -> Iterator[tuple[Block, int, _Reading]]:
        """Yield blocks, where to begin in their windows, and their steps to come."""
        for number, block in enumerate(self._blocks(epoch)):
            count = len(block.step)
            if skip < count:
                yield block, skip, self._kept(epoch, number) or self._start(block)
            skip = max(0, skip - count)

    def _kept(self, epoch: int, number: int) -> _Reading | None:
        first = self._first
        if first is None or not (self.in_memory or first[:2] == (epoch, number)):
            return None
        if not self.in_memory:
            self._first = None
        return first[2], []

    def _start(self, block: Block) -> _Reading:
        count = sum(piece.steps for piece in block.pieces)
        steps = np.empty((count, *self.spec.step_shape), dtype=np.float32)
        futures, at = [], 0
        for piece in block.pieces:
            part = steps[at : at + piece.steps]
            futures.append(self._readers.submit(self._read, piece, part))
            at += piece.steps
        return steps, futures

    def _read(self, piece: Piece, out: Steps) -> int:
        self._archive.read(piece.simulation, piece.first, out)
        return self._plan.chunked(piece) * self.spec.step_bytes

    def _finish(self, reading: _Reading) -> Steps:
        steps, futures = reading
        try:
            self.bytes_read += sum(future.result() for future in futures)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        if self.in_memory:
            self._first = (0, 0, steps)
        return steps

    def _draw(self, steps: Steps, block: Block, part: slice) -> Draw:
        places, span = block.place[part], self.window.span
        rows = (places[:, None] + np.arange(span)).ravel()
        fields = np.take(steps, rows, axis=0)
        simulation = block.simulation[part]
        return Draw(
            fields.reshape(len(places), span, *steps.shape[1:]),
            simulation,
            block.step[part],
            self._archive.parameters[simulation].astype(np.float32),
        )


def _joined(draws: Sequence[Draw]) -> Draw:
    if len(draws) == 1:
        return draws[0]
    columns = zip(*draws, strict=True)
    fields, simulation, step, parameters = (np.concatenate(c) for c in columns)
    return Draw(fields, simulation, step, parameters)
