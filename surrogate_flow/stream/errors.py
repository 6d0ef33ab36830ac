"""What may go wrong between an outlet and an inlet."""

from __future__ import annotations

__all__ = [
    "NotExpected",
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
