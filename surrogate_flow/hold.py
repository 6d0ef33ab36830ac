"""A folder that a living process writes into."""

from __future__ import annotations

import fcntl
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
    """

    def __init__(self, file: TextIOWrapper | None, *, mine: bool) -> None:
        self._file = file
        self.mine = mine

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Hold a folder that exists, for as long as this object lives."""
        file = None
        try:
            file = (folder / LOCK).open("a")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            # Of another process; or a file system without locks, or without room.
            if file is not None:
                file.close()
            return cls(None, mine=False)
        return cls(file, mine=True)

    def release(self) -> None:
        """Let go; may be called again."""
        if self._file is not None:
            self._file.close()
        self.mine = False
