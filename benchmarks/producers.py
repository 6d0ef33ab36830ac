"""Processes that send when told to, and whose end is noticed."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Self

__all__ = ["Producers"]

PATIENCE = 120.0


class Producers:
    """So many processes, each with a pipe to this one.

    Parameters
    ----------
    target : callable
        Runs in each with its end of the pipe. It says "ready" to each task, sends when
        it is told "go", says "sent", and ends when the task is None.
    count : int

    Raises
    ------
    RuntimeError
        From every method, if one has died.
    TimeoutError
        From `start` and `finish`, if one has not answered for two minutes.
    """

    def __init__(self, target: Callable[[Connection], None], count: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes = []
        for _ in range(count):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=target, args=(theirs,), daemon=True)
            process.start()
            # As long as we hold it too, the pipe of a dead process never ends.
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            if error is not None:
                process.kill()
                continue
            # One that has died is named below.
            with contextlib.suppress(OSError):
                pipe.send(None)
        deadline = time.monotonic() + PATIENCE
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
            pipe.close()
        if error is None:
            self._check_codes(0)

    def start(self, *task: Any) -> float:
        """Give all the same task, start them at once, and return when."""
        for number, pipe in enumerate(self.pipes):
            self._tell(pipe, (number, *task))
        self._await("ready")
        start = time.perf_counter()
        for pipe in self.pipes:
            self._tell(pipe, "go")
        return start

    def finish(self) -> None:
        """Wait until every one has closed what it opened."""
        self._await("sent")

    def check(self) -> None:
        """Raise if one of them has died."""
        self._check_codes(None)

    def _check_codes(self, *expected: int | None) -> None:
        for number, process in enumerate(self.processes):
            if process.exitcode not in expected:
                raise RuntimeError(
                    f"Producer {number} of {len(self.processes)} has died with exit "
                    f"code {process.exitcode}, expected it to send until told to end. "
                    "Usual cause: see its own words above; -9 means killed, often for "
                    "want of memory."
                )

    def _tell(self, pipe: Connection, word: Any) -> None:
        try:
            pipe.send(word)
        except OSError:
            self._bury()

    def _await(self, word: str) -> None:
        deadline = time.monotonic() + PATIENCE
        waiting = list(self.pipes)
        while waiting:
            readable = wait(waiting, max(0.0, deadline - time.monotonic()))
            if not readable:
                raise TimeoutError(
                    f"{len(waiting)} of {len(self.pipes)} producers did not say "
                    f"{word!r} within {PATIENCE:g} s."
                )
            for pipe in self.pipes:
                if pipe in readable:
                    try:
                        got = pipe.recv()
                    except (EOFError, OSError):
                        self._bury()
                    if got != word:
                        raise RuntimeError(f"Expected {word!r}, got {got!r}.")
                    waiting.remove(pipe)

    def _bury(self) -> None:
        """Say who has died, whose pipe has ended."""
        wait([process.sentinel for process in self.processes], 1.0)
        self.check()
        raise RuntimeError("A producer has closed its pipe, and lives.")
