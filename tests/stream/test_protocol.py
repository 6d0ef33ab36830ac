"""Encoding and decoding of messages."""

import pickle
import tracemalloc

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surrogate_flow.stream import protocol as msg
from surrogate_flow.stream.errors import ProtocolError

MESSAGES = [
    msg.Open("study", "digest", 3, 1, 8),
    msg.Steps(3, 1, 40, 2, 8),
    msg.Ask(100, 5000),
    msg.End(3, 100),
    msg.End(3, 40, "steady state"),
    msg.Abort("ValueError('no')"),
    msg.Welcome(40, False, 1 << 20, 1 << 22),
    msg.Refused("another study"),
    msg.Credit(1 << 40),
    msg.Wait("the store is full"),
    msg.Done(100),
    msg.Stop("the study has ended"),
]


def frames(message):
    return [msg.encode(message), *([bytes(8)] if message.has_payload else [])]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_headers_are_maps_of_plain_values(message):
    """Outlets and inlets of other versions read the same: a kind, and the fields in order."""
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    if fields.get("early") == "":
        del fields["early"]  # as in version 0.1
    plain = {"kind": type(message).__name__.lower(), **fields}
    assert msg.encode(message) == msgpack.packb(plain)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_messages_come_back_as_they_were(message):
    """Decoding undoes encoding."""
    decoded, payload = msg.decode(frames(message))
    assert decoded == message
    assert bytes(payload) == bytes(8 * message.has_payload)


def test_a_long_reason_is_cut():
    """A header stays within its limit, whatever it tells."""
    header = msg.encode(msg.Stop("\N{SNOWMAN}" * 100_000))
    assert len(header) < msg.HEADER_BYTES
    assert msg.decode([header])[0].reason == "\N{SNOWMAN}" * msg.REASON_CHARACTERS


STEPS = {
    "kind": "steps",
    "simulation": 3,
    "attempt": 1,
    "first": 40,
    "count": 2,
    "length": 8,
}


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ([], "no frame"),
        ([b""], "truncated"),
        ([b"\xc1"], "malformed"),
        ([b"\x93" * 3000], "got `array`"),
        ([pickle.dumps(STEPS)], "missing required field `kind`"),
        ([b"a" * 5000], "at most 4096 bytes, got 5000"),
        ([msgpack.packb([])], "Expected `object`, got `array`"),
        ([msgpack.packb([1, 2])], "Expected `object`, got `array`"),
        ([msgpack.packb({str(n): n for n in range(40)})], "bad header"),
        ([msgpack.packb({1: 2})], "Expected `str`, got `int`"),
        ([msgpack.packb({})], "missing required field `kind`"),
        ([msgpack.packb({"kind": "exec"})], "Invalid value 'exec'"),
        ([msgpack.packb({"kind": ["steps"]})], "Expected `str`, got `array`"),
        ([msgpack.packb({"kind": {"kind": "steps"}})], "Expected `str`, got `object`"),
        ([msgpack.packb({"kind": "stop"})], "missing required field `reason`"),
        (
            [msgpack.packb({"kind": "stop", "reason": b"x"})],
            "Expected `str`, got `bytes`",
        ),
        ([msgpack.packb({**STEPS, "more": 1}), bytes(8)], "unknown field `more`"),
        (
            [msgpack.packb({**STEPS, "dtype": "float64"}), bytes(8)],
            "unknown field `dtype`",
        ),
        ([msgpack.packb({**STEPS, "first": True}), bytes(8)], "`int`, got `bool`"),
        ([msgpack.packb({**STEPS, "first": 1.0}), bytes(8)], "`int`, got `float`"),
        ([msgpack.packb({**STEPS, "first": -1}), bytes(8)], ">= 0"),
        (
            [msgpack.packb({**STEPS, "first": 2**63}), bytes(8)],
            "<= 9223372036854775807",
        ),
        (
            [msgpack.packb({**STEPS, "first": msgpack.ExtType(5, b"x")})],
            "`int`, got `ext`",
        ),
        ([msgpack.packb({**STEPS, "first": msgpack.Timestamp(1)})], "`int`, got `ext`"),
        ([msgpack.packb(STEPS)], "expected 2 frames"),
        ([msgpack.packb(STEPS), bytes(7)], "announces 8 bytes, got a payload of 7"),
        ([msgpack.packb(STEPS), bytes(8), b""], "expected 2 frames"),
        ([msgpack.packb(STEPS) + b"\0", bytes(8)], "trailing characters"),
        ([msg.encode(msg.Ask(1, 2)), b"x"], "expected 1 frames"),
        ([msgpack.packb({"kind": "stop", "reason": "x" * 1001})], "length <= 1000"),
        ([b"\x82\xa4kind\xa4stop\xa6reason\xa1\xff"], "utf-8"),
    ],
)
def test_malformed_messages_are_refused_with_the_reason(sent, reason):
    """Nothing but a well-formed message is decoded."""
    with pytest.raises(ProtocolError, match=reason):
        msg.decode(sent)


@pytest.mark.parametrize("more", [b"", b"\x00", b"\xc1"], ids=["", "more", "bad"])
@pytest.mark.parametrize("level", [b"\x91", b"\x81\xa0", b"\x81\xa4kind"], ids=repr)
def test_no_depth_is_too_deep(level, more):
    """Lists or maps within each other, up to what a header holds, with bytes behind or not."""
    for depth in range(0, 4096 // len(level), 7):
        with pytest.raises(ProtocolError) as refused:
            msg.decode([level * depth + b"\x00" + more])
        assert len(str(refused.value)) < 500


def test_a_small_header_takes_little_memory():
    """Lists within lists, each said to hold thousands: nothing is allocated for them."""
    header = b"\xdc\x0b\xb0" * 1000
    tracemalloc.start()
    with pytest.raises(ProtocolError):
        msg.decode([header])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=3))
def test_any_bytes_are_decoded_or_refused(sent):
    """There is no third way, such as a crash."""
    try:
        message, _ = msg.decode(sent)
    except ProtocolError:
        return
    assert isinstance(message, msg.Message)


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text()
names = st.sampled_from([*STEPS, "reason", "need", "sent"])


@settings(deadline=None)
@given(st.dictionaries(names, scalars | st.sampled_from(["steps", "ask", "stop"])))
def test_any_map_is_decoded_or_refused(plain):
    """Keys and types are exact."""
    try:
        message, _ = msg.decode([msgpack.packb(plain), bytes(8)])
    except ProtocolError:
        return
    assert msgpack.unpackb(msg.encode(message)) == plain
