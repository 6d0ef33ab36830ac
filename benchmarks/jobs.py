"""How many jobs a study asks for, while its training has one pace and then another.

Runs on Slurm, with one core and one simulation for each job; each brings ten samples a
second. Prints a row for every ten seconds and draws the picture in docs/jobs.png.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
from dask_jobqueue import SLURMCluster
from paced import PAUSE, Paced

from surrogate_flow.cluster.batch import Supervisor
from surrogate_flow.data.online import OnlineData
from surrogate_flow.data.source import Local
from surrogate_flow.reservoir import FIFO

BATCH, CAPACITY = 10, 600


class Point(NamedTuple):
    """What is seen at one moment: jobs, and how many samples wait."""

    seconds: float
    needed: float
    wanted: int
    at_work: int
    population: int


def study(maximum: int) -> OnlineData:
    """Return an endless study, whose jobs find the solver beside this file."""
    here = Path(__file__).resolve().parent
    paths = os.pathsep.join([str(here), str(here.parent)])
    cluster = partial(
        SLURMCluster,
        cores=1,
        memory="500 MB",
        walltime="01:00:00",
        interface="lo",
        job_script_prologue=[f"export PYTHONPATH={paths}"],
        minimum_jobs=1,
        maximum_jobs=maximum,
    )
    return OnlineData(
        Paced(),
        simulations=None,
        held_out=1,
        batch_size=BATCH,
        reservoir=FIFO(capacity=CAPACITY),
        cluster=cluster,
    )


@contextmanager
def watched(
    data: OnlineData, jobs: Supervisor, pace: list[float]
) -> Iterator[list[Point]]:
    """Note a point each second."""
    points: list[Point] = []
    over, start = threading.Event(), time.monotonic()

    def look() -> None:
        for second in itertools.count(1):
            store = data.store
            assert store is not None, "a fit has one"
            points.append(
                Point(
                    time.monotonic() - start,
                    pace[0] * PAUSE,
                    jobs.wanted,
                    jobs.at_work,
                    store.stats().population,
                )
            )
            if second % 10 == 0:
                print(" ".join(f"{value:8.1f}" for value in points[-1]), flush=True)
            if over.wait(1.0):
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield points
    finally:
        over.set()
        thread.join()


def train(data: OnlineData, paces: list[tuple[float, float]]) -> list[Point]:
    """Draw so many samples a second for so many seconds, one pace after the other."""
    pace = [paces[0][1]]
    assert isinstance(data.source, Local), "set up"
    jobs = data.source.study.cluster.jobs
    assert jobs is not None, "its cluster is a batch system's"
    print(" ".join(f"{name:>8}" for name in Point._fields))
    with watched(data, jobs, pace) as points:
        batches = iter(data.train_dataloader())
        for seconds, samples in paces:
            pace[0] = samples
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                next(batches)
                time.sleep(BATCH / samples)
    return points


def draw(points: list[Point], path: Path) -> None:
    """Draw jobs and reservoir over time."""
    seconds = [p.seconds for p in points]
    figure, (jobs, held) = plt.subplots(2, sharex=True, figsize=(8, 5))
    jobs.step(seconds, [p.needed for p in points], "k--", label="needed")
    jobs.step(seconds, [p.wanted for p in points], label="wanted", where="post")
    jobs.step(seconds, [p.at_work for p in points], label="with workers", where="post")
    jobs.set_ylabel("jobs")
    jobs.legend()
    held.plot(seconds, [p.population for p in points])
    held.axhline(CAPACITY, color="k", linestyle=":", label="capacity")
    held.set_ylabel("samples in the reservoir")
    held.set_xlabel("time in s")
    held.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    print(f"See {path}")


def main() -> None:
    """Run and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--maximum_jobs", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("docs/jobs.png"))
    options = parser.parse_args()
    output, seconds = options.output.absolute(), 60 * options.minutes
    data = study(options.maximum_jobs)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        data.setup("fit")
        try:
            points = train(data, [(seconds / 2, 50.0), (seconds / 2, 20.0)])
        finally:
            data.close()
        os.chdir(output.parent)
    draw(points, output)


if __name__ == "__main__":
    main()
