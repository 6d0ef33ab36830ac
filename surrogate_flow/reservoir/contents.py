"""What a store holds, and what may enter and leave it: all but threads and waits."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import final

import numpy as np
from jaxtyping import Int, Shaped

from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir.batches import Draw
from surrogate_flow.reservoir.index import Block, Index, Labels, Parameters
from surrogate_flow.reservoir.inputs import Fields, InputFields
from surrogate_flow.reservoir.layout import Layout, slots_of
from surrogate_flow.reservoir.memory import HostMemory, Slots, Steps
from surrogate_flow.reservoir.policy import Limiter, Policy
from surrogate_flow.reservoir.population import Bag, Population, Queue
from surrogate_flow.reservoir.slab import Slab
from surrogate_flow.reservoir.snapshot import Snapshot
from surrogate_flow.reservoir.stats import StoreStats, Tally, Waits

__all__ = ["Contents"]

#: Readers of the steps and of the input fields, where there are any.
Reader = tuple[int, int | None]

# A reason with numbers that change until it is shown.
_FULL = "no slot is free, and nothing that was seen can be evicted"


@final
class Contents:
    """Slab, index, population and counters of a store, changed as its policy says.

    Parameters and errors are those of `Store`, which calls it under its lock. Steps are
    copied to and from `slab.memory` without the lock, between `reserve` and `publish`,
    and between `take` and `slab.end_read`.
    """

    def __init__(
        self,
        spec: FieldSpec,
        window: Window,
        batch_size: int,
        policy: Policy,
        simulations: int | None = None,
    ) -> None:
        capacity = slots_of(policy, spec, window, batch_size)
        memory = policy.memory(capacity, spec.step_shape, batch_size * window.span)
        self.batch_size, self.policy = batch_size, policy
        self.layout = Layout(window.span, window.stride, spec.steps)
        self.slab = Slab(memory, shared=window.span > 1)
        #: Of the simulations with steps in the slab; none of a spec without any.
        self.inputs: InputFields | None = None
        if spec.inputs:
            # Each slot may be of another simulation. On the host, where pages are
            # taken as rows are filled: there are mostly far fewer simulations.
            what = "Input fields of the reservoir, one for each step at most"
            rows = HostMemory(capacity, spec.input_shape, batch_size, what)
            self.inputs = InputFields(rows, self.slab)
        self.index = Index(self.layout, self.slab, len(spec.parameters), self.inputs)
        self.population: Population = (Queue if policy.in_order else Bag)(capacity)
        self.tally = Tally(capacity)
        self.limiter: Limiter | None = policy.limiter
        #: Simulations whose steps were refused.
        self.refused = Waits()
        #: First steps of the samples that come again and have left before, of each
        #: simulation that runs again.
        self.passed: dict[int, set[int]] = {}
        #: How many simulations there will be, and which have ended before their end.
        self._simulations, self._cut_off = simulations, IntSet()
        # Whether the samples of the last batch have left.
        self._leave = False
        #: Whether reception has ended, so that what is drawn leaves.
        self.draining = False
        #: Whether a snapshot is being taken, so that no copy may begin.
        self.saving = False
        #: Blocks that are being copied in, and the samples that they complete.
        self.copying = self.promised = 0
        self._random = np.random.default_rng(policy.seed)

    def reserve(
        self, simulation: int, first: int, count: int, parameters: Parameters
    ) -> Block | None:
        """Give slots to the leading steps that may enter, and note why others may not.

        Samples are evicted for them as the policy says.
        """
        if self.draining:
            raise RuntimeError(
                f"Simulation {simulation}: expected no steps after the end of "
                "reception. Call `end_reception` only when all steps are in."
            )
        self.index.check_next(simulation, first, count)
        if not count:
            return None
        steps, reason = self._room(simulation, first, count)
        if reason:
            self.refused.add(simulation, reason)
        else:
            self.refused.discard(simulation)
        if steps <= 0:
            return None
        block = self.index.reserve(simulation, steps, parameters)
        self.copying += 1
        self.promised += block.samples
        return block

    def _room(self, simulation: int, first: int, count: int) -> tuple[int, str]:
        """Make room for `count` steps; return for how many, and why not for more."""
        layout, trajectory = self.layout, self.index.live.get(simulation)
        tally = self.tally
        if self.saving:
            return 0, "a checkpoint is being written"
        if trajectory is None and self.index.crowded:
            unfinished = self.index.unfinished
            return 0, (
                f"the reservoir is too small for {unfinished + 1} simulations at once: "
                f"{unfinished} unfinished simulations hold up to {layout.span - 1} "
                f"steps each of an incomplete sample, of {self.slab.capacity}; raise "
                "capacity, or run fewer at once"
            )
        if trajectory is not None and trajectory.busy:
            return 0, "another thread copies steps of the same simulation"
        samples = self._insertable() + (trajectory.samples if trajectory else 0)
        steps = min(count, layout.before(samples) - first)
        if steps <= 0:
            return (
                0,
                f"{tally.inserted} samples inserted, {tally.drawn} drawn (limiter)",
            )
        before = layout.kept(first)
        room = self._make_room(layout.kept(first + steps) - before)
        # What has made room for steps has done so for input fields, but for copies.
        if self.inputs is not None and not self.inputs.room(simulation):
            return 0, "input fields that leave are still being copied"
        steps = min(steps, layout.until(before + room) - first)
        return steps, _FULL if steps < count else ""

    def publish(self, block: Block) -> None:
        """Let the samples enter that a block completes, now that it is copied."""
        self.copying -= 1
        self.promised -= block.samples
        samples = self.index.publish(block)
        if passed := self.passed.get(block.simulation):
            steps = self.index.labels(samples)[1].tolist()
            known = np.array([step in passed for step in steps], dtype=bool)
            self.slab.release(self.index.slots(samples[known]))
            samples = samples[~known]
        self.tally.enter(samples)
        self.population.add(samples)

    def cancel(self, block: Block) -> None:
        """Take back a block that could not be copied."""
        self.copying -= 1
        self.promised -= block.samples
        self.index.cancel(block)

    def close(self, simulation: int, complete: bool = False) -> None:
        """Release what only incomplete samples of a simulation hold."""
        self.index.close(simulation, complete)
        if not complete and simulation not in self.index.finished:
            self._cut_off.add(simulation)
        self.refused.discard(simulation)
        if simulation not in self.index.live:
            self.passed.pop(simulation, None)

    def drain(self) -> None:
        """Expect no more steps."""
        self.draining = True
        for simulation in [*self.index.live, *self.refused]:
            self.close(simulation)

    @property
    def drained(self) -> bool:
        """Whether reception has ended, and nothing is left to draw."""
        return self.draining and not (self.copying or len(self.population))

    def lacking(self) -> str:
        """Return as text what a batch lacks; empty if it may be drawn."""
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
        # No step can enter a full store, so it must not be waited for.
        return "" if count and (self.draining or self._full) else reason

    def remaining(self) -> float:
        """Return how many batches are still to come; infinite if it is not known.

        Where what is drawn leaves, all that is held and is to come is drawn once.
        Elsewhere what is to come displaces samples at the pace at which others have
        been displaced up to now, and then the store drains. In a store with room for
        all of it nothing is displaced; there, samples arrive at the pace at which they
        came behind the threshold.
        """
        held = len(self.population)
        if self.draining:
            return math.ceil(held / self.batch_size)
        if self._simulations is None:
            return math.inf
        index, layout, tally = self.index, self.layout, self.tally
        ended = len(index.finished) + len(self._cut_off)
        # Of those under way a part has arrived.
        coming = max(0, self._simulations - ended) * layout.samples - sum(
            t.samples for n, t in index.live.items() if n not in index.finished
        )
        if self._leave:
            return (held + coming) / self.batch_size
        room = max(0, self.slab.capacity * layout.samples // layout.steps - held)
        displacing, displaced = coming - room, tally.inserted - held
        if displacing <= 0:
            displacing, displaced = coming, tally.inserted - self.policy.threshold
        if displacing > 0 >= displaced:
            return math.inf
        batches = tally.batches * displacing / max(displaced, 1)
        return batches + (held + min(room, coming)) / self.batch_size

    def describe_refused(self) -> str:
        """Return what the simulation waits for that has waited longest, if one does."""
        if not self.refused:
            return ""
        reason, lap = self.refused.longest()
        if reason == _FULL:
            population = self.population
            reason = f"{population.unseen} of {len(population)} samples unseen"
            if self.layout.span > 1:
                used = self.slab.capacity - self.slab.free
                reason += f" in {used} steps, which they share"
        return f"simulations wait: {reason}, {self.tally.last_draw}{lap}"

    def take(self) -> tuple[Slots, Labels, Slots | None, Reader]:
        """Choose a batch; return slots, labels, rows of inputs, and what to end."""
        population, index = self.population, self.index
        places, leave = self.policy.take(
            len(population), self.batch_size, self._random, draining=self.draining
        )
        samples = (population.remove if leave else population.draw)(places)
        slots, labels = index.slots(samples), index.labels(samples)
        rows = None if self.inputs is None else self.inputs.rows(samples)
        reader = self.begin_read()
        self.tally.draw(samples)
        self._leave = leave
        if leave:
            self.tally.removed += len(samples)
            self.tally.leave(samples)
            self.slab.release(slots)
        return slots, labels, rows, reader

    def begin_read(self) -> Reader:
        """Keep all steps and input fields for a copy; return what `end_read` needs."""
        inputs = self.inputs
        return self.slab.begin_read(), inputs.begin_read() if inputs else None

    def end_read(self, reader: Reader) -> bool:
        """Undo `begin_read`; return whether there is room by it."""
        steps, rows = reader
        room = self.slab.end_read(steps)
        if self.inputs and rows is not None:
            room |= self.inputs.end_read(rows)
        return room

    @property
    def held(self) -> Slots:
        """Slots of all steps of samples and of incomplete ones, ascending."""
        tails = [trajectory.tail for trajectory in self.index.live.values()]
        samples = self.index.slots(self.population.samples)
        return np.unique(np.concatenate([samples, *tails]))

    def stats(self, draw_wait: float) -> StoreStats:
        """Return all counters."""
        slab, tally, population = self.slab, self.tally, self.population
        return StoreStats(
            capacity=slab.capacity,
            capacity_bytes=slab.memory.nbytes,
            threshold=self.policy.threshold,
            steps=slab.capacity - slab.free,
            unfinished=self.index.unfinished,
            population=len(population),
            unseen=population.unseen,
            **tally.counts,
            put_wait=self.refused.total,
            draw_wait=draw_wait,
            times_seen=tally.times_seen(population.samples),
            inputs=self.inputs.count if self.inputs else 0,
            input_bytes=self.inputs.nbytes if self.inputs else 0,
        )

    def snapshot(self, slots: Slots, again: Sequence[Draw]) -> Snapshot:
        """Return the snapshot; its rows are the steps in `slots`, which `held` gave."""
        index, tally, samples = self.index, self.tally, self.population.samples
        simulation, step, parameters = index.labels(slots)
        row = np.zeros(self.slab.capacity, dtype=np.int64)
        row[slots] = np.arange(len(slots))
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
            times=tally.times[samples],
            live=_table([(n, t.next_step, t.samples) for n, t in live], 3),
            tails=_table(tails, 2),
            finished=_table(index.finished.ranges, 2),
            again_size=np.array([len(draw.step) for draw in again], dtype=np.int64),
            again_simulation=_joined([d.simulation for d in again], simulation),
            again_step=_joined([d.step for d in again], step),
            again_parameters=_joined([d.parameters for d in again], parameters),
            again_remaining=np.array([float(draw.remaining) for draw in again]),
            counts=np.array([*tally.counts.values()]),
            left=tally.left.copy(),
            random=json.dumps(self._random.bit_generator.state),
            passed=_table([(n, s) for n in self.passed for s in self.passed[n]], 2),
        )

    def restore(
        self, snapshot: Snapshot, rows: Steps, chunk: int, inputs: Fields
    ) -> None:
        """Hold what a snapshot says; its fields are copied `chunk` steps at a time."""
        index, slab, count = self.index, self.slab, len(snapshot.simulation)
        self._check_policy(snapshot)
        if count > slab.capacity:
            raise UserError(
                f"The checkpoint's reservoir holds {count} steps",
                f"at most capacity = {slab.capacity}",
                count,
                "Raise --data.reservoir.capacity to that of the first run.",
            )
        slots = slab.alloc(count)
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            slab.memory.write(slots[part], np.asarray(rows[snapshot.place[part]]))
        labels = (snapshot.simulation, snapshot.step, snapshot.parameters)
        index.restore(slots, labels, slots[snapshot.following])
        if self.inputs is not None:
            self.inputs.restore(snapshot.simulation, slots, inputs)
        index.finished = IntSet(snapshot.finished.tolist())
        for i, (number, next_step, complete) in enumerate(snapshot.live.tolist()):
            tail = slots[snapshot.tails[snapshot.tails[:, 0] == i, 1]]
            index.resume(number, next_step, complete, tail)
        samples = slots[snapshot.members]
        if self.layout.span > 1:
            # So far each has the reference of its allocation.
            slab.retain(index.slots(samples))
            slab.release(slots)
        for number, step in snapshot.passed.tolist():
            self.passed.setdefault(number, set()).add(step)
        self.population.fill(samples, snapshot.unseen)
        self.tally.restore(snapshot.counts, snapshot.left)
        self.tally.times[samples] = snapshot.times
        if snapshot.random:
            self._random.bit_generator.state = json.loads(snapshot.random)

    def restart(self, snapshot: Snapshot) -> None:
        """Hold no steps, and let what was not trained be simulated again."""
        self._check_policy(snapshot)
        nothing = np.zeros(0, dtype=np.intp)
        self.index.finished = snapshot.settled(self.layout)
        self.passed = snapshot.repeated(self.layout)
        for number, step in snapshot.restarts(self.layout).items():
            self.index.resume(number, step, step // self.layout.stride, nothing)
        self.tally.restore(0 * snapshot.counts, snapshot.left)
        # Samples that were drawn, and are held no longer.
        self.tally.left += self.tally.histogram(snapshot.times[snapshot.times > 0])

    def _check_policy(self, snapshot: Snapshot) -> None:
        policy = type(self.policy).__name__
        if snapshot.policy != policy:
            raise UserError(
                "The checkpoint is of another data.reservoir: it has a "
                f"{snapshot.policy}, asked for is a {policy}.",
                remedy=f"Use --data.reservoir {snapshot.policy}.",
            )

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
            self.tally.evicted += len(samples)
            self.tally.leave(samples)
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
