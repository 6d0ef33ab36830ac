"""An attempt at a trial: of all that are started for it, one process trains."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

__all__ = ["ATTEMPT", "Attempt", "Handle", "begin"]

ATTEMPT = "SURROGATE_FLOW_ATTEMPT"
"""Environment variable of a trial: the file of its attempt."""

#: What finds a trial again, in another process too: plain values.
Handle = Mapping[str, Any]

# The last line of its file, once a process has ended by itself.
_ENDED = "ended"
# Where batch systems tell a job its id.
_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")


@dataclass(frozen=True)
class Attempt:
    """A file that the process which trains makes, and locks while it lives.

    The file appears whole, and once: it is a link to one that was written and locked
    before. The kernel releases the lock, whatever ends the process or its machine.

    Attributes
    ----------
    path : Path
        Of the file.
    started : mapping
        What its place has noted of it: process or job.
    """

    path: Path
    started: Handle = field(default_factory=dict)

    @property
    def handle(self) -> Handle:
        """What finds its process: by its own words, once it has begun."""
        try:
            said = self.path.read_text("utf-8").splitlines()
        except FileNotFoundError:
            return self.started
        return {**self.started, **json.loads(said[0])}

    @property
    def begun(self) -> bool:
        """Whether a process has begun it, or none ever will."""
        return self.path.exists()

    @property
    def trains(self) -> bool:
        """Whether the process that has begun it is alive, on whatever machine."""
        try:
            with self.path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except OSError:
            # A file system without locks.
            with contextlib.suppress(OSError, KeyError):
                os.kill(self.handle["pid"], 0)
                return bool(self.handle["host"] == socket.gethostname())
        return False

    @property
    def killed(self) -> bool:
        """Whether its process has begun it, and is gone without having ended."""
        said = self.path.read_text("utf-8").splitlines() if self.begun else []
        return "host" in self.handle and _ENDED not in said and not self.trains

    def close(self) -> None:
        """Let no process begin it from now on; one that has begun goes on."""
        if (file := self._make({})) is not None:
            file.close()

    def begin(self) -> TextIO | None:
        """Begin it in this process; return the locked file, or None if it is begun."""
        said: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid()}
        said["gpu"] = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        if ids := [os.environ[name] for name in _JOBS if name in os.environ]:
            said["job"] = ids[0]
        return self._make(said)

    def _make(self, said: Handle) -> TextIO | None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}.part")
        file = part.open("x", encoding="utf-8")
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            json.dump(said, file)
            file.flush()
            os.link(part, self.path)
        except FileExistsError:
            file.close()
            return None
        finally:
            part.unlink()
        return file


def begin() -> bool:
    """Begin the attempt that this process was started for, if it was for one.

    Returns
    -------
    bool
        Whether it may go on: no other process has begun the attempt.
    """
    # Not for the processes that this one starts.
    path = os.environ.pop(ATTEMPT, "")
    if not path:
        return True
    file = Attempt(Path(path)).begin()
    if file is None:
        return False
    _held.append(file)
    atexit.register(_end, file)
    # A child that outlives this process does not train.
    os.register_at_fork(after_in_child=file.close)
    return True


def _end(file: TextIO) -> None:
    """Note that this process ends by itself: nothing notes that it was killed."""
    with contextlib.suppress(OSError):
        if not file.closed:  # in a child it is
            file.write(f"\n{_ENDED}\n")
            file.flush()


_held: list[TextIO] = []
