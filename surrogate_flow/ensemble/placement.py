"""Where attempts fail: which worker and host, and which of them rest therefore."""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from distributed import Client, SchedulerPlugin
from distributed.comm.addressing import get_address_host

from surrogate_flow.ensemble.deaths import Reporter, dask_is_quiet

__all__ = ["Place", "Placement"]

logger = logging.getLogger(__name__)

_IN_ROW = 3  # failures without a success, after which a worker rests
_REST, _LONGEST = 1.0, 600.0  # seconds; twice as long for each further failure
_ANSWER = 5.0  # seconds that scheduler and nannies have to accept what watches them


@dataclass(frozen=True)
class Place:
    """A worker, and what has become of the attempts there until one failed.

    Attributes
    ----------
    worker, address, host : str
        Its name, which it keeps when its process is restarted, and where it was.
    in_row, host_in_row : int
        Attempts that failed there since the last that succeeded, this one included.
    succeeded : bool
        Whether any attempt of the study has succeeded there.
    """

    worker: str
    address: str
    host: str
    in_row: int = 1
    host_in_row: int = 1
    succeeded: bool = False

    def __str__(self) -> str:
        return f"{self.worker} ({self.host})"

    @property
    def doubtful(self) -> bool:
        """Whether the worker may be to blame, rather than the simulation."""
        return self.in_row >= _IN_ROW or not self.succeeded


class _OutcomeCounter(SchedulerPlugin):
    """Counts on the scheduler which attempts succeed where, and tells what fails."""

    def __init__(self, study: str) -> None:
        self.name = study
        self._done: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._hosts: Counter[str] = Counter()

    async def start(self, scheduler: Any) -> None:
        """Begin on the scheduler."""
        self._scheduler = scheduler
        self._names = {a: str(w.name) for a, w in scheduler.workers.items()}
        self._dead: set[str] = set()

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Note the name of a worker; it has left the scheduler when tasks fail so."""
        self._names[worker] = str(scheduler.workers[worker].name)

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        """Forget a worker, after its tasks have failed."""
        self._names.pop(worker, None)
        self._dead.discard(worker)

    def transition(
        self, key: Any, start: str, finish: str, *_: Any, **more: Any
    ) -> None:
        """Have an attempt die once only, and count its end."""
        try:
            self._count(key, start, finish, more.get("worker"))
        except Exception as error:
            # Dask would only log it.
            self._scheduler.log_event(self.name, {"defect": repr(error)})

    def _count(self, key: Any, start: str, finish: str, address: Any) -> None:
        if not str(key).endswith(self.name):
            return
        if finish == "processing":
            # Dask runs it no second time, whatever the scheduler allows for others.
            allowed = self._scheduler.allowed_failures
            self._scheduler.tasks[key].suspicious = allowed
        if start != "processing" or not address:
            return
        name, host = self._names.get(address, address), get_address_host(address)
        if finish == "memory":
            self._done[name] += 1
            self._failed[name] = self._hosts[host] = 0
        elif finish == "erred":
            # All tasks of a worker that dies fail, and one of them has run.
            again = address in self._dead
            if address not in self._scheduler.workers:
                self._dead.add(address)
            self._failed[name] += not again
            self._hosts[host] += not again
            place = (name, address, host, self._failed[name], self._hosts[host])
            event = {"key": key, "place": (*place, self._done[name] > 0)}
            self._scheduler.log_event(self.name, event)


class Placement:
    """Where each attempt has failed, and where the next ones may run.

    Of a worker on which `_IN_ROW` attempts failed, and none succeeded in between, the
    next ones are kept away for a second, and for twice as long after each further
    failure; so of a host. A success ends that, and while all would rest none does.

    A context manager. Its methods may be called from any thread.

    Parameters
    ----------
    client : distributed.Client

    Attributes
    ----------
    study : str
        Its name, with which the names of its tasks end, too.
    """

    def __init__(self, client: Client) -> None:
        self._client, self.study = client, f"surrogate-flow-{secrets.token_hex(4)}"
        self._failed: dict[str, Sequence[Any]] = {}
        self._defect = ""
        self._deaths: dict[str, Mapping[str, Any]] = {}
        self._rests: dict[tuple[str, str], float] = {}
        #: Workers and hosts that have rested, in words.
        self.set_aside: tuple[str, ...] = ()
        #: Name and host of the workers that are there, by their addresses.
        self.present: dict[str, tuple[str, str]] = {}

    def __enter__(self) -> Self:
        ask: Any = self._client
        self._quiet = dask_is_quiet(self.study)
        self._quiet.__enter__()
        ask.subscribe_topic(self.study, self._note)
        for register, plugin in (
            (ask._register_scheduler_plugin, _OutcomeCounter(self.study)),
            (ask._register_nanny_plugin, Reporter(self.study)),
        ):
            try:
                ask.sync(register, plugin, self.study, False, callback_timeout=_ANSWER)
            except Exception as error:
                # A scheduler of others that takes no code; or nannies that start.
                logger.debug("Failures are not watched everywhere: %r", error)
        return self

    def __exit__(self, *_: object) -> None:
        self._quiet.__exit__(None, None, None)
        ask: Any = self._client
        if ask.status != "running":
            return
        ask.unsubscribe_topic(self.study)
        scheduler = ask.scheduler
        for remove in (
            scheduler.unregister_scheduler_plugin,
            scheduler.unregister_nanny_plugin,
        ):
            # One that was never accepted, or a scheduler that is gone.
            with suppress(Exception):
                ask.sync(remove, name=self.study, callback_timeout=_ANSWER)

    def _note(self, event: tuple[float, Mapping[str, Any]]) -> None:
        # In the thread of Dask's event loop, which would only log what is raised.
        _, told = event
        if "died" in told:
            self._deaths[told["died"]] = told
        elif "defect" in told:
            self._defect = told["defect"]
        else:
            self._failed[told["key"]] = told["place"]

    def check(self) -> None:
        """Raise what has ended the counting on the scheduler, if anything has."""
        if self._defect:
            raise RuntimeError(f"Attempts are counted no more: {self._defect}")

    def of(self, key: str) -> Place | None:
        """Return where a task has failed, once; None if that is not known."""
        told = self._failed.pop(key, None)
        return Place(*told) if told else None

    def at(self, address: str) -> Place | None:
        """Return a worker that is there."""
        known = self.present.get(address)
        return Place(known[0], address, known[1]) if known else None

    def death(self, worker: str) -> Mapping[str, Any] | None:
        """Return what the nanny has reported of a worker that died, by its id."""
        return self._deaths.get(worker)

    def failed(self, place: Place, error: BaseException) -> None:
        """Have a worker, or a host, rest on which attempts fail in a row."""
        hosts = {host for _, host in self.present.values()}
        for kind, name, in_row, others in (
            ("Worker", place.worker, place.in_row, len(self.present) > 1),
            ("Host", place.host, place.host_in_row, len(hosts) > 1),
        ):
            self._rests.pop((kind, name), None)
            if in_row < _IN_ROW or not others:
                continue
            pause = min(_REST * 2.0 ** min(in_row - _IN_ROW, 20), _LONGEST)
            self._rests[kind, name] = time.monotonic() + pause
            described = f"{kind} {place if kind == 'Worker' else name}"
            self.set_aside = (*dict.fromkeys((*self.set_aside, described)),)
            logger.warning(
                "%s is set aside for %g s: the last %d attempts there have failed, "
                "now with %s: %s.",
                described,
                pause,
                in_row,
                type(error).__name__,
                str(error).partition("\n")[0].rstrip("."),
            )

    def choose(self, tried: Sequence[Place | None]) -> list[str] | None:
        """Return the addresses of the workers that may make an attempt; None for all.

        Those that do not rest, and of them first hosts, then workers, on which it was
        not `tried` before.
        """
        now, present = time.monotonic(), self.present
        resting = {each for each, until in self._rests.items() if until > now}
        workers = {("Worker", place.worker) for place in tried if place}
        hosts = {("Host", place.host) for place in tried if place}
        chosen = present
        for avoided in (resting, workers, hosts):
            chosen = {
                address: (name, host)
                for address, (name, host) in chosen.items()
                if not {("Worker", name), ("Host", host)} & avoided
            } or chosen
        return None if len(chosen) == len(present) else sorted(chosen)

    def count(self, failures: Collection[Sequence[Place | None]]) -> int:
        """Count simulations that failed, without those that one bad worker may explain.

        That is a worker, or host, beside others, where nothing succeeds, and which
        alone has failed them.
        """
        several = len({host for _, host in self.present.values()}) > 1
        doubtful = []
        for tried in failures:
            place, workers = tried[-1], {at and at.worker for at in tried}
            if place and len(workers) == 1 and place.doubtful:
                doubtful.append(place.host if several else place.worker)
        alone = len(set(doubtful)) == 1 and len(self.present) > 1
        return len(failures) - (len(doubtful) if alone else 0)
