"""The producers' half of a store: room is made, steps come in, samples come of them."""

from __future__ import annotations

import math
import threading
import time
from abc import ABC
from collections.abc import Callable
from typing import final

import numpy as np
from jaxtyping import Float, Int

from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.reservoir.block import Block, check_steps
from surrogate_flow.reservoir.counters import Tally
from surrogate_flow.reservoir.limiter import SamplesPerInsert
from surrogate_flow.reservoir.lockstep import Lockstep
from surrogate_flow.reservoir.memory import Memory
from surrogate_flow.reservoir.plan import Plan
from surrogate_flow.reservoir.population import Members
from surrogate_flow.reservoir.refusal import Refusal, Refused
from surrogate_flow.reservoir.sizing import slots
from surrogate_flow.reservoir.slab import Slab
from surrogate_flow.reservoir.trajectories import Trajectories

__all__ = ["Intake"]


class Intake(ABC):
    """What `Store` does for producers; parameters and contract as there."""

    _members: Members

    def __init__(
        self,
        spec: FieldSpec,
        window: Window,
        batch_size: int,
        *,
        capacity: int | str,
        threshold: int,
        limiter: SamplesPerInsert | None,
        memory: Callable[[int, tuple[int, ...], int], Memory],
    ) -> None:
        self.capacity = slots(capacity, spec, window, batch_size, threshold)
        if limiter is not None:
            limiter.check(batch_size)
        self.spec, self.window, self.batch_size = spec, window, batch_size
        self.threshold = threshold
        self.limiter: SamplesPerInsert | Lockstep | None = limiter
        self._plan = Plan.of(window, spec.steps)
        rows = memory(self.capacity, spec.step_shape, batch_size * window.span)
        self._slab = Slab(rows, shared=window.span > 1)
        self._books = Trajectories(self._plan, self._slab, len(spec.parameters))
        self._tally = Tally(self.capacity)
        self._changed = threading.Condition(threading.Lock())
        self._callbacks: list[Callable[[], None]] = []
        self._refused = Refused()
        self._ended = self._stopped = self._saving = False
        # Simulations in calls of offer and put, blocks being copied, windows in those.
        self._arriving: list[int] = []
        self._copying = self._promised = 0

    def _evict(self, count: int) -> Int[np.ndarray, " sample"]:
        """Remove up to `count` seen samples from the members, and return them."""
        return np.zeros(0, dtype=np.intp)

    @final
    def offer(
        self,
        simulation: int,
        first: int,
        steps: Float[np.ndarray, "time channel *space"],
        parameters: Float[np.ndarray, " parameter"],
    ) -> int:
        """Store as many leading steps as there is room for; never blocks.

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
        self._enter(simulation)
        try:
            return self._store(simulation, first, steps, parameters, None)
        finally:
            self._leave(simulation)

    @final
    def put(
        self,
        simulation: int,
        first: int,
        steps: Float[np.ndarray, "time channel *space"],
        parameters: Float[np.ndarray, " parameter"],
        timeout: float | None,
    ) -> int:
        """Store all steps; blocks until all are in, or the store is stopped.

        Parameters
        ----------
        simulation, first, steps, parameters
            As `offer`.
        timeout : float or None
            Seconds; ``None`` waits as long as it takes.

        Returns
        -------
        int
            Number of steps stored: all, unless the store was stopped.

        Raises
        ------
        TimeoutError
            If it takes longer; it says why, and where to go on. Else as `offer`.
        """
        check_steps(self.spec, simulation, steps, parameters)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._enter(simulation)
        done = 0
        try:
            while done < len(steps):
                rest, at = steps[done:], first + done
                taken = self._store(simulation, at, rest, parameters, deadline)
                done += taken
                if not taken:
                    break
        finally:
            self._leave(simulation)
        return done

    @final
    def close(self, simulation: int, complete: bool) -> None:
        """Release the steps that only unfinished windows hold; never blocks.

        Call it when no more steps will come, be the simulation `complete` or not;
        unknown simulations are ignored.
        """
        with self._changed:
            self._books.forget(simulation)
            self._refused.discard(simulation)
            self._changed.notify_all()
        self._announce()

    @final
    def open(self, simulation: int) -> int:
        """Return the number of the next step of a simulation; never blocks."""
        with self._changed:
            return self._books.expected(simulation)

    @final
    def priority(self, simulation: int) -> int:
        """Return 0: all simulations are equal."""
        return 0

    @final
    def on_room(self, wake: Callable[[], None]) -> None:
        """Have `wake` called whenever there may be room again.

        It is called without the lock, by the thread that made the room (the trainer,
        mostly), so it should only wake somebody.
        """
        self._callbacks.append(wake)

    def _enter(self, simulation: int) -> None:
        with self._changed:
            if self._ended and not self._stopped:
                raise RuntimeError(
                    f"Simulation {simulation}: expected no steps after the end of "
                    "reception. Call `end_reception` only when all steps are in."
                )
            self._arriving.append(simulation)

    def _announce(self) -> None:
        for callback in self._callbacks:
            callback()

    def _leave(self, simulation: int) -> None:
        with self._changed:
            self._arriving.remove(simulation)
            if self._ended:
                self._forget_all()
            self._changed.notify_all()

    def _forget_all(self) -> None:
        for simulation in set(self._books.live).difference(self._arriving):
            self._books.forget(simulation)
        self._refused.retain(self._arriving)

    def _store(
        self,
        simulation: int,
        first: int,
        steps: Float[np.ndarray, "time channel *space"],
        parameters: Float[np.ndarray, " parameter"],
        deadline: float | None,
    ) -> int:
        """Store leading steps; without a deadline, return 0 rather than wait."""
        with self._changed:
            while not (
                block := self._reserve(simulation, first, len(steps), parameters)
            ):
                if deadline is None or self._stopped or not len(steps):
                    return 0
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(
                        f"Simulation {simulation}: {self._producers_wait()}. Go on "
                        f"with step {first}."
                    )
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
        try:
            self._slab.memory.write(block.slots, steps[: block.steps][block.kept])
        except BaseException:
            with self._changed:
                self._settle(block)
                self._books.undo(block)
            raise
        with self._changed:
            self._settle(block)
            samples = self._books.publish(block)
            self._tally.enter(samples)
            self._members.add(samples)
        return block.steps

    def _settle(self, block: Block) -> None:
        self._copying -= 1
        self._promised -= block.windows
        self._changed.notify_all()

    def _reserve(
        self,
        simulation: int,
        first: int,
        count: int,
        parameters: Float[np.ndarray, " parameter"],
    ) -> Block | None:
        trajectory = self._books.find(simulation, first, count)
        if self._stopped or not count:
            return None
        steps, plan = 0, self._plan
        if self._saving:
            refusal = Refusal.SAVING
        elif trajectory is None and self._books.crowded:
            refusal = Refusal.CROWDED
        elif trajectory is not None and trajectory.busy:
            refusal = Refusal.BUSY
        else:
            refusal = Refusal.LIMITER
            windows = self._insertable() + (trajectory.windows if trajectory else 0)
            steps = min(count, plan.before(windows) - first)
            if steps > 0:
                refusal = Refusal.FULL
                before = plan.kept(first)
                room = self._make_room(plan.kept(first + steps) - before)
                steps = min(steps, plan.until(before + room) - first)
        if steps <= 0:
            self._refused.add(simulation, refusal)
            # The store may just have become full, which lets a waiting batch go.
            self._changed.notify_all()
            return None
        block = self._books.reserve(simulation, trajectory, steps, parameters)
        self._copying += 1
        self._promised += block.windows
        self._refused.discard(simulation)
        if steps < count:
            self._refused.add(simulation, refusal)
        return block

    def _insertable(self) -> int:
        """Return how many samples the limiter lets in."""
        if self.limiter is None or self._ended:
            return self._plan.samples
        inserted = self._tally.inserted + self._promised
        room = self.limiter.insertable(inserted, self._tally.drawn, self.threshold)
        # An empty store can give no batch, so an insert must not wait for one.
        return max(room, int(len(self._members) + self._promised == 0))

    def _make_room(self, need: int) -> int:
        slab = self._slab
        while (missing := need - slab.free - slab.pending) > 0:
            # A sample frees up to span steps; more than that at once could be too many.
            samples = self._evict(max(1, missing // self._plan.span))
            if not len(samples):
                break
            self._tally.evict(samples)
            self._books.release(samples)
        return min(need, slab.free)

    @property
    def draining(self) -> bool:
        """Whether reception has ended, so that what is drawn leaves."""
        return self._ended

    @property
    def _full(self) -> bool:
        """Whether no step can come in before something is drawn."""
        if self._slab.free + self._slab.pending + self._copying:
            return False
        return self._members.unseen == len(self._members)

    def _producers_wait(self) -> str:
        return self._refused.reason(self._books, self._members, self._tally)
