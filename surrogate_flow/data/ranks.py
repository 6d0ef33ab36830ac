"""The processes that train together, and how they agree on what to do next."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from enum import IntEnum
from functools import partial
from typing import Any

import psutil
import torch
import torch.distributed as dist

from surrogate_flow.data.beacon import Beacon, is_out

__all__ = ["RankError", "Ranks", "State", "waits"]

_PATIENCE = timedelta(minutes=10)  # for a rank that trains a step, or validates

_Failed = dist.DistError  # what collectives raise, or a plain RuntimeError

_GRACE = 60.0  # seconds that the first rank has to end when another has died

_PAUSE = 0.5  # seconds between two looks at the others
_DYING = 5.0  # seconds that a process may take to end, after its connections


class RankError(RuntimeError):
    """Another rank has failed or died."""


class State(IntEnum):
    """What a rank has to say at a meeting."""

    #: It waits for data, or for simulations.
    WAITING = 0
    #: It has what all are waiting for.
    READY = 1
    #: It has it, and its simulations wait until it trains: nobody may wait for more.
    FULL = 2
    #: Its data have come to an end.
    ENDED = 3
    #: It was told to stop.
    STOPPED = 4
    #: It has failed.
    FAILED = 5


def waits(states: Sequence[State]) -> bool:
    """Whether all ranks wait, since one has no data yet.

    Not if another one is full: its simulations may hold the very workers that the one
    without data needs.
    """
    return State.WAITING in states and not {State.FULL, State.STOPPED} & {*states}


class Ranks:
    """All ranks of a run, which meet to agree: nobody goes on alone, or waits alone.

    A meeting is a gathering of one number from each rank. Ranks that wait for data meet
    again and again, so that no rank is ever left in a collective call for longer than
    the others take for a training step.

    Parameters
    ----------
    rank, world : int
        Number of this process, and of all.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank = rank
        self.world = world
        self._group: Any = None
        self._left = self._failed = False
        self._addresses: list[tuple[str, int]] = [(socket.gethostname(), os.getpid())]
        if world > 1:
            _grant_time()
            # Of its own, on the CPU, whatever the gradients go through.
            self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)
            self._addresses = self.gather(self._addresses[0])
        self._beacons: list[tuple[str, int]] = []
        if not self.on_one_machine:
            self._beacon = Beacon(os.environ.get("MASTER_ADDR", "127.0.0.1"))
            self._beacons = self.gather(self._beacon.address)

    @property
    def on_one_machine(self) -> bool:
        """Whether all ranks share this machine."""
        return len({host for host, _ in self._addresses}) == 1

    def mine(self, number: int) -> bool:
        """Whether a simulation is dealt to this rank."""
        return number % self.world == self.rank

    def share_of(self, states: Sequence[Any]) -> Any:
        """Return this rank's part of what `gather` returned, in another process.

        Raises
        ------
        ValueError
            If it was gathered by another number of ranks.
        """
        if len(states) != self.world:
            raise ValueError(
                f"The checkpoint is of {len(states)} ranks, expected {self.world}: "
                "each has its share of the simulations. Use as many devices as before."
            )
        return states[self.rank]

    def gather(self, value: Any) -> list[Any]:
        """Return the plain values of all ranks, in their order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        self._together(lambda: dist.all_gather_object(values, value, group=self._group))
        return values

    def total(self, value: float) -> float:
        """Return the sum over all ranks, or `value` if this one meets them no more."""
        return value if self._left else float(sum(self.gather(value)))

    def meet(self, state: State) -> list[State]:
        """Return the states of all ranks.

        Raises
        ------
        RankError
            If another rank has failed, or has died; it is named.
        """
        self._failed = self._failed or state is State.FAILED
        if self.world == 1 or self._left:
            return [state]
        mine = torch.tensor([int(state)])
        states = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        self._together(lambda: dist.all_gather(states, mine, group=self._group))
        agreed = [State(int(s)) for s in states]
        failed = [k for k, s in enumerate(agreed) if s is State.FAILED]
        if failed:
            self._left = True
        if failed and state is not State.FAILED:
            raise RankError(
                f"{self._named(failed)} failed, so this one (rank {self.rank}) ends "
                "too: its own message says why."
            )
        return agreed

    def wait(
        self, ready: Callable[[float], State], check: Callable[[], None], slice_: float
    ) -> None:
        """Block until every rank is ready, or one is full.

        Parameters
        ----------
        ready : callable
            Waits so many seconds at most, if it must, and says what the rank has.
        check : callable
            Raises what makes waiting useless.
        slice_ : float
            Seconds between two meetings.
        """
        states = [State.WAITING]
        while waits(states):
            with self.failing():
                mine = ready(slice_)
                check()
            states = self.meet(mine)

    def leave(self) -> None:
        """Meet the others no more: this rank has failed, wherever they are."""
        self._left = True

    def explained(self, error: RuntimeError) -> RuntimeError:
        """Return what a failed collective means: mostly, that a rank has died."""
        foreign = type(error) is not RuntimeError and not isinstance(error, _Failed)
        if self.world == 1 or foreign or self._failed:
            return error
        deadline = time.monotonic() + _DYING
        while not (gone := self._dead()) and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        if not gone and "onnection" not in str(error):
            return error
        return RankError(
            f"{self._named(gone) if gone else 'Another rank'} has died or does not "
            f"answer, so this one (rank {self.rank}) ends too. The usual causes are a "
            "lack of memory and a job at its walltime; go on with --ckpt_path last."
        )

    def _dead(self) -> list[int]:
        here = socket.gethostname()
        return [
            k
            for k, (host, process) in enumerate(self._addresses)
            if (_dead(process) if host == here else is_out(self._beacons[k]))
        ]

    def failing(self) -> _Failing:
        """Return a context which tells the other ranks of an exception in it."""
        return _Failing(self)

    def _together(self, collective: Callable[[], Any]) -> None:
        try:
            collective()
        except RuntimeError as error:
            self._left = True
            raise self.explained(error) from error

    def _named(self, numbers: Sequence[int]) -> str:
        named = [
            f"{k} (process {self._addresses[k][1]} on {self._addresses[k][0]})"
            for k in numbers
        ]
        return f"Rank{'s' * (len(named) > 1)} {', '.join(named)}"


class _Failing:
    """Meets the other ranks with the news that this one has failed."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and not issubclass(kind, RankError):
            try:
                self._ranks.meet(State.FAILED)
            except RankError:
                # It fails anyhow, with a reason of its own.
                return


def _grant_time() -> None:
    """Have Lightning kill this process later when another of its ranks has died.

    It would do so at once, with SIGKILL: nothing was said, nothing cleaned up.
    """
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            observer: Any = thread
            observer._run = partial(_look_again, observer._run, observer)


def _look_again(look: Callable[[], bool], observer: Any) -> bool:
    if any(process.poll() for process in observer._child_processes):
        time.sleep(_GRACE)
    return look()


def _dead(process: int) -> bool:
    try:
        status: str = psutil.Process(process).status()
    except psutil.NoSuchProcess:
        return True
    return bool(status == psutil.STATUS_ZOMBIE)
