"""A bounded store of samples between the simulations and the trainer."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from typing import final

import numpy as np
from jaxtyping import Float64

from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir.batches import Draw, PendingBatches
from surrogate_flow.reservoir.contents import Contents
from surrogate_flow.reservoir.index import Block, Parameters, check_steps
from surrogate_flow.reservoir.limiter import Deterministic
from surrogate_flow.reservoir.memory import Slots, Steps
from surrogate_flow.reservoir.moments import Moments
from surrogate_flow.reservoir.policy import Policy
from surrogate_flow.reservoir.snapshot import Snapshot
from surrogate_flow.reservoir.stats import (
    Refusal,
    Stopwatch,
    StoreStats,
    WaitingSimulations,
    seconds,
)

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

    Raises
    ------
    UserError
        If trainer and simulations would wait for each other for ever.

    Notes
    -----
    A `Sink` of the stream. Every method may be called from any thread. `draw` and
    `wait_threshold` block until a deadline, and say why when it passes; `save`,
    `restore` and `moments` block while they copy; the others never block. One lock
    guards the index only: steps are copied in and out without it, so a trainer that
    draws does not hold up the inlet.
    """

    #: Bytes that `save` copies before it writes them.
    chunk_bytes = 2**26

    def __init__(
        self, spec: FieldSpec, window: Window, batch_size: int, policy: Policy
    ) -> None:
        self.spec, self.window, self.batch_size = spec, window, batch_size
        self.policy, self.threshold = policy, policy.threshold
        self._contents = Contents(spec, window, batch_size, policy)
        self.layout = self._contents.layout
        self.capacity = self._contents.slab.capacity
        self._changed = threading.Condition(threading.Lock())
        self._wakes: list[Callable[[], None]] = []
        self._waiting, self._trainer = WaitingSimulations(), Stopwatch()
        self._stopped = self._saving = False
        # Held by `save` and `moments`, which share the pins of the slab.
        self._reading = threading.Lock()

    def open(self, simulation: int) -> int:
        """Return the number of the next step of a simulation."""
        with self._changed:
            return self._contents.index.next_step(simulation)

    def offer(
        self, simulation: int, first: int, steps: Steps, parameters: Parameters
    ) -> int:
        """Store as many leading steps as there is room for.

        Parameters
        ----------
        simulation : int
            To which the steps belong.
        first : int
            Number of the first of them: the next one that the simulation has not
            stored.
        steps, parameters : array
            They are copied.

        Returns
        -------
        int
            Number of steps stored; 0 if there is no room, or after `stop`.

        Raises
        ------
        ValueError
            If shapes are wrong, or steps are not the next ones of their simulation.
        RuntimeError
            If reception has ended.
        """
        check_steps(self.spec, simulation, steps, parameters)
        with self._changed:
            if self._contents.draining and not self._stopped:
                raise RuntimeError(
                    f"Simulation {simulation}: expected no steps after the end of "
                    "reception. Call `end_reception` only when all steps are in."
                )
            block = self._reserve(simulation, first, len(steps), parameters)
        return self._copy(block, steps) if block else 0

    def close(self, simulation: int, complete: bool = True) -> None:
        """Release the steps that only incomplete samples hold: no more will arrive.

        Unknown simulations are ignored, and `complete` makes no difference.
        """
        with self._changed:
            self._contents.index.close(simulation)
            self._waiting.discard(simulation)
            self._changed.notify_all()
        self._announce()

    def priority(self, simulation: int) -> int:
        """Return 0: no simulation goes before others."""
        return 0

    def on_room(self, wake: Callable[[], None]) -> None:
        """Have `wake` called whenever there may be room again.

        It is called without the lock, by the thread that made the room (the trainer's,
        mostly), so it should only wake somebody.
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
            ``None`` when reception has ended and all is drained, or after `stop`.

        Raises
        ------
        TimeoutError
            If it takes longer; it says why.
        """
        with self._changed:
            if not self._wait_to_draw(timeout):
                return None
            number = pending.begin() if pending else 0
            slots, labels, reader = self._contents.take()
            self._changed.notify_all()
        slab = self._contents.slab
        try:
            draw = Draw(slab.memory.batch(slots, len(labels[0])), *labels)
            if pending:
                pending.complete(number, draw)
        finally:
            with self._changed:
                if slab.end_read(reader) or self._saving:
                    self._changed.notify_all()
        self._announce()
        return draw

    def wait_threshold(self, timeout: float | None) -> bool:
        """Wait until a batch may be drawn, or none will ever be; blocks as `draw`.

        Returns
        -------
        bool
            Whether `draw` would return a batch now.

        Raises
        ------
        TimeoutError
            If it takes longer than `timeout` seconds; it says why.
        """
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
            return bool(self._waiting) and not self._contents.lacking()

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
        with self._changed:
            self._contents.draining = True
            for simulation in list(self._contents.index.live):
                self._contents.index.close(simulation)
            self._waiting.clear()
            self._changed.notify_all()
        self._announce()

    def stop(self) -> None:
        """Wake everybody who waits, and refuse everything from now on."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._announce()

    def waiting(self) -> str:
        """Return in one line who waits for whom and why; empty if nobody does."""
        with self._changed:
            lines = []
            if self._waiting:
                lines.append(self._simulations_wait())
            if self._trainer.running and (reason := self._contents.lacking()):
                lines.append(self._trainer_waits(reason))
            return "; ".join(lines)

    def stats(self) -> StoreStats:
        """Return all counters, taken at one moment."""
        with self._changed:
            return self._contents.stats(self._waiting.total, self._trainer.total)

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

        Each of their steps counts once. Call it after `wait_threshold`, before
        training, to normalise the network's inputs.

        Raises
        ------
        RuntimeError
            If there is no sample.
        """
        moments = Moments(len(self.spec.variables))
        with self._reading:
            with self._changed:
                self._contents.slab.pin(
                    self._contents.index.slots(self._contents.population.samples)
                )
            with closing(self._read_pinned(2**23)) as chunks:
                for _, steps in chunks:
                    moments.update(steps)
        if not moments.count:
            raise RuntimeError("Store.moments: no sample; call `wait_threshold` first.")
        return moments.mean, moments.std

    def save(
        self,
        pending: PendingBatches,
        write: Callable[[Steps], None] | None,
        note: Callable[[], None] | None = None,
        timeout: float = 60.0,
    ) -> Snapshot:
        """Return what is held at one moment, and write its steps; blocks for that.

        Steps arrive meanwhile: those that must be kept for the snapshot are copied
        first, so nobody waits for longer than one chunk of `chunk_bytes` takes.

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
            Seconds for copies under way to end.

        Raises
        ------
        TimeoutError
            If they do not.
        """
        contents = self._contents
        with self._reading:
            with self._changed:
                self._saving = True
                try:
                    if not self._changed.wait_for(
                        lambda: not contents.copying and not pending.copying, timeout
                    ):
                        raise TimeoutError(
                            f"Store.save: {contents.copying} copies into the store and "
                            f"{pending.copying} out of it have not ended within "
                            f"{timeout:g} s. The machine is out of memory, or stopped."
                        )
                    slots, again = contents.held, pending.draws
                    snapshot = contents.snapshot(slots, again)
                    if note is not None:
                        note()
                    if write is not None:
                        contents.slab.pin(slots)
                finally:
                    self._saving = False
                    self._changed.notify_all()
            self._announce()
            if write is None:
                return snapshot
            order = [slots[:0]]
            with closing(self._read_pinned(self.chunk_bytes)) as chunks:
                for some, steps in chunks:
                    order.append(some)
                    write(steps)
        for draw in again:
            fields = contents.slab.memory.host(draw.fields)
            write(fields.reshape(-1, *self.spec.step_shape))
        # `slots` ascend and `order` has the same ones.
        return replace(snapshot, place=np.argsort(np.concatenate(order)))

    def restore(
        self,
        snapshot: Snapshot,
        rows: Steps | None,
    ) -> list[Draw]:
        """Go on from a snapshot; the store must be empty.

        Parameters
        ----------
        snapshot : Snapshot
        rows : array, optional
            What was written. Without it the store stays empty, and `open` lets each
            simulation go on at its first sample that was not trained.

        Returns
        -------
        list of Draw
            Batches to train before anything is drawn.

        Raises
        ------
        UserError
            If the snapshot is of another policy, or holds more than the capacity.
        """
        policy, count = type(self.policy).__name__, len(snapshot.simulation)
        if snapshot.policy != policy:
            raise UserError(
                f"The checkpoint's reservoir is a {snapshot.policy}, expected a "
                f"{policy}.",
                remedy=f"Use --data.reservoir {snapshot.policy}.",
            )
        with self._changed:
            if rows is None:
                self._contents.restart(snapshot)
                return []
            if count > self.capacity:
                raise UserError(
                    f"The checkpoint's reservoir holds {count} steps",
                    f"at most capacity = {self.capacity}",
                    count,
                    "Raise --data.reservoir.capacity to that of the first run.",
                )
            chunk = max(1, self.chunk_bytes // self.spec.step_bytes)
            self._contents.restore(snapshot, rows, chunk)
        shape = (-1, self.layout.span, *self.spec.step_shape)
        return snapshot.draws(np.array(rows[count:]).reshape(shape))

    def _read_pinned(self, nbytes: int) -> Generator[tuple[Slots, Steps]]:
        """Yield pinned slots and their steps, so many bytes at once, and unpin them."""
        size = max(1, nbytes // self.spec.step_bytes)
        chunk = np.empty((size, *self.spec.step_shape), dtype=np.float32)
        try:
            while True:
                with self._changed:
                    slots = self._contents.slab.pinned(size)
                if not len(slots):
                    return
                self._contents.slab.memory.gather(slots, chunk[: len(slots)])
                self._unpin(slots)
                yield slots, chunk[: len(slots)]
        finally:
            # Nothing is left of them, unless the caller has failed.
            with self._changed:
                rest = self._contents.slab.pinned(self.capacity)
            self._unpin(rest)

    def _unpin(self, slots: Slots) -> None:
        with self._changed:
            self._contents.slab.unpin(slots)
            self._changed.notify_all()
        self._announce()

    def _announce(self) -> None:
        for wake in self._wakes:
            wake()

    def _reserve(
        self, simulation: int, first: int, count: int, parameters: Parameters
    ) -> Block | None:
        """Reserve slots for as many steps as may enter, and note why others wait."""
        self._contents.index.find(simulation, first, count)
        if self._stopped or not count:
            return None
        block, refusal = (
            (None, Refusal.SAVING)
            if self._saving
            else self._contents.reserve(simulation, first, count, parameters)
        )
        if refusal:
            self._waiting.add(simulation, refusal)
        else:
            self._waiting.discard(simulation)
        if not block:
            # The store may just have become full, which lets a waiting batch go.
            self._changed.notify_all()
        return block

    def _copy(self, block: Block, steps: Steps) -> int:
        contents = self._contents
        try:
            contents.slab.memory.write(block.slots, steps[: block.steps][block.kept])
        except BaseException:
            with self._changed:
                contents.cancel(block)
                self._changed.notify_all()
            raise
        with self._changed:
            contents.publish(block)
            self._changed.notify_all()
        return block.steps

    def _wait_to_draw(self, timeout: float | None) -> bool:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        contents = self._contents
        try:
            while not self._stopped:
                left = contents.copying or len(contents.population)
                if contents.draining and not left:
                    break
                if not (reason := self._contents.lacking()):
                    return True
                self._trainer.start()
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise TimeoutError(self._trainer_waits(reason))
                self._changed.wait(min(remaining, threading.TIMEOUT_MAX))
            return False
        finally:
            self._trainer.stop()

    def _simulations_wait(self) -> str:
        contents = self._contents
        return self._waiting.describe(
            contents.index, contents.population, contents.tally
        )

    def _trainer_waits(self, reason: str) -> str:
        return f"trainer waits: {reason}, {seconds(self._trainer.lap)}"
