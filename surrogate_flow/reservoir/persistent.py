"""The part of a store that outlives its process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import final

import numpy as np
from jaxtyping import Float, Int, Shaped

from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.reservoir.draw import Draw
from surrogate_flow.reservoir.flight import PendingBatches
from surrogate_flow.reservoir.intake import Intake
from surrogate_flow.reservoir.plan import Plan
from surrogate_flow.reservoir.snapshot import Snapshot

__all__ = ["Persistent"]

_CHUNK = 2**26  # bytes of steps copied before they are written
_SECONDS = 60.0  # for copies under way to end


class Persistent(Intake):
    """What `Store` does for checkpoints; parameters and contract as there."""

    _random: np.random.Generator | None = None

    @property
    def plan(self) -> Plan:
        """Which steps of a simulation are kept, and where its samples begin."""
        return self._plan

    @property
    def finished(self) -> IntSet:
        """Simulations of which every step has come, as they are now."""
        with self._changed:
            return IntSet(self._books.finished.ranges)

    @final
    def save(
        self,
        flight: PendingBatches,
        write: Callable[[Float[np.ndarray, "row channel *space"]], None] | None,
        note: Callable[[], None] | None = None,
    ) -> Snapshot:
        """Return what is held at one moment, and write its steps; blocks for that.

        Steps come in meanwhile: those that must be kept for the snapshot are copied
        first, so nobody waits for longer than one chunk of 64 MiB takes.

        Parameters
        ----------
        flight : PendingBatches
            What was drawn and is not trained; written behind the rest.
        write : callable, optional
            Takes chunks of steps, one after the other. Without it the books alone are
            returned, from which `restore` can tell what has to be simulated again.
        note : callable, optional
            Called at the moment of the books, while nothing can change them.

        Raises
        ------
        TimeoutError
            If copies under way do not end within a minute.
        """
        with self._changed:
            self._saving = True
            try:
                if not self._changed.wait_for(
                    lambda: not self._copying and not flight.airborne, _SECONDS
                ):
                    raise TimeoutError(
                        f"Store.save: {self._copying} copies into the store and "
                        f"{flight.airborne} out of it have not ended within "
                        f"{_SECONDS:g} s. The machine is out of memory, or stopped."
                    )
                slots = self._held()
                again = flight.draws
                snapshot = self._books_of(slots, again)
                if note is not None:
                    note()
                if write is not None:
                    self._slab.pin(slots)
            finally:
                self._saving = False
                self._changed.notify_all()
        self._announce()
        if write is not None:
            order = self._write(write)
            # `slots` ascend and `order` has the same ones.
            snapshot = replace(snapshot, place=np.argsort(order))
            for draw in again:
                fields = self._slab.memory.host(draw.fields)
                write(fields.reshape(-1, *self.spec.step_shape))
        return snapshot

    def _held(self) -> Int[np.ndarray, " slot"]:
        live = self._books.live.values()
        parts = [self._books.slots(self._members.samples), *(t.tail for t in live)]
        return np.unique(np.concatenate(parts))

    def _books_of(self, slots: Int[np.ndarray, " row"], again: list[Draw]) -> Snapshot:
        books, tally, members = self._books, self._tally, self._members
        simulation, step, parameters = books.labels(slots)
        row = np.zeros(self.capacity, dtype=np.int64)
        row[slots] = np.arange(len(slots))
        counts, left = tally.counts
        live = list(books.live.items())
        tails = [(i, slot) for i, (_, t) in enumerate(live) for slot in t.tail]
        state = self._random.bit_generator.state if self._random else None
        width = len(self.spec.parameters)
        return Snapshot(
            policy=type(self).__name__,
            simulation=simulation,
            step=step,
            parameters=parameters,
            following=row[books.following(slots)],
            place=np.zeros(0, dtype=np.int64),
            members=row[members.samples],
            unseen=members.unseen,
            times=tally.times(members.samples),
            live=_table([(n, t.expected, t.windows) for n, t in live], 3),
            tails=_table([(i, row[slot]) for i, slot in tails], 2),
            finished=_table(books.finished.ranges, 2),
            again_size=np.array([len(draw.step) for draw in again], dtype=np.int64),
            again_simulation=_joined([d.simulation for d in again], np.int64),
            again_step=_joined([d.step for d in again], np.int64),
            again_parameters=_joined(
                [d.parameters.ravel() for d in again], np.float32
            ).reshape(sum(len(draw.step) for draw in again), width),
            counts=counts,
            left=left,
            random=json.dumps(state) if state else "",
        )

    def _write(
        self, write: Callable[[Float[np.ndarray, "row channel *space"]], None]
    ) -> Int[np.ndarray, " slot"]:
        """Write all pinned rows; return their slots in the order of writing."""
        size = max(1, _CHUNK // self.spec.step_bytes)
        chunk = np.empty((size, *self.spec.step_shape), dtype=np.float32)
        order = [np.zeros(0, dtype=np.intp)]
        slots = order[0]
        try:
            while True:
                with self._changed:
                    slots = self._slab.pinned(size)
                if not len(slots):
                    return np.concatenate(order)
                self._slab.memory.gather(slots, chunk[: len(slots)])
                self._unpin(slots)
                order.append(slots)
                write(chunk[: len(slots)])
        finally:
            # Nothing is left of them, unless writing has failed.
            with self._changed:
                rest = self._slab.pinned(self.capacity)
            self._unpin(rest)

    def _unpin(self, slots: Int[np.ndarray, " slot"]) -> None:
        with self._changed:
            self._slab.unpin(slots)
            self._changed.notify_all()
        self._announce()

    @final
    def restore(
        self,
        snapshot: Snapshot,
        rows: Float[np.ndarray, "row channel *space"] | None,
    ) -> list[Draw]:
        """Go on from a snapshot; the store must be empty.

        Parameters
        ----------
        snapshot : Snapshot
        rows : array, optional
            What was written. Without it the store stays empty, and `expected` tells
            each simulation to go on at its first sample that was not trained.

        Returns
        -------
        list of Draw
            Batches to train before anything is drawn.

        Raises
        ------
        ValueError
            If the snapshot is of another policy, or holds more than the capacity.
        """
        if snapshot.policy != type(self).__name__:
            raise ValueError(
                f"The checkpoint's reservoir is a {snapshot.policy}, expected a "
                f"{type(self).__name__}. Use the policy that the run began with."
            )
        with self._changed:
            if rows is None:
                self._restore_books(snapshot)
                return []
            count = len(snapshot.simulation)
            if count > self.capacity:
                raise ValueError(
                    f"The checkpoint holds {count} steps, expected at most capacity = "
                    f"{self.capacity}. Raise the capacity to that of the first run."
                )
            self._restore_rows(snapshot, rows)
        shape = (-1, self._plan.span, *self.spec.step_shape)
        fields = np.array(rows[count:]).reshape(shape)
        ends = np.cumsum(snapshot.again_size)
        return [
            Draw(
                fields[start:end],
                snapshot.again_simulation[start:end],
                snapshot.again_step[start:end],
                snapshot.again_parameters[start:end],
            )
            for start, end in zip(ends - snapshot.again_size, ends, strict=True)
        ]

    def _restore_books(self, snapshot: Snapshot) -> None:
        nothing = np.zeros(0, dtype=np.intp)
        self._books.finished = snapshot.settled(self._plan)
        for number, step in snapshot.restarts(self._plan).items():
            self._books.resume(number, step, step // self._plan.stride, nothing)
        self._tally.restore(0 * snapshot.counts, snapshot.left, nothing, nothing)
        self._tally.lose(snapshot.times)

    def _restore_rows(
        self, snapshot: Snapshot, rows: Float[np.ndarray, "row channel *space"]
    ) -> None:
        books, slab = self._books, self._slab
        slots = slab.alloc(len(snapshot.simulation))
        size = max(1, _CHUNK // self.spec.step_bytes)
        for start in range(0, len(slots), size):
            part = slice(start, start + size)
            slab.memory.write(slots[part], np.asarray(rows[snapshot.place[part]]))
        labels = (snapshot.simulation, snapshot.step, snapshot.parameters)
        books.restore(slots, labels, slots[snapshot.following])
        books.finished = IntSet((a, b) for a, b in snapshot.finished.tolist())
        for i, (number, expected, windows) in enumerate(snapshot.live.tolist()):
            tail = slots[snapshot.tails[snapshot.tails[:, 0] == i, 1]]
            books.resume(number, expected, windows, tail)
        samples = slots[snapshot.members]
        if self._plan.span > 1:
            # So far each has the reference of its allocation.
            slab.retain(books.slots(samples))
            slab.release(slots)
        self._members.fill(samples, snapshot.unseen)
        self._tally.restore(snapshot.counts, snapshot.left, samples, snapshot.times)
        if self._random and snapshot.random:
            self._random.bit_generator.state = json.loads(snapshot.random)


def _table(
    rows: Sequence[tuple[int, ...]], width: int
) -> Int[np.ndarray, "row column"]:
    return np.array(rows, dtype=np.int64).reshape(-1, width)


def _joined(
    parts: Sequence[Shaped[np.ndarray, " part"]], dtype: type
) -> Shaped[np.ndarray, " whole"]:
    return np.concatenate([np.zeros(0, dtype=dtype), *parts]).astype(dtype)
