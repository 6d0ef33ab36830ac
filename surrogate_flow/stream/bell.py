"""A way to wake a thread that polls sockets."""

from __future__ import annotations

import socket
from contextlib import ExitStack, suppress

__all__ = ["Bell"]


class Bell:
    """Any thread rings, one polls; rings that nobody has heard yet are one.

    Silent before `open`, and when it was closed.
    """

    def __init__(self) -> None:
        self._ears: socket.socket | None = None
        self._bell: socket.socket | None = None

    def open(self, resources: ExitStack) -> None:
        """Begin to ring; `resources` close it."""
        self._ears, self._bell = socket.socketpair()
        for end in (self._ears, self._bell):
            end.setblocking(False)
            resources.callback(end.close)

    def fileno(self) -> int:
        """Return what can be polled; it is readable when it has rung."""
        assert self._ears is not None, "open it first"
        return self._ears.fileno()

    def ring(self) -> None:
        """Wake the thread that polls; never blocks."""
        if self._bell is not None:
            # Full, so it is ringing already; or closed, so nobody listens.
            with suppress(OSError):
                self._bell.send(b"!")

    def hush(self) -> None:
        """Note that it was heard."""
        assert self._ears is not None, "open it first"
        self._ears.recv(4096)
