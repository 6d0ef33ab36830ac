"""Memory of trainer, scheduler and workers while very many simulations pass.

Every simulation is two steps of ten numbers: what remains is the cost of the ensemble,
Dask and an outlet for each, and whatever any of them keeps of a simulation that has
ended. Steps go over the stream into a FIFO reservoir, from which a thread draws.

In the first part the study is as on a laptop: `LocalCluster`, whose scheduler lives in
the trainer's process, so that its memory is part of the trainer's. In the second part
the scheduler has a process of its own (`SubprocessCluster`), and inlet and ensemble are
put together as a study does.

The growth is the slope of a line through the second half of the points. Below 1 MB for
10,000 simulations, 100 bytes each, a process counts as flat: a million simulations
would add less than 100 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster, Scheduler
from distributed.deploy.cluster import Cluster
from distributed.deploy.subprocess import SubprocessCluster
from distributed.security import Security
from rich.console import Console
from rich.table import Table
from tiny import STEPS, Tiny
from vitals import Vitals, slope

from surrogate_flow.cluster.existing import Existing
from surrogate_flow.ensemble.events import Event, Exhausted
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.ensemble.study import OpenCluster, Study, StudySettings
from surrogate_flow.fields.window import Direct
from surrogate_flow.reservoir import FIFO, Store
from surrogate_flow.sampling import Design, Uniform

WORKERS = 2
FLAT = 1.0  # MB for 10,000 simulations
PATIENCE = 60.0


@dataclass(frozen=True)
class Point:
    """All that could grow, at one moment."""

    simulations: int
    seconds: float
    trainer: float
    scheduler: float
    workers: float
    tasks: int
    groups: int
    prefixes: int
    futures: int
    threads: int
    files: int


def of_scheduler(dask_scheduler: Scheduler) -> dict[str, Any]:
    """Count what the scheduler knows; runs there."""
    return {
        "rss": Vitals.of().rss,
        "tasks": len(dask_scheduler.tasks),
        "groups": len(dask_scheduler.task_groups),
        "prefixes": len(dask_scheduler.task_prefixes),
        "futures": sum(len(c.wants_what) for c in dask_scheduler.clients.values()),
    }


def of_worker() -> float:
    """Return the resident memory of a worker in MB; runs there."""
    return Vitals.of().rss


def look(client: Client, study: Study, start: float) -> Point:
    """Measure everything at this moment."""
    known = client.run_on_scheduler(of_scheduler)
    own = Vitals.of()
    return Point(
        simulations=study.stats().done,
        seconds=time.perf_counter() - start,
        trainer=own.rss,
        scheduler=known["rss"],
        workers=sum(client.run(of_worker).values()),
        tasks=known["tasks"],
        groups=known["groups"],
        prefixes=known["prefixes"],
        futures=known["futures"],
        threads=own.threads,
        files=own.files,
    )


def local(security: Security | None) -> Cluster:
    """Return a cluster whose scheduler lives in this process."""
    return LocalCluster(
        n_workers=WORKERS,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
        security=security,
    )


def apart() -> Cluster:
    """Return a cluster whose scheduler has a process of its own."""
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (here, os.environ.get("PYTHONPATH")))
    )
    return SubprocessCluster(
        host="127.0.0.1",
        n_workers=WORKERS,
        threads_per_worker=1,
        dashboard_address="127.0.0.1:0",
    )


def open_study(
    kind: str, count: int, store: Store, stack: ExitStack
) -> tuple[Client, Study]:
    """Start `count` simulations; return a client that looks on, and the study."""
    solver = Tiny()
    design = Design(solver.spec.parameters, Uniform(0), held_out=0, simulations=count)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    opened: list[Cluster] = []

    def factory(security: Security | None = None) -> Cluster:
        opened.append(local(security))
        return opened[0]

    def end(event: Event) -> None:
        if isinstance(event, Exhausted):
            store.end_reception()

    cluster: Callable[[], Cluster] | OpenCluster = factory
    if kind != "local":
        opened.append(stack.enter_context(apart()))
        cluster = OpenCluster(Existing.of(opened[0], local=True))
    study = Study(
        solver,
        design,
        store,
        cluster=cluster,
        faults=Faults(),
        settings=StudySettings("tiny", folder),
        listeners=[end],
    )
    stack.callback(study.close)
    study.start()
    return stack.enter_context(Client(opened[0], set_as_default=False)), study


def points(kind: str, count: int, every: int) -> Iterator[Point]:
    """Run the simulations and yield a point for each `every` of them."""
    store = Store(Tiny.spec, Direct(), 10, FIFO(capacity=10_000))
    drawn = [0]

    def draw() -> None:
        while (batch := store.draw(timeout=None)) is not None:
            drawn[0] += len(batch.step)

    with ExitStack() as stack:
        stack.callback(store.stop)
        client, study = open_study(kind, count, store, stack)
        drawer = threading.Thread(target=draw, name="trainer", daemon=True)
        drawer.start()
        start, mark = time.perf_counter(), 0
        heard, seen = start, -1
        while drawer.is_alive():
            study.check()
            done = study.stats().done
            now = time.perf_counter()
            if done != seen:
                heard, seen = now, done
            elif now - heard > PATIENCE:
                raise TimeoutError(f"no simulation ended within {PATIENCE:g} s")
            if done >= mark:
                yield look(client, study, start)
                mark += every
            drawer.join(0.05)
        yield look(client, study, start)
    if drawn[0] != count * STEPS:
        raise RuntimeError(f"expected {count * STEPS} steps, drew {drawn[0]}")


def report(kind: str, taken: list[Point], console: Console) -> list[dict[str, Any]]:
    """Print the points and the verdict, and return the rows."""
    names = list(asdict(taken[0]))
    title = "scheduler " + ("in the trainer" if kind == "local" else "apart")
    table = Table(*names, title=f"ensemble, {title} (memory in MB)")
    for point in taken:
        table.add_row(*(f"{value:.0f}" for value in asdict(point).values()))
    console.print(table)
    # The first point has none done, and the last none under way.
    middle = taken[1:-1] or taken
    seconds = middle[-1].seconds - middle[0].seconds
    rate = (middle[-1].simulations - middle[0].simulations) / max(seconds, 1e-9)
    if rate <= 0:
        rate = taken[-1].simulations / taken[-1].seconds
    console.print(f"{title}: {rate:.0f} simulations/s", highlight=False)
    rows = []
    of_process: dict[str, Callable[[Point], float]] = {
        "trainer": lambda p: p.trainer,
        "scheduler": lambda p: p.scheduler,
        "workers": lambda p: p.workers,
    }
    if kind == "local":
        del of_process["scheduler"]
    for name, memory in of_process.items():
        growth = 1e4 * slope(
            [p.simulations for p in middle], [memory(p) for p in middle]
        )
        verdict = "flat" if growth < FLAT else "growing"
        console.print(
            f"  {name}: {memory(taken[-1]):.0f} MB, {growth:+.2f} MB for 10,000 "
            f"simulations: {verdict}",
            highlight=False,
        )
        half = memory(middle[len(middle) // 2])
        rows.append(
            {
                "case": f"memory of {name}, {title}",
                "value": memory(middle[-1]),
                "unit": "MB",
                "peer": "at half of the simulations",
                "peer_value": half,
                "ratio": memory(middle[-1]) / half,
            }
        )
    return rows


def main() -> None:
    """Run both parts, print every point, and write rows where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few seconds, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--simulations", type=int, default=100_000)
    parser.add_argument(
        "--scheduler", choices=("local", "apart"), help="only one of the parts"
    )
    options = parser.parse_args()
    count = 300 if options.quick else options.simulations
    console = Console(width=120)
    rows: list[dict[str, Any]] = []
    for kind in [options.scheduler] if options.scheduler else ["local", "apart"]:
        taken = []
        for point in points(kind, count, max(1, count // 20)):
            taken.append(point)
            console.print(
                f"{kind} {point.simulations} simulations, {point.seconds:.0f} s: "
                f"trainer {point.trainer:.0f} MB, scheduler {point.scheduler:.0f} MB, "
                f"{point.tasks} tasks",
                highlight=False,
            )
        rows += report(kind, taken, console)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
