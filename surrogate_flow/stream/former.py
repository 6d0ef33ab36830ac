"""Connections that were closed, and what may still come from them."""

from __future__ import annotations

import math
import time

from surrogate_flow.stream.errors import Refusal
from surrogate_flow.stream.terms import LOST

__all__ = ["Former"]

COUNT = 1024
UNDER_WAY = 4.0


class Former:
    """The last connections that were closed, by whom it concerns.

    One that was told to stop still has messages under way, for a moment; one that was
    cut off, and is back, would wait for an answer in vain.

    Notes
    -----
    Not locked: the inlet's thread owns it.
    """

    def __init__(self) -> None:
        self._closed: dict[bytes, float] = {}

    def add(self, identity: bytes) -> None:
        """Note that a connection was closed just now."""
        self._closed[identity] = time.monotonic()
        if len(self._closed) > COUNT:
            del self._closed[next(iter(self._closed))]

    def lose(self, identity: bytes) -> None:
        """Note that a closed connection could not be told so."""
        if identity in self._closed:
            self._closed[identity] = -math.inf

    def reopen(self, identity: bytes) -> None:
        """Note that a connection serves again."""
        self._closed.pop(identity, None)

    def excuse(self, identity: bytes) -> None:
        """Overlook a message without an opening, if it was under way.

        Raises
        ------
        Refusal
            If it was not.
        """
        if identity not in self._closed:
            raise Refusal("stranger", "expected an opening first")
        if time.monotonic() - self._closed[identity] > UNDER_WAY:
            raise Refusal("lost", f"another attempt must go on from here. {LOST}")
