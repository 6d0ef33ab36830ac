"""Rate and memory of the trainer while 1, 10, 100 or 1,000 simulations stream at once.

All cases move the same 10 GB in steps of 40 KB, over ipc and over tcp on the loopback
interface (encrypted, as between machines). Clients are real outlets, each with a thread
of its own, spread over at most four processes. They send into one inlet, whose sink is
a FIFO reservoir of 80 MB; one thread draws batches of 32 from it and drops them.

Measured is the time from the moment when all clients are connected and told to go until
the last step has been drawn. Cases are run in turn, several rounds of them; rates are
medians over rounds. Memory, threads and open files are those of the trainer's process,
which holds inlet and reservoir: the peak of all rounds, and what is left after the last
one. The peer of each row is the case with 10 clients.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from vitals import Vitals, peak, reset_peak

from surrogate_flow.fields.spec import FieldSpec, Variable
from surrogate_flow.fields.window import Direct
from surrogate_flow.reservoir import FIFO, Store
from surrogate_flow.stream import Endpoint, Inlet, Outlet
from surrogate_flow.stream.endpoint import allow_many_files

PROCESSES = 4
CELLS = 10_000
BATCH = 32
CAPACITY = 2_000
COUNTS = (1, 10, 100, 1_000)
PEER = 10
HOSTS = {"ipc": None, "tcp": "127.0.0.1"}
PATIENCE = 60.0


@dataclass
class Case:
    """So many clients, and what was measured of them."""

    clients: int
    transport: str
    rates: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    during: Vitals = field(default_factory=Vitals.of)
    after: Vitals = field(default_factory=Vitals.of)

    @property
    def name(self) -> str:
        """For the tables."""
        plural = "s" if self.clients > 1 else ""
        return f"{self.clients} client{plural}, {self.transport}"


def spec_of(steps: int) -> FieldSpec:
    """Return the fields of one client."""
    times = tuple(float(t) for t in range(steps))
    return FieldSpec((), (Variable("u"),), ("x",), (CELLS,), times)


def produce(pipe: Connection) -> None:
    """Be some clients at once, as often as asked to; runs in a process of its own."""
    allow_many_files()
    while (task := pipe.recv()) is not None:
        numbers, steps, endpoint = task
        ready = threading.Barrier(len(numbers) + 1)
        go = threading.Event()
        errors: list[BaseException] = []
        threads = [
            threading.Thread(
                target=be_client, args=(number, steps, endpoint, ready, go, errors)
            )
            for number in numbers
        ]
        for thread in threads:
            thread.start()
        try:
            ready.wait(PATIENCE)
        except threading.BrokenBarrierError:
            pipe.send(repr(errors[:1] or "clients did not connect in time"))
        else:
            pipe.send("ready")
        pipe.recv()
        go.set()
        for thread in threads:
            thread.join()
        pipe.send(repr(errors[0]) if errors else "sent")


def be_client(
    number: int,
    steps: int,
    endpoint: Endpoint,
    ready: threading.Barrier,
    go: threading.Event,
    errors: list[BaseException],
) -> None:
    """Send all steps of one client, one a call."""
    step = np.full((1, 1, CELLS), number, np.float32)
    try:
        with Outlet(endpoint, spec_of(steps), number, 0, np.empty(0)) as outlet:
            ready.wait(PATIENCE)
            go.wait()
            for _ in range(steps):
                outlet.send(step)
    except BaseException as error:
        errors.append(error)
        ready.abort()


def expect(pipe: Connection, word: str) -> None:
    """Wait for a word of a process."""
    if not pipe.poll(PATIENCE):
        raise TimeoutError(f"a process with clients did not say {word!r}")
    got = pipe.recv()
    if got != word:
        raise RuntimeError(f"expected {word!r} of a process with clients, got {got}")


def measure(case: Case, pipes: list[Connection], total: int) -> None:
    """Run the case once."""
    steps = total // case.clients
    total = steps * case.clients
    spec = spec_of(steps)
    reset_peak()
    store = Store(spec, Direct(), BATCH, FIFO(capacity=CAPACITY))
    used = pipes[: min(len(pipes), case.clients)]
    with Inlet(spec, store, host=HOSTS[case.transport]) as inlet:
        for k, pipe in enumerate(used):
            pipe.send((range(k, case.clients, len(used)), steps, inlet.endpoint))
        for pipe in used:
            expect(pipe, "ready")
        case.during = Vitals.of()
        start = time.perf_counter()
        for pipe in used:
            pipe.send("go")
        draw(inlet, store, total)
        case.rates.append(total * spec.step_bytes / (time.perf_counter() - start) / 1e9)
        for pipe in used:
            expect(pipe, "sent")
    case.peaks.append(peak())
    case.after = Vitals.of()


def draw(inlet: Inlet, store: Store, total: int) -> None:
    """Draw and drop so many samples."""
    drawn = 0
    while drawn < total:
        inlet.check()
        batch = store.draw(timeout=PATIENCE)
        assert batch is not None, "nobody has stopped the store"
        drawn += len(batch.step)


def rows_of(cases: list[Case]) -> list[dict[str, Any]]:
    """Return the rows of rate and memory."""
    rows = []
    for case in cases:
        other = next(
            c for c in cases if (c.clients, c.transport) == (PEER, case.transport)
        )
        for what, unit, value, peer_value in (
            (
                "rate",
                "GB/s",
                statistics.median(case.rates),
                statistics.median(other.rates),
            ),
            ("peak memory of trainer", "MB", max(case.peaks), max(other.peaks)),
        ):
            rows.append(
                {
                    "case": f"{what}, {case.name}",
                    "value": value,
                    "unit": unit,
                    "peer": f"{PEER} clients",
                    "peer_value": peer_value,
                    "ratio": value / peer_value,
                }
            )
    return rows


def main() -> None:
    """Run all cases, print tables, and write the rows where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--quick", action="store_true", help="a few seconds, for CI")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rounds, total = (1, 4_000) if options.quick else (options.rounds, 256_000)
    console = Console(width=100)
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(PROCESSES):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=produce, args=(theirs,), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    cases = [Case(n, transport) for transport in HOSTS for n in COUNTS]
    for _ in range(rounds):
        for case in cases:
            measure(case, pipes, total)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()

    table = Table(title=f"trainer, {rounds} rounds")
    for name in ("case", "GB/s", "of 10", "peak MB", "MB after"):
        table.add_column(name)
    for name in ("threads", "after", "files", "after"):
        table.add_column(name)
    rows = rows_of(cases)
    for case, row in zip(cases, rows[::2], strict=True):
        table.add_row(
            case.name,
            f"{row['value']:.2f}",
            f"{row['ratio']:.2f}",
            f"{max(case.peaks):.0f}",
            f"{case.after.rss:.0f}",
            *(str(n) for n in (case.during.threads, case.after.threads)),
            *(str(n) for n in (case.during.files, case.after.files)),
        )
    console.print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
