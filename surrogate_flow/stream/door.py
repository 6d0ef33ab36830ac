"""Where connections come in, as long as there are files for them."""

from __future__ import annotations

import ctypes
import logging
import os
import socket
import struct
from contextlib import ExitStack

import zmq
from zmq.utils.monitor import recv_monitor_message

from surrogate_flow.stream.files import allow_many_files, free_files

__all__ = ["Door"]

logger = logging.getLogger(__name__)

RESERVE = 256
BACKLOG = 100
# From asm-generic/socket.h; Python has no names for them.
SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27
# Linux' "return 0": of every packet, keep nothing.
KEEP_NOTHING = struct.pack("=HBBI", 0x06, 0, 0, 0)
REMEDY = (
    "Raise the limit before the trainer starts (ulimit -n, as root ulimit -Hn; "
    "LimitNOFILE in a systemd unit, nofile in /etc/security/limits.conf), or run fewer "
    "simulations at once."
)


class Door:
    """Lets connections in until only a reserve of files is left for the trainer's own.

    Without it, ZeroMQ accepts until nothing is left: no checkpoint can be written, and
    on a unix socket it aborts the process. Whoever comes while the door is shut tries
    again by itself; who is inside notices nothing.

    Parameters
    ----------
    router : zmq.Socket
        Not bound yet; `open` comes when it is.

    Attributes
    ----------
    monitor : zmq.Socket
        Readable when connections have come or gone: then call `look`.
    is_shut : bool

    Raises
    ------
    OSError
        From `open`, if so few files may be open that nobody could come in.

    Notes
    -----
    Not locked: the inlet's thread owns it. The reserve is a quarter of the limit, at
    most 256 files: what comes before the thread has looked takes some of it. More than
    the whole reserve in that moment, on a unix socket, is more than it can hold off.
    """

    def __init__(self, router: zmq.Socket[bytes], resources: ExitStack) -> None:
        self.is_shut = False
        self._limit = allow_many_files()
        self._reserve = min(RESERVE, self._limit // 4)
        self._router = router
        self._unseen = 0
        self._warned = False
        router.backlog = min(BACKLOG, self._reserve // 2)
        # Unbinding would cut off all who are inside: we need what it listens on.
        self.monitor = router.get_monitor_socket(
            zmq.EVENT_LISTENING | zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
        )
        self._listener: socket.socket | None = None
        self._path = ""
        resources.callback(self.close)

    def open(self, address: str) -> None:
        """Note that the router listens at this address."""
        free = free_files()
        if free < self._enough:
            raise OSError(
                f"Expected room for at least {self._enough} more open files, got "
                f"{free} of {self._limit}: every outlet is one, and checkpoints and "
                f"logs need some. {REMEDY}"
            )
        number = recv_monitor_message(self.monitor)["value"]
        if address.startswith("ipc://"):
            self._path = address.removeprefix("ipc://")
        else:
            self._listener = socket.socket(fileno=os.dup(number))

    def look(self) -> None:
        """Shut the door or open it again, as files allow; warn of the first time."""
        heard = self._heard()
        self._unseen -= heard
        if heard and self._unseen > 0:
            return
        free = free_files()
        if self.is_shut and free >= self._enough:
            self._turn(shut=False)
        elif not self.is_shut and free < self._reserve:
            self._turn(shut=True)
            if not self._warned:
                self._warned = True
                logger.warning(
                    "%d of %d files that this process may have open are left: new "
                    "outlets wait until others have ended. Usual cause: more "
                    "simulations at once than files, each is one. %s",
                    free,
                    self._limit,
                    REMEDY,
                )
        # So many may come before it is worth while to count again.
        self._unseen = 0 if self.is_shut else (free - self._reserve) // 2

    def close(self) -> None:
        """Look no more, before the router is closed; may be called again."""
        if not self.monitor.closed:
            self._router.disable_monitor()
            self.monitor.close()
        if self._listener is not None:
            self._listener.close()

    @property
    def _enough(self) -> int:
        """Files to be free before it opens again, or it would swing to and fro."""
        return self._reserve + max(1, self._reserve // 4)

    def _heard(self) -> int:
        count = 0
        while self.monitor.poll(0):
            self.monitor.recv_multipart()
            count += 1
        return count

    def _turn(self, *, shut: bool) -> None:
        self.is_shut = shut
        if self._listener is None:
            aside = f"{self._path}-"
            os.rename(*((self._path, aside) if shut else (aside, self._path)))
        elif shut:
            program = ctypes.create_string_buffer(KEEP_NOTHING, len(KEEP_NOTHING))
            where = struct.pack("@HP", 1, ctypes.addressof(program))
            self._listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, where)
        else:
            self._listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
