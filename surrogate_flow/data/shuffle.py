"""The samples of a data set, in a new order each epoch."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float32, Int

from surrogate_flow.dataset import Archive
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir import Draw, Moments

__all__ = ["ShuffledReader"]

_SHARE = 8  # pieces of long simulations that a block has at least

Steps = Float32[np.ndarray, "time channel *space"]
Inputs = Float32[np.ndarray, "piece input *space"]
#: Steps of all pieces of a block, and the input fields of each.
_Held = tuple[Steps, Inputs]
_Reading = tuple[_Held, list[Future[int]]]


@dataclass(frozen=True)
class Piece:
    """Steps first, ..., stop - 1 of one simulation, read together.

    `windows` has the first step of each window in it.
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

    Of the first step of each window, `place` is the number among the steps of all
    pieces, and `simulation` and `step` say which one it is; `piece` is where it is.
    """

    pieces: list[Piece]
    piece: Int[np.ndarray, " window"]
    place: Int[np.ndarray, " window"]
    simulation: Int[np.ndarray, " window"]
    step: Int[np.ndarray, " window"]

    @classmethod
    def shuffled(cls, pieces: list[Piece], generator: np.random.Generator) -> Block:
        """Permute the windows of all pieces together."""
        counts = [len(piece.windows) for piece in pieces]
        lengths = [piece.steps for piece in pieces]
        # From the number of a step in its simulation to the one among all pieces.
        shifts = np.cumsum([0, *lengths[:-1]]) - [piece.first for piece in pieces]
        step = np.concatenate([piece.windows for piece in pieces])
        simulation = np.repeat([piece.simulation for piece in pieces], counts)
        piece = np.repeat(np.arange(len(pieces)), counts)
        order = generator.permutation(len(step))
        place = step + np.repeat(shifts, counts)
        return cls(pieces, piece[order], place[order], simulation[order], step[order])


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
        self._archive, self._seed = archive, tuple(seed)
        window.require(spec.steps)
        self._lengths = archive.steps()
        size = int(self._lengths[list(simulations)].sum()) * spec.step_bytes
        size += len(simulations) * spec.input_bytes
        self.in_memory = size <= memory
        # Steps of a block; the input fields of a piece count as so many.
        self._limit = None if self.in_memory else memory // 2 // spec.step_bytes
        self._extra = -(-spec.input_bytes // spec.step_bytes)
        self._pieces = self._cut(simulations)
        largest = max((piece.steps for piece in self._pieces), default=0) + self._extra
        if self._limit is not None and largest > self._limit:
            raise UserError(
                "data.memory",
                f"at least {2 * largest * spec.step_bytes} bytes (twice the {largest} "
                "steps that are read at once)",
                memory,
            )
        #: Bytes of the fields of all simulations.
        self.total = size
        #: Number of windows, each of which is drawn once an epoch.
        self.windows = sum(len(piece.windows) for piece in self._pieces)
        self.epoch_bytes = sum(map(self._chunk_bytes, self._pieces))
        self.bytes_read = 0
        self._excess = self.epoch_bytes / size if size else 1.0
        self._readers = ThreadPoolExecutor(threads, "reader")
        # Epoch, number and steps of the first block read, until it is used; for ever
        # if it is all.
        self._first: tuple[int, int, _Held] | None = None

    def _cut(self, simulations: Sequence[int]) -> list[Piece]:
        """Return pieces: complete simulations, if they are short.

        No chunk is in two pieces, but for windows that reach into the next piece.
        """
        length, limit, chunk = self.spec.steps, self._limit, self._archive.chunk_steps
        if limit is not None and length * _SHARE > limit:
            length = max(1, limit // _SHARE // chunk) * chunk
        span = self.window.span
        windows = np.arange(0, self.spec.steps - span + 1, self.window.stride)
        pieces: list[Piece] = []
        for first in range(0, self.spec.steps, length):
            inside = windows[(windows >= first) & (windows < first + length)]
            for n in simulations:
                # Fewer of those that have ended early.
                own = inside[
                    : np.searchsorted(inside, self._lengths[n] - span, "right")
                ]
                if len(own):
                    pieces.append(Piece(n, int(own[0]), int(own[-1]) + span, own))
        return pieces

    def _chunk_bytes(self, piece: Piece) -> int:
        """Return the bytes that are read for a piece: those of complete chunks."""
        size = self._archive.chunk_steps
        stop = min(self._lengths[piece.simulation], -(-piece.stop // size) * size)
        steps = int(stop - piece.first // size * size) * self.spec.step_bytes
        return steps + self.spec.input_bytes

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
        of_inputs = Moments(len(self.spec.inputs))
        if self._pieces:
            if self._first is None:
                held = self._finish(self._start(next(self._blocks(0))))
                self._first = (0, 0, held)
            steps, inputs = self._first[2]
            for step in steps:
                moments.update(step[None])
            for fields in inputs if self.spec.inputs else ():
                of_inputs.update(fields[None])
        return moments.beside(of_inputs)

    def changes(self) -> Moments:
        """Return the moments of `Moments.update_changes`, of some of these samples."""
        window = self.window
        moments = Moments(window.outputs * len(self.spec.variables))
        most = moments.samples_of_changes(window.span * self.spec.step_bytes)
        if self._first is not None:
            block = next(self._blocks(0))
            for first in block.place[:most]:
                steps = self._first[2][0][first : first + window.span]
                moments.update_changes(steps[None], window)
        return moments

    def draws(self, epoch: int, batch_size: int, skip: int = 0) -> Generator[Draw]:
        """Yield the batches of an epoch, but for the first `skip`.

        The last one may be smaller. Of a block that is skipped nothing is read.
        """
        if not self.in_memory and self._first is not None and self._first[0] != epoch:
            self._first = None
        parts: list[Draw] = []
        missing = batch_size
        readings = self._readings(epoch, skip * batch_size)
        following = next(readings, None)
        while following is not None:
            block, at, reading = following
            held = self._finish(reading)
            # The next block is read while this one is used.
            following = next(readings, None)
            while at < len(block.step):
                parts.append(self._draw(held, block, slice(at, at + missing)))
                at += missing
                missing -= len(parts[-1].step)
                if not missing:
                    yield _joined(parts)
                    parts, missing = [], batch_size
        if parts:
            yield _joined(parts)

    def _blocks(self, epoch: int) -> Iterator[Block]:
        """Yield the blocks of an epoch."""
        generator = np.random.default_rng([*self._seed, epoch])
        pieces = self._pieces
        if self._limit is not None:
            order = np.arange(len(pieces))
            generator.shuffle(order)
            pieces = [pieces[k] for k in order]
        together: list[Piece] = []
        steps = 0
        for piece in pieces:
            size = piece.steps + self._extra
            if together and self._limit and steps + size > self._limit:
                yield Block.shuffled(together, generator)
                together, steps = [], 0
            together.append(piece)
            steps += size
        if together:
            yield Block.shuffled(together, generator)

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
        inputs = np.empty((len(block.pieces), *self.spec.input_shape), np.float32)
        futures, at = [], 0
        for piece, given in zip(block.pieces, inputs, strict=True):
            part = steps[at : at + piece.steps]
            futures.append(self._readers.submit(self._read, piece, part, given))
            at += piece.steps
        return (steps, inputs), futures

    def _read(self, piece: Piece, out: Steps, inputs: np.ndarray) -> int:
        self._archive.read(piece.simulation, piece.first, out)
        if self.spec.inputs:
            inputs[...] = self._archive.inputs(piece.simulation)
        return self._chunk_bytes(piece)

    def _finish(self, reading: _Reading) -> _Held:
        held, futures = reading
        try:
            self.bytes_read += sum(future.result() for future in futures)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        if self.in_memory:
            self._first = (0, 0, held)
        return held

    def _draw(self, held: _Held, block: Block, part: slice) -> Draw:
        steps, inputs = held
        simulation, span = block.simulation[part], self.window.span
        rows = block.place[part][:, None] + np.arange(span)
        return Draw(
            np.take(steps, rows, axis=0),
            simulation,
            block.step[part],
            self._archive.parameters[simulation].astype(np.float32),
            inputs[block.piece[part]] if self.spec.inputs else None,
        )


def _joined(draws: Sequence[Draw]) -> Draw:
    if len(draws) == 1:
        return draws[0]
    # How many batches follow is for the loader to say.
    arrays = [(d.fields, d.simulation, d.step, d.parameters, d.inputs) for d in draws]
    columns: list[Any] = [
        None if column[0] is None else np.concatenate(column)
        for column in zip(*arrays, strict=True)
    ]
    return Draw(*columns)
