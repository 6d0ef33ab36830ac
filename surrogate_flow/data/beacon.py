"""Whether a process on another machine is still there."""

from __future__ import annotations

import socket

from distributed.utils import get_ip

__all__ = ["Beacon", "is_out"]

_BACKLOG = 4096  # those who have looked are never accepted, and wait there
_ANSWER = 2.0  # seconds that a network may take


class Beacon:
    """A port that is open as long as this process lives, and reads nothing.

    The kernel completes connections to it by itself, so it answers however busy the
    process is, and refuses when that has died.

    Parameters
    ----------
    towards : str
        A machine of the same network, on whose side it is to be seen.

    Attributes
    ----------
    address : tuple of str and int
    """

    def __init__(self, towards: str) -> None:
        here = str(get_ip(towards))
        if towards != "127.0.0.1" and here.startswith("127."):
            # It is this machine itself, by a name for the loopback.
            here = str(get_ip())
        self._socket = socket.create_server((here, 0), backlog=_BACKLOG)
        host, port = self._socket.getsockname()[:2]
        self.address: tuple[str, int] = (host, port)


def is_out(address: tuple[str, int]) -> bool:
    """Whether nobody answers at a beacon's address."""
    try:
        socket.create_connection(address, _ANSWER).close()
    except OSError:
        return True
    return False
