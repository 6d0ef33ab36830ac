"""The whole pipeline for minutes: does anything grow while nothing should?

Solvers of the heat equation (32 x 32 cells, 20 steps) run one after another on a
`LocalCluster`, stream into a `Reservoir`, and a surrogate is trained on the batches,
with a validation every 500 of them, as in a study without end. Once a second all that
could grow is read: memory, threads and open files of the trainer's process, which also
holds scheduler, client and inlet; memory of the workers; tasks that the scheduler
knows, and those of its event loop.

Compared are the medians of the last minute and of the first one. The first begins when
a tenth of the time is over: until then the reservoir fills, libraries load what they
need, and bounded logs grow up to their bounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as L
from distributed import LocalCluster
from distributed.security import Security
from rich.console import Console
from rich.table import Table
from vitals import Vitals

from surrogate_flow.data.online import OnlineData
from surrogate_flow.nn import FullyConnected
from surrogate_flow.reservoir import Reservoir
from surrogate_flow.solvers import Heat2D
from surrogate_flow.surrogate.surrogate import Surrogate

WORKERS = 2
UNITS = {"trainer": "MB", "workers": "MB"}


@dataclass(frozen=True)
class Look:
    """All that could grow, at one moment, and what was done until then."""

    seconds: float
    trainer: float
    workers: float
    threads: int
    files: int
    tasks: int
    loop_tasks: int
    simulations: int
    batches: int


class Watch(L.Callback):
    """Looks at a study once a second while it trains, from a thread of its own."""

    def __init__(self, data: OnlineData) -> None:
        self.looks: list[Look] = []
        self.clusters: list[LocalCluster] = []
        self._data = data
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to look."""
        self._thread = threading.Thread(target=self._run, args=(trainer,), name="watch")
        self._thread.start()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End, before the study does."""
        self._end()
        if self._error is not None:
            raise self._error

    def on_exception(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        exception: BaseException,
    ) -> None:
        """End."""
        self._end()

    def _end(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, trainer: L.Trainer) -> None:
        start = time.perf_counter()
        while not self._over.wait(1.0):
            try:
                seconds = time.perf_counter() - start
                self.looks.append(self._look(seconds, trainer.global_step))
            except Exception as error:
                self._error = error
                return

    def _look(self, seconds: float, batches: int) -> Look:
        cluster, own = self.clusters[0], Vitals.of()
        status = self._data.status()
        assert status is not None, "the study has started"
        assert status.ensemble is not None, "it runs online"
        assert cluster.scheduler is not None, "it lives in this process"
        assert cluster.loop is not None, "it has started"
        loop: asyncio.AbstractEventLoop = cluster.loop.asyncio_loop  # type: ignore  # tornado has no types
        processes = [nanny.pid for nanny in list(cluster.workers.values())]
        return Look(
            seconds,
            own.rss,
            sum(Vitals.of(process).rss for process in processes if process),
            own.threads,
            own.files,
            len(cluster.scheduler.tasks),
            len(asyncio.all_tasks(loop)),
            status.ensemble.done,
            batches,
        )


def soak(minutes: float) -> list[Look]:
    """Train for so long and return what was seen."""
    solver = Heat2D(cells=(32, 32), steps=20)

    def cluster(security: Security | None = None) -> LocalCluster:
        opened = LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            security=security,
        )
        watch.clusters.append(opened)
        return opened

    data = OnlineData(
        solver,
        simulations=None,
        held_out=10,
        batch_size=32,
        reservoir=Reservoir(capacity=6_000, threshold=1_000),
        cluster=cluster,
    )
    watch = Watch(data)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_time=timedelta(minutes=minutes),
            callbacks=[watch],
            val_check_interval=500,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        surrogate = Surrogate(solver.spec, partial(FullyConnected, widths=(256, 256)))
        trainer.fit(surrogate, datamodule=data)
    return watch.looks


def compare(looks: list[Look]) -> list[dict[str, Any]]:
    """Return the rows: last minute against first minute, behind the first tenth."""
    end = looks[-1].seconds
    minute = min(60.0, end / 4)
    begin = min(end / 10, end - 2 * minute)
    first = [look for look in looks if begin <= look.seconds <= begin + minute]
    last = [look for look in looks if look.seconds >= end - minute]
    rows = []
    for name in ("trainer", "workers", "threads", "files", "tasks", "loop_tasks"):
        before, after = (
            statistics.median(asdict(look)[name] for look in part)
            for part in (first, last)
        )
        rows.append(
            {
                "case": f"{name.replace('_', ' ')} in the last minute",
                "value": after,
                "unit": UNITS.get(name, "count"),
                "peer": "first minute",
                "peer_value": before,
                "ratio": after / before,
            }
        )
    return rows


def main() -> None:
    """Soak, print a table, and write the rows where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--looks", type=Path, metavar="FILE", help="write every look")
    parser.add_argument("--quick", action="store_true", help="a few seconds, for CI")
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    looks = soak(0.1 if options.quick else options.minutes)
    rows = compare(looks)
    end = looks[-1]
    title = (
        f"{end.seconds / 60:.1f} minutes: {end.simulations} simulations, "
        f"{end.batches} batches"
    )
    table = Table("", "unit", "first minute", "last minute", "ratio", title=title)
    for row in rows:
        table.add_row(
            row["case"].removesuffix(" in the last minute"),
            row["unit"],
            f"{row['peer_value']:.0f}",
            f"{row['value']:.0f}",
            f"{row['ratio']:.3f}",
        )
    Console(width=100).print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.looks is not None:
        options.looks.write_text(json.dumps([asdict(x) for x in looks]) + "\n")


if __name__ == "__main__":
    main()
