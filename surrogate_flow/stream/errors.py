"""What may go wrong between an outlet and an inlet."""

from __future__ import annotations

__all__ = [
    "NotExpected",
    "Refusal",
    "StreamError",
    "StreamRefused",
    "StreamStopped",
    "StreamTimeout",
]


class NotExpected(LookupError):
    """A sink wants no step of a simulation, because it has not begun."""


class StreamError(RuntimeError):
    """A stream that cannot go on."""


class StreamRefused(StreamError):
    """The inlet will not have this outlet, and says why."""


class StreamStopped(StreamError):
    """The study ends: the inlet wants no more steps."""


class StreamTimeout(StreamError, TimeoutError):
    """No word from the inlet for too long; says what it said last."""


class Refusal(ValueError):
    """A message that the inlet does not accept; the reason is sent to the outlet.

    Parameters
    ----------
    cause : str
        One word, under which refusals are counted.
    reason : str
    """

    def __init__(self, cause: str, reason: str) -> None:
        super().__init__(reason)
        self.cause = cause
