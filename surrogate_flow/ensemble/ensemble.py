"""The ensemble: keeps simulations in flight on Dask, retries failures, ends cleanly."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from distributed import Client

from surrogate_flow.cluster.batch import Supervisor
from surrogate_flow.dataset import ArchiveError
from surrogate_flow.ensemble.failures import Failures
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.ensemble.forgetting import forget
from surrogate_flow.ensemble.stats import EnsembleStats
from surrogate_flow.ensemble.task import Summary
from surrogate_flow.ensemble.tasks import Ended, Tasks
from surrogate_flow.ensemble.watchdog import Watchdog
from surrogate_flow.ensemble.workers import Workers
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.stream import SpecMismatch

__all__ = ["Ensemble", "EnsembleError", "EnsembleStats"]

logger = logging.getLogger(__name__)

_POLL = 1.0  # seconds between two looks at the size of the cluster
_TELL = 30.0  # seconds between two words on what is waited for
_CLOSE = 10.0  # seconds for a look that is under way, when the study ends


class EnsembleError(RuntimeError):
    """The ensemble cannot go on."""


class Ensemble:
    """in flight <= room: the next simulation is submitted when one ends.

    Room is `ahead` times the number of worker threads, so that no thread waits for the
    scheduler, and just their number while held-out simulations are unfinished: these
    come first, and a retry of theirs must never wait behind training simulations that
    wait for the trainer.

    One thread of its own does everything; `close` may be called from any thread, more
    than once.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster.
    task : callable
        ``task(simulation, attempt) -> Summary``; pickled, runs on a worker.
    simulations : iterator of Simulation
        Consumed lazily: memory does not grow with their number.
    name : str
        Of the workflow; tasks are called
        ``<name>-<part>-<number>-<attempt>-<study>``.
    faults : Faults
    failures : Failures
    ahead : int
        In flight for each worker thread, when the held-out set is complete.
    share : int
        Number of ensembles that share the workers evenly.
    is_whole : callable
        Whether all steps of a simulation have arrived, by its number.
    on_set_aside : callable
        Called with the number of each simulation that failed for good.
    on_end : callable
        Called when the last simulation has ended; not when the ensemble was closed or
        has failed.
    watchdog : Watchdog, optional
        Finds the simulations that hang; a failed attempt each.
    supervisor : Supervisor, optional
        The jobs of the workers, on the rank that has them.
    patient : bool
        Whether workers that are all gone may be long in coming back.
    unarchived : callable, optional
        As `Tasks`.
    """

    def __init__(
        self,
        client: Client,
        task: Callable[[Simulation, int], Summary],
        simulations: Iterator[Simulation],
        *,
        name: str,
        faults: Faults,
        failures: Failures,
        ahead: int = 2,
        share: int = 1,
        is_whole: Callable[[int], bool],
        on_set_aside: Callable[[int], None],
        on_end: Callable[[], None],
        watchdog: Watchdog | None = None,
        supervisor: Supervisor | None = None,
        patient: bool = False,
        unarchived: Callable[[Simulation, int], Summary] | None = None,
    ) -> None:
        self._client = client
        self._address = getattr(client.scheduler, "address", "")
        self._tasks = Tasks(client, task, name, unarchived)
        self._simulations, self._exhausted = simulations, False
        self._faults, self._failures = faults, failures
        self._ahead, self._share, self._patient = ahead, share, patient
        self._is_whole, self._on_end = is_whole, on_end
        self._on_set_aside, self._watchdog = on_set_aside, watchdog
        self._supervisor, self._again = supervisor, deque[tuple[Simulation, int]]()
        self._workers, self._met = Workers(client), False
        # Nobody's attempts may wait behind another's if each has just its threads.
        self._least = share if ahead == 1 else 1
        self._done = self._failed = self._retried = self._held_out = 0
        self._closing = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ensemble", daemon=True)

    def start(self) -> None:
        """Begin to submit."""
        self._thread.start()
        if self._watchdog is not None:
            self._watchdog.start(self._tasks.names, self._tasks.stop)

    def wait(self, timeout: float) -> bool:
        """Block until nothing is in flight and nothing will be; return whether so."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def check(self) -> None:
        """Raise what stopped the ensemble, if anything did."""
        if self._error is not None:
            raise self._error
        if self._supervisor is not None:
            self._supervisor.check()

    @property
    def useful(self) -> int | None:
        """Number of simulations that could run at once, once all have begun."""
        return len(self._tasks) if self._exhausted else None

    def progress(self) -> EnsembleStats:
        """Count simulations by state."""
        return EnsembleStats(
            done=self._done,
            running=min(len(self._tasks), -(-self._workers.threads // self._share)),
            failed=self._failed,
            retried=self._retried,
            workers=-(-self._workers.threads // self._share),
        )

    def held_up(self) -> str:
        """Say which workers begin no simulation for want of memory, if any do not."""
        return self._workers.words() if self._tasks else ""

    def halt(self) -> None:
        """Submit nothing more; what ends from now on was stopped, and has not failed.

        Never blocks.
        """
        self._closing.set()
        self._tasks.wake()

    def close(self) -> None:
        """Submit nothing more, and cancel what does not end within a moment.

        Blocks for some seconds at most. Tell the outlets to stop before.
        """
        self.halt()
        if self._watchdog is not None:
            self._watchdog.close()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE)
        if not self._thread.is_alive():
            self._tasks.cancel()

    def _run(self) -> None:
        try:
            self._await_workers()
            looked = time.monotonic()
            while not self._closing.is_set():
                self._submit()
                if not self._tasks and self._exhausted:
                    self._on_end()
                    break
                for ended in self._tasks.wait(_POLL):
                    self._settle(ended)
                if time.monotonic() - looked > _POLL:
                    self._look()
                    if self._workers.threads < self._least:
                        self._await_workers()
                    looked = time.monotonic()
        except BaseException as error:
            # Handed to the trainer by check(); this thread has nobody else to tell.
            self._error = self._explained(error)

    def _await_workers(self) -> None:
        # What has worked once will again: a queue may be long.
        faults = self._faults
        name, limit = (
            ("patience", faults.patience)
            if self._met and self._patient
            else ("start_timeout", faults.start_timeout)
        )
        start = told = time.monotonic()
        self._look()
        while self._workers.threads < self._least and not self._closing.is_set():
            waited = time.monotonic() - start
            said = f" {self._supervisor.describe()}." if self._supervisor else ""
            if waited > limit:
                threads = self._workers.threads
                few = f"Only {threads} threads of workers have"
                raise EnsembleError(
                    f"{few if threads else 'No worker has'} been at "
                    f"{self._address} for {limit:g} s (faults.{name}), expected at "
                    f"least {self._least}.{said} Jobs have died, are still queued, or "
                    "cannot reach the scheduler: look at the queue and at the workers' "
                    "logs."
                )
            if time.monotonic() - told > _TELL:
                told = time.monotonic()
                logger.info("No worker for %.0f s.%s", waited, said)
            self._closing.wait(0.1)
            self._look()
        self._met = True

    def _look(self) -> None:
        try:
            jobs = self._supervisor
            self._workers.look(jobs.draining_workers() if jobs else ())
            forget(self._client)
        except (OSError, TimeoutError) as error:
            raise ConnectionError(str(error)) from error

    def _room(self) -> int:
        each = 1 if self._held_out else self._ahead
        # Rounded down: attempts of all ensembles that share a cluster fit into it.
        return max(1, each * self._workers.ready // self._share)

    def _submit(self) -> None:
        while len(self._tasks) < self._room():
            if self._again:
                simulation, attempt = self._again.popleft()
            else:
                following = next(self._simulations, None)
                if following is None:
                    self._exhausted = True
                    return
                simulation, attempt = following, 0
                self._held_out += simulation.part != "training"
            self._tasks.submit(simulation, attempt)

    def key(self, simulation: Simulation, attempt: int) -> str:
        """Return the name of a task, which no other study on the cluster shares."""
        return self._tasks.key(simulation, attempt)

    def _settle(self, ended: Ended) -> None:
        simulation, attempt, error, hung = ended
        if (error is None or hung) and self._is_whole(simulation.number):
            if hung:
                logger.warning("%s", error)
            self._done += 1
            self._held_out -= simulation.part != "training"
            return
        if self._closing.is_set():
            return
        error = error or EnsembleError(
            "The task has ended, but not all of its steps have arrived: another "
            "attempt had taken its place, and did not end."
        )
        if isinstance(error, ArchiveError):
            self._tasks.archive_no_more(error)
            self._again.append((simulation, attempt + 1))
            return
        # What a solver yields against its own spec, it will yield again.
        last = attempt >= self._faults.retries or isinstance(error, SpecMismatch)
        outcome = "set aside" if last else "retried"
        self._failures.add(simulation, attempt, outcome, error)
        if not last:
            self._retried += 1
            self._again.append((simulation, attempt + 1))
            return
        self._failed += 1
        self._held_out -= simulation.part != "training"
        self._on_set_aside(simulation.number)
        if self._failed > self._faults.max_failures:
            raise EnsembleError(
                f"{self._failed} simulations failed for good, more than max_failures="
                f"{self._faults.max_failures}; the last was {simulation.number} with "
                f"{dict(simulation.parameters)}: {type(error).__name__}: "
                f"{str(error).rstrip('.')}. All are listed in {self._failures.path}."
            )

    def _explained(self, error: BaseException) -> BaseException:
        if isinstance(error, ConnectionError) or self._client.status != "running":
            lost = EnsembleError(
                f"Lost the scheduler {self._address}: {type(error).__name__}: {error}"
            )
            lost.__cause__ = error
            return lost
        return error
