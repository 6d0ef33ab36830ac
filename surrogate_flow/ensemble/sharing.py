"""One study for several trainings: each that joins gets every step."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event as Flag
from typing import Any, Self

import msgspec

from surrogate_flow.cluster.existing import Existing
from surrogate_flow.cluster.open import ClusterSource
from surrogate_flow.dataset import Archive
from surrogate_flow.dataset.writer import ABSENT, COMPLETE
from surrogate_flow.ensemble.ensemble import EnsembleStats
from surrogate_flow.ensemble.events import Event, Exhausted, Failed, Finished, Listener
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.ensemble.packed import Packed
from surrogate_flow.ensemble.study import OpenCluster, Study, StudySettings
from surrogate_flow.ensemble.workers import EnsembleError
from surrogate_flow.fields.int_set import IntSet
from surrogate_flow.files import leave, write_atomically
from surrogate_flow.sampling import Design
from surrogate_flow.solvers.solver import Solver
from surrogate_flow.stream import Endpoint, Fanout, Relay
from surrogate_flow.stream.fanout import Late
from surrogate_flow.threads import LoudThread

__all__ = ["ADDRESS_FILE", "Heartbeat", "SharedStudy", "Sharing", "StudyAddress"]
__all__ += ["StudyStatus"]

logger = logging.getLogger(__name__)

ADDRESS_FILE = "ensemble.json"
_SHARING = "sharing.json"
_TICK = 0.25  # seconds between two looks at heartbeats
_SILENT = 10.0  # seconds without a heartbeat after which a training is taken out
_NOTE = 30.0  # seconds between two notes of what the simulations have taken
_LAG = 2.0  # seconds between two notes of who lags
_STALE = 60.0  # seconds after which such a note is one no more
_STALLED = 1.0  # seconds of a look after which this process was stopped, or too busy


class StudyAddress(msgspec.Struct, frozen=True):
    """Where trainings join a study: the file `ADDRESS_FILE` in its folder."""

    scheduler: str
    topic: str
    archive: str
    host: str
    #: Whether all is on one machine.
    local: bool
    #: Files of the keys: authority, certificate and key.
    keys: tuple[str, str, str] | None = None

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the file of a folder; None if there is none: no study runs."""
        try:
            read = (folder / ADDRESS_FILE).read_bytes()
            return msgspec.json.decode(read, type=cls)
        except (OSError, msgspec.MsgspecError):
            return None

    def cluster(self) -> Existing:
        """Return how its scheduler is reached from here."""
        here = self.host == socket.gethostname()
        if not here and "//127." in self.scheduler:
            raise EnsembleError(
                f"The ensemble at {self.scheduler} is on {self.host} alone, and this "
                f"is {socket.gethostname()}.",
                remedy="Have the simulations run on a cluster that all trials reach, "
                "such as options: {data.cluster: slurm}.",
            )
        return Existing.shared(self.scheduler, self.keys, local=self.local and here)


class Heartbeat(msgspec.Struct, frozen=True):
    """What each process of a training sends once a second."""

    name: str
    #: Of its inlet: another one has joined anew.
    token: str
    endpoint: Endpoint
    rank: int = 0
    world: int = 1
    leaves: bool = False

    @property
    def member(self) -> str:
        """Return the name of the process."""
        return self.name if self.world == 1 else f"{self.name}/{self.rank}"


Ranges = list[tuple[int, int]]


class Sharing(msgspec.Struct, frozen=True):
    """Which trainings lag: a file in the folder of the study, of all its processes."""

    #: Of each that has no room for steps now, why.
    full: dict[str, str] = {}
    #: Simulations, as ranges ``[start, end)``, of which each has missed steps.
    missed: dict[str, Ranges] = {}

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the file of a folder; empty where there is none."""
        path = folder / _SHARING
        try:
            read = msgspec.json.decode(path.read_bytes(), type=cls)
            # Those that lagged when the study was killed do so no more.
            goes_on = time.time() - path.stat().st_mtime < _STALE
            return read if goes_on else cls(missed=read.missed)
        except (OSError, msgspec.MsgspecError):
            return cls()


class StudyStatus(msgspec.Struct, frozen=True):
    """The state of a study, as each training gets it once a second: all of it."""

    token: str
    #: Of all simulations, and solver seconds of the complete ones.
    stats: EnsembleStats
    worked: float
    #: What holds up the simulations, or "".
    waiting: str
    #: As ranges ``[start, end)``: complete in the data set; failed for good.
    on_disk: Ranges
    failed: Ranges
    #: Which this training gets by the stream, and which it is to do without; it reads
    #: all others from the disk.
    streamed: Ranges
    dropped: Ranges
    #: Whether each simulation is complete or has failed.
    exhausted: bool


@dataclass
class _Member:
    heartbeat: Heartbeat
    relay: Relay
    last: float


class SharedStudy:
    """A study whose steps go to every training that joins, and into a data set.

    A training joins and leaves at any time. It gets the simulations that begin while it
    is there by the stream, and reads the others in the data set.

    Parameters
    ----------
    solver, design, cluster, faults, settings, listeners
        As `Study`. What is complete in the data set, or has failed for good, does not
        run again; what has lost chunks there does.
    archive : Archive
        Of the same design, to add to. It must stay writable.
    late : {"wait", "drop", "spool"}
        Whether the slowest training holds up the others, misses the rest of
        simulations, or reads that in the data set later.

    Attributes
    ----------
    study : Study
    """

    def __init__(
        self,
        solver: Solver | Packed,
        design: Design,
        *,
        cluster: ClusterSource | OpenCluster,
        faults: Faults,
        settings: StudySettings,
        archive: Archive,
        late: Late = "wait",
        listeners: Sequence[Listener] = (),
    ) -> None:
        self._archive, self._late, self._design = archive, late, design
        self._spec = archive.spec
        if lost := archive.drop_incomplete():
            logger.warning(
                "%s: %d simulations have lost chunks, and run again.",
                *(archive.path, len(lost)),
            )
        self._on_disk, self._failed = IntSet(), IntSet()
        for number, state in enumerate(archive.states()):
            if state != ABSENT:
                (self._on_disk if state == COMPLETE else self._failed).add(number)
        # What has failed for good would be in some trainings, and not in others.
        design.skip(self._on_disk | self._failed)
        self._worked_before = archive.solver_seconds
        self._exhausted = False
        self._fanout = Fanout(late=late, held_out=design.held_out)
        self._members: dict[str, _Member] = {}
        #: Tokens of those that have left: a heartbeat may be on its way still.
        self._left: set[str] = set()
        self._folder, self._noted = settings.folder, Sharing.read(settings.folder)
        #: Of trainings, and of their earlier attempts.
        self._missed = {k: IntSet(ranges) for k, ranges in self._noted.missed.items()}
        self._heartbeats: SimpleQueue[Heartbeat] = SimpleQueue()
        self._closing = Flag()
        self._thread = LoudThread(self._run, "sharing")
        self._resources = ExitStack()
        try:
            self.study = Study(
                solver,
                design,
                self._fanout,
                cluster=cluster,
                faults=faults,
                settings=replace(settings, writer=archive.writer, archives_all=True),
                listeners=[self._note, *listeners],
            )
            self._resources.callback(self.study.close)
            self._topic = f"surrogate-flow/{secrets.token_hex(8)}"
            self.study.client.subscribe_topic(self._topic, self._receive)
            self._publish(settings.folder)
            self._resources.callback(self._leave_all)
        except BaseException:
            self._resources.close()
            raise

    def __enter__(self) -> Self:
        self._thread.start()
        self.study.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop what runs, and let every training know; may be called again."""
        self._resources.close()

    def check(self) -> None:
        """Raise what stopped the study, or the sharing, if anything did."""
        self._thread.check()
        self.study.check(held_up=self._held_up)

    @property
    def _held_up(self) -> bool:
        """Whether simulations wait for a training: never held-out ones, but for one."""
        ended = self._on_disk | self._failed
        held_out = all(n in ended for n in range(self._design.held_out))
        waits = held_out or not self._members
        return waits and bool(self._fanout.waiting())

    @property
    def members(self) -> tuple[str, ...]:
        """The trainings that take part now; ranks of one are several."""
        return tuple(self._members)

    @property
    def exhausted(self) -> bool:
        """Whether each simulation is complete or has failed."""
        return self._exhausted

    def take_out(self, name: str) -> None:
        """Have nobody wait for a training whose processes are known to be gone."""
        for member in list(self._members.values()):
            if member.heartbeat.name == name:
                gone = msgspec.structs.replace(member.heartbeat, leaves=True)
                self._heartbeats.put(gone)

    def stats(self) -> EnsembleStats:
        """Count simulations by state, those of earlier processes included."""
        stats = self.study.stats()
        return replace(stats, done=len(self._on_disk), failed=len(self._failed))

    @property
    def worked(self) -> float:
        """Solver seconds of all simulations, those of earlier processes included."""
        return self._worked_before + self.study.inlet.stats().worked

    def sharing(self) -> Sharing:
        """Return which trainings lag, and what they have missed for good."""
        missed = {name: self._missed_by(name).ranges for name in self._missed}
        return Sharing(self._fanout.full(), {k: r for k, r in missed.items() if r})

    def _missed_by(self, name: str) -> IntSet:
        before = self._missed.get(name, IntSet())
        return before | self._fanout.dropped(name) if self._late == "drop" else before

    def _note_sharing(self, sharing: Sharing) -> None:
        if sharing != self._noted or sharing.full:
            self._noted, text = sharing, msgspec.json.encode(sharing)
            leave(self._folder / _SHARING, lambda part: part.write_bytes(text))

    def _publish(self, folder: Path) -> None:
        """Write where trainings join, for this user alone."""
        address = self.study.cluster.address
        known = self._resources.enter_context(address.in_files(folder))
        keys: Any = known.security  # its attributes are those of Dask's settings
        names = keys and (keys.tls_ca_file, keys.tls_client_cert, keys.tls_client_key)
        written = StudyAddress(
            known.scheduler_address,
            self._topic,
            str(self._archive.path.resolve()),
            socket.gethostname(),
            known.local,
            names or None,
        )
        path = folder / ADDRESS_FILE
        with write_atomically(path) as part:
            part.touch(0o600)
            part.write_bytes(msgspec.json.encode(written))
        self._resources.callback(path.unlink, missing_ok=True)

    def _note(self, event: Event) -> None:
        if isinstance(event, Finished):
            self._on_disk.add(event.simulation.number)
        elif isinstance(event, Failed):
            self._archive.fail(event.simulation.number)
            self._failed.add(event.simulation.number)
        elif isinstance(event, Exhausted):
            self._exhausted = True

    def _receive(self, event: tuple[float, Any]) -> None:
        """Keep the heartbeat of a training; in the loop of Dask's client."""
        with suppress(msgspec.MsgspecError):
            self._heartbeats.put(msgspec.msgpack.decode(event[1], type=Heartbeat))

    def _run(self) -> None:
        before = noted = lagged = time.monotonic()
        while not self._closing.is_set():
            with suppress(Empty):
                self._handle(self._heartbeats.get(timeout=_TICK))
            now = time.monotonic()
            if (stalled := now - before) > _STALLED:
                # Heartbeats of that time are not read yet.
                for member in self._members.values():
                    member.last += stalled
            before = now
            if now - noted > _NOTE:
                self._note_worked()
                noted = now
            for name, member in list(self._members.items()):
                if member.relay.lost or now - member.last > _SILENT:
                    why = member.relay.lost or f"no heartbeat for {_SILENT:g} s"
                    logger.warning("%s gets no more steps: %s", name, why)
                    self._remove(name)
            if now - lagged > _LAG:
                lagged = now
                self._note_sharing(self.sharing())

    def _handle(self, heartbeat: Heartbeat) -> None:
        name = heartbeat.member
        member = self._members.get(name)
        anew = member is not None and member.heartbeat.token != heartbeat.token
        if member is not None and (heartbeat.leaves or anew):
            self._remove(name)
            member = None
        if heartbeat.leaves:
            self._left.add(heartbeat.token)
        if heartbeat.token in self._left:
            return
        if member is None:
            held_out = self._design.held_out
            relay = Relay(heartbeat.endpoint, self._spec, held_out=held_out)
            relay.__enter__()
            # A sink of the same name begins anew.
            self._missed = self._missed | {name: self._missed_by(name)}
            member = self._members[name] = _Member(heartbeat, relay, 0.0)
            self._fanout.add(name, relay, (heartbeat.rank, heartbeat.world))
            logger.info("%s takes part", name)
        member.last = time.monotonic()
        self._send_status(name, heartbeat.token)

    def _remove(self, name: str) -> None:
        self._fanout.remove(name)
        self._members.pop(name).relay.stop()

    def _send_status(self, name: str, token: str) -> None:
        fanout = self._fanout
        # Before the others, so that nothing is missing in them.
        exhausted = self._exhausted
        status = StudyStatus(
            token,
            self.stats(),
            self.worked,
            "; ".join(filter(None, [fanout.waiting(), self.study.waiting()])),
            # Before those of the stream: one that begins and ends now is of these.
            on_disk=self._on_disk.ranges,
            failed=self._failed.ranges,
            streamed=fanout.streamed(name).ranges,
            dropped=fanout.dropped(name).ranges if self._late == "drop" else [],
            exhausted=exhausted,
        )
        topic = f"{self._topic}/{name}"
        self.study.client.log_event(topic, msgspec.msgpack.encode(status))

    def _note_worked(self) -> None:
        """Add to what the data set says that its simulations have taken."""
        if (seconds := self.worked - self._archive.solver_seconds) > 0:
            self._archive.spend(seconds, self.study.ledger.early())

    def _leave_all(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._note_worked()
        for name in list(self._members):
            self._remove(name)
        self._note_sharing(Sharing(missed=self.sharing().missed))


def new_token() -> str:
    """Return what no other process has."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
