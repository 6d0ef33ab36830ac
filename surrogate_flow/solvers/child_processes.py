"""The processes that a solver starts: all of them end with it, however it ends."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import resource
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["ChildProcesses", "ThreadProcesses", "end_with_parent"]

logger = logging.getLogger(__name__)

_SERVER = b"from multiprocessing."  # forks, or removes, what this process shares
_PARENT_DEATH = 1  # PR_SET_PDEATHSIG of sys/prctl.h
_PATIENCE = 10.0  # seconds for killed processes to be gone
# The limit of a real-time process's time on a core: no other process notices it, all
# that a process starts inherits it, and none can be told from outside to lose it.
_MARK = getattr(resource, "RLIMIT_RTTIME", None)  # None: not on Linux


class ChildProcesses:
    """The processes that start while `marked`, and those that these start.

    Neither a process group nor the tree of parents finds all of them: programs call
    setsid, fork twice, or lose their parent. So a mark is set that every process
    inherits: a resource limit of a value that nobody else has. A guard, a process of
    its own, kills what is marked when this process has died, whatever it died of.

    Notes
    -----
    Threads share limits: what another thread starts meanwhile is marked, too. Only
    Linux has such a limit; elsewhere nothing is marked.
    """

    _lock = threading.Lock()
    _marks: list[tuple[int, int]] = []  # noqa: RUF012 - of this process, as its limits

    def __init__(self) -> None:
        hard = -1 if _MARK is None else resource.getrlimit(_MARK)[1]
        # In microseconds: two weeks at least, unless less is allowed.
        least, most = (2**40, 2**61) if hard < 0 else (0, hard)
        self._token = least + secrets.randbelow(most - least)
        self._guard: subprocess.Popen[bytes] | None = None

    @contextmanager
    def marked(self) -> Iterator[None]:
        """Mark what this process starts."""
        if _MARK is None:
            yield
            return
        with self._lock:
            self._marks[:] = self._marks or [resource.getrlimit(_MARK)]
            if self._guard is None:
                self._guard = _guard(self._token)
                # Another solver's mark is not for it.
                resource.prlimit(self._guard.pid, _MARK, self._marks[0])
            mark = (self._token, self._marks[0][1])
            self._marks.append(mark)
            resource.setrlimit(_MARK, mark)
        try:
            yield
        finally:
            with self._lock:
                self._marks.remove(mark)
                resource.setrlimit(_MARK, self._marks[-1])

    def kill(self) -> None:
        """Kill all but this process, and those that multiprocessing keeps for it.

        These end with their pool, or with this process: a pool whose processes are
        killed starts others, or waits for ever.
        """
        if self._guard:
            _kill(lambda: _marked(self._token), _spared())

    def close(self) -> None:
        """Kill what `kill` does; end the guard if that leaves it nothing to guard."""
        self.kill()
        if multiprocessing.active_children():
            return
        with self._lock:
            guard, self._guard = self._guard, None
        if guard is not None:
            guard.kill()
            guard.wait()
            assert guard.stdin is not None
            guard.stdin.close()


class ThreadProcesses:
    """The processes that threads start while `marked`, where others start some, too.

    These have no mark, and no guard: what has lost its parent is not found.
    """

    def __init__(self) -> None:
        self._threads: set[Path] = set()

    @contextmanager
    def marked(self) -> Iterator[None]:
        """Have those that this thread starts, and has started, be found."""
        self._threads.add(Path(f"/proc/self/task/{threading.get_native_id()}"))
        yield

    def kill(self) -> None:
        """Kill all but those that multiprocessing keeps for this process."""
        _kill(lambda: _started(self._threads), _spared())

    close = kill


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, on Linux.

    It may not notice that itself: a solver may hold the GIL for ever.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)


def _guard(token: int) -> subprocess.Popen[bytes]:
    """Start the guard; of the pipe that it reads, the kernel closes the other end."""
    guard = subprocess.Popen(
        [sys.executable, "-IS", __file__, str(token)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
    )
    assert guard.stdin is not None
    # A child that only forks, as of multiprocessing, would keep it open.
    os.register_at_fork(after_in_child=guard.stdin.close)
    return guard


def _spared() -> list[int]:
    return [os.getpid(), *(p.pid or 0 for p in multiprocessing.active_children())]


def _kill(found: Callable[[], Iterable[int]], spared: Collection[int] = ()) -> None:
    """Kill processes until no more are found but those to be spared."""
    deadline = time.monotonic() + _PATIENCE
    while left := [pid for pid in list(found()) if _lives(pid, spared)]:
        if time.monotonic() > deadline:
            logger.warning("Processes %s of a solver do not end when killed.", left)
            return
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def _lives(pid: int, spared: Collection[int]) -> bool:
    with suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1]
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        kept = bool(spared) and (pid in spared or _SERVER in command)
        return state not in b"ZX" and not kept
    return False


def _marked(token: int) -> Iterator[int]:
    assert _MARK is not None
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        # It has ended, or is another user's.
        with suppress(OSError):
            if resource.prlimit(pid, _MARK)[0] == token:
                yield pid


def _started(tasks: Iterable[Path]) -> Iterator[int]:
    """Yield the processes that threads have started, and those that these have."""
    for task in tasks:
        # It has ended.
        with suppress(OSError):
            for pid in map(int, (task / "children").read_text().split()):
                yield pid
                yield from _started(Path(f"/proc/{pid}/task").iterdir())


if __name__ == "__main__":
    sys.stdin.buffer.read()
    _kill(lambda: _marked(int(sys.argv[1])))
