"""What a program in C costs whose steps a worker streams to the reservoir.

*Rate*: one program sends steps by `sf_step`; its worker, a process of its own,
runs it as an attempt of a study does, and the steps go through a FIFO reservoir here,
from which batches are drawn and dropped. Measured is the time from the first step that
enters until the last one. *Peer*: the same program writes the same bytes to a pipe that
``cat`` reads, into /dev/null; from its start to its end. In turn; medians over rounds.
The peer is the faster of two: with both of its processes on one core, and as the system
places them, which may be five times slower (4 MB: 1,000 and 210 steps/s). It copies
4 MB twice. Here they are copied once, and half of them, in single precision, five
times, by three processes: 0.6 of the peer on two cores without other work, 0.4 to 0.5
beside others' (`docs/decisions.md`, Stream).

*Start-up*: a program that sends one number, as a simulation, one after another; the
peer starts the same program and waits for its end.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from producers import Producers
from row import Row, report

from surrogate_flow.ensemble.attempt import run
from surrogate_flow.fields.quantities import Simulation
from surrogate_flow.fields.spec import FieldSpec, Variable
from surrogate_flow.fields.window import Direct
from surrogate_flow.reservoir import FIFO, Store
from surrogate_flow.solvers import Program, Run
from surrogate_flow.solvers.programs.channel import INCLUDE
from surrogate_flow.stream import Inlet

PATIENCE = 60.0
HELD = 64 << 20  # bytes of the reservoir
SOURCE = r"""
#include <unistd.h>
#include "surrogate_flow.h"
int main(int argc, char **argv)
{
    size_t cells = (size_t)atol(argv[1]), bytes = cells * sizeof(double);
    long steps = atol(argv[2]);
    double *u = (double *)malloc(bytes);
    sf_stream *stream = NULL;
    for (size_t i = 0; i < cells; i++) u[i] = (double)(i % 1000);
    if (argc < 4) stream = sf_open(1, &cells, NULL, 0, 1);
    for (long k = 1; k <= steps; k++) {
        size_t done = 0;
        u[0] = (double)k;
        if (stream) sf_step(stream, "u", (double)k, u);
        while (!stream && done < bytes)
            done += (size_t)write(1, (char *)u + done, bytes - done);
    }
    sf_close(stream);
    return 0;
}
"""


def spec_of(cells: int, steps: int) -> FieldSpec:
    """Return the fields of the program."""
    times = tuple(float(k) for k in range(1, steps + 1))
    return FieldSpec((), (Variable("u"),), ("x",), (cells,), times)


def solver_of(program: Path, cells: int, steps: int) -> Program:
    """Return the program as a solver."""
    return Program([str(program), str(cells), str(steps)], spec_of(cells, steps))


def work(pipe: Connection) -> None:
    """Be a worker until told to end; runs in a process of its own."""
    while (task := pipe.recv()) is not None:
        _, program, cells, steps, endpoint = task
        solver = solver_of(program, cells, steps)
        pipe.send("ready")
        pipe.recv()
        run(solver, endpoint, Simulation(0, "training", {}), 0)
        pipe.send("sent")


def rate(program: Path, cells: int, steps: int, workers: Producers) -> float:
    """Return steps a second, from the program into the reservoir."""
    spec = spec_of(cells, steps)
    capacity = max(8, min(steps, HELD // spec.step_bytes))
    store = Store(spec, Direct(), 4, FIFO(capacity=capacity))
    arrivals: list[float] = []

    def draw() -> None:
        drawn = 0
        while drawn < steps:
            batch = store.draw(timeout=PATIENCE)
            assert batch is not None, "nobody has stopped the store"
            arrivals.append(time.perf_counter())
            drawn += len(batch.step)

    with Inlet(spec, store) as inlet:
        drawing = threading.Thread(target=draw)
        workers.start(program, cells, steps, inlet.endpoint)
        drawing.start()
        while drawing.is_alive():
            drawing.join(0.2)
            inlet.check()
            workers.check()
        workers.finish()
    return (steps - 4) / (arrivals[-1] - arrivals[0])


def rate_of_pipe(program: Path, cells: int, steps: int) -> float:
    """Return steps a second, from the program into ``cat``, where that is faster."""
    command = f"'{program}' {cells} {steps} pipe | cat >/dev/null"
    cores, rates = os.sched_getaffinity(0), []
    for some in (cores, {min(cores)}):
        start = time.perf_counter()
        # What it starts runs on the same cores.
        os.sched_setaffinity(0, some)
        try:
            subprocess.run(["sh", "-c", command], check=True)
        finally:
            os.sched_setaffinity(0, cores)
        rates.append(steps / (time.perf_counter() - start))
    return max(rates)


def starts(program: Path, count: int) -> tuple[float, float]:
    """Return the seconds of a simulation of one number, and of the program alone."""
    solver, times = solver_of(program, 1, 1), np.zeros((count, 2))
    for row in times:
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            list(solver.start(Run({}, folder=Path(folder))))
        middle = time.perf_counter()
        subprocess.run([program, "1", "1", "pipe"], check=True, capture_output=True)
        row[:] = middle - begin, time.perf_counter() - middle
    own, alone = np.median(times, axis=0)
    return float(own), float(alone)


def main() -> None:
    """Run all cases, print a table and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--quick", action="store_true", help="a few seconds, for CI")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    rounds, part = (1, 20) if options.quick else (options.rounds, 1)

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "program")
        source = program.with_suffix(".c")
        source.write_text(SOURCE)
        words = ["cc", "-O2", f"-I{INCLUDE}", str(source), "-o", str(program)]
        subprocess.run(words, check=True)
        with Producers(work, 1) as workers:
            for name, cells, steps in (
                ("4 MB steps", 1 << 19, 400),
                ("32 KB steps", 1 << 12, 40_000),
                ("400 B steps", 50, 100_000),
            ):
                own, pipe = [], []
                for _ in range(rounds):
                    own.append(rate(program, cells, steps // part, workers))
                    pipe.append(rate_of_pipe(program, cells, steps // part))
                ends = statistics.median(own), statistics.median(pipe)
                rows.append(Row(name, ends[0], "steps/s", "pipe to cat", ends[1]))
        one, alone = starts(program, 100 // part)
        rows.append(Row("a simulation", one, "s", "the program alone", alone))
    report(rows, options.json)


if __name__ == "__main__":
    main()
