"""What an inlet has refused: counted by cause, and logged once in a while."""

from __future__ import annotations

import logging
import time
from collections import Counter

from surrogate_flow.stream.errors import Refusal

__all__ = ["Refusals"]

logger = logging.getLogger(__name__)

LOG_SECONDS = 10.0
LOG_CHARACTERS = 500
REPLIES = 64
PEERS = 1024


class Refusals:
    """Counts refusals, and logs what has come together at most every ten seconds.

    Notes
    -----
    Not locked: the inlet's thread owns it; any thread may call `counts`.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self._logged = -LOG_SECONDS
        self._last = ""
        self._peers: dict[bytes, int] = {}

    def counts(self) -> dict[str, int]:
        """Return how often each cause has occurred; from any thread."""
        return dict(self._counts)

    def add(self, identity: bytes, refusal: Refusal) -> bool:
        """Count one; log it, unless another was logged a moment ago.

        Returns
        -------
        bool
            Whether to answer: replies to a peer that never reads would pile up.
        """
        self._counts[refusal.cause] += 1
        self._last = f"connection {identity[:6].hex()}: {refusal}"[:LOG_CHARACTERS]
        self.tell()
        times = self._peers.pop(identity, 0) + 1
        self._peers[identity] = times
        if len(self._peers) > PEERS:
            del self._peers[next(iter(self._peers))]
        return times <= REPLIES

    def tell(self, at_once: bool = False) -> None:
        """Log what was not logged yet, if it is time, or `at_once`."""
        now = time.monotonic()
        if not at_once and now - self._logged < LOG_SECONDS:
            return
        new = self._counts - self._told
        if not new:
            return
        causes = ", ".join(f"{count} {cause}" for cause, count in new.most_common())
        logger.warning(
            "Refused %d messages (%s), %d in all; the last of %s",
            new.total(),
            causes,
            self._counts.total(),
            self._last,
        )
        self._told = self._counts.copy()
        self._logged = now
