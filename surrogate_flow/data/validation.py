"""Simulations kept apart from training, complete and in memory."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator
from typing import Self

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from surrogate_flow.data.ranks import Ranks
from surrogate_flow.ensemble.workers import EnsembleError
from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.inputs import named_inputs
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir import Draw, Moments
from surrogate_flow.reservoir.memory import allocate
from surrogate_flow.stream import Sink
from surrogate_flow.surrogate.batch import Batch

__all__ = ["ValidationSet", "usual_held_out"]

logger = logging.getLogger(__name__)

_MANY, _FEW, _SMALL = 30, 10, 64 << 20  # held-out simulations, and bytes of many
_VALUES = 2**18  # of a batch that is larger than those of the training


def usual_held_out(spec: FieldSpec) -> int:
    """Return how many simulations are held out: fewer where they are large."""
    # By the spec alone, so that a resumed or longer run has the same ones.
    return _MANY if _MANY * spec.steps * spec.step_bytes <= _SMALL else _FEW


class ValidationSet(Sink):
    """u[simulation, time, channel, *space] of a validation or test set.

    A sink of the stream which is never full, and thread-safe: the inlet writes while
    the trainer waits. Iterating yields the batches of all *finished* simulations, in
    the same order every time; a sample is one prediction, also where training unrolls.

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
    UserError
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
        self.first, self.count, self.stride = first, count, stride
        self.fields = allocate(
            (count, spec.steps, *spec.step_shape),
            "Held-out simulations, which stay in memory",
            "Lower data.held_out, or use fewer steps or a coarser grid.",
        )
        self.parameters = np.empty((count, len(spec.parameters)), dtype=np.float32)
        self.inputs = allocate(
            (count, *spec.input_shape),
            "Input fields of held-out simulations",
            "Lower data.held_out, or use a coarser grid.",
        )
        self._arrived = np.zeros(count, dtype=np.int64)
        # Rows of those that have ended early: fields behind their steps are NaN.
        self._early: set[int] = set()
        self._missing: set[int] = set()
        self._changed = threading.Condition()

    @classmethod
    def of_rank(
        cls, ranks: Ranks, spec: FieldSpec, window: Window, batch_size: int, count: int
    ) -> Self:
        """Return an empty set for this rank's share of `count` simulations.

        Of small fields, batches are up to four times as large as those of the training:
        no gradients take memory, and a forward pass takes as long for one sample.

        It is an ArgumentError if there is none for some rank.
        """
        rank, world = ranks.rank, ranks.world
        if count < world:
            raise ArgumentError(
                "data.held_out",
                f"at least one simulation for each of {world} ranks",
                count,
            )
        share = len(range(rank, count, world))
        fitting = _VALUES // (window.span * math.prod(spec.step_shape))
        size = max(batch_size, min(4 * batch_size, fitting))
        return cls(spec, window, size, rank, share, stride=world)

    def validated(self, ranks: Ranks, count: int) -> int:
        """Return how many of the `count` simulations of all ranks are complete.

        It is an EnsembleError if some rank has none.
        """
        both: list[tuple[int, int]] = ranks.gather(
            (len(self.finished), len(self.ended))
        )
        shares = [finished for finished, _ in both]
        if 0 in shares:
            rank = shares.index(0)
            of_rank = f" of rank {rank}" if len(shares) > 1 else ""
            share = len(range(rank, count, len(shares)))
            raise EnsembleError(
                f"None of the {share} held-out simulations{of_rank} finished: there is "
                "nothing to validate with. Look into failures.csv in the run's folder."
                if not both[rank][1]
                else f"All held-out simulations{of_rank} ended before a sample was "
                f"complete: expected {self.window.span} steps at least, those of the "
                "window. Use a shorter window, or narrow the parameters."
            )
        complete, ended = sum(shares), sum(ended for _, ended in both)
        if ended < count and ranks.rank == 0:
            logger.warning(
                "%d of %d held-out simulations failed; see failures.csv.",
                count - ended,
                count,
            )
        if complete < ended and ranks.rank == 0:
            logger.warning(
                "%d of %d held-out simulations ended before a sample of %d steps was "
                "complete; no error is of them.",
                ended - complete,
                count,
                self.window.span,
            )
        return complete

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
        inputs: Float[np.ndarray, " input *space"] | None = None,
    ) -> int:
        """Store the steps; all of them, always."""
        row = self.row(simulation)
        if inputs is not None:
            self.inputs[row] = inputs
        self.fields[row, first : first + len(steps)] = steps
        self.parameters[row] = parameters
        with self._changed:
            self._arrived[row] = first + len(steps)
            self._changed.notify_all()
        return len(steps)

    def open(self, simulation: int) -> int:
        """Return the number of the next step of a simulation."""
        return int(self._arrived[self.row(simulation)])

    def close(self, simulation: int, complete: bool, early: str = "") -> None:
        """Wait no longer for a simulation that has failed, or has ended early."""
        row = self.row(simulation)
        with self._changed:
            if not complete:
                self._missing.add(row)
            elif (steps := self._arrived[row]) < self.spec.steps:
                self.fields[row, steps:] = np.nan
                self._early.add(row)
            self._changed.notify_all()

    def priority(self, simulation: int) -> int:
        """Return 2: the trainer waits for these, and there is always room."""
        return 2

    def restore(
        self,
        rows: Int[np.ndarray, " simulation"],
        fields: Float[np.ndarray, "simulation time channel *space"],
        parameters: Float[np.ndarray, "simulation parameter"],
        inputs: Float[np.ndarray, "simulation input *space"] | None = None,
        steps: Int[np.ndarray, " simulation"] | None = None,
    ) -> None:
        """Take over complete simulations, and their numbers of steps if these differ.

        Fields behind the last step of one are not used.
        """
        with self._changed:
            if inputs is not None:
                self.inputs[rows] = inputs
            self.fields[rows] = fields
            self.parameters[rows] = parameters
            self._arrived[rows] = self.spec.steps if steps is None else steps
            for row in rows.tolist():
                if (count := self._arrived[row]) < self.spec.steps:
                    self.fields[row, count:] = np.nan
                    self._early.add(row)
            self._changed.notify_all()

    @property
    def ended(self) -> list[int]:
        """Rows of the simulations of which every step has arrived."""
        whole = np.flatnonzero(self._arrived == self.spec.steps).tolist()
        return sorted({*whole, *self._early}) if self._early else whole

    @property
    def finished(self) -> list[int]:
        """Rows of those that are long enough for a sample."""
        return [row for row in self.ended if self._arrived[row] >= self.window.span]

    def steps(self, row: int) -> int:
        """Return the number of steps of one simulation that have arrived."""
        return int(self._arrived[row])

    @property
    def complete(self) -> bool:
        """Whether no more steps will arrive."""
        return len(self._missing.union(self.ended)) == self.count

    @property
    def progress(self) -> str:
        """How many of this rank's simulations are complete, of how many."""
        return f"{len(self.ended)}/{self.count}"

    def wait(self, timeout: float) -> bool:
        """Block until complete, `timeout` seconds at most; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self.complete, timeout)

    def __len__(self) -> int:
        samples = sum(self.window.samples(self.steps(row)) for row in self.finished)
        return -(-samples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        window = self.window
        firsts = np.arange(0, self.spec.steps - window.span + 1, window.stride)
        offsets = np.arange(window.span)
        pairs = [
            (row, step)
            for row in self.finished
            for step in firsts[: window.samples(self.steps(row))]
        ]
        for start in range(0, len(pairs), self.batch_size):
            rows, steps = np.array(pairs[start : start + self.batch_size]).T
            draw = Draw(
                fields=self.fields[rows[:, None], steps[:, None] + offsets],
                simulation=self.first + rows * self.stride,
                step=steps,
                parameters=self.parameters[rows],
                inputs=self.inputs[rows] if self.spec.inputs else None,
            )
            yield Batch.from_draw(draw, window)

    def simulation(self, row: int, steps: slice = slice(None)) -> xr.Dataset:
        """Return steps of one simulation as its solver yielded them."""
        values = self.parameters[row].astype(float).tolist()
        names = (p.name for p in self.spec.parameters)
        count = self.steps(row)
        return self.spec.dataset(
            self.spec.physical(self.fields[row, :count][steps]),
            self.spec.times[:count][steps],
            dict(zip(names, values, strict=True)),
        )

    def given(self, row: int) -> dict[str, np.ndarray] | None:
        """Return the input fields of one simulation by name; None if it has none."""
        return named_inputs(self.spec, self.inputs[row]) if self.spec.inputs else None

    def spread(self) -> Float[np.ndarray, " channel"]:
        """Return, for each variable, the error of the best constant prediction.

        In the units of the variables.
        """
        moments = Moments(len(self.spec.variables))
        for row in self.finished:
            for step in self.fields[row, : self.steps(row)]:
                moments.update(step[None])
        return moments.std * [v.scale for v in self.spec.variables]
