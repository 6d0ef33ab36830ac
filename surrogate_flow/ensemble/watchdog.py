"""The watchdog: notices solvers that hang, and frees the workers that they hold."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from surrogate_flow.ensemble.ensemble import Tasks
from surrogate_flow.ensemble.ledger import Ledger, SimulationState
from surrogate_flow.stream import Inlet, SimulationProgress
from surrogate_flow.threads import LoudThread, repeat

__all__ = ["Watchdog"]

_RESTART = 30.0  # seconds for a nanny to kill a worker and start the next
_FRAMES = 4  # of the stack, innermost last, that a failure shows


class Watchdog:
    """silence > step_timeout, and not for lack of room: the solver hangs.

    A simulation is silent since its last step arrived, it was opened, or room was made
    for it, whichever came last. So is one that executes but from which nothing is
    expected: another attempt has brought all of its steps. The task of one that hangs
    is cancelled, with an error that says where it was, and its worker's process is
    restarted by its nanny, which needs nothing of a process that a solver may hold.
    Other simulations on that worker run again, and go on where they were.

    Parameters
    ----------
    step_timeout : float
        Seconds.
    poll, answer : float
        Seconds between two checks, and for a worker to report what it executes.
    """

    def __init__(
        self,
        tasks: Tasks,
        inlet: Inlet,
        ledger: Ledger,
        step_timeout: float,
        *,
        poll: float = 1.0,
        answer: float = 3.0,
    ) -> None:
        self._tasks, self._client = tasks, tasks.client
        self._inlet, self._ledger = inlet, ledger
        self._step_timeout, self._poll, self._answer = step_timeout, poll, answer
        self._suspects: dict[str, float] = {}
        # Attempts that the inlet does not know, since when, and those that execute.
        self._unknown: dict[str, float] = {}
        self._executing: set[str] = set()
        # Attempts that the inlet knows, and that are not silent.
        self._active: set[str] = set()
        #: How often a silent attempt was found waiting for a thread, which is no hang.
        self.queued = 0
        self._closing = threading.Event()
        self._thread = LoudThread(self._run, "watchdog")

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching; may be called again. Blocks while a worker restarts."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(self._answer + _RESTART)

    def check(self) -> None:
        """Raise what ended the watch, if anything did."""
        self._thread.check()

    def _run(self) -> None:
        # The ensemble reports a lost scheduler.
        what = "The watchdog has no answer, so solvers may hang unnoticed"
        repeat(self._look, self._closing, self._poll, what)

    def _look(self) -> None:
        silent = self._silent(self._tasks.names())
        if silent and not self._closing.is_set():
            self._stop(silent)

    def _silent(
        self, attempts: Mapping[tuple[int, int], str]
    ) -> dict[str, SimulationProgress]:
        """Return what has been silent for too long, at two checks in a row.

        Between the two the inlet finds out which connections are gone: the task of a
        worker that died runs again, and is no longer silent.
        """
        now, before, silent = time.monotonic(), self._suspects, {}
        known = {(p.simulation, p.attempt): p for p in self._inlet.progress()}
        unknown = {key: at for at, key in attempts.items() if at not in known}
        self._unknown = {key: self._unknown.get(key, now) for key in unknown}
        self._executing &= unknown.keys()
        self._active = set()
        for place, key in attempts.items():
            p = known.get(place) or self._progress(*place, self._unknown[key])
            held_up = p.waiting or not p.connected
            if not held_up and now - p.last > self._step_timeout:
                silent[key] = p
                if place in known:
                    self._inlet.probe(p.simulation)
            elif place in known and p.connected:
                self._active.add(key)
        self._suspects = {key: p.last for key, p in silent.items()}
        return {key: p for key, p in silent.items() if before.get(key) == p.last}

    def _progress(
        self, simulation: int, attempt: int, since: float
    ) -> SimulationProgress:
        """Return the progress of an attempt that the inlet does not know."""
        complete = self._ledger.state(simulation) is SimulationState.COMPLETE
        steps = self._inlet.spec.steps if complete else 0
        return SimulationProgress(
            simulation, attempt, steps, since, True, False, since, 0.0
        )

    def _begins(self, key: str) -> bool:
        """Whether an attempt that the inlet does not know was just seen to execute."""
        if key not in self._unknown or key in self._executing:
            return False
        self._executing.add(key)
        self._unknown[key] = time.monotonic()
        return True

    def _stop(self, silent: Mapping[str, SimulationProgress]) -> None:
        ask = partial(self._client.sync, callback_timeout=_RESTART)
        stacks = ask(self._stacks, list(silent))
        scheduler = self._client.scheduler
        assert scheduler is not None, "set once it has started"
        workers = ask(partial(scheduler.identity, n_workers=-1))["workers"]
        processing = ask(partial(scheduler.processing, workers=None))
        places = {key: address for address, keys in processing.items() for key in keys}
        active = {places.get(key) for key in self._active}
        restart = set()
        for key, stack in stacks.items():
            address = places.get(key)
            if address is None or address not in workers:
                # It has ended just now.
                continue
            # A worker that does not answer may execute it, or others before it; one
            # that holds the GIL now and then, while its steps come, is left alone.
            behind = processing[address].index(key) >= workers[address]["nthreads"]
            quiet = stack is None and key in self._unknown
            if stack == [] or (quiet and (behind or address in active)):
                # It waits for a thread.
                self.queued += 1
                self._unknown.pop(key, None)
                self._executing.discard(key)
                continue
            if self._begins(key):
                continue
            nanny = workers[address]["nanny"] is not None
            if nanny:
                restart.add(address)
            # Before the restart, or Dask would run it again.
            error = self._error(silent[key], address, nanny, stack)
            self._tasks.cancel_hung(key, error, address)
        if restart:
            self._tasks.restarting(restart)
            # One that has died since is no longer known, and restarts anyway.
            with suppress(KeyError):
                self._client.restart_workers(
                    list(restart), timeout=_RESTART, raise_for_error=False
                )

    async def _stacks(self, keys: list[str]) -> dict[str, list[str] | None]:
        """Return the stack of each task, [] if none runs it, None without an answer."""

        async def stack(key: str) -> list[str] | None:
            assert self._client.scheduler is not None, "set once it has started"
            question = self._client.scheduler.call_stack(keys=[key])
            try:
                answer = await asyncio.wait_for(question, self._answer)
            except KeyError:
                return []
            except (OSError, TimeoutError):
                return None
            return [line for worker in answer.values() for line in worker[key]]

        return dict(
            zip(keys, await asyncio.gather(*map(stack, keys)), strict=True),
        )

    def _error(
        self, p: SimulationProgress, address: str, nanny: bool, stack: list[str] | None
    ) -> TimeoutError:
        last = f"since step {p.next_step - 1}" if p.next_step else "at all"
        if p.next_step == self._inlet.spec.steps:
            last = "is missing, but it does not end"
        text = (
            f"Simulation {p.simulation}, attempt {p.attempt}: no step {last}, for "
            f"{time.monotonic() - p.last:.0f} s (faults.step_timeout="
            f"{self._step_timeout:g} s). Its solver hangs, or takes longer for a step: "
            "then raise step_timeout."
        )
        if not nanny:
            text += (
                f" Its worker {address} has no nanny and could not be restarted, so "
                "one of its threads stays occupied: start workers with a nanny."
            )
        if stack is None:
            return TimeoutError(
                f"{text}\nThe worker does not answer: the solver holds the GIL, or "
                "the process was stopped."
            )
        return TimeoutError("\n".join((text, "It was at:", *stack[-_FRAMES:])))
