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
receiving. An extra row of each case has a peer that does not even copy into the slab.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from rich.console import Console
from rich.table import Table

from surrogate_flow.fields import FieldSpec, Variable
from surrogate_flow.stream import Endpoint, Inlet, Outlet

PRODUCERS = 2
SLAB_BYTES = 64 << 20


@dataclass(frozen=True)
class Case:
    """Steps of `cells` numbers, `block` of them a call, `calls` calls a producer."""

    name: str
    cells: int
    block: int
    calls: int
    #: The peer sends a message for each step and needs fewer of them to be timed.
    peer_steps: int

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
    Case("40 KB, one step a call", 10_000, 1, 12_000, 6_000),
    Case("400 B, one step a call", 100, 1, 600_000, 60_000),
    Case("400 B, 100 steps a call", 100, 100, 20_000, 60_000),
)


class Slab:
    """A ring of steps in memory, and a sink that is never full."""

    def __init__(self, case: Case, total: int) -> None:
        self.rows = np.zeros(
            (max(4, SLAB_BYTES // case.step_bytes), 1, case.cells), "f"
        )
        self.full = threading.Event()
        self.end = 0.0
        self._left = total
        self._next = 0

    def offer(
        self, simulation: int, first: int, steps: np.ndarray, parameters: np.ndarray
    ) -> int:
        """Copy the steps into the ring."""
        count = len(steps)
        start = self._next
        stop = start + count
        if stop <= len(self.rows):
            self.rows[start:stop] = steps
        else:
            head = len(self.rows) - start
            self.rows[start:] = steps[:head]
            stop = count - head
            self.rows[:stop] = steps[head:]
        self._next = stop
        self._left -= count
        if self._left == 0:
            self.end = time.perf_counter()
            self.full.set()
        return count

    def expected(self, simulation: int) -> int:
        """Begin at the first step."""
        return 0

    def on_room(self, callback: Callable[[], None]) -> None:
        """Do nothing: there is always room."""

    def forget(self, simulation: int) -> None:
        """Do nothing: nothing is kept of a simulation."""


def produce(pipe: Connection) -> None:
    """Send what is asked for until told to end; runs in a process of its own."""
    while (task := pipe.recv()) is not None:
        kind, case, number, where = task
        fields = [np.ones((case.block, 1, case.cells), "f") for _ in range(4)]
        if kind == "ours":
            produce_ours(pipe, case, number, where, fields)
        else:
            produce_peer(pipe, case, where, fields)
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
    pipe: Connection, case: Case, address: str, fields: list[np.ndarray]
) -> None:
    """Send all steps of one producer as a message each."""
    steps = [block[0] for block in fields]
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.sndhwm = high_water_mark(case)
        socket.connect(address)
        pipe.send("ready")
        pipe.recv()
        send = socket.send
        for step in range(case.peer_steps):
            send(steps[step & 3], copy=False)


def high_water_mark(case: Case) -> int:
    """Let the peer hold as many bytes as an inlet grants, at most 10,000 messages."""
    return min(10_000, max(16, SLAB_BYTES // case.step_bytes))


def rate_of_ours(case: Case, pipes: list[Connection]) -> float:
    """Return bytes a second."""
    total = PRODUCERS * case.calls * case.block
    slab = Slab(case, total)
    with Inlet(case.spec, lambda _: slab) as inlet:
        start = go(pipes, "ours", case, inlet.endpoint)
        while not slab.full.wait(1.0):
            inlet.check()
        finish(pipes)
    return total * case.step_bytes / (slab.end - start)


def rate_of_peer(case: Case, pipes: list[Connection], *, keep: bool = True) -> float:
    """Return bytes a second; unless `keep`, steps are received and dropped."""
    total = PRODUCERS * case.peer_steps
    rows = Slab(case, total).rows
    with (
        tempfile.TemporaryDirectory() as folder,
        zmq.Context() as context,
        context.socket(zmq.PULL) as socket,
    ):
        address = f"ipc://{os.path.join(folder, 'peer')}"
        socket.rcvhwm = high_water_mark(case)
        socket.bind(address)
        start = go(pipes, "peer", case, address)
        receive, size = socket.recv, len(rows)
        for step in range(total):
            frame = receive(copy=False)
            if keep:
                rows[step % size] = np.frombuffer(frame.buffer, np.float32)
        end = time.perf_counter()
        finish(pipes)
    return total * case.step_bytes / (end - start)


def go(pipes: list[Connection], kind: str, case: Case, where: Any) -> float:
    """Start all producers at once and return when."""
    for number, pipe in enumerate(pipes):
        pipe.send((kind, case, number, where))
    for pipe in pipes:
        assert pipe.recv() == "ready"
    start = time.perf_counter()
    for pipe in pipes:
        pipe.send("go")
    return start


def finish(pipes: list[Connection]) -> None:
    """Wait until every producer has closed what it opened."""
    for pipe in pipes:
        assert pipe.recv() == "sent"


def measure(case: Case, pipes: list[Connection], rounds: int) -> list[dict[str, Any]]:
    """Return the rows of one case."""
    ours, peer, dropping = [], [], []
    for _ in range(rounds):
        ours.append(rate_of_ours(case, pipes))
        peer.append(rate_of_peer(case, pipes))
        dropping.append(rate_of_peer(case, pipes, keep=False))
    value = statistics.median(ours) / 1e9
    rows = []
    for name, rates in (("PUSH/PULL", peer), ("PUSH/PULL, dropped", dropping)):
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
    return Case(
        case.name, case.cells, case.block, case.calls // 10, case.peer_steps // 10
    )


def main() -> None:
    """Run all cases, print a table and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--quick", action="store_true", help="a few seconds, for CI")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()

    spawn = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(PRODUCERS):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=produce, args=(theirs,), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if options.quick:
            case = quicker(case)
        rows += measure(case, pipes, 3 if options.quick else options.rounds)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()

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
