"""Simulations kept apart from training, whole and in memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Self

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from surrogate_flow.data.ranks import Ranks
from surrogate_flow.ensemble.workers import EnsembleError
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir import Draw, Moments
from surrogate_flow.reservoir.memory import allocate
from surrogate_flow.surrogate.batch import Batch

__all__ = ["ValidationSet"]

logger = logging.getLogger(__name__)


class ValidationSet:
    """u[simulation, time, channel, *space] of a validation or test set.

    A sink of the stream which is never full. Iterating yields the batches of all
    *finished* simulations, in the same order every time; a sample is one prediction,
    also where training unrolls.

    Thread-safe: the inlet writes while the trainer waits.

    Parameters
    ----------
    spec : FieldSpec
    window : Window
    batch_size : int
    first : int
        Number of the first held-out simulation.
    count : int
        How many there are.
    stride : int
        Distance between the numbers of two of them.

    Raises
    ------
    ValueError
        If the machine has less memory than they take.
    """

    def __init__(
        self,
        spec: FieldSpec,
        window: Window,
        batch_size: int,
        first: int,
        count: int,
        *,
        stride: int = 1,
    ) -> None:
        self.spec = spec
        self.window = window.without_unroll()
        self.batch_size = batch_size
        self.first = first
        self.count = count
        self.stride = stride
        self.fields = allocate(
            (count, spec.steps, *spec.step_shape),
            "Held-out simulations, which are kept whole",
            "Lower data.held_out, or use fewer steps or a coarser grid.",
        )
        self.parameters = np.empty((count, len(spec.parameters)), dtype=np.float32)
        self._arrived = np.zeros(count, dtype=np.int64)
        self._missing: set[int] = set()
        self._changed = threading.Condition()

    @classmethod
    def of_rank(
        cls, ranks: Ranks, spec: FieldSpec, window: Window, batch_size: int, count: int
    ) -> Self:
        """Return a place for this rank's share of `count` simulations.

        Raises
        ------
        ValueError
            If there is none for some rank.
        """
        rank, world = ranks.rank, ranks.world
        if count < world:
            raise ValueError(
                f"data.held_out: expected at least one simulation for each of {world} "
                f"ranks, got {count}."
            )
        share = len(range(rank, count, world))
        return cls(spec, window, batch_size, rank, share, stride=world)

    def validated(self, ranks: Ranks, count: int) -> int:
        """Return how many of the `count` simulations of all ranks are whole.

        Raises
        ------
        EnsembleError
            If some rank has none.
        """
        shares = ranks.gather(len(self.finished))
        if 0 in shares:
            rank = shares.index(0)
            of_rank = f" of rank {rank}" if len(shares) > 1 else ""
            share = len(range(rank, count, len(shares)))
            raise EnsembleError(
                f"None of the {share} held-out simulations{of_rank} finished: there is "
                "nothing to validate with. Look into failures.csv in the run's folder."
            )
        if sum(shares) < count and ranks.rank == 0:
            logger.warning(
                "Validating with %d of %d simulations; see failures.csv.",
                sum(shares),
                count,
            )
        return sum(shares)

    def __contains__(self, simulation: int) -> bool:
        """Whether a simulation of this rank is one of them."""
        return 0 <= self.row(simulation) < self.count

    def row(self, simulation: int) -> int:
        """Return the place of a simulation in `fields`."""
        return (simulation - self.first) // self.stride

    def number(self, row: int) -> int:
        """Return the simulation at a place in `fields`."""
        return self.first + row * self.stride

    def offer(
        self,
        simulation: int,
        first: int,
        steps: Float[np.ndarray, "time channel *space"],
        parameters: Float[np.ndarray, " parameter"],
    ) -> int:
        """Store the steps; all of them, always."""
        row = self.row(simulation)
        self.fields[row, first : first + len(steps)] = steps
        self.parameters[row] = parameters
        with self._changed:
            self._arrived[row] = first + len(steps)
            self._changed.notify_all()
        return len(steps)

    def open(self, simulation: int) -> int:
        """Return the number of the next step of a simulation."""
        return int(self._arrived[self.row(simulation)])

    def close(self, simulation: int, complete: bool) -> None:
        """Wait no longer for a simulation that has failed permanently."""
        if not complete:
            with self._changed:
                self._missing.add(self.row(simulation))
                self._changed.notify_all()

    def priority(self, simulation: int) -> int:
        """Return 2: the trainer waits for these, and there is always room."""
        return 2

    def waiting(self) -> str:
        """Return "": no simulation waits for room."""
        return ""

    def on_room(self, wake: Callable[[], None]) -> None:
        """Do nothing: there is always room."""

    def restore(
        self,
        rows: Int[np.ndarray, " simulation"],
        fields: Float[np.ndarray, "simulation time channel *space"],
        parameters: Float[np.ndarray, "simulation parameter"],
    ) -> None:
        """Take over whole simulations from a checkpoint."""
        with self._changed:
            self.fields[rows] = fields
            self.parameters[rows] = parameters
            self._arrived[rows] = self.spec.steps
            self._changed.notify_all()

    @property
    def finished(self) -> list[int]:
        """Rows of the simulations that are whole."""
        whole = self._arrived == self.spec.steps
        return [int(row) for row in np.flatnonzero(whole)]

    @property
    def complete(self) -> bool:
        """Whether nothing more is to come."""
        return len(self._missing.union(self.finished)) == self.count

    @property
    def progress(self) -> str:
        """How many of this rank's simulations are whole, of how many."""
        return f"{len(self.finished)}/{self.count}"

    def wait(self, timeout: float) -> bool:
        """Block until complete, `timeout` seconds at most; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self.complete, timeout)

    def __len__(self) -> int:
        samples = len(self.finished) * self.window.samples(self.spec.steps)
        return -(-samples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        firsts = np.arange(
            0, self.spec.steps - self.window.span + 1, self.window.stride
        )
        pairs = [(row, step) for row in self.finished for step in firsts]
        for start in range(0, len(pairs), self.batch_size):
            rows, steps = np.array(pairs[start : start + self.batch_size]).T
            span = steps[:, None] + np.arange(self.window.span)
            yield Batch.from_draw(
                Draw(
                    fields=self.fields[rows[:, None], span],
                    simulation=self.first + rows * self.stride,
                    step=steps,
                    parameters=self.parameters[rows],
                ),
                self.window,
            )

    def simulation(self, row: int, steps: slice = slice(None)) -> xr.Dataset:
        """Return steps of one simulation as its solver yielded them."""
        values = map(float, self.parameters[row])
        names = (p.name for p in self.spec.parameters)
        return self.spec.dataset(
            self.fields[row, steps],
            self.spec.times[steps],
            dict(zip(names, values, strict=True)),
        )

    def spread(self) -> Float[np.ndarray, " channel"]:
        """Return, for each variable, the error of the best constant prediction."""
        moments = Moments(len(self.spec.variables))
        for row in self.finished:
            for steps in np.array_split(self.fields[row], self.spec.steps):
                moments.update(steps)
        return moments.std
