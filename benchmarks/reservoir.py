"""Rates of the reservoir's put and draw, and its peak memory.

Ours: a `Reservoir` that is full, with one-step samples. *put* offers a block of new
steps, each of which takes the place of a seen one; *draw* copies out a random batch of
32. Blocks have 32 steps of 40 KB (about what an outlet coalesces) or 8 of 4 MB.

The peers move the same bytes, in turn with ours in the same run:

- *memcpy*: `numpy.copyto` from the same block into a preallocated array as large as the
  slab, of which it uses place after place, or out of it; no choice, no books.
- *TorchRL*: `ReplayBuffer(storage=LazyTensorStorage(capacity))`, filled before; *put*
  is `extend` with a `TensorDict` of what ours stores too: the same block, its
  simulation, steps and parameters; *draw* is `sample(32)` with its uniform sampler.
  Measured with torch's threads as they are, and with one, as ours: threads that find no
  free core make small copies slow. *TorchRL, bare* extends by the block alone, as one
  tensor, its fastest way in, of which no sample could be made.

All memory is touched before the first measurement. In each round every side does the
same number of calls; values are those of the median call of all rounds, so that a core
taken away for a moment hurts nobody. A draw is dropped before the next one, as in
training.

*With an input field*: the same steps of 64 x 64 cells, of simulations of 96 steps, with
an input field of as many bytes for each, against those without. The 6,000 samples, of
which evictions leave some of each simulation for a while, held 223 fields, 3.7 MB,
where a copy a sample would take 98 MB. A batch gathers one for each of its samples: on
two busy cores in 1.4 to 1.5 times the time without, 0.03 ms more for 32 samples; a put,
which writes a field with every third block, took 1.2 times as long.

*Peak memory* is that of a fresh process which fills a reservoir, draws from it and
takes its moments, less what the process took before the reservoir was built; the peer
is 1.2 x capacity, so a ratio below 1 is good.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float
from rich.console import Console
from row import Row, report

from surrogate_flow.fields.spec import FieldSpec, Parameter, Variable
from surrogate_flow.fields.window import Direct
from surrogate_flow.reservoir import Reservoir, Store

BATCH = 32
PARAMETERS = 5
MEMORY_LIMIT = 1.2
_REMEDY = "torchrl is missing, its rows are left out: pip install '.[bench]'"


@dataclass(frozen=True)
class Case:
    """Steps of `cells` numbers, put in blocks of `block`, into `capacity` slots."""

    name: str
    cells: int
    block: int
    capacity: int
    #: Calls of each side in a round.
    calls: int

    @property
    def step_bytes(self) -> int:
        """Bytes of one step."""
        return 4 * self.cells


CASES = (
    Case("40 KB", cells=10_000, block=32, capacity=6_000, calls=40),
    Case("4 MB", cells=1_048_576, block=8, capacity=128, calls=4),
)


def make_block(case: Case) -> Float[np.ndarray, "time 1 cell"]:
    """Return the steps that every side puts."""
    return np.ones((case.block, 1, case.cells), dtype=np.float32)


def make_reservoir(
    case: Case,
    block: Float[np.ndarray, "time 1 cell"],
    given: Float[np.ndarray, "1 cell"] | None = None,
) -> tuple[Store, Callable[[], None]]:
    """Return a full reservoir, and what puts the next block into it.

    Three blocks are of one simulation, which has the input field `given`.
    """
    times = tuple(float(t) for t in range(3 * case.block))
    named = tuple(Parameter(f"p{k}", 0.0, 1.0) for k in range(PARAMETERS))
    grid = (("x",), (case.cells,), times)
    inputs = () if given is None else (Variable("a"),)
    spec = FieldSpec(named, (Variable("u"),), *grid, inputs=inputs)
    policy = Reservoir(capacity=case.capacity, threshold=1)
    reservoir = Store(spec, Direct(), BATCH, policy)
    parameters = np.zeros(PARAMETERS)
    blocks = 0

    def put() -> None:
        nonlocal blocks
        simulation, part = divmod(blocks, 3)
        first = part * case.block
        taken = reservoir.offer(simulation, first, block, parameters, given)
        assert taken == case.block, reservoir.waiting()
        blocks += 1

    for _ in range(case.capacity // case.block):
        put()
    return reservoir, put


def see_all(reservoir: Store, samples: int) -> None:
    """Draw until there is room for so many samples."""
    while (now := reservoir.stats()).population - now.unseen < samples:
        reservoir.draw(timeout=None)


class Memcpy:
    """A slab and a block, and copies between them."""

    def __init__(self, case: Case, block: Float[np.ndarray, "time 1 cell"]) -> None:
        self.slab = np.ones((case.capacity, case.cells), dtype=np.float32)
        self.block = block[:, 0]
        self.batch = np.ones((BATCH, case.cells), dtype=np.float32)
        self._next = 0

    def put(self) -> None:
        """Copy a block into the slab."""
        np.copyto(self._rows(len(self.block)), self.block)

    def draw(self) -> None:
        """Copy a batch out of the slab."""
        np.copyto(self.batch, self._rows(len(self.batch)))

    def _rows(self, count: int) -> Float[np.ndarray, "row cell"]:
        if self._next + count > len(self.slab):
            self._next = 0
        self._next += count
        return self.slab[self._next - count : self._next]


class TorchRL:
    """A replay buffer with preallocated storage, of steps with or without labels."""

    def __init__(
        self,
        case: Case,
        block: Float[np.ndarray, "time 1 cell"],
        *,
        threads: int,
        labelled: bool,
    ) -> None:
        import torch
        from tensordict import TensorDict
        from torchrl.data import LazyTensorStorage, ReplayBuffer

        logging.getLogger("torchrl").setLevel(logging.WARNING)
        self._threads, self._set_threads = threads, torch.set_num_threads
        self._usual = torch.get_num_threads()
        self.block: object = torch.from_numpy(block)
        if labelled:
            count = len(block)
            self.block = TensorDict(
                {
                    "u": self.block,
                    "simulation": torch.zeros(count, dtype=torch.int64),
                    "step": torch.arange(count),
                    "parameters": torch.zeros(count, PARAMETERS),
                },
                batch_size=[count],
            )
        storage = LazyTensorStorage(case.capacity)
        self.buffer = ReplayBuffer(storage=storage, batch_size=BATCH)
        for _ in range(case.capacity // case.block):
            self.put()

    def __enter__(self) -> None:
        self._set_threads(self._threads or self._usual)

    def __exit__(self, *error: object) -> None:
        self._set_threads(self._usual)

    def put(self) -> None:
        """Extend by a block."""
        self.buffer.extend(self.block)

    def draw(self) -> None:
        """Sample a batch."""
        self.buffer.sample()


def seconds(call: Callable[[], object], calls: int) -> list[float]:
    """Return the time of each of so many calls."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def measure(case: Case, rounds: int) -> list[Row]:
    """Return put and draw of one size of step against every peer."""
    block = make_block(case)
    reservoir, put = make_reservoir(case, block)
    plain = Memcpy(case, block)
    sides: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "ours": (put, lambda: reservoir.draw(timeout=None)),
        "memcpy": (plain.put, plain.draw),
    }
    settings: dict[str, AbstractContextManager[None]] = {}
    if importlib.util.find_spec("torchrl") is not None:
        for name, threads, labelled in (
            ("TorchRL", 0, True),
            ("TorchRL, 1 thread", 1, True),
            ("TorchRL, bare", 0, False),
        ):
            peer = TorchRL(case, block, threads=threads, labelled=labelled)
            sides[name], settings[name] = (peer.put, peer.draw), peer
    sizes = (case.block * case.step_bytes, BATCH * case.step_bytes)
    times: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds + 1):
        see_all(reservoir, case.calls * case.block)
        for what in (0, 1):
            for name, calls in sides.items():
                with settings.get(name, nullcontext()):
                    taken = seconds(calls[what], case.calls)
                # The first round warms caches, pools and lazily built parts.
                if number:
                    times.setdefault((name, what), []).extend(taken)
    median = {
        key: sizes[key[1]] / statistics.median(taken) / 1e9
        for key, taken in times.items()
    }
    rows = []
    for what in (0, 1):
        ours = median["ours", what]
        title = f"{('put', 'draw')[what]} {case.name}"
        for name in list(sides)[1:]:
            theirs = median[name, what]
            rows.append(Row(title, ours, "GB/s", name, theirs))
    return rows


def measure_inputs(rounds: int) -> list[Row]:
    """Return bytes, put and draw of simulations with an input field against without."""
    case = Case("64 x 64", cells=4096, block=32, capacity=6_000, calls=40)
    block = make_block(case)
    sides = {
        name: make_reservoir(case, block, given)
        for name, given in (("with", block[0]), ("without", None))
    }
    times: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for name, (reservoir, put) in sides.items():
            see_all(reservoir, case.calls * case.block)
            calls: dict[str, Callable[[], object]]
            calls = {"put": put, "draw": partial(reservoir.draw, timeout=None)}
            for what, call in calls.items():
                taken = seconds(call, case.calls)
                if number:
                    times.setdefault((what, name), []).extend(taken)
    held = sides["with"][0].stats()
    copies = held.population * case.step_bytes
    rows = [
        Row(
            "input fields",
            held.input_bytes / 1e6,
            "MB",
            "a copy a sample",
            copies / 1e6,
        )
    ]
    for what in ("put", "draw"):
        ours, theirs = (
            1e3 * statistics.median(times[what, name]) for name in ("with", "without")
        )
        title = f"{what} {case.name} with an input field"
        rows.append(Row(title, ours, "ms", "without", theirs))
    return rows


def fill(megabytes: int) -> None:
    """Fill a reservoir, draw from it, print the bytes it cost and those it may."""
    import resource

    case = Case("memory", 10_000, 32, megabytes * 10**6 // 40_000, 1)
    before = (
        int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    )
    reservoir, put = make_reservoir(case, make_block(case))
    for _ in range(20):
        see_all(reservoir, case.block)
        put()
    reservoir.moments()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([peak - before, reservoir.stats().capacity_bytes]))


def memory(megabytes: int) -> Row:
    """Return the peak memory of a reservoir against the limit."""
    command = [sys.executable, __file__, "--fill", str(megabytes)]
    # A fresh process may not find the package otherwise when this runs from a checkout.
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    used, capacity = json.loads(done.stdout)
    limit = MEMORY_LIMIT * capacity
    return Row(
        f"peak memory of {capacity / 1e6:.0f} MB",
        used / 1e6,
        "MB",
        f"{MEMORY_LIMIT} x capacity",
        limit / 1e6,
    )


def main() -> None:
    """Measure all cases, print a table, and write them where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--fill", type=int, metavar="MB", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill is not None:
        fill(options.fill)
        return
    console = Console()
    if importlib.util.find_spec("torchrl") is None:
        console.print(_REMEDY, markup=False)
    # First, as a new process begins with the peak of the one that started it.
    rows = [memory(256 if options.quick else 1074)]
    for case in CASES:
        rows += measure(case, 3 if options.quick else 21)
    rows += measure_inputs(3 if options.quick else 21)
    report(rows, options.json)


if __name__ == "__main__":
    main()
