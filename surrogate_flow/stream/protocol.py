"""The messages between outlets and inlets.

A message is a small header, a msgpack map with a ``kind``, and for `Open`, `Inputs` and
`Steps` one more frame of raw numbers. Nothing is ever unpickled. Outlets send `Open`,
`Inputs`, `Steps`, `Ask`, `End` and `Abort`; inlets send `Welcome`, `Refused`, `Credit`,
`Wait`, `Done` and `Stop`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta, Struct

from surrogate_flow.stream.errors import ProtocolError

__all__ = [
    "Abort",
    "Ask",
    "Credit",
    "Done",
    "End",
    "Inputs",
    "Message",
    "Open",
    "Refused",
    "Steps",
    "Stop",
    "Wait",
    "Welcome",
    "decode",
    "encode",
]

HEADER_BYTES = 4096
REASON_CHARACTERS = 1000

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Text = Annotated[str, Meta(max_length=REASON_CHARACTERS)]


class Message(
    Struct, frozen=True, tag_field="kind", tag=str.lower, forbid_unknown_fields=True
):
    """A header; its subclasses are the kinds."""

    has_payload: ClassVar[bool] = False


class Open(Message, frozen=True):
    """An attempt at a simulation begins; the payload is its parameters in float64."""

    has_payload: ClassVar[bool] = True
    study: Text
    spec: Text
    simulation: Count
    attempt: Count
    length: Count


class Inputs(Message, frozen=True):
    """The input fields of the simulation, in float32, once before its first steps."""

    has_payload: ClassVar[bool] = True
    simulation: Count
    attempt: Count
    length: Count


class Steps(Message, frozen=True):
    """The steps ``first, ..., first + count - 1`` of the simulation, in float32."""

    has_payload: ClassVar[bool] = True
    simulation: Count
    attempt: Count
    first: Count
    count: Count
    length: Count


class Ask(Message, frozen=True):
    """`need` bytes are ready, `sent` bytes were sent before: please grant credit.

    With ``need = 0`` it is a sign of life of an attempt that computes steps again which
    the inlet has.
    """

    need: Count
    sent: Count


class End(Message, frozen=True, omit_defaults=True):
    """All `steps` steps of the simulation were sent.

    If they are fewer than the spec has, `early` says why that is regular.
    """

    simulation: Count
    steps: Count
    early: Text = ""


class Abort(Message, frozen=True):
    """This attempt has failed."""

    reason: Text


class Welcome(Message, frozen=True):
    """Begin at step `next_step`, in messages of `coalesce` bytes or one step."""

    next_step: Count
    complete: bool
    coalesce: Count
    credit: Count


class Refused(Message, frozen=True):
    """The inlet does not accept this outlet, or what it sent."""

    reason: Text


class Credit(Message, frozen=True):
    """`granted` bytes may be sent in total, counted from the opening.

    A total, not an increment: repetition grants nothing more, and the next message
    replaces a lost one.
    """

    granted: Count


class Wait(Message, frozen=True):
    """A sign of life of the inlet, and why the outlet waits."""

    reason: Text


class Done(Message, frozen=True):
    """Every step of the simulation is in the sink."""

    steps: Count


class Stop(Message, frozen=True):
    """The inlet wants no more steps of this outlet."""

    reason: Text


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(
    Open
    | Inputs
    | Steps
    | Ask
    | End
    | Abort
    | Welcome
    | Refused
    | Credit
    | Wait
    | Done
    | Stop
).decode


def encode(message: Message) -> bytes:
    """Return the header of `message`; a long reason is cut."""
    if isinstance(message, Abort | Refused | Wait | Stop):
        reason = message.reason[:REASON_CHARACTERS]
        message = msgspec.structs.replace(message, reason=reason)
    elif isinstance(message, End):
        early = message.early[:REASON_CHARACTERS]
        message = msgspec.structs.replace(message, early=early)
    return _encode(message)


def decode(frames: Sequence[bytes | memoryview]) -> tuple[Message, memoryview]:
    """Return the message and its payload, which is empty for most kinds.

    Raises
    ------
    ProtocolError
        If the header is too long, is not msgpack, is of no known kind, misses or adds a
        key, has a value of another type or range, or a length that is not the
        payload's.
    """
    if not frames:
        raise ProtocolError("frames", "expected a header, got no frame")
    if (length := memoryview(frames[0]).nbytes) > HEADER_BYTES:
        limit = f"expected a header of at most {HEADER_BYTES} bytes"
        raise ProtocolError("header", f"{limit}, got {length}")
    try:
        message = _decode(frames[0])
    # Text that is not UTF-8 raises UnicodeDecodeError, a ValueError as all others.
    except (ValueError, RecursionError) as error:
        raise ProtocolError("header", f"bad header: {error!s:.200}") from None
    kind, count = type(message).__name__, 1 + message.has_payload
    if len(frames) != count:
        got = f"expected {count} frames for {kind!r}, got {len(frames)}"
        raise ProtocolError("frames", got)
    if not isinstance(message, Open | Inputs | Steps):
        return message, memoryview(b"")
    payload = memoryview(frames[1])
    if message.length != payload.nbytes:
        got = f"announces {message.length} bytes, got a payload of {payload.nbytes}"
        raise ProtocolError("length", f"{kind!r} {got}")
    return message, payload
