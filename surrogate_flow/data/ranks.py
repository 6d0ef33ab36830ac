"""Data-parallel processes (ranks): they agree before each step, and end together."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from enum import IntEnum
from functools import partial
from typing import Any

import psutil
import torch
import torch.distributed as dist

from surrogate_flow.fields.errors import UserError

__all__ = ["RankError", "RankState", "Ranks", "must_wait"]

_TIMEOUT = timedelta(minutes=10)  # of a collective: a rank may train or validate
_OBSERVER_DELAY = 60.0  # seconds that the first rank has to end after another's death
_EXIT_SECONDS = 5.0  # between the end of a process's connections and its own


class RankError(UserError, RuntimeError):
    """Another rank has failed or died, or a checkpoint is of another number of them."""


class RankState(IntEnum):
    """What a rank has for the next step."""

    #: No batch or simulation yet.
    WAITING = 0
    #: What all ranks wait for.
    READY = 1
    #: The same, and its full reservoir blocks its simulations until it trains.
    FULL = 2
    #: No more data.
    ENDED = 3
    #: A request to stop.
    STOPPED = 4
    #: An error.
    FAILED = 5


def must_wait(states: Sequence[RankState]) -> bool:
    """Return whether all ranks wait because one has no data yet.

    They do not if another one is full: its blocked simulations may occupy the very
    workers that the rank without data needs.
    """
    return RankState.WAITING in states and not {RankState.FULL, RankState.STOPPED} & {
        *states
    }


class Ranks:
    """This process among the `world` processes of a run.

    Ranks exchange one `RankState` before each step. Those that wait for data exchange
    it again and again, so that none stays in a collective for longer than a training
    step of the others.

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
        self._processes: list[tuple[str, int]] = [(socket.gethostname(), os.getpid())]
        if world > 1:
            _delay_observer()
            # On the CPU, whichever backend the gradients use.
            self._group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
            self._processes = self.gather(self._processes[0])

    @property
    def on_one_machine(self) -> bool:
        """Whether all ranks share this machine."""
        return len({host for host, _ in self._processes}) == 1

    def share_of(self, states: Sequence[Any]) -> Any:
        """Return this rank's entry of a list that `gather` made in another run."""
        if len(states) != self.world:
            raise RankError(
                "The checkpoint is of another number of ranks, each with its share of "
                "the simulations",
                self.world,
                len(states),
                f"Use --trainer.devices {len(states)}, or as many devices on all nodes "
                "together.",
            )
        return states[self.rank]

    def gather(self, value: Any) -> list[Any]:
        """Return the plain values of all ranks, in their order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        self._run(lambda: dist.all_gather_object(values, value, group=self._group))
        return values

    def total(self, value: float) -> float:
        """Return the sum over all ranks, or `value` once this one has left them."""
        return float(sum(self.gather_left(value)))

    def gather_left(self, value: Any) -> list[Any]:
        """Return the values of all ranks, or the own one once this one has left."""
        return [value] if self._left else self.gather(value)

    def largest(self, value: float) -> float:
        """Return the largest number of all ranks."""
        if self.world == 1 or self._left:
            return value
        most = torch.tensor([value], dtype=torch.float64)
        maximum = dist.ReduceOp.MAX
        self._run(lambda: dist.all_reduce(most, maximum, group=self._group))
        return float(most)

    def gather_states(self, state: RankState) -> list[RankState]:
        """Return the states of all ranks; a RankError if one has failed or died."""
        self._failed = self._failed or state is RankState.FAILED
        if self.world == 1 or self._left:
            return [state]
        mine = torch.tensor([int(state)])
        gathered = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        self._run(lambda: dist.all_gather(gathered, mine, group=self._group))
        states = [RankState(int(s)) for s in gathered]
        failed = [k for k, s in enumerate(states) if s is RankState.FAILED]
        self._left = self._left or bool(failed)
        if failed and state is not RankState.FAILED:
            raise RankError(
                f"{self._named(failed)} failed, so this one (rank {self.rank}) ends "
                "too: its own message says why."
            )
        return states

    def wait(self, ready: Callable[[float], RankState], poll: float) -> None:
        """Block until every rank is ready, or one is full.

        `ready` waits for at most `poll` seconds, and returns what this rank has, or
        raises what makes waiting useless.
        """
        states = [RankState.WAITING]
        while must_wait(states):
            with self.fail_together():
                mine = ready(poll)
            states = self.gather_states(mine)

    def leave(self) -> None:
        """Exchange nothing more: this rank has failed, wherever the others are."""
        self._left = True

    @contextlib.contextmanager
    def fail_together(self) -> Iterator[None]:
        """Return a context whose exceptions end the other ranks too."""
        try:
            yield
        except RankError:
            raise
        except BaseException:
            # This rank raises its own error, whatever the others have.
            with contextlib.suppress(RankError):
                self.gather_states(RankState.FAILED)
            raise

    def explain(self, error: RuntimeError) -> RuntimeError:
        """Return a `RankError` if `error` is of a collective whose ranks have died."""
        collective = type(error) is RuntimeError or isinstance(error, dist.DistError)
        if self.world == 1 or self._failed or not collective:
            return error
        dead = self._dead_here()
        if not dead and "onnection" not in str(error):
            return error
        return RankError(
            f"{self._named(dead) if dead else 'Another rank'} has died or does not "
            f"answer, so this one (rank {self.rank}) ends too. The usual causes are a "
            "lack of memory and a job at its walltime; go on with --ckpt_path last."
        )

    def _dead_here(self) -> list[int]:
        """Return the ranks of this machine whose process has ended, or is about to."""
        mine, _ = self._processes[self.rank]
        here = {k: pid for k, (host, pid) in enumerate(self._processes) if host == mine}
        deadline = time.monotonic() + (_EXIT_SECONDS if len(here) > 1 else 0.0)
        while not (dead := [k for k, pid in here.items() if _has_died(pid)]):
            if time.monotonic() >= deadline:
                break
            time.sleep(0.2)
        return dead

    def _run(self, collective: Callable[[], Any]) -> None:
        try:
            collective()
        except RuntimeError as error:
            self._left = True
            raise self.explain(error) from error

    def _named(self, ranks: Sequence[int]) -> str:
        named = [
            f"{k} (process {self._processes[k][1]} on {self._processes[k][0]})"
            for k in ranks
        ]
        return f"Rank{'s' * (len(named) > 1)} {', '.join(named)}"


def _delay_observer() -> None:
    """Let Lightning kill this process a minute after the death of another rank.

    Its observer thread would send SIGKILL at once: no message, nothing cleaned up.
    """
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            observer: Any = thread
            observer._run = partial(_observe_later, observer._run, observer)


def _observe_later(observe: Callable[[], bool], observer: Any) -> bool:
    if any(process.poll() for process in observer._child_processes):
        time.sleep(_OBSERVER_DELAY)
    return observe()


def _has_died(process: int) -> bool:
    try:
        return bool(psutil.Process(process).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
