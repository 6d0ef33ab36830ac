"""Bytes a second through the fan-out to 1, 2, 4 and 8 trainers, against PUB/SUB.

*Ours*: a producer sends through an `Outlet` to the inlet of the hub, whose `Fanout` has
a `Relay` to the inlet of each trainer: credit, order, duplicates and acknowledgement
are on, and nothing is lost. *Peer*: the same producer sends on a PUSH socket, and the
hub publishes what it pulls on an XPUB socket that waits for slow subscribers
(``ZMQ_XPUB_NODROP``) to a SUB socket in each trainer; nothing is checked. Both copy
each step into a preallocated slab in every trainer. Counted are the bytes that arrive
in all trainers together, from the first step sent to the last received, over the same
transport, in turn; values are medians over rounds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from row import Row, report
from slab import Slab

from surrogate_flow.fields.spec import FieldSpec, Variable
from surrogate_flow.stream import Endpoint, Fanout, Inlet, Outlet, Relay

TRAINERS = (1, 2, 4, 8)
PATIENCE = 100.0
#: Bytes that may wait on either side, for each trainer: as an `Inlet` and a `Relay`.
BUDGET, BACKLOG = 64 << 20, 16 << 20


@dataclass(frozen=True)
class Case:
    """So many steps of so many numbers."""

    name: str
    cells: int
    steps: int

    @property
    def spec(self) -> FieldSpec:
        """Of a simulation that is all that is sent."""
        times = tuple(map(float, range(self.steps)))
        return FieldSpec((), (Variable("u"),), ("x",), (self.cells,), times)

    def messages(self, size: int) -> int:
        """How many steps so many bytes are; four or more."""
        return max(4, size // (4 * self.cells))


CASES = (Case("4 MB a step", 1_048_576, 100), Case("40 KB a step", 10_000, 10_000))


def train(pipe: Connection) -> None:
    """Receive what is sent until told to end; runs in a process of its own."""
    while (task := pipe.recv()) is not None:
        kind, case, address = task
        slab = Slab(case.cells, case.steps)
        if kind == "ours":
            with Inlet(case.spec, slab) as inlet:
                pipe.send(inlet.endpoint)
                assert slab.full.wait(PATIENCE), "steps are missing"
                pipe.send(slab.end)
                pipe.recv()
        else:
            context: zmq.Context[Any] = zmq.Context.instance()
            with context.socket(zmq.SUB) as socket:
                socket.rcvhwm = case.messages(BUDGET)
                socket.rcvtimeo = int(1000 * PATIENCE)
                socket.subscribe(b"")
                socket.connect(address)
                pipe.send("ready")
                for step in range(case.steps):
                    frame = socket.recv(copy=False)
                    values = np.frombuffer(frame.buffer, "f").reshape(1, 1, -1)
                    slab.offer(0, step, values, np.empty(0))
                pipe.send(slab.end)


def send(case: Case, endpoint: Endpoint | str) -> None:
    """Send all steps, as a solver would."""
    step = np.ones((1, 1, case.cells), "f")
    if isinstance(endpoint, Endpoint):
        with Outlet(endpoint, case.spec, 0, 0, np.empty(0)) as outlet:
            for _ in range(case.steps):
                outlet.send(step)
        return
    # Its end waits until all is sent.
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.sndhwm = case.messages(BACKLOG)
        socket.connect(endpoint)
        for _ in range(case.steps):
            socket.send(step.data, copy=False)


def rate(kind: str, case: Case, pipes: list[Connection], folder: Path) -> float:
    """Return bytes a second, in all trainers together."""
    run = ours if kind == "ours" else peer
    seconds = run(case, pipes, folder)
    return len(pipes) * case.steps * 4 * case.cells / seconds


def ours(case: Case, pipes: list[Connection], folder: Path) -> float:
    """Return the seconds that the fan-out takes."""
    for pipe in pipes:
        pipe.send(("ours", case, ""))
    with ExitStack() as stack:
        fanout = Fanout()
        for number, pipe in enumerate(pipes):
            relay = stack.enter_context(Relay(pipe.recv(), case.spec))
            fanout.add(f"{number}", relay)
        hub = stack.enter_context(Inlet(case.spec, fanout))
        return timed(case, hub.endpoint, pipes, acknowledge=True)


def peer(case: Case, pipes: list[Connection], folder: Path) -> float:
    """Return the seconds that PUB/SUB takes."""
    names = [f"ipc://{folder}/{what}-{time.time_ns()}" for what in ("in", "out")]
    context: zmq.Context[Any] = zmq.Context.instance()
    with context.socket(zmq.PULL) as pull, context.socket(zmq.XPUB) as publisher:
        pull.rcvhwm, publisher.sndhwm = case.messages(BUDGET), case.messages(BACKLOG)
        publisher.xpub_nodrop = publisher.xpub_verbose = True
        publisher.rcvtimeo = int(1000 * PATIENCE)
        pull.bind(names[0])
        publisher.bind(names[1])
        for pipe in pipes:
            pipe.send(("peer", case, names[1]))
        for pipe in pipes:
            pipe.recv()
            publisher.recv()  # Its subscription has arrived.

        def forward() -> None:
            for _ in range(case.steps):
                publisher.send(pull.recv(copy=False), copy=False)

        hub = threading.Thread(target=forward)
        hub.start()
        try:
            return timed(case, names[0], pipes)
        finally:
            hub.join()


def timed(
    case: Case, endpoint: Any, pipes: list[Connection], *, acknowledge: bool = False
) -> float:
    """Send all, and return the seconds until the last trainer has them."""
    producer = multiprocessing.get_context("spawn").Process(
        target=_produce, args=(case, endpoint, queue := _queue())
    )
    producer.start()
    start = queue.get(timeout=PATIENCE)
    ends = [pipe.recv() for pipe in pipes]
    producer.join()
    for pipe in pipes * acknowledge:
        pipe.send("over")
    return float(max(ends) - start)


def _queue() -> Any:
    return multiprocessing.get_context("spawn").Queue()


def _produce(case: Case, endpoint: Any, queue: Any) -> None:
    queue.put(time.monotonic())
    send(case, endpoint)


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two short cases")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in TRAINERS[: 2 if options.quick else None]:
            ends = [spawn.Pipe() for _ in range(count)]
            trainers = [spawn.Process(target=train, args=(end,)) for _, end in ends]
            for trainer in trainers:
                trainer.start()
            pipes = [end for end, _ in ends]
            for case in CASES:
                if options.quick:
                    case = replace(case, steps=8)
                rates: dict[str, list[float]] = {"ours": [], "peer": []}
                for _ in range(options.rounds):
                    for kind, values in rates.items():
                        values.append(rate(kind, case, pipes, Path(folder)) / 1e9)
                ours, theirs = map(statistics.median, rates.values())
                name = f"{case.name}, {count} trainers"
                rows.append(Row(name, ours, "GB/s", "PUB/SUB", theirs))
            for pipe, trainer in zip(pipes, trainers, strict=True):
                pipe.send(None)
                trainer.join()
    report(rows, options.json)


if __name__ == "__main__":
    main()
