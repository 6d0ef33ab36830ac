"""What may go wrong between an outlet and an inlet."""

from __future__ import annotations

from surrogate_flow.fields.errors import UserError

__all__ = [
    "NotExpected",
    "ProtocolError",
    "StreamError",
    "StreamRefused",
    "StreamStopped",
    "StreamTimeout",
]


class StreamError(UserError, RuntimeError):
    """A stream that cannot continue."""


class StreamRefused(StreamError):
    """The inlet does not accept this outlet; the text is its reason."""


class StreamStopped(StreamError):
    """The study ends: the inlet wants no more steps."""


class StreamTimeout(StreamError, TimeoutError):
    """No message from the inlet for too long; the text has its last reason to wait."""


class NotExpected(LookupError):
    """A sink wants no step of a simulation, because it has not begun."""


class AlreadyEnded(NotExpected):
    """A sink wants no step of a simulation, because it has ended there."""


class ProtocolError(ValueError):
    """A message that the inlet refuses; the reason is sent to the outlet.

    Parameters
    ----------
    cause : str
        One word, under which refused messages are counted.
    reason : str
    """

    def __init__(self, cause: str, reason: str) -> None:
        super().__init__(cause, reason)
        self.cause = cause

    def __str__(self) -> str:
        return str(self.args[1])
