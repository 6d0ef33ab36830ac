"""Where attempts fail: which worker and host, and which of them rest therefore."""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from distributed import Client, SchedulerPlugin

from surrogate_flow.ensemble.deaths import Reporter, WorkerDied, dask_is_quiet

__all__ = ["Place", "Placement"]

logger = logging.getLogger(__name__)

_IN_ROW = 3  # failures without a success, after which a worker rests
_REST, _LONGEST = 1.0, 600.0  # seconds; twice as long for each further failure
_DEATHS = 1000  # that are remembered until their attempts have ended
_UNWATCHED = (
    "no worker or host is set aside where all attempts fail, and what crashes its "
    "worker may run several times before that is an attempt"
)
_UNREPORTED = "no error says how the process of a worker has died"
_ANSWER = 5.0  # seconds that scheduler and nannies have to accept what watches them


@dataclass(frozen=True)
class Place:
    """A worker: its name, which outlives its process, and where it was."""

    worker: str
    address: str
    host: str

    def __str__(self) -> str:
        return f"{self.worker} ({self.host})"


class _Watcher(SchedulerPlugin):
    """Tells from the scheduler where attempts end, and has each die only once."""

    def __init__(self, study: str) -> None:
        self.name = study

    async def start(self, scheduler: Any) -> None:
        """Begin on the scheduler."""
        self._scheduler = scheduler

    def transition(
        self, key: Any, start: str, finish: str, *_: Any, **more: Any
    ) -> None:
        """Note the end of an attempt whose worker is there."""
        try:
            self._tell(key, start, finish, more.get("worker"))
        except Exception as error:
            # Dask would only log it.
            self._scheduler.log_event(self.name, {"defect": repr(error)})

    def _tell(self, key: Any, start: str, finish: str, address: Any) -> None:
        if not str(key).endswith(self.name):
            return
        if finish == "processing":
            # Dask runs it no second time, whatever the scheduler allows for others.
            allowed = self._scheduler.allowed_failures
            self._scheduler.tasks[key].suspicious = allowed
        worker = self._scheduler.workers.get(address)
        if start == "processing" and finish in ("memory", "erred") and worker:
            place = str(worker.name), address, worker.host
            self._scheduler.log_event(self.name, {"key": key, "place": place})


class Placement:
    """Where each attempt has failed, and where the next ones may run.

    Of a worker on which `_IN_ROW` attempts failed, and none succeeded in between, the
    next ones are kept away for a second, and for twice as long after each further
    failure; so of a host. A success ends that, and while all would rest none does.

    A context manager; one thread calls `succeeded`, `failed` and what comes behind.

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
        self._places: dict[str, Sequence[str]] = {}
        self._defect = self._cast = ""
        self._deaths: dict[str, Mapping[str, Any]] = {}
        self._rests: dict[tuple[str, str], float] = {}
        # Attempts that have failed in a row, by worker and by host.
        self._rows: Counter[tuple[str, str]] = Counter()
        self._succeeded: set[str] = set()
        self._dead: dict[str, str] = {}
        self._lacking: set[str] = set()  # hosts
        # Failed simulations: those in the row of a worker alone, and all others.
        self._alone: Counter[tuple[str, str]] = Counter()
        self._sure = 0
        #: Workers and hosts that have rested, in words.
        self.set_aside: tuple[str, ...] = ()
        #: Name and host of the workers that are there, by their addresses.
        self.present: dict[str, tuple[str, str]] = {}

    def __enter__(self) -> Self:
        ask: Any = self._client
        self._quiet = dask_is_quiet(self.study)
        self._quiet.__enter__()
        ask.subscribe_topic(self.study, self._note)
        for who, register, plugin, less in (
            ("scheduler", ask._register_scheduler_plugin, _Watcher, _UNWATCHED),
            ("nannies", ask._register_nanny_plugin, Reporter, _UNREPORTED),
        ):
            try:
                watching, name = plugin(self.study), self.study
                ask.sync(register, watching, name, False, callback_timeout=_ANSWER)
            except (OSError, TimeoutError) as error:
                logger.debug("The %s may be late to watch failures: %r", who, error)
            except Exception as error:
                logger.warning(
                    "The %s of this cluster cannot load surrogate_flow (%s), so %s. "
                    "Install it there, in this version.",
                    who,
                    str(error).rstrip("."),
                    less,
                )
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
            if len(self._deaths) > _DEATHS:
                del self._deaths[next(iter(self._deaths))]
        elif "defect" in told:
            self._defect = told["defect"]
        elif "cast" in told:
            # Each worker says it.
            if told["cast"] != self._cast:
                self._cast = told["cast"]
                logger.info("%s.", self._cast)
        else:
            self._places[told["key"]] = told["place"]

    def check(self) -> None:
        """Raise what has ended the watch on the scheduler, if anything has."""
        if self._defect:
            raise RuntimeError(f"Attempts are watched no more: {self._defect}")

    def of(self, key: str) -> Place | None:
        """Return where a task has ended, once; None if that is not known."""
        told = self._places.pop(key, None)
        return Place(*told) if told else None

    def at(self, address: str) -> Place | None:
        """Return a worker that is there."""
        known = self.present.get(address)
        return Place(known[0], address, known[1]) if known else None

    def death(self, worker: str) -> Mapping[str, Any] | None:
        """Return what the nanny has reported of a worker that died, by its id."""
        return self._deaths.get(worker)

    def succeeded(self, place: Place) -> None:
        """End the row of failures of a worker, and of its host."""
        worker, at = ("Worker", place.worker), (place.worker, place.host)
        if alone := self._alone.pop(at, 0):
            # Its own failures, rather than bad luck: others have done better meanwhile.
            excused = self._rows[worker] >= _IN_ROW and self._excused(*at)
            self._sure += 0 if excused else alone
        self._succeeded.add(place.worker)
        self._rows[worker] = self._rows["Host", place.host] = 0

    def failed(self, place: Place, error: BaseException) -> None:
        """Have a worker, or a host, rest on which attempts fail in a row."""
        if isinstance(error, WorkerDied):
            # All attempts of a worker die at once.
            if self._dead.get(place.worker) == place.address:
                return
            self._dead[place.worker] = place.address
        hosts = {host for _, host in self.present.values()}
        for kind, name, others in (
            ("Worker", place.worker, len(self.present) > 1),
            ("Host", place.host, len(hosts) > 1),
        ):
            self._rows[kind, name] += 1
            in_row = self._rows[kind, name]
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

    def lacks(self, place: Place) -> bool:
        """Note that a host has not what the solver needs; whether none has it."""
        self._lacking.add(place.host)
        hosts = {host for _, host in self.present.values()}
        return not self._succeeded and hosts <= self._lacking

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

    def give_up(self, tried: Sequence[Place | None]) -> None:
        """Note a simulation that has failed, and where each attempt was."""
        place = tried[-1]
        if place and {at and at.worker for at in tried} == {place.worker}:
            self._alone[place.worker, place.host] += 1
        else:
            self._sure += 1

    def count(self) -> int:
        """Count simulations that failed, without those that a bad worker explains.

        That is one which alone has failed them, and where nothing succeeds, while
        elsewhere fewer than a third as many attempts fail in a row, and than three.
        """
        alone = self._alone.items()
        return self._sure + sum(n for at, n in alone if not self._excused(*at))

    def _excused(self, worker: str, host: str) -> bool:
        in_row = self._rows["Worker", worker]
        if in_row < _IN_ROW and worker in self._succeeded:
            return False
        # Where there are several hosts, all workers of one may be bad.
        several = len({at for _, at in self.present.values()}) > 1
        others = {
            name
            for name, at in self.present.values()
            if (at != host if several else name != worker)
        }
        rows = [self._rows["Worker", name] for name in others & self._succeeded]
        least = min(rows) if rows else sum(self._rows["Worker", n] for n in others)
        return bool(others) and least < _IN_ROW and _IN_ROW * least < in_row
