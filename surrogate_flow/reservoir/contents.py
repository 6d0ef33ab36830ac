"""What a store holds, and what may enter and leave it: all but threads and waits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import final

import numpy as np
from jaxtyping import Int, Shaped

from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir.batches import Draw
from surrogate_flow.reservoir.index import Block, Index, Labels, Parameters
from surrogate_flow.reservoir.layout import Layout, slots_of
from surrogate_flow.reservoir.limiter import Limiter
from surrogate_flow.reservoir.memory import Slots, Steps
from surrogate_flow.reservoir.policy import Policy
from surrogate_flow.reservoir.population import Bag, Population, Queue
from surrogate_flow.reservoir.slab import Slab
from surrogate_flow.reservoir.snapshot import Snapshot
from surrogate_flow.reservoir.stats import Refusal, StoreStats, Tally

__all__ = ["Contents"]


@final
class Contents:
    """Slab, index, population and counters of a store, changed as its policy says.

    Parameters
    ----------
    spec, window, batch_size, policy
        As `Store`.

    Raises
    ------
    UserError
        If trainer and simulations would wait for each other for ever.

    Notes
    -----
    Not thread-safe by itself: a store calls it under its lock. Steps are copied to and
    from `slab.memory` without the lock, between `reserve` and `publish`, and between
    `take` and `slab.end_read`.
    """

    def __init__(
        self, spec: FieldSpec, window: Window, batch_size: int, policy: Policy
    ) -> None:
        capacity = slots_of(policy.capacity, spec, window, batch_size, policy.threshold)
        if policy.limiter is not None:
            policy.limiter.check(batch_size)
        memory = policy.memory(capacity, spec.step_shape, batch_size * window.span)
        self.spec, self.batch_size, self.policy = spec, batch_size, policy
        self.layout = Layout(window.span, window.stride, spec.steps)
        self.slab = Slab(memory, shared=window.span > 1)
        self.index = Index(self.layout, self.slab, len(spec.parameters))
        self.population: Population = (Queue if policy.in_order else Bag)(capacity)
        self.tally = Tally(capacity)
        self.limiter: Limiter | None = policy.limiter
        #: Whether reception has ended, so that what is drawn leaves.
        self.draining = False
        #: Blocks that are being copied in, and the samples that they complete.
        self.copying = self.promised = 0
        self._random = np.random.default_rng(policy.seed)

    def reserve(
        self,
        simulation: int,
        first: int,
        count: int,
        parameters: Parameters,
    ) -> tuple[Block | None, Refusal | None]:
        """Return the leading steps that may enter, and why others may not.

        Samples are evicted for them as the policy says. `Index.find` has checked that
        these steps come next.
        """
        layout, trajectory = self.layout, self.index.live.get(simulation)
        if trajectory is None and self.index.crowded:
            return None, Refusal.CROWDED
        if trajectory is not None and trajectory.busy:
            return None, Refusal.BUSY
        refusal = Refusal.LIMITER
        samples = self._insertable() + (trajectory.samples if trajectory else 0)
        steps = min(count, layout.before(samples) - first)
        if steps > 0:
            refusal = Refusal.FULL
            before = layout.kept(first)
            room = self._make_room(layout.kept(first + steps) - before)
            steps = min(steps, layout.until(before + room) - first)
        if steps <= 0:
            return None, refusal
        block = self.index.reserve(simulation, trajectory, steps, parameters)
        self.copying += 1
        self.promised += block.samples
        return block, refusal if steps < count else None

    def publish(self, block: Block) -> None:
        """Let the samples enter that a block completes, now that it is copied."""
        self._end_copy(block)
        samples = self.index.publish(block)
        self.tally.enter(samples)
        self.population.add(samples)

    def cancel(self, block: Block) -> None:
        """Take back a block that could not be copied."""
        self._end_copy(block)
        self.index.cancel(block)

    def lacking(self) -> str:
        """Return in words what a batch lacks; empty if it may be drawn."""
        count, tally = len(self.population), self.tally
        threshold = self.policy.threshold
        needed = self.policy.needed(self.batch_size, tally.inserted)
        reason = ""
        if count < needed:
            rule = "batch" if needed > threshold else "threshold"
            reason = f"{count} of {needed} samples ({rule})"
        elif self.limiter is not None and not self.limiter.drawable(
            self.batch_size, tally.inserted, tally.drawn, threshold
        ):
            reason = f"{tally.drawn} drawn, {tally.inserted} samples inserted (limiter)"
        # Nobody can add to a full store, so it must not be waited for.
        return "" if count and (self.draining or self._full) else reason

    def take(self) -> tuple[Slots, Labels, int]:
        """Choose a batch; return its slots, its labels, and the reader to end."""
        population, index = self.population, self.index
        places, leave = self.policy.take(
            len(population), self.batch_size, self._random, draining=self.draining
        )
        samples = (population.remove if leave else population.draw)(places)
        slots, labels = index.slots(samples), index.labels(samples)
        reader = self.slab.begin_read()
        self.tally.draw(samples)
        if leave:
            self.tally.remove(samples)
            self.slab.release(slots)
        return slots, labels, reader

    @property
    def held(self) -> Slots:
        """Slots of all steps of samples and of incomplete ones, ascending."""
        tails = [trajectory.tail for trajectory in self.index.live.values()]
        samples = self.index.slots(self.population.samples)
        return np.unique(np.concatenate([samples, *tails]))

    def stats(self, put_wait: float, draw_wait: float) -> StoreStats:
        """Return all counters."""
        slab, tally, population = self.slab, self.tally, self.population
        return StoreStats(
            capacity=slab.capacity,
            capacity_bytes=slab.memory.nbytes,
            steps=slab.capacity - slab.free,
            unfinished=self.index.unfinished,
            population=len(population),
            unseen=population.unseen,
            inserted=tally.inserted,
            drawn=tally.drawn,
            batches=tally.batches,
            evicted=tally.evicted,
            removed=tally.removed,
            put_wait=put_wait,
            draw_wait=draw_wait,
            times_seen=tally.times_seen(population.samples),
        )

    def snapshot(self, slots: Slots, again: Sequence[Draw]) -> Snapshot:
        """Return the snapshot; its rows are the steps in `slots`, which `held` gave."""
        index, tally, samples = self.index, self.tally, self.population.samples
        simulation, step, parameters = index.labels(slots)
        row = np.zeros(self.slab.capacity, dtype=np.int64)
        row[slots] = np.arange(len(slots))
        counts, left = tally.counts
        live = list(index.live.items())
        tails = [(i, row[slot]) for i, (_, t) in enumerate(live) for slot in t.tail]
        return Snapshot(
            policy=type(self.policy).__name__,
            simulation=simulation,
            step=step,
            parameters=parameters,
            following=row[index.following(slots)],
            place=np.zeros(0, dtype=np.int64),
            members=row[samples],
            unseen=self.population.unseen,
            times=tally.times(samples),
            live=_table([(n, t.next_step, t.samples) for n, t in live], 3),
            tails=_table(tails, 2),
            finished=_table(index.finished.ranges, 2),
            again_size=np.array([len(draw.step) for draw in again], dtype=np.int64),
            again_simulation=_joined([d.simulation for d in again], simulation),
            again_step=_joined([d.step for d in again], step),
            again_parameters=_joined([d.parameters for d in again], parameters),
            counts=counts,
            left=left,
            random=json.dumps(self._random.bit_generator.state),
        )

    def restore(
        self,
        snapshot: Snapshot,
        rows: Steps,
        chunk: int,
    ) -> None:
        """Hold what a snapshot says; its fields are copied `chunk` steps at a time."""
        index, slab = self.index, self.slab
        slots = slab.alloc(len(snapshot.simulation))
        for start in range(0, len(slots), chunk):
            part = slice(start, start + chunk)
            slab.memory.write(slots[part], np.asarray(rows[snapshot.place[part]]))
        labels = (snapshot.simulation, snapshot.step, snapshot.parameters)
        index.restore(slots, labels, slots[snapshot.following])
        index.finished = IntSet(snapshot.finished.tolist())
        for i, (number, next_step, count) in enumerate(snapshot.live.tolist()):
            tail = slots[snapshot.tails[snapshot.tails[:, 0] == i, 1]]
            index.resume(number, next_step, count, tail)
        samples = slots[snapshot.members]
        if self.layout.span > 1:
            # So far each has the reference of its allocation.
            slab.retain(index.slots(samples))
            slab.release(slots)
        self.population.fill(samples, snapshot.unseen)
        self.tally.restore(snapshot.counts, snapshot.left, samples, snapshot.times)
        if snapshot.random:
            self._random.bit_generator.state = json.loads(snapshot.random)

    def restart(self, snapshot: Snapshot) -> None:
        """Hold no steps, and let what was not trained be simulated again."""
        nothing = np.zeros(0, dtype=np.intp)
        self.index.finished = snapshot.settled(self.layout)
        for number, step in snapshot.restarts(self.layout).items():
            self.index.resume(number, step, step // self.layout.stride, nothing)
        self.tally.restore(0 * snapshot.counts, snapshot.left, nothing, nothing)
        self.tally.lose(snapshot.times)

    def _end_copy(self, block: Block) -> None:
        self.copying -= 1
        self.promised -= block.samples

    def _insertable(self) -> int:
        """Return how many samples the limiter lets in."""
        if self.limiter is None or self.draining:
            return self.layout.samples
        inserted = self.tally.inserted + self.promised
        threshold = self.policy.threshold
        room = self.limiter.insertable(inserted, self.tally.drawn, threshold)
        # An empty store can give no batch, so an insert must not wait for one.
        return max(room, int(len(self.population) + self.promised == 0))

    def _make_room(self, need: int) -> int:
        """Evict until `need` slots are free, if that can be; return how many are."""
        slab, population = self.slab, self.population
        while (missing := need - slab.free - slab.pending) > 0:
            # A sample frees up to span steps; more than that at once could be too many.
            wanted = max(1, missing // self.layout.span)
            places = self.policy.evict(
                population.unseen, len(population), wanted, self._random
            )
            if not len(places):
                break
            samples = population.remove(places)
            self.tally.evict(samples)
            slab.release(self.index.slots(samples))
        return min(need, slab.free)

    @property
    def _full(self) -> bool:
        """Whether no step can enter before something is drawn."""
        if self.slab.free + self.slab.pending + self.copying:
            return False
        return self.population.unseen == len(self.population)


def _table(
    rows: Sequence[tuple[int, ...]], width: int
) -> Int[np.ndarray, "row column"]:
    return np.array(rows, dtype=np.int64).reshape(-1, width)


def _joined(
    parts: Sequence[Shaped[np.ndarray, "part ..."]],
    like: Shaped[np.ndarray, "part ..."],
) -> Shaped[np.ndarray, "all ..."]:
    joined: Shaped[np.ndarray, "all ..."] = np.concatenate([like[:0], *parts])
    return joined.astype(like.dtype)
