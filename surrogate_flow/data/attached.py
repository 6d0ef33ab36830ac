"""A source of steps that somebody else's study feeds, such as that of a sweep."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import msgspec
import numpy as np
from distributed import Client

from surrogate_flow.cluster.config import ClusterError
from surrogate_flow.data.ranks import Ranks
from surrogate_flow.data.router import Router
from surrogate_flow.dataset import Archive, ArchiveError
from surrogate_flow.ensemble.ensemble import EnsembleStats
from surrogate_flow.ensemble.events import Exhausted
from surrogate_flow.ensemble.ledger import Ledger, RecordingSink, SimulationState
from surrogate_flow.ensemble.sharing import (
    Heartbeat,
    StudyAddress,
    StudyStatus,
    new_token,
)
from surrogate_flow.ensemble.workers import EnsembleError
from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.sampling import Design
from surrogate_flow.stream import Inlet, Outlet, StreamError, StreamStats
from surrogate_flow.threads import LoudThread, repeat

__all__ = ["Attach", "Attached", "require_shared"]

logger = logging.getLogger(__name__)

_INTERVAL = 1.0  # seconds between two heartbeats
_ANSWER = 10.0  # seconds for the scheduler to take one, or a connection
_SILENT = 50.0  # seconds without a study, or a status of it, after which it is gone
_READERS = 3  # simulations that are read from the disk at once


@dataclass(frozen=True)
class Attach:
    """Which study a training takes part in.

    Attributes
    ----------
    folder : Path
        Of the study, such as that of a sweep.
    name : str
        Of the training, unlike those of others.
    """

    folder: Path
    name: str


def require_shared(given: Mapping[str, bool]) -> None:
    """Refuse options of the data that are given, and that no other training can have.

    Raises
    ------
    ArgumentError
    """
    for option in (name for name, is_given in given.items() if is_given):
        raise ArgumentError(
            f"data.{option}: does not go with a shared ensemble, as others train from "
            "the same simulations. Leave it out, or give each its own ensemble "
            "(share_simulations: false)."
        )


class Attached:
    """The share of a training in a study that runs elsewhere.

    Simulations that begin while it is there arrive by the stream; those before are read
    in the study's data set, and so are those of which steps were missed. It waits for a
    study that was killed and goes on; without one the process gets SIGTERM, and ends in
    order.

    Parameters
    ----------
    attach : Attach
    design : Design
        That of the study.
    router : Router
        Where the steps go.
    ranks : Ranks

    Raises
    ------
    EnsembleError
        If the study is on another host alone.
    KeyboardInterrupt
        If none answers.
    """

    def __init__(
        self, attach: Attach, design: Design, router: Router, ranks: Ranks
    ) -> None:
        self._folder, self._design, self._router = attach.folder, design, router
        self.ledger = Ledger()
        self._resources = ExitStack()
        try:
            enter, leave = self._resources.enter_context, self._resources.callback
            address, client = self._reached()
            self.client = enter(client)
            self._archive = Archive(Path(address.archive))
            self.spec = self._archive.spec
            host = address.cluster().interface
            sink = _Beginning(self.ledger, router, design)
            self.inlet = enter(Inlet(self.spec, sink, host=host))
            self._heartbeat = Heartbeat(
                attach.name, new_token(), self.inlet.endpoint, ranks.rank, ranks.world
            )
            self._topic = address.topic
            self._status: StudyStatus | None = None
            self._last = time.monotonic()
            self._statuses: SimpleQueue[StudyStatus] = SimpleQueue()
            #: Numbers that are read, or were given up.
            self._asked = IntSet()
            self._exhausted = self._ending = self._subscribed = False
            self._closing = threading.Event()
            self._errors: SimpleQueue[BaseException] = SimpleQueue()
            # Those of held-out simulations never wait for others, which wait for the
            # trainer.
            self._readers = [ThreadPoolExecutor(n) for n in (_READERS, 1)]
            self._thread = LoudThread(self._run, "attached")
            leave(self.leave)
            leave(self.inlet.stop_outlets, "the training has ended")
        except BaseException:
            self._resources.close()
            raise

    def start(self) -> None:
        """Join the study; may be called again."""
        if self._thread.ident is None:
            self._last = time.monotonic()
            self._thread.start()

    def check(self, waited: float | None = None) -> None:
        """Raise what has gone wrong; end as at SIGTERM if the study is gone."""
        self._thread.check()
        self.inlet.check()
        with suppress(Empty):
            raise self._errors.get_nowait()
        silent = time.monotonic() - self._last
        over = self._exhausted or self._ending or self._closing.is_set()
        if silent > _SILENT and not over:
            self._ending = True
            self._end(f"No status for {silent:.0f} s of the study in {self._folder}")

    def _reached(self) -> tuple[StudyAddress, Client]:
        """Connect to the study: where it was, or where a new process goes on with it.

        Raises
        ------
        KeyboardInterrupt
            If none answers.
        """
        begun, said = time.monotonic(), False
        while True:
            address, waited = StudyAddress.read(self._folder), time.monotonic() - begun
            if address is not None:
                try:
                    cluster = address.cluster()
                    cluster.timeout = _ANSWER
                    return address, cluster.client()
                except EnsembleError:  # It may go on elsewhere.
                    if waited > _SILENT:
                        raise
                except (OSError, ClusterError):
                    logger.debug("killed, or about to have other keys", exc_info=True)
            if waited > _SILENT:
                self._end(f"No study answers in {self._folder} for {waited:.0f} s")
                raise KeyboardInterrupt(signal.SIGTERM)
            if not said:
                said = True
                what = "No study answers in %s: waiting %g s for one"
                logger.warning(what, self._folder, _SILENT)
            time.sleep(_INTERVAL)

    def _end(self, why: str) -> None:
        """Have this process end as at its walltime, which a sweep goes on from."""
        logger.error(
            "%s, which has ended or was killed: the training ends in order. Go on with "
            "surrogate-flow sweep resume %s",
            *(why, self._folder),
        )
        os.kill(os.getpid(), signal.SIGTERM)

    def stats(self) -> EnsembleStats:
        """Count the simulations of this training, and the workers of the study."""
        counts = self.ledger.counts()
        shared = self._status.stats if self._status else EnsembleStats(0, 0, 0, 0, 0)
        return replace(
            shared,
            done=counts.complete,
            running=counts.running,
            failed=counts.failed,
            planned=self._design.planned,
            early=self.ledger.counts_early(),
        )

    def stream(self) -> StreamStats:
        """Return what has arrived; `worked` is that of the whole study."""
        stats = self.inlet.stats()
        return replace(stats, worked=self._status.worked) if self._status else stats

    def waiting(self) -> str:
        """Return what holds up the simulations, or ""."""
        if self._closing.is_set():
            return ""
        if self._status is None:
            return f"waits for the study in {self._folder}"
        return self._status.waiting

    def close(self) -> None:
        """Leave the study; may be called again."""
        self._resources.close()

    def leave(self) -> None:
        """Take no more steps, so that others wait for it no longer; stay connected."""
        if self._closing.is_set():
            return
        self._closing.set()
        self.inlet.stop_outlets("the training has ended")
        if self._thread.ident is not None:
            self._thread.join()
            with suppress(OSError):
                if not self._ending and not self._exhausted:
                    self._send(leaves=True)
        for readers in self._readers:
            readers.shutdown(cancel_futures=True)

    def _receive(self, event: tuple[float, Any]) -> None:
        """Keep a status of the study; in the loop of Dask's client."""
        with suppress(msgspec.MsgspecError):
            status = msgspec.msgpack.decode(event[1], type=StudyStatus)
            if status.token == self._heartbeat.token:
                self._statuses.put(status)

    def _send(self, *, leaves: bool = False) -> None:
        heartbeat = msgspec.structs.replace(self._heartbeat, leaves=leaves)
        message, client = msgspec.msgpack.encode(heartbeat), self.client
        if client.scheduler is None:  # closed by Dask
            raise ConnectionError("its scheduler is gone")
        try:
            if not self._subscribed:
                topic = f"{self._topic}/{heartbeat.member}"
                client.subscribe_topic(topic, self._receive)
                self._subscribed = True
            log_event = client.scheduler.log_event
            client.sync(
                log_event, topic=self._topic, msg=message, callback_timeout=_ANSWER
            )
        except Exception as error:
            # Dask's client raises errors of any type once its scheduler is gone.
            raise ConnectionError(f"{type(error).__name__}: {error}") from error

    def _run(self) -> None:
        failing = "The study cannot be reached"
        repeat(self._turn, self._closing, _INTERVAL, failing)

    def _turn(self) -> None:
        status = None
        while not self._statuses.empty():
            status = self._statuses.get()
        if self._exhausted:
            return
        if status is not None:
            self._status, self._last = status, time.monotonic()
            self._follow(status)
        self._send(leaves=self._exhausted)

    def _follow(self, status: StudyStatus) -> None:
        """Read what is on the disk alone, and let go of what has failed."""
        plain = self.ledger.to_plain()
        ended = IntSet(plain["complete"]) | IntSet(plain["failed"])
        gone = IntSet(status.failed) | IntSet(status.dropped)
        for number in filter(self._design.mine, gone - ended - self._asked):
            self._asked.add(number)
            self._give_up(number)
        waiting = IntSet(status.on_disk) - ended - IntSet(status.streamed) - self._asked
        # Once for all of them.
        complete = self._archive.complete() if len(waiting) else []
        for number in filter(self._design.mine, sorted({*waiting} & {*complete})):
            self._asked.add(number)
            readers = self._readers[number < self._design.held_out]
            readers.submit(self._read, number)
        counts = self.ledger.counts()
        if status.exhausted and self._design.planned == counts.complete + counts.failed:
            self._exhausted = True
            self._router(Exhausted())

    def _give_up(self, number: int) -> None:
        if self.ledger.state(number) is SimulationState.PLANNED:
            self.ledger.begin(self._design.at(number))
        self.inlet.give_up(number)

    def _read(self, number: int) -> None:
        """Send a simulation of the data set to the inlet, in a thread of its own."""
        spec, row = self.spec, self._archive.parameters[number]
        try:
            # A later attempt than what has come by the stream.
            with Outlet(self.inlet.endpoint, spec, number, 1, row) as outlet:
                if spec.inputs and not outlet.complete:
                    outlet.give(self._archive.inputs(number))
                outlet.skip()
                size, last = self._archive.chunk_steps, self._archive.steps()[number]
                for first in range(outlet.next_step, last, size):
                    count = min(size, last - first)
                    steps = np.empty((count, *spec.step_shape), np.float32)
                    self._archive.read(number, first, steps)
                    outlet.send(steps)
                outlet.end("as in the data set of the study")
        except ArchiveError as error:
            what, _, _ = str(error).partition(" Copy the data set")
            again = f"surrogate-flow sweep resume {self._folder} --failed"
            remedy = (
                f"Delete that file and stop the sweep: {again} simulates it again, "
                "and begins again the trials that have failed."
            )
            self._errors.put(EnsembleError(what, remedy=remedy))
        except StreamError as error:
            if not self._closing.is_set():
                self._errors.put(error)
        except BaseException as error:
            self._errors.put(error)


class _Beginning(RecordingSink):
    """Records, too, that a simulation has begun: at its first step here."""

    def __init__(self, ledger: Ledger, router: Router, design: Design) -> None:
        super().__init__(ledger, router)
        self._book, self._design = ledger, design

    def open(self, simulation: int) -> int:
        """Return the first step that is wanted of a simulation."""
        if self._book.state(simulation) is SimulationState.PLANNED:
            self._book.begin(self._design.at(simulation))
        return super().open(simulation)
