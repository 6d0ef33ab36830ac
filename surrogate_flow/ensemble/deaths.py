"""How the process of a worker has died, and which attempts ran in it."""

from __future__ import annotations

import faulthandler
import logging
import re
import signal
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from traceback import FrameSummary
from typing import Any, BinaryIO

from distributed import NannyPlugin
from distributed.diskutils import WorkDir, WorkSpace

from surrogate_flow.fields.errors import UserError, line_in

__all__ = ["Recorder", "Reporter", "WorkerDied", "dask_is_quiet"]

logger = logging.getLogger(__name__)

_STACK = re.compile(r"^(Current thread|Thread) (0x\w+).*\n((?:  File .*\n?)*)", re.M)
_FRAME = re.compile(r'  File "(.+)", line (\d+) in (.+)')
_LOGGERS = ("scheduler", "worker", "worker.state_machine")
_USUAL = {
    signal.SIGKILL: "the machine, or the job, is out of memory",
    signal.SIGTERM: (
        "Dask ends a worker that holds more than its memory_limit, and a batch system "
        "one whose time is up"
    ),
}


class WorkerDied(UserError, RuntimeError):
    """The process of a worker has died in the middle of an attempt."""

    @classmethod
    def of(cls, code: int | None, line: str = "") -> WorkerDied:
        """Return the error of an attempt that ran, from the exit code if known."""
        how, usual = "and nothing is left that says how", ""
        if code is not None and code >= 0:
            how = f"with exit status {code}"
        elif code is not None:
            known = code and -code in set(signal.Signals)
            name = f" ({signal.Signals(-code).name})" if known else ""
            how = f"of signal {-code}{name}"
            if why := _USUAL.get(-code):  # type: ignore[call-overload]
                usual = f" Usual cause: {why}."
        return cls(f"The worker's process has died {how}.{usual}{line}")


@contextmanager
def dask_is_quiet(study: str) -> Iterator[None]:
    """Drop what Dask logs here of a study's tasks; the ensemble says it, once."""

    def of_others(record: logging.LogRecord) -> bool:
        return study not in record.getMessage()

    loggers = [logging.getLogger(f"distributed.{name}") for name in _LOGGERS]
    for each in loggers:
        each.addFilter(of_others)
    try:
        yield
    finally:
        for each in loggers:
            each.removeFilter(of_others)


# Processes have one handler; that of a later study hands it back.
_FILES: list[BinaryIO] = []


def _prefix(study: str, nanny: str) -> str:
    return f"{study}-{re.sub(r'[^0-9A-Za-z.]+', '-', nanny)}-"


class Recorder:
    """The attempts that run in a worker's process, in a file that outlives it.

    If a signal ends the process, `faulthandler` adds what each thread was at. The
    nanny, whose folder it lies in, reads and removes it; without one there is none.
    """

    def __init__(self, worker: Any, study: str) -> None:
        self._running, self._lock = 0, threading.Lock()
        self._file: BinaryIO | None = None
        # Beside the worker's folder, which its nanny removes when it has died.
        beside = Path(worker.local_directory).parent
        for folder in beside.glob(f"{_prefix(study, worker.nanny or 'none')}*"):
            # The nanny may leave, or the disk be full, which costs no attempt.
            with suppress(OSError):
                self._file = (folder / worker.id).open("ab", buffering=0)
                _FILES.append(self._file)
                faulthandler.enable(self._file)

    @contextmanager
    def running(self, key: str) -> Iterator[None]:
        """Note that this thread makes an attempt."""
        self._note("+", key, 1)
        try:
            yield
        finally:
            self._note("-", key, -1)

    def _note(self, sign: str, key: str, more: int) -> None:
        with self._lock:
            self._running += more
            # A full disk costs no attempt.
            with suppress(OSError):
                if self._file is None:
                    return
                if self._running:
                    line = f"{sign} {threading.get_ident():#018x} {key}\n"
                    self._file.write(line.encode())
                else:
                    self._file.truncate(0)

    def close(self) -> None:
        """Remove the file."""
        with self._lock:
            file, self._file = self._file, None
        if file is None:
            return
        _FILES.remove(file)
        faulthandler.disable()
        if _FILES:
            faulthandler.enable(_FILES[-1])
        file.close()
        Path(file.name).unlink(missing_ok=True)


class Reporter(NannyPlugin):
    """Tells a study's clients, as an event, how a worker's process has died.

    The event has the worker's id, the exit code, and the line of each attempt that
    is to blame: the one that the signal was raised in, or else all that ran.
    """

    _folder: WorkDir | None = None

    def __init__(self, study: str) -> None:
        self.name = study

    def setup(self, nanny: Any) -> None:
        """Have this called when the present and each later process has ended."""
        # Dask removes it when a machine is lost, and not while this nanny lives.
        space = WorkSpace(nanny.local_directory)
        self._folder = space.new_work_dir(prefix=_prefix(self.name, nanny.address))
        if not isinstance(nanny._on_worker_exit_sync, _OnExit):
            nanny._on_worker_exit_sync = _OnExit(nanny)
            if nanny.process is not None:
                nanny.process.on_exit = nanny._on_worker_exit_sync

    def teardown(self, nanny: Any) -> None:
        """Remove what a worker leaves that did not close in time."""
        if self._folder is not None:
            self._folder.release()

    def read(self) -> dict[str, str]:
        """Return what each process that has ended has noted, and remove it."""
        noted = {}
        folder = self._folder and Path(self._folder.dir_path)
        for path in folder.iterdir() if folder else ():
            noted[path.name] = path.read_text(errors="replace")
            path.unlink()
        return noted

    def report(self, nanny: Any, worker: str, code: int, ran: dict[str, str]) -> None:
        """Send it."""
        # RuntimeError (AsyncTaskGroupClosedError) if the nanny closes, too.
        with suppress(RuntimeError):
            nanny.log_event(self.name, {"died": worker, "code": code, "ran": ran})


class _OnExit:
    """What a nanny calls when a worker's process has ended, for all studies."""

    def __init__(self, nanny: Any) -> None:
        self._nanny, self._then = nanny, nanny._on_worker_exit_sync

    def __call__(self, code: int) -> None:
        try:
            plugins = self._nanny.plugins.values()
            reporters = [each for each in plugins if isinstance(each, Reporter)]
            noted: defaultdict[str, str] = defaultdict(str)
            for reporter in reporters:
                for worker, text in reporter.read().items():
                    noted[worker] += text
            # The attempt of one study ends those of all others.
            for worker, text in noted.items():
                for reporter in reporters:
                    reporter.report(self._nanny, worker, code, _to_blame(text))
        except Exception:
            logger.exception("How a worker has died is not known")
        finally:
            self._then(code)


def _to_blame(text: str) -> dict[str, str]:
    """Return the attempts to blame, and the line of the user's code of each."""
    running: dict[str, str] = {}
    for sign, thread, key in re.findall(r"^([+-]) (0x\w+) (.+)$", text, re.M):
        if sign == "+":
            running[key] = thread
        else:
            running.pop(key, None)
    lines, raised = {}, ""
    for title, thread, frames in _STACK.findall(text):
        stack = [
            FrameSummary(file, int(n), name, lookup_line=False)
            for file, n, name in _FRAME.findall(frames)
        ]
        lines[thread] = line_in(stack[::-1])
        if title.startswith("Current"):
            raised = thread
    to_blame = {k: t for k, t in running.items() if t == raised} or running
    return {k: lines.get(t) or lines.get(raised, "") for k, t in to_blame.items()}
