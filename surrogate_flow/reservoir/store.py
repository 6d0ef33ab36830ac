"""A bounded store of samples between the simulations and the trainer."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import final

import numpy as np
from jaxtyping import Float64

from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir.batches import Draw, PendingBatches
from surrogate_flow.reservoir.contents import Contents
from surrogate_flow.reservoir.index import Parameters, check_steps
from surrogate_flow.reservoir.inputs import Inputs, Kept
from surrogate_flow.reservoir.memory import Slots, Steps
from surrogate_flow.reservoir.policy import Deterministic, Policy
from surrogate_flow.reservoir.snapshot import Snapshot, unpacked, write_inputs
from surrogate_flow.reservoir.stats import Moments, Stopwatch, StoreStats, seconds

__all__ = ["Store"]


@final
class Store:
    """A bounded set of samples: simulations put steps in, a trainer draws batches.

    With `s` slots free or about to be, `n` samples held and `u` of them unseen::

        put  waits  <=>  s == 0  and  u == n
        draw waits  <=>  n < needed  and not (s == 0 and u == n and n > 0)

    where `needed` is the policy's. The last clause matters where samples share steps:
    many simulations at once can fill the store with incomplete samples below the
    threshold; then the batch takes what there is (and may be short) rather than wait
    for ever. For the same reason a new simulation is only let in while ``unfinished *
    (span - 1) < capacity``, so that samples can always be completed: with ``N``
    simulations at once choose a capacity well above ``N * span``.

    Parameters
    ----------
    spec : FieldSpec
        What the simulations yield.
    window : Window
        Which steps make a sample.
    batch_size : int
        Samples in a batch; the last one may be smaller.
    policy : Policy
        What is drawn, when, and what is evicted; how much is held, and where.
    simulations : int, optional
        How many there will be, by which each `Draw` says how many batches follow it.

    Raises
    ------
    UserError
        If trainer and simulations would wait for each other for ever.

    Notes
    -----
    A `Sink` of the stream; any thread may call it. `draw` and `wait_threshold` block
    until a deadline, and say why when it passes; `save`, `restore` and `moments` block
    while they copy; the others never block. One lock guards the index only: steps are
    copied in and out without it, so a trainer that draws does not hold up the inlet.
    """

    #: Bytes that `save` copies before it writes them.
    chunk_bytes = 2**26

    def __init__(
        self,
        spec: FieldSpec,
        window: Window,
        batch_size: int,
        policy: Policy,
        simulations: int | None = None,
    ) -> None:
        self.spec, self.window, self.batch_size = spec, window, batch_size
        self.policy, self.threshold = policy, policy.threshold
        self._contents = Contents(spec, window, batch_size, policy, simulations)
        self.layout = self._contents.layout
        self.capacity = self._contents.slab.capacity
        self._changed = threading.Condition(threading.Lock())
        self._wakes: list[Callable[[], None]] = []
        self._trainer = Stopwatch()
        self._stopped = False
        # Held by `save` and `moments`, which share the pins of the slab.
        self._reading = threading.Lock()

    def open(self, simulation: int) -> int:
        """Return the number of the next step of a simulation."""
        with self._changed:
            return self._contents.index.next_step(simulation)

    def offer(
        self,
        simulation: int,
        first: int,
        steps: Steps,
        parameters: Parameters,
        inputs: Inputs | None = None,
    ) -> int:
        """Copy in as many leading steps as there is room for; return how many.

        These are the simulation's next steps, of which the first has the number
        `first`. After `stop` there is no room. The input fields are copied in with the
        first of the steps that are held.

        Raises
        ------
        ValueError
            If shapes are wrong, or steps are not the next ones of their simulation.
        RuntimeError
            If reception has ended.
        """
        check_steps(self.spec, simulation, steps, parameters, inputs)
        contents = self._contents
        with self._changed:
            if self._stopped:
                return 0
            block = contents.reserve(simulation, first, len(steps), parameters)
            if not block:
                # The store may just have become full, which lets a waiting batch go.
                self._changed.notify_all()
                return 0
        settle = contents.cancel
        try:
            contents.slab.memory.write(block.slots, steps[: block.steps][block.kept])
            if len(block.row) and contents.inputs is not None and inputs is not None:
                contents.inputs.slab.memory.write(block.row, inputs[None])
            settle = contents.publish
        finally:
            with self._changed:
                settle(block)
                self._changed.notify_all()
        return block.steps

    def close(self, simulation: int, complete: bool = True, early: str = "") -> None:
        """Release the steps that only incomplete samples hold: no more will arrive.

        A complete one is finished, whatever its number of steps. Unknown simulations
        are ignored.
        """
        with self._change():
            self._contents.close(simulation, complete)

    def priority(self, simulation: int) -> int:
        """Return 0: no simulation goes before others."""
        return 0

    def on_room(self, wake: Callable[[], None]) -> None:
        """Have `wake` called whenever there may be room again.

        It is called without the lock, by the thread that made the room (the trainer's,
        mostly), so it should only wake another thread.
        """
        self._wakes.append(wake)

    def draw(
        self, timeout: float | None, pending: PendingBatches | None = None
    ) -> Draw | None:
        """Copy out a batch; blocks until one may be drawn.

        Parameters
        ----------
        timeout : float or None
            Seconds; ``None`` waits as long as it takes.
        pending : PendingBatches, optional
            Where the batch is noted until it has been trained.

        Returns
        -------
        Draw or None
            ``None`` when the store has drained, or after `stop`.

        Raises
        ------
        TimeoutError
            If it takes longer; it says why.
        """
        with self._changed:
            if not self._wait_to_draw(timeout):
                return None
            number = pending.begin() if pending else 0
            slots, labels, rows, reader = self._contents.take()
            remaining = self._contents.remaining()
            self._changed.notify_all()
        contents, count = self._contents, len(labels[0])
        try:
            given = None
            if contents.inputs is not None and rows is not None:
                given = contents.inputs.slab.memory.batch(rows, count)[:, 0]
            fields = contents.slab.memory.batch(slots, count)
            draw = Draw(fields, *labels, given, remaining)
            if pending:
                pending.complete(number, draw)
        finally:
            with self._changed:
                if contents.end_read(reader) or contents.saving:
                    self._changed.notify_all()
        self._announce()
        return draw

    def wait_threshold(self, timeout: float | None) -> bool:
        """Block as `draw`, with its errors; return whether it would return a batch."""
        with self._changed:
            return self._wait_to_draw(timeout)

    @property
    def ready(self) -> bool:
        """Whether a batch may be drawn now."""
        with self._changed:
            return not self._contents.lacking()

    @property
    def held_up(self) -> bool:
        """Whether simulations wait until something is drawn."""
        with self._changed:
            return bool(self._contents.refused) and not self._contents.lacking()

    @property
    def draining(self) -> bool:
        """Whether reception has ended, so that what is drawn leaves."""
        return self._contents.draining

    @property
    def finished(self) -> IntSet:
        """Simulations of which every step has arrived, as they are now."""
        with self._changed:
            return IntSet(self._contents.index.finished.ranges)

    def take_turns(self) -> None:
        """Let inserts and draws take turns, so that batches do not depend on speeds.

        Each sample is drawn as often as the policy's limiter says, or once on average.
        """
        limiter = self.policy.limiter
        ratio = limiter.ratio if limiter else 1.0
        self._contents.limiter = Deterministic(ratio, self.batch_size)

    def end_reception(self) -> None:
        """Let the store drain, as no more steps will be offered.

        Threshold and limiter fall, incomplete samples are released, and what is drawn
        leaves.
        """
        with self._change():
            self._contents.drain()

    def stop(self) -> None:
        """End all waits, and refuse everything from now on."""
        with self._change():
            self._stopped = True

    def waiting(self) -> str:
        """Return in one line who waits for whom and why; empty if no one does."""
        with self._changed:
            lines = [self._contents.describe_refused()]
            if self._trainer.running and (reason := self._contents.lacking()):
                lines.append(self._trainer_waits(reason))
            return "; ".join(filter(None, lines))

    def stats(self) -> StoreStats:
        """Return all counters, taken at one moment."""
        with self._changed:
            return self._contents.stats(draw_wait=self._trainer.total)

    def samples(self) -> list[tuple[int, int]]:
        """Return simulation and first step of each sample held, the unseen first."""
        with self._changed:
            simulation, step, _ = self._contents.index.labels(
                self._contents.population.samples
            )
        return list(zip(simulation.tolist(), step.tolist(), strict=True))

    def moments(
        self,
    ) -> tuple[Float64[np.ndarray, " channel"], Float64[np.ndarray, " channel"]]:
        """Return mean and standard deviation of each channel of the samples held now.

        Each of their steps counts once, and so do the input fields of a simulation,
        which come behind. Call it after `wait_threshold`: without a
        sample it is a RuntimeError.
        """
        moments = Moments(len(self.spec.variables))
        of_inputs = Moments(len(self.spec.inputs))
        contents = self._contents
        with self._reading:
            with self._changed:
                slots = contents.index.slots(contents.population.samples)
                contents.slab.pin(slots)
                kept = contents.inputs and contents.inputs.keep(slots)
            with self._kept(kept), closing(self._read_pinned(2**23)) as chunks:
                for _, steps in chunks:
                    moments.update(steps)
                for fields in kept.read(2**23) if kept else ():
                    of_inputs.update(fields)
        if not moments.count:
            raise RuntimeError("Store.moments: no sample; call `wait_threshold` first.")
        both = moments.beside(of_inputs)
        return both.mean, both.std

    def changes(self, window: Window) -> Moments:
        """Return the moments of `Moments.update_changes`, of samples held now."""
        contents = self._contents
        moments = Moments(window.outputs * len(self.spec.variables))
        shape = (self.layout.span, *self.spec.step_shape)
        most = moments.samples_of_changes(4 * math.prod(shape))
        with self._changed:
            held = contents.population.samples
            some = held[:: -(-len(held) // most)] if len(held) else held
            slots, reader = contents.index.slots(some), contents.begin_read()
        try:
            for part in slots.reshape(-1, self.layout.span):
                steps = np.empty(shape, np.float32)
                contents.slab.memory.gather(part, steps)
                moments.update_changes(steps[None], window)
        finally:
            with self._changed:
                if contents.end_read(reader) or contents.saving:
                    self._changed.notify_all()
        return moments

    def save(
        self,
        pending: PendingBatches,
        write: Callable[[Steps], None] | None,
        note: Callable[[], None] | None = None,
        timeout: float = 60.0,
    ) -> Snapshot:
        """Return what is held at one moment, and write its steps; blocks for that.

        Steps arrive meanwhile: those that must be kept for the snapshot are copied
        first, so no simulation waits for longer than a chunk of `chunk_bytes` takes.

        Parameters
        ----------
        pending : PendingBatches
            What was drawn and is not trained; written behind the rest.
        write : callable, optional
            Takes chunks of steps, one after the other. Without it the index alone is
            returned, from which `restore` can say what has to be simulated again.
        note : callable, optional
            Called at the moment of the snapshot, while nothing can change it.
        timeout : float
            Seconds for copies under way to end; then it is a TimeoutError.
        """
        contents = self._contents
        with self._reading:
            with self._change(), self._no_copies(pending, timeout):
                slots, again = contents.held, pending.draws
                snapshot = contents.snapshot(slots, again)
                if note is not None:
                    note()
                if write is not None:
                    contents.slab.pin(slots)
                    kept = contents.inputs and contents.inputs.keep(slots)
            if write is None:
                return snapshot
            order = [slots[:0]]
            with self._kept(kept):
                with closing(self._read_pinned(self.chunk_bytes)) as chunks:
                    for some, steps in chunks:
                        order.append(some)
                        write(steps)
                for draw in again:
                    fields = contents.slab.memory.host(draw.fields)
                    write(fields.reshape(-1, *self.spec.step_shape))
                if kept:
                    numbers = write_inputs(kept, again, self.spec, write)
                    snapshot = replace(snapshot, given=numbers)
        # `slots` ascend and `order` has the same ones.
        return replace(snapshot, place=np.argsort(np.concatenate(order)))

    def restore(self, snapshot: Snapshot, rows: Steps | None) -> list[Draw]:
        """Go on from a snapshot; return batches to train before anything is drawn.

        The store must be empty. Without `rows`, what `save` wrote, it stays empty, and
        `open` lets each simulation go on at its first sample that was not trained.

        Raises
        ------
        UserError
            If the snapshot is of another policy, or holds more than the capacity.
        """
        with self._changed:
            if rows is None:
                self._contents.restart(snapshot)
                return []
            chunk = max(1, self.chunk_bytes // self.spec.step_bytes)
            again = len(snapshot.simulation)
            end = again + int(snapshot.again_size.sum()) * self.layout.span
            fields = unpacked(rows[end:], self.spec, len(snapshot.given))
            inputs = dict(zip(snapshot.given.tolist(), fields, strict=True))
            self._contents.restore(snapshot, rows, chunk, inputs)
        shape = (-1, self.layout.span, *self.spec.step_shape)
        return snapshot.draws(np.array(rows[again:end]).reshape(shape), inputs)

    @contextmanager
    def _no_copies(self, pending: PendingBatches, timeout: float) -> Iterator[None]:
        """Wait, under the lock, for copies to end, and let none begin meanwhile."""
        contents = self._contents
        contents.saving = True
        try:
            if not self._changed.wait_for(
                lambda: not contents.copying and not pending.copying, timeout
            ):
                raise TimeoutError(
                    f"Store.save: {contents.copying} copies into the store and "
                    f"{pending.copying} out of it have not ended within {timeout:g} s. "
                    "The machine is out of memory, or stopped."
                )
            yield
        finally:
            contents.saving = False

    def _read_pinned(self, nbytes: int) -> Generator[tuple[Slots, Steps]]:
        """Yield pinned slots and their steps, so many bytes at once, and unpin them."""
        slab = self._contents.slab
        size = max(1, nbytes // self.spec.step_bytes)
        chunk = np.empty((size, *self.spec.step_shape), dtype=np.float32)
        try:
            while True:
                with self._changed:
                    slots = slab.pinned(size)
                if not len(slots):
                    return
                slab.memory.gather(slots, chunk[: len(slots)])
                with self._change():
                    slab.unpin(slots)
                yield slots, chunk[: len(slots)]
        finally:
            # Nothing is left of them, unless the caller has failed.
            with self._change():
                slab.unpin(slab.pinned(self.capacity))

    @contextmanager
    def _kept(self, kept: Kept | None) -> Iterator[None]:
        """Let input fields go in the end that were kept for a copy."""
        try:
            yield
        finally:
            with self._change():
                if self._contents.inputs and kept:
                    self._contents.inputs.end_read(kept.reader)

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Hold the lock, and wake the threads that may go on."""
        try:
            with self._changed:
                yield
        finally:
            with self._changed:
                self._changed.notify_all()
            self._announce()

    def _announce(self) -> None:
        for wake in self._wakes:
            wake()

    def _wait_to_draw(self, timeout: float | None) -> bool:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        contents = self._contents
        try:
            while not (self._stopped or contents.drained):
                if not (reason := contents.lacking()):
                    return True
                self._trainer.start()
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise TimeoutError(self._trainer_waits(reason))
                self._changed.wait(min(remaining, threading.TIMEOUT_MAX))
            return False
        finally:
            self._trainer.stop()

    def _trainer_waits(self, reason: str) -> str:
        return f"trainer waits: {reason}, {seconds(self._trainer.lap)}"
