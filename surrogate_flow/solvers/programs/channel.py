"""The way of steps from a program that calls `surrogate_flow.h` to its worker.

A run has a socket in its folder. Each rank of the program connects to it, says which
block of the grid it has, and sends frames: a header and the name of a variable. It puts
the values into memory that the worker shares, or, where there is none, sends them, too.
A rank that is ahead of the others waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import socket
import sys
from pathlib import Path

__all__ = ["INCLUDE", "VARIABLE", "Channel", "StreamError", "shared_memory"]

#: The folder of `surrogate_flow.h`.
INCLUDE = Path(__file__).parent / "include"
#: The environment variable that has the address, for the program.
VARIABLE = "SURROGATE_FLOW_STREAM"

_LONGEST = 108  # bytes of a socket's address, with the zero behind it


class StreamError(ValueError):
    """What a program has sent is not what the three calls send."""


class Channel:
    """The socket of one run, to which its program connects.

    Parameters
    ----------
    folder : Path
        Of the run alone.

    Attributes
    ----------
    address : str
        For the program.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder.absolute() / f".steps-{secrets.token_hex(4)}"
        self.address = str(self._path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.setblocking(False)
            self._bind()
            # Nobody connects before `listen`.
            os.chmod(self._path, 0o600)
            self._socket.listen(socket.SOMAXCONN)
        except BaseException:
            self.close()
            raise

    def _bind(self) -> None:
        if len(os.fsencode(self.address)) < _LONGEST:
            self._socket.bind(self.address)
            return
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            self._socket.bind(f"/proc/self/fd/{folder}/{self._path.name}")
        finally:
            os.close(folder)

    def accept(self) -> socket.socket | None:
        """Return the next connection, if there is one."""
        try:
            connection, _ = self._socket.accept()
        except BlockingIOError:
            return None
        return connection

    def fileno(self) -> int:
        """Return what can be polled: readable when a program connects."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket and remove it; may be called twice."""
        self._socket.close()
        self._path.unlink(missing_ok=True)


def shared_memory(size: int) -> tuple[mmap.mmap | bytes, int | None]:
    """Return memory, and its descriptor where a program can map it, too."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError), contextlib.ExitStack() as failed:
            flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
            file = os.memfd_create("surrogate_flow", flags)
            failed.callback(os.close, file)
            os.ftruncate(file, size)
            # A program that cut it off would kill the worker.
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
            memory = mmap.mmap(file, size)
            failed.pop_all()
            return memory, file
    return mmap.mmap(-1, size), None
