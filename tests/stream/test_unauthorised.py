"""An inlet on the network, and peers without its keys: nothing of theirs is decoded."""

import contextlib
import gc
import logging
import random
import select
import socket
import struct
import threading
import time

import psutil
import zmq
from peers import Ledger, RawOutlet
from test_inlet import SPEC, settle, wrong_keys

from surrogate_flow.stream import Inlet, Outlet, Timing, protocol
from surrogate_flow.stream.endpoint import Endpoint
from surrogate_flow.testing.store import parameters, trajectory

HOST = "127.0.0.1"
SIGNATURE = b"\xff" + bytes(8) + b"\x7f"


def greeting(mechanism, version=3):
    """The 64 bytes with which a ZMTP peer begins."""
    return SIGNATURE + bytes([version, 1]) + mechanism.ljust(20, b"\0") + bytes(32)


def command(name, body):
    content = bytes([len(name)]) + name + body
    return b"\x06" + struct.pack(">Q", len(content)) + content


def first_bytes(chance):
    """What a peer sends first, at random: nothing, garbage, or half of a handshake."""
    curve = greeting(b"CURVE")
    return chance.choice(
        [
            b"",
            chance.randbytes(chance.choice([1, 9, 64, 4096, 100_000])),
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            SIGNATURE[: chance.randint(1, 10)],
            curve[: chance.randint(11, 63)],
            # ZMTP 1.0 and 2.0 know no keys.
            b"\x05\x00" + bytes(200),
            SIGNATURE + b"\x01\x00\x00" + b"\x00\x05hello",
            greeting(b"NULL") + command(b"READY", b"\x0bSocket-Type\0\0\0\6DEALER"),
            greeting(b"PLAIN") + command(b"HELLO", b"\1a\1b"),
            curve + command(b"HELLO", chance.randbytes(194)),
            curve + command(b"HELLO", b"\1\0" + bytes(72) + chance.randbytes(120)),
            curve + command(b"INITIATE", chance.randbytes(300)),
            # A frame of 2**63 - 1 bytes, and one of a message before the handshake.
            curve + b"\x02" + b"\x7f" + b"\xff" * 7 + chance.randbytes(1000),
            curve + b"\x00\x05hello",
        ]
    )


class Connections:
    """Bare TCP connections that send garbage; two of them without end."""

    def __init__(self, port, count, seed):
        self.chance = random.Random(seed)
        self.sockets, self.endless = [], []
        self.sent = 0
        for _ in range(count):
            peer = socket.create_connection((HOST, port), timeout=20)
            with contextlib.suppress(ConnectionError):
                peer.sendall(first_bytes(self.chance))
            peer.setblocking(False)
            self.sockets.append(peer)
        for first in (b"", greeting(b"CURVE")):
            endless = socket.create_connection((HOST, port), timeout=20)
            endless.sendall(first)
            endless.setblocking(False)
            self.sockets.append(endless)
            self.endless.append(endless)

    def go_on(self):
        """Send zeros on the two endless connections, as long as they are open."""
        for endless in list(self.endless):
            try:
                self.sent += endless.send(bytes(1 << 16))
            except BlockingIOError:
                continue
            except ConnectionError:
                self.endless.remove(endless)

    def left(self):
        """Connections that the inlet has not closed."""
        left = []
        for peer in self.sockets:
            try:
                while data := peer.recv(4096):
                    assert data
            except BlockingIOError:
                left.append(peer)
            except ConnectionError:
                continue
        return left

    def close(self):
        for peer in self.sockets:
            peer.close()


def study(inlet, numbers):
    for number in numbers:
        vector = parameters(SPEC, number)
        with Outlet(inlet.endpoint, SPEC, number, 0, vector) as outlet:
            for step in range(SPEC.steps):
                outlet.send(trajectory(SPEC, number, step, 1))


def resources():
    """Files, bytes, and threads: those that Python has not started, and the inlet's."""
    gc.collect()
    process = psutil.Process()
    # Other tests of this process have left event loops, whose threads come and go.
    pythons = {t.native_id: t.name for t in threading.enumerate()}
    ids = {thread.id for thread in process.threads()}
    ours = sorted(i for i in ids if pythons.get(i, "inlet") == "inlet")
    return process.num_fds(), process.memory_info().rss, ours


def resources_later(before):
    """The same; ZeroMQ and the event loops of other tests close their files a moment after."""
    deadline = time.monotonic() + 10
    while (after := resources())[0] > before[0] and time.monotonic() < deadline:
        time.sleep(0.05)
    return after


def check_flat(before, after):
    assert after[0] <= before[0]
    assert after[1] - before[1] < 8 << 20
    assert len(after[2]) <= len(before[2]), set(after[2]) - set(before[2])


def test_garbage_on_the_port_changes_nothing(caplog):
    """Hundreds of connections without a handshake: no line of ours runs, nothing grows."""
    ledger = Ledger(SPEC)
    with Inlet(SPEC, ledger, host=HOST, timing=Timing(handshake=1.0)) as inlet:
        port = int(inlet.endpoint.address.rpartition(":")[2])
        study(inlet, [0])
        for attempt in range(4):
            connections = Connections(port, 200, attempt)
            connections.go_on()
            study(inlet, [1 + 3 * attempt])
            connections.go_on()
            study(inlet, [2 + 3 * attempt])
            # All that has no keys is closed when a handshake has taken too long.
            deadline = time.monotonic() + 30
            while connections.left():
                assert time.monotonic() < deadline, len(connections.left())
                connections.go_on()
                select.select(connections.left(), [], [], 0.1)
            connections.close()
            assert connections.sent > 1 << 16
            study(inlet, [3 + 3 * attempt])
            if attempt == 0:
                before = resources()
        after = resources_later(before)
        counters = inlet.stats()
    ledger.end()
    assert not ledger.wrong
    assert counters.finished == 13
    assert counters.refusals == counters.connections == 0
    check_flat(before, after)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def connect_with_wrong_keys(endpoint, count):
    """Send valid messages as ZeroMQ peers whose keys are not the study's."""
    failed = (
        zmq.EVENT_HANDSHAKE_FAILED_AUTH
        | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        | zmq.EVENT_DISCONNECTED
    )
    with contextlib.ExitStack() as open_ones:
        for number in range(count):
            keys = wrong_keys(endpoint)[number % 3]
            other = Endpoint("tcp://127.0.0.1:1", endpoint.study, endpoint.spec, keys)
            raw = open_ones.enter_context(RawOutlet(other))
            monitor = raw.socket.get_monitor_socket(failed)
            open_ones.callback(monitor.close)
            open_ones.callback(raw.socket.disable_monitor)
            raw.socket.connect(endpoint.address)
            raw.socket.send_multipart(
                [protocol.encode(protocol.Open(endpoint.study, endpoint.spec, 1, 0, 8))]
                + [parameters(SPEC, 1).tobytes()]
            )
            assert monitor.poll(20_000), keys


def test_peers_with_other_keys_are_not_decoded(caplog):
    """A hundred with no keys, their own, or for another inlet: not even refused, and no growth."""
    ledger = Ledger(SPEC)
    with Inlet(SPEC, ledger, host=HOST) as inlet:
        study(inlet, [0])
        connect_with_wrong_keys(inlet.endpoint, 30)
        before = resources()
        connect_with_wrong_keys(inlet.endpoint, 90)
        study(inlet, [1])
        after = resources_later(before)
        counters = inlet.stats()
        # What an inlet counts of somebody with the keys, to be sure that it would.
        with RawOutlet(inlet.endpoint) as raw:
            raw.send(protocol.Ask(1, 1))
            raw.receive_until(protocol.Refused)
        settle(inlet, lambda now: now.refusals == 1)
    ledger.end()
    assert not ledger.wrong
    assert (counters.refusals, counters.connections, counters.finished) == (0, 0, 2)
    check_flat(before, after)
    assert not [r for r in caplog.records if "zmq" in r.name and r.levelno > 10]


def test_without_the_authenticator_nobody_connects():
    """If the thread that checks keys has ended, ZeroMQ does not accept everybody."""
    ledger = Ledger(SPEC)
    with Inlet(SPEC, ledger, host=HOST) as inlet:
        study(inlet, [0])
        (authenticator,) = [
            t for t in threading.enumerate() if "Auth" in type(t).__name__
        ]
        authenticator.authenticator.stop()
        for keys in (*wrong_keys(inlet.endpoint), inlet.endpoint.keys):
            endpoint = Endpoint(*vars(inlet.endpoint).values())
            object.__setattr__(endpoint, "keys", keys)
            with RawOutlet(endpoint) as raw:
                raw.send(protocol.Ask(1, 1))
                assert not raw.socket.poll(300)
        assert inlet.stats().refusals == 0
    ledger.end()
