"""Rate from two producer processes into one receiver, against raw pyzmq.

Measured is the time from the moment both producers are connected and told to go until
the last of their steps lies in a preallocated slab of the receiving process. *Ours*:
each producer calls `Outlet.send`, whose messages an `Inlet` hands to a sink that copies
them into the slab; credit, order, duplicates and acknowledgement are on, as in a study.
*Peer*: each producer sends one message a step on a PUSH socket, the receiver reads a
PULL socket and copies each into the same slab; neither end copies (``copy=False``),
nothing is checked. Both go over the same transport, in turn, in the same run; values
are medians over rounds.

A producer sends what a solver yields: one step a call, or a block of 100 small steps.
It never computes, so the two cores that may be there are shared by sending and
receiving. An extra row of each case has a peer that does not even copy into the slab;
where steps are small, another has one that sends and receives with ``copy=True``, which
costs less there than what ``copy=False`` does to spare the copy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from producers import Producers
from rich.console import Console
from rich.table import Table
from slab import SLAB_BYTES, Slab

from surrogate_flow.fields.spec import FieldSpec, Variable
from surrogate_flow.stream import Endpoint, Inlet, Outlet
from surrogate_flow.stream.endpoint import generate_keys

PRODUCERS = 2
PATIENCE = 300.0
SMALL = 4096


@dataclass(frozen=True)
class Case:
    """Steps of `cells` numbers, `block` of them a call, `calls` calls a producer."""

    name: str
    cells: int
    block: int
    calls: int
    #: The peer sends a message for each step and needs fewer of them to be timed.
    peer_steps: int
    #: Where to listen, encrypted; by default a unix socket.
    host: str | None = None

    @property
    def step_bytes(self) -> int:
        """Bytes of one step."""
        return 4 * self.cells

    @property
    def spec(self) -> FieldSpec:
        """Of a simulation that is one producer's whole run."""
        times = tuple(float(t) for t in range(self.block * self.calls))
        return FieldSpec((), (Variable("u"),), ("x",), (self.cells,), times)


CASES = (
    Case("4 MB, one step a call", 1_048_576, 1, 150, 150),
    Case("4 MB, tcp with CURVE", 1_048_576, 1, 75, 75, "127.0.0.1"),
    Case("40 KB, one step a call", 10_000, 1, 12_000, 6_000),
    Case("400 B, one step a call", 100, 1, 600_000, 60_000),
    Case("400 B, 100 steps a call", 100, 100, 20_000, 60_000),
)


def produce(pipe: Connection) -> None:
    """Send what is asked for until told to end; runs in a process of its own."""
    while (task := pipe.recv()) is not None:
        number, kind, case, endpoint = task
        fields = [np.ones((case.block, 1, case.cells), "f") for _ in range(4)]
        if kind == "ours":
            produce_ours(pipe, case, number, endpoint, fields)
        else:
            produce_peer(pipe, case, endpoint, fields, copy=kind == "copying")
        pipe.send("sent")


def produce_ours(
    pipe: Connection,
    case: Case,
    number: int,
    endpoint: Endpoint,
    fields: list[np.ndarray],
) -> None:
    """Send all calls of one producer through an outlet."""
    with Outlet(endpoint, case.spec, number, 0, np.empty(0)) as outlet:
        pipe.send("ready")
        pipe.recv()
        send = outlet.send
        for call in range(case.calls):
            send(fields[call & 3])


def produce_peer(
    pipe: Connection,
    case: Case,
    endpoint: Endpoint,
    fields: list[np.ndarray],
    *,
    copy: bool,
) -> None:
    """Send all steps of one producer as a message each."""
    steps = [block[0] for block in fields]
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.sndhwm = high_water_mark(case)
        if endpoint.keys is not None:
            socket.curve_serverkey = endpoint.keys.server
            socket.curve_publickey = endpoint.keys.public
            socket.curve_secretkey = endpoint.keys.secret
        socket.connect(endpoint.address)
        pipe.send("ready")
        pipe.recv()
        send = socket.send
        for step in range(case.peer_steps):
            send(steps[step & 3], copy=copy)


def high_water_mark(case: Case) -> int:
    """Let the peer hold as many bytes as an inlet grants, at most 10,000 messages."""
    return min(10_000, max(16, SLAB_BYTES // case.step_bytes))


def rate_of_ours(case: Case, producers: Producers) -> float:
    """Return bytes a second."""
    total = PRODUCERS * case.calls * case.block
    slab = Slab(case.cells, total)
    with Inlet(case.spec, slab, host=case.host) as inlet:
        start = producers.start("ours", case, inlet.endpoint)
        while not slab.full.wait(1.0):
            inlet.check()
            look_after(producers, start)
        producers.finish()
    return total * case.step_bytes / (slab.end - start)


def rate_of_peer(
    case: Case, producers: Producers, *, keep: bool = True, copy: bool = False
) -> float:
    """Return bytes a second; unless `keep`, steps are received and dropped."""
    total = PRODUCERS * case.peer_steps
    rows = Slab(case.cells, total).rows
    with (
        tempfile.TemporaryDirectory() as folder,
        zmq.Context() as context,
        context.socket(zmq.PULL) as socket,
    ):
        socket.rcvhwm = high_water_mark(case)
        socket.rcvtimeo = 1000
        start = producers.start(
            "copying" if copy else "peer", case, listen(socket, case, folder)
        )
        receive: Callable[..., Any] = socket.recv
        size, step = len(rows), 0
        while step < total:
            try:
                frame = receive(copy=copy)
            except zmq.Again:
                look_after(producers, start)
                continue
            if keep:
                buffer = frame if copy else frame.buffer
                rows[step % size] = np.frombuffer(buffer, np.float32)
            step += 1
        end = time.perf_counter()
        producers.finish()
    return total * case.step_bytes / (end - start)


def listen(socket: zmq.Socket[bytes], case: Case, folder: str) -> Endpoint:
    """Bind the peer's socket as an inlet binds its own; return where to connect."""
    address, client = f"ipc://{os.path.join(folder, 'peer')}", None
    if case.host is not None:
        address = f"tcp://{case.host}:*"
        client, secret = generate_keys()
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = client.server, secret
    socket.bind(address)
    address = socket.getsockopt_string(zmq.LAST_ENDPOINT)
    return Endpoint(address, "", "", client)


def look_after(producers: Producers, start: float) -> None:
    """Raise if steps will never come."""
    producers.check()
    if time.perf_counter() - start > PATIENCE:
        raise TimeoutError(f"A case has not ended within {PATIENCE:g} s.")


def measure(case: Case, producers: Producers, rounds: int) -> list[dict[str, Any]]:
    """Return the rows of one case."""
    ways: dict[str, dict[str, bool]] = {
        "PUSH/PULL": {},
        "PUSH/PULL, dropped": {"keep": False},
    }
    if case.step_bytes < SMALL:
        ways["PUSH/PULL, copy=True"] = {"copy": True}
    ours: list[float] = []
    peers: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        ours.append(rate_of_ours(case, producers))
        for name, way in ways.items():
            peers[name].append(rate_of_peer(case, producers, **way))
    value = statistics.median(ours) / 1e9
    rows = []
    for name, rates in peers.items():
        peer_value = statistics.median(rates) / 1e9
        rows.append(
            {
                "case": case.name,
                "value": value,
                "unit": "GB/s",
                "peer": f"pyzmq {name}",
                "peer_value": round(peer_value, 4),
                "ratio": value / peer_value,
            }
        )
    return rows


def quicker(case: Case) -> Case:
    """Return the case with a tenth of its calls."""
    return replace(case, calls=case.calls // 10, peer_steps=case.peer_steps // 10)


def main() -> None:
    """Run all cases, print a table and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--quick", action="store_true", help="a few seconds, for CI")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()

    rows: list[dict[str, Any]] = []
    with Producers(produce, PRODUCERS) as producers:
        for case in CASES:
            if options.quick:
                case = quicker(case)
            rows += measure(case, producers, 3 if options.quick else options.rounds)

    table = Table("case", "ours", "peer", "its rate", "ratio", title="stream")
    for row in rows:
        table.add_row(
            row["case"],
            f"{row['value']:.3f} {row['unit']}",
            row["peer"],
            f"{row['peer_value']:.3f} {row['unit']}",
            f"{row['ratio']:.2f}",
        )
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
