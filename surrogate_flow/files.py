"""A folder that a living process writes into."""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Self

__all__ = ["LOCK", "Hold"]

LOCK = ".lock"


class Hold:
    """A lock on a folder, which the kernel lets go with the process.

    Attributes
    ----------
    mine : bool
        Whether no other process holds the folder, as far as the file system can say.
    other : str
        The process that holds it, and its machine; empty where none is known to, as on
        a file system without locks, or without room for one.
    """

    def __init__(
        self, file: TextIOWrapper | None, *, mine: bool, other: str = ""
    ) -> None:
        self._file = file
        self.mine = mine
        self.other = other

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Hold a folder that exists, for as long as this object lives."""
        try:
            return cls(_locked(folder / LOCK), mine=True)
        except BlockingIOError:
            return cls(None, mine=False, other=_holder(folder / LOCK))
        except OSError:
            return cls(None, mine=False)

    def release(self, *, remove: bool = False) -> None:
        """Let go, and leave no file if so told; may be called again."""
        if self._file is not None:
            if remove:
                # Before others can lock it: who waits for this file finds it gone.
                Path(self._file.name).unlink(missing_ok=True)
            self._file.close()
            self._file = None
        self.mine = False


def _locked(path: Path) -> TextIOWrapper:
    """Return the file, locked, with this process and machine in it."""
    while True:
        file = path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, file):
                _sign(file.fileno())
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _sign(file: int) -> None:
    # A full disk takes the lock away from nobody.
    with suppress(OSError):
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())


def _is_at(path: Path, file: TextIOWrapper) -> bool:
    """Whether nobody has removed the file meanwhile."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        return path.read_text() or "another process"
    except OSError:
        return "another process"
