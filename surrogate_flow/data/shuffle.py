"""The samples of a data set in a new order each epoch."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, Float32

from surrogate_flow.data.read_plan import Piece, Table, blocks, pieces
from surrogate_flow.dataset import Archive
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir import Draw
from surrogate_flow.reservoir.moments import Moments

__all__ = ["Shuffled"]

_Steps = Float32[np.ndarray, "time channel *space"]
_Reading = tuple[_Steps, list[Future[int]]]


class Shuffled:
    """Windows of some simulations, shuffled: each once an epoch.

    What fits into `memory` is read once and stays there; every epoch is a new
    permutation of all windows. Of more, the pieces are permuted, and read ahead in
    blocks of half the memory; the windows of a block are permuted together.

    A simulation larger than a sixteenth of the memory is cut into pieces of that size,
    of k chunks, at least one. Windows that reach into the next piece have its first
    chunks read for both: 1 + ceil((span - 1) / chunk_steps) / k times the bytes, at
    most. Windows of one step, and whole simulations, are read once.

    Parameters
    ----------
    archive : Archive
    simulations : sequence of int
        That are whole.
    window : Window
    memory : int
        Bytes.
    threads : int
        That read.
    seed : sequence of int
        Of the order.

    Raises
    ------
    ValueError
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
        self._archive = archive
        self.spec = archive.spec
        self.window = window
        self._seed = tuple(seed)
        spec = archive.spec
        if spec.steps < window.span:
            raise ValueError(
                f"{archive.path}: expected simulations of at least {window.span} steps "
                f"(the span of the window), got {spec.steps}: there is no sample."
            )
        total = len(simulations) * spec.steps
        self.fits = total * spec.step_bytes <= memory
        self._most = total if self.fits else memory // 2 // spec.step_bytes
        if self.fits:
            self._pieces = pieces(
                simulations, spec.steps, spec.steps, window, 8 * total
            )
        else:
            self._pieces = pieces(
                simulations, spec.steps, archive.chunk_steps, window, self._most
            )
        largest = max((piece.steps for piece in self._pieces), default=0)
        if largest > self._most:
            raise ValueError(
                f"data.memory: expected at least {2 * largest * spec.step_bytes} bytes "
                f"(twice the {largest} steps that are read at once), got {memory}."
            )
        self._steps = total
        self.windows = sum(len(piece.windows) for piece in self._pieces)
        #: Bytes of fields read in an epoch, and since the beginning.
        self.each = sum(map(self._bytes, self._pieces))
        self.read = 0
        self._readers = ThreadPoolExecutor(threads, "reader")
        # The block that was read first, until it is used; for ever if that is all.
        self._first: tuple[int, int, _Steps] | None = None

    def close(self) -> None:
        """Read no more; may be called again."""
        self._readers.shutdown(wait=True, cancel_futures=True)

    @property
    def how(self) -> str:
        """How the data set is read, in words."""
        if self.fits:
            return "kept in memory"
        again = self.each / (self._steps * self._archive.spec.step_bytes)
        words = "read anew in each epoch"
        if again <= 1:
            return words
        return (
            f"{words}, {again:.2f} times as many bytes: windows of {self.window.span} "
            "steps cross the borders of what is read at once; more data.memory makes "
            "that fewer"
        )

    def moments(self) -> tuple[int, Float[np.ndarray, ""], Float[np.ndarray, ""]]:
        """Return number, mean and std of the fields: of all, or of the first block."""
        moments = Moments(len(self._archive.spec.variables))
        if self._pieces:
            steps = self._block(0, 0, next(iter(self._blocks(0)))[0])
            for part in np.array_split(steps, len(steps)):
                moments.update(part)
        return moments.count, moments.mean, moments.std

    def draws(self, epoch: int, batch_size: int, skip: int = 0) -> Generator[Draw]:
        """Yield the batches of an epoch, but for the first `skip`.

        The last one may be smaller. Of a block that is left out nothing is read.
        """
        if not self.fits and self._first is not None and self._first[0] != epoch:
            self._first = None
        rest: list[Draw] = []
        coming = self._coming(epoch, skip * batch_size)
        following = next(coming, None)
        while following is not None:
            table, at, reading = following
            steps = self._taken(reading)
            following = next(coming, None)
            while at < len(table.step):
                stop = at + batch_size - sum(len(draw.step) for draw in rest)
                rest.append(self._draw(steps, table, at, stop))
                at = stop
                if sum(len(draw.step) for draw in rest) == batch_size:
                    yield _joined(rest)
                    rest = []
        if rest:
            yield _joined(rest)

    def _blocks(self, epoch: int) -> Iterator[tuple[list[Piece], Table]]:
        generator = np.random.default_rng([*self._seed, epoch])
        order = np.arange(len(self._pieces))
        if not self.fits:
            generator.shuffle(order)
        for block in blocks([self._pieces[k] for k in order], self._most):
            yield block, Table.of(block, generator)

    def _coming(self, epoch: int, skip: int) -> Iterator[tuple[Table, int, _Reading]]:
        """Yield windows, where to begin in them, and their steps, which are read then.

        The first `skip` windows are left out.
        """
        for number, (block, table) in enumerate(self._blocks(epoch)):
            count = len(table.step)
            if skip < count:
                yield table, skip, self._kept(epoch, number) or self._begin(block)
            skip = max(0, skip - count)

    def _kept(self, epoch: int, number: int) -> _Reading | None:
        first = self._first
        if first is None or not (self.fits or first[:2] == (epoch, number)):
            return None
        if not self.fits:
            self._first = None
        return first[2], []

    def _bytes(self, piece: Piece) -> int:
        archive = self._archive
        steps = piece.rounded(archive.chunk_steps, archive.spec.steps)
        return steps * archive.spec.step_bytes

    def _begin(self, block: Sequence[Piece]) -> _Reading:
        spec = self._archive.spec
        count = sum(piece.steps for piece in block)
        steps = np.empty((count, *spec.step_shape), dtype=np.float32)
        futures, at = [], 0
        for piece in block:
            part = steps[at : at + piece.steps]
            futures.append(self._readers.submit(self._read, piece, part))
            at += piece.steps
        return steps, futures

    def _read(self, piece: Piece, out: _Steps) -> int:
        self._archive.read(piece.simulation, piece.first, out)
        return self._bytes(piece)

    def _taken(self, reading: _Reading) -> _Steps:
        steps, futures = reading
        try:
            self.read += sum(future.result() for future in futures)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        if self.fits:
            self._first = (0, 0, steps)
        return steps

    def _block(self, epoch: int, number: int, block: Sequence[Piece]) -> _Steps:
        if self._first is None:
            self._first = (epoch, number, self._taken(self._begin(block)))
        return self._first[2]

    def _draw(self, steps: _Steps, table: Table, first: int, stop: int) -> Draw:
        places = table.place[first:stop]
        span = self.window.span
        rows = (places[:, None] + np.arange(span)).ravel()
        fields = np.take(steps, rows, axis=0)
        simulation = table.simulation[first:stop]
        parameters = self._archive.parameters[simulation]
        return Draw(
            fields.reshape(len(places), span, *steps.shape[1:]),
            simulation,
            table.step[first:stop],
            parameters.astype(np.float32),
        )


def _joined(draws: Sequence[Draw]) -> Draw:
    if len(draws) == 1:
        return draws[0]
    columns = zip(*draws, strict=True)
    fields, simulation, step, parameters = (np.concatenate(c) for c in columns)
    return Draw(fields, simulation, step, parameters)
