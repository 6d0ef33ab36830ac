"""What may go wrong between an outlet and an inlet."""

from __future__ import annotations

__all__ = ["StreamError", "StreamRefused", "StreamStopped", "StreamTimeout"]


class StreamError(RuntimeError):
    """A stream that cannot go on."""


class StreamRefused(StreamError):
    """The inlet will not have this outlet, and says why."""


class StreamStopped(StreamError):
    """The study ends: the inlet wants no more steps."""


class StreamTimeout(StreamError, TimeoutError):
    """No word from the inlet for too long; says what it said last."""
