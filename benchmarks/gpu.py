"""Samples a second that a GPU trains, with the reservoir on the host and on the GPU.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --quick

The networks are the fully connected one of Meyer et al., SC 2023, with 257 million
weights for 1000 x 1000 cells, in batches of 10, and an FNO on 64 x 64 points, in
batches of 32, in single precision and in bfloat16. Each is a `Surrogate` in Lightning's
trainer. Its batches are drawn from a full `Reservoir`, into which a thread puts a new
step for every ten samples drawn, by the thread of `fit` that prepares them; the peer is
the same trainer with batches that lie on the GPU already. Both sides take turns. Values
are medians of the rounds, without the first batches of each, and from and to a moment
when the GPU has done all its work. A ratio of 1 says that the reservoir costs nothing.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as L
import torch
from rich.progress import track
from row import Row, report

from surrogate_flow import Direct, Surrogate
from surrogate_flow.data.online_loader import OnlineLoader
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.nn import FNO, FullyConnected
from surrogate_flow.reservoir import (
    DeviceMemory,
    PendingBatches,
    Reservoir,
    Store,
)
from surrogate_flow.reservoir.memory import HostMemory
from surrogate_flow.solvers import Heat2D, NavierStokes2D
from surrogate_flow.surrogate.averaging import AveragedWeights
from surrogate_flow.surrogate.batch import Batch

__all__ = ["CASES"]

DRAWS = 10  # of each step that is put in, on average
PRECISIONS = {"float32": "32-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class Case:
    """A network on fields of a spec, and how much is kept and trained."""

    spec: FieldSpec
    network: Any
    fused: bool
    batch_size: int
    capacity: int
    batches: int


def cases(quick: bool) -> dict[str, Case]:
    """Return the networks, or tiny forms of them."""
    cells, points, capacity, batches = (
        (10, 8, 40, 4) if quick else (1000, 64, 1000, 150)
    )
    large = Heat2D((cells, cells)).spec
    flow = NavierStokes2D(points).spec
    width = 4 if quick else 32
    return {
        "257 million weights": Case(large, FullyConnected, True, 10, capacity, batches),
        "FNO": Case(flow, partial(FNO, width=width), False, 32, 3 * capacity, batches),
    }


CASES = tuple(cases(quick=True))


class Loop(L.LightningDataModule):
    """Batches that are on the device, and when the device had trained which.

    Parameters
    ----------
    batches : iterable of Batch
    device : torch.device
    skipped, counted : int
        Batches before the first that counts, and how many count.
    """

    def __init__(
        self,
        batches: Iterable[Batch],
        device: torch.device,
        skipped: int,
        counted: int,
    ) -> None:
        super().__init__()
        self._batches, self._device = batches, device
        self._skipped, self._counted = skipped, counted
        self.seconds = 0.0

    def train_dataloader(self) -> Loop:
        """Return this, which has no workers."""
        return self

    def transfer_batch_to_device(self, batch: Batch, *_: Any) -> Batch:
        """Leave it where it is, as data of simulations do."""
        return batch

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; measure between two moments when all is done."""
        begin = 0.0
        for number, batch in enumerate(self._batches):
            if number == self._skipped:
                begin = self._now()
            if number == self._skipped + self._counted:
                self.seconds = self._now() - begin
                return
            yield batch

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def rate(
    surrogate: Surrogate,
    batches: Iterable[Batch],
    device: torch.device,
    precision: str,
    case: Case,
) -> float:
    """Return the samples that are trained in a second."""
    loop = Loop(batches, device, min(20, case.batches), case.batches)
    trainer = L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision=precision,  # type: ignore[arg-type]  # one of a table
        max_epochs=1,
        # As behind the first steps of a fit.
        callbacks=[AveragedWeights(at_first=0)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(surrogate, datamodule=loop)
    return case.batches * case.batch_size / loop.seconds


@contextmanager
def filled(case: Case, memory: Any) -> Iterator[Store]:
    """Keep a reservoir full, with a new step for every ten samples drawn."""
    policy = Reservoir(capacity=case.capacity, threshold=case.capacity, memory=memory)
    store = Store(case.spec, Direct(), case.batch_size, policy)
    spec, chance = case.spec, np.random.default_rng(0)
    steps = chance.standard_normal((10, *spec.step_shape), dtype=np.float32)
    vectors = np.array([p.at(0.5) for p in spec.parameters], dtype=np.float32)
    ended = threading.Event()

    def put() -> Iterator[int]:
        for simulation in itertools.count():
            for first in range(0, spec.steps, len(steps)):
                block = steps[: spec.steps - first]
                taken = 0
                while taken < len(block):
                    some = store.offer(
                        simulation, first + taken, block[taken:], vectors
                    )
                    taken += some
                    yield some
            store.close(simulation)

    def feed() -> None:
        entered = 0
        for count in puts:
            entered += count
            while not count or store.stats().drawn < DRAWS * entered:
                if ended.wait(1e-3):
                    return
                count = 1  # it was full of unseen samples

    puts = put()
    while store.stats().population < case.capacity:
        next(puts)
    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield store
    finally:
        ended.set()
        thread.join()
        store.stop()


def there(case: Case, device: torch.device) -> Iterator[Batch]:
    """Yield batches that lie on the device, without end."""
    spec, count = case.spec, case.batch_size
    ends = torch.tensor([[p.low, p.high] for p in spec.parameters], device=device)
    low, high = ends.T
    batches = [
        Batch(
            parameters=low + (high - low) * torch.rand(count, len(low), device=device),
            step=torch.randint(spec.steps, (count,), device=device).float(),
            history=torch.zeros(count, 0, *spec.step_shape, device=device),
            target=torch.randn(count, 1, *spec.step_shape, device=device),
            simulation=torch.arange(count, device=device),
        )
        for _ in range(4)
    ]
    return itertools.cycle(batches)


def measure(
    name: str, case: Case, precision: str, device: torch.device, rounds: int
) -> list[Row]:
    """Return the rows of a network in one precision: reservoir on host and device."""
    found: dict[str, list[float]] = {}
    adam = partial(torch.optim.Adam, lr=1e-3, fused=case.fused)
    surrogate = Surrogate(case.spec, case.network, optimizer=adam)
    channels = len(case.spec.variables)
    surrogate.normalisation.freeze(np.zeros(channels), np.ones(channels))
    memories = {"host": HostMemory, "device": partial(DeviceMemory, device=str(device))}
    train = partial(rate, surrogate, device=device, case=case)
    train = partial(train, precision=PRECISIONS[precision])
    for side, memory in memories.items():
        with filled(case, memory) as store:
            for _ in range(rounds):
                stopped = threading.Event()
                loader = OnlineLoader(
                    store, pending=PendingBatches(), stopped=stopped, device=device
                )
                batches = iter(loader)
                found.setdefault(side, []).append(train(batches))
                stopped.set()
                batches.close()  # type: ignore[attr-defined]  # a generator
                peer = f"peer of {side}"
                found.setdefault(peer, []).append(train(there(case, device)))
    return [
        Row(
            f"{name}, {precision}, reservoir on the {side}",
            statistics.median(found[side]),
            "samples/s",
            "on the device",
            statistics.median(found[f"peer of {side}"]),
        )
        for side in memories
    ]


def main() -> None:
    """Measure, print a table, and write it where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", help="cuda:0, say; the GPU if there is one")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for CI")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    options = parser.parse_args()
    kind = "cuda:0" if torch.cuda.is_available() else "cpu"
    device = torch.device(options.device or kind)
    if device.type == "cpu" and not options.quick:
        parser.error("there is no GPU: type --quick for the tiny form on the CPU.")
    if device.type == "cpu":
        torch.set_num_threads(1)  # which is faster on small tensors
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    rounds = 1 if options.quick else options.rounds
    table = [(name, p) for name in cases(options.quick) for p in PRECISIONS]
    rows = []
    for name, precision in track(table, "cases", transient=True):
        case = cases(options.quick)[name]
        rows += measure(name, case, precision, device, rounds)
    report(rows, options.json)


if __name__ == "__main__":
    main()
