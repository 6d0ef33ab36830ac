"""The words that outlets and inlets exchange.

A message is a small msgpack header, and for some kinds one frame of raw numbers. A
header is a map of plain strings, integers and truth values; nothing is ever unpickled.
From an outlet come `Open`, `Steps`, `Ask`, `End` and `Abort`; from an inlet `Welcome`,
`Refused`, `Credit`, `Wait`, `Done` and `Stop`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgpack

from surrogate_flow.stream.refusals import Refusal

__all__ = [
    "Abort",
    "Ask",
    "Credit",
    "Done",
    "End",
    "MalformedMessage",
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
KEYS = 16
REASON_CHARACTERS = 1000
LARGEST_INTEGER = 2**63 - 1


class MalformedMessage(Refusal):
    """Bytes that are no message of ours, and why."""


@dataclass(frozen=True, slots=True)
class Message:
    """A header; its subclasses are the kinds."""

    has_payload: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Open(Message):
    """An attempt at a simulation begins; the payload is its parameters in float64."""

    has_payload: ClassVar[bool] = True
    study: str
    spec: str
    simulation: int
    attempt: int
    length: int


@dataclass(frozen=True, slots=True)
class Steps(Message):
    """The steps ``first, ..., first + count - 1`` of the simulation, in float32."""

    has_payload: ClassVar[bool] = True
    simulation: int
    attempt: int
    first: int
    count: int
    length: int


@dataclass(frozen=True, slots=True)
class Ask(Message):
    """`need` bytes are ready, `sent` bytes went out before: please grant credit.

    With none ready it says that the attempt lives, and computes again what the inlet
    has.
    """

    need: int
    sent: int


@dataclass(frozen=True, slots=True)
class End(Message):
    """All `steps` steps of the simulation were sent."""

    simulation: int
    steps: int


@dataclass(frozen=True, slots=True)
class Abort(Message):
    """This attempt has failed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """Go on at step `next_step`, in messages of `coalesce` bytes or one step."""

    next_step: int
    complete: bool
    coalesce: int
    credit: int


@dataclass(frozen=True, slots=True)
class Refused(Message):
    """The inlet will not have this outlet."""

    reason: str


@dataclass(frozen=True, slots=True)
class Credit(Message):
    """`granted` bytes may be sent in all, counted from the opening.

    A total, not an increment: said twice it grants once, and a lost one is made up by
    the next.
    """

    granted: int


@dataclass(frozen=True, slots=True)
class Wait(Message):
    """The inlet lives, and why the outlet waits."""

    reason: str


@dataclass(frozen=True, slots=True)
class Done(Message):
    """Every step of the simulation is in the sink."""

    steps: int


@dataclass(frozen=True, slots=True)
class Stop(Message):
    """The inlet wants no more steps of this outlet."""

    reason: str


_KINDS: dict[str, type[Message]] = {
    kind.__name__.lower(): kind
    for kind in (
        *(Open, Steps, Ask, End, Abort),
        *(Welcome, Refused, Credit, Wait, Done, Stop),
    )
}
_TYPES: dict[str, type] = {"str": str, "int": int, "bool": bool}
_FIELDS: dict[type[Message], dict[str, type]] = {
    kind: {f.name: _TYPES[str(f.type)] for f in dataclasses.fields(kind)}
    for kind in _KINDS.values()
}


def encode(message: Message) -> bytes:
    """Return the header of `message`; a reason is cut to what a header can hold."""
    plain: dict[str, Any] = {"kind": type(message).__name__.lower()}
    for name in _FIELDS[type(message)]:
        value = getattr(message, name)
        plain[name] = value[:REASON_CHARACTERS] if name == "reason" else value
    header: bytes = msgpack.packb(plain)
    return header


def decode(frames: Sequence[bytes | memoryview]) -> tuple[Message, memoryview]:
    """Return the message and its payload, which is empty for most kinds.

    Raises
    ------
    MalformedMessage
        If the header is too long, is not msgpack, is of no known kind, misses or adds a
        key, has a value of another type, or a length that is not the payload's.
    """
    if not frames:
        raise MalformedMessage("frames", "expected a header, got no frame")
    header = memoryview(frames[0])
    if header.nbytes > HEADER_BYTES:
        raise MalformedMessage(
            "header",
            f"expected a header of at most {HEADER_BYTES} bytes, got {header.nbytes}",
        )
    kind, plain = _unpack(header)
    message = _build(kind, plain)
    if len(frames) != 1 + kind.has_payload:
        raise MalformedMessage(
            "frames",
            f"expected {1 + kind.has_payload} frames for {kind.__name__!r}, "
            f"got {len(frames)}",
        )
    if not kind.has_payload:
        return message, memoryview(b"")
    payload = memoryview(frames[1])
    if plain["length"] != payload.nbytes:
        raise MalformedMessage(
            "length",
            f"{kind.__name__!r} announces {plain['length']} bytes, "
            f"got a payload of {payload.nbytes}",
        )
    return message, payload


def _unpack(header: memoryview) -> tuple[type[Message], dict[str, Any]]:
    try:
        plain = msgpack.unpackb(
            header,
            # No message has a list, for which memory would be taken as announced.
            max_array_len=0,
            max_map_len=KEYS,
        )
    except Exception as error:
        # msgpack raises half a dozen types that share no base of its own. Never print
        # one: some hold what was read, and the text of maps within maps takes as many
        # frames.
        raise MalformedMessage(
            "header", f"header is not plain msgpack ({type(error).__name__})"
        ) from error
    if type(plain) is not dict:
        raise MalformedMessage("header", f"expected a map, got {type(plain).__name__}")
    name = plain.pop("kind", None)
    if type(name) is not str:
        raise MalformedMessage(
            "kind", f"expected a kind of type str, got {type(name).__name__}"
        )
    kind = _KINDS.get(name)
    if kind is None:
        raise MalformedMessage("kind", f"unknown kind {name[:40]!r}")
    return kind, plain


def _build(kind: type[Message], plain: dict[str, Any]) -> Message:
    fields = _FIELDS[kind]
    if plain.keys() != fields.keys():
        raise MalformedMessage(
            "keys",
            f"expected the keys {sorted(fields)} for {kind.__name__!r}, "
            f"got {sorted(str(key)[:40] for key in plain)}",
        )
    for name, value in plain.items():
        if type(value) is not fields[name]:
            raise MalformedMessage(
                "type",
                f"{kind.__name__}.{name}: expected {fields[name].__name__}, "
                f"got {type(value).__name__}",
            )
        if type(value) is int and not 0 <= value <= LARGEST_INTEGER:
            raise MalformedMessage(
                "range",
                f"{kind.__name__}.{name}: expected 0 or more, below 2**63, got {value}",
            )
    return kind(**plain)
