"""The processes that a solver starts: all of them end with it, however it ends."""

from __future__ import annotations

import ctypes
import gc
import itertools
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
from multiprocessing.pool import Pool
from pathlib import Path

__all__ = ["ChildProcesses", "end_with_parent"]

logger = logging.getLogger(__name__)

# Removes what processes have shared once these have ended, and then ends, too.
_TRACKER = b"from multiprocessing.resource_tracker import main"
_SERVER = b"from multiprocessing.forkserver import main"
_PARENT_DEATH = 1  # PR_SET_PDEATHSIG of sys/prctl.h
_PATIENCE = 10.0  # seconds for killed processes to be gone
_TERMINATE = 3.0  # seconds for a pool to end in order
# The limit of a real-time process's time on a core: no other process notices it, all
# that a process starts inherits it, and none can be told from outside to lose it.
_MARK = getattr(resource, "RLIMIT_RTTIME", None)  # None: not on Linux
_LEAST = 2**40  # microseconds, two weeks
_TOKENS = 2**30  # solvers of a process
_Id = tuple[int, bytes]
_START = 19  # of a process, in what `_stat` returns


class ChildProcesses:
    """The processes that a study's solvers start while `marked`, and all these start.

    Neither a process group nor the tree of parents finds all of them: programs call
    setsid, fork twice, or lose their parent. So a mark is set that every process
    inherits: a resource limit of a value that nobody else has. A guard, a process of
    its own, kills what is marked when this process has died, whatever it died of.

    Parameters
    ----------
    marks : bool
        Whether to mark, and to guard: not in a process that others work in, too.

    Notes
    -----
    Threads share limits: what another thread starts meanwhile is marked, too, unless
    that is another solver's. While two solvers of different studies run, the mark is
    for the guard alone, and of what they start only the descendants of their threads
    are found; so without a mark, which only Linux has, and not with a low hard limit.
    """

    def __init__(self, *, marks: bool = True) -> None:
        self._token = _process.draw() if marks else None
        self._running: dict[Path, set[_Id]] = {}
        self._started: set[_Id] = set()

    def mark(self) -> None:
        """Mark what this process starts until `close`."""
        if self._token:
            _process.mark(self._token)

    @contextmanager
    def marked(self) -> Iterator[None]:
        """Mark what this process starts, and note what this thread does."""
        thread = Path(f"/proc/self/task/{threading.get_native_id()}")
        self.mark()
        # The guard, too, was there before.
        before = self._running[thread] = _children(thread)
        try:
            yield
        finally:
            if self._token:
                _process.unmark(self._token)
            left = {each for each in self._started.copy() if _stat(each[0])}
            self._started = left | (_children(thread) - before)
            del self._running[thread]

    def kill(self) -> None:
        """Kill all but this process, and those that multiprocessing keeps for it.

        These may serve the next solver: a pool whose processes are killed starts
        others, or waits for ever.
        """
        kept = [process.pid or 0 for process in multiprocessing.active_children()]
        _kill(self._found, [os.getpid(), *kept])

    def close(self) -> None:
        """Kill all but this process and its servers of multiprocessing."""
        if self._token:
            _process.unmark(self._token, wholly=True)
        mine, pools = {*self._found()}, []
        for each in gc.get_objects() if multiprocessing.active_children() else ():
            if issubclass(type(each), Pool):
                pids = {getattr(process, "pid", None) for process in [*each._pool]}
                pools += [each] if pids & mine else []
        for pool in pools:
            # It waits for processes that heed no signal.
            thread = threading.Thread(None, pool.terminate, "pool", daemon=True)
            thread.start()
            thread.join(_TERMINATE)
        _kill(self._found, [os.getpid()])
        if self._token:
            _process.release(self._token)

    def _found(self) -> Iterator[int]:
        if self._token:
            yield from _marked(self._token, self._token + 1)
        started = self._started.copy()
        for thread, before in self._running.copy().items():
            started |= _children(thread) - before
        for each in started:
            yield from _family(*each)


class _Process:
    """The limit of this process and its guard, which all studies in it share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limit = (0, 0) if _MARK is None else resource.getrlimit(_MARK)
        hard = self._limit[1]
        room = (2**61 if hard < 0 else hard) - _LEAST - _TOKENS
        #: What is marked by several at once; their own marks follow. 0: no room.
        self._common = 0 if room <= 0 else _LEAST + secrets.randbelow(room)
        self._drawn = itertools.count(self._common + 1)
        self._on: list[int] = []
        self._guarded: set[int] = set()
        self._guard: tuple[subprocess.Popen[bytes], int] | None = None

    def draw(self) -> int | None:
        """Return a mark that nothing has."""
        return next(self._drawn) if self._common else None

    def mark(self, token: int) -> None:
        """Set a mark, beside those that are set."""
        with self._lock:
            if self._guard is None:
                self._guard = _guard(self._common)
            self._guarded.add(token)
            self._on.append(token)
            self._set()

    def unmark(self, token: int, *, wholly: bool = False) -> None:
        """Remove a mark, once or as often as it was set."""
        with self._lock:
            if wholly:
                self._on = [mark for mark in self._on if mark != token]
            else:
                self._on.remove(token)
            self._set()

    def _set(self) -> None:
        assert _MARK is not None
        marks = {*self._on} or {self._limit[0]}
        mark = self._common if len(marks) > 1 else marks.pop()
        resource.setrlimit(_MARK, (mark, self._limit[1]))

    def release(self, token: int) -> None:
        """End the guard if nobody needs it any more."""
        with self._lock:
            self._guarded.discard(token)
            if self._guard is None or self._guarded:
                return
            (guard, pipe), self._guard = self._guard, None
        guard.kill()
        guard.wait()
        os.close(pipe)

    def forked(self) -> None:
        """Begin anew in a child that only forks: it would hold the guard's pipe."""
        if self._guard:
            os.close(self._guard[1])
        self.__init__()  # type: ignore[misc]


_process = _Process()
os.register_at_fork(after_in_child=_process.forked)


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, on Linux.

    It may not notice that itself: a solver may hold the GIL for ever.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)


def _guard(common: int) -> tuple[subprocess.Popen[bytes], int]:
    """Start the guard; of the pipe that it reads, the kernel closes the other end.

    A file object would close it while the interpreter ends, and this process, marked
    while a solver's thread still runs, would be killed in the place of its exit.
    """
    read, write = os.pipe()
    try:
        guard = subprocess.Popen(
            [sys.executable, "-IS", __file__, str(common)],
            stdin=read,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    except BaseException:
        os.close(write)
        raise
    finally:
        os.close(read)
    return guard, write


def _kill(found: Callable[[], Iterable[int]], spared: Collection[int] = ()) -> None:
    """Kill processes until no more are found but those to be spared."""
    deadline = time.monotonic() + _PATIENCE
    while left := [pid for pid in {*found()} if _lives(pid, spared)]:
        if time.monotonic() > deadline:
            logger.warning("Processes %s of a solver do not end when killed.", left)
            return
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def _lives(pid: int, spared: Collection[int]) -> bool:
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        state, parent, *_ = _stat(pid) or [b"X", b"0"]
        server = _SERVER in command and int(parent) == os.getpid()
        return state not in b"ZX" and not (
            pid in spared or server or _TRACKER in command
        )
    return False


def _stat(pid: int) -> list[bytes]:
    """Return state, parent and so on of a process; nothing if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    return []


def _marked(first: int, end: int) -> Iterator[int]:
    assert _MARK is not None
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        # It has ended, or is another user's.
        with suppress(OSError):
            if first <= resource.prlimit(pid, _MARK)[0] < end:
                yield pid


def _children(thread: Path) -> set[_Id]:
    """Return what a thread has started: number and start of each, unique together."""
    with suppress(OSError):
        pids = [int(pid) for pid in (thread / "children").read_text().split()]
        return {(pid, stat[_START]) for pid in pids if (stat := _stat(pid))}
    return set()


def _family(pid: int, start: bytes) -> Iterator[int]:
    """Yield a process, and those that it and these have started."""
    if [start] == _stat(pid)[_START : _START + 1]:
        yield pid
        with suppress(OSError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                for each in _children(thread):
                    yield from _family(*each)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    marks = int(sys.argv[1])
    _kill(lambda: _marked(marks, marks + _TOKENS))
