"""Every thread and loop of ours, made to raise: the run ends with what it has raised."""

import stat
import sys
import threading
from functools import partial

import pytest
import pytorch_lightning as L
import xarray as xr
from distributed import LocalCluster
from troubled import Leisurely, Wave

from surrogate_flow.cluster.batch import JobTiming, Slurm
from surrogate_flow.data.online import OnlineData
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.nn import FullyConnected
from surrogate_flow.report.monitor import Monitor
from surrogate_flow.report.progress import ProgressLine
from surrogate_flow.reservoir import FIFO
from surrogate_flow.solvers import ProcessSolver
from surrogate_flow.stream import Outlet
from surrogate_flow.surrogate.surrogate import Surrogate
from surrogate_flow.threads import repeat

OURS = "surrogate_flow."
FAULTS = {
    "ensemble": "ensemble.ensemble.Ensemble._settle",
    "ensemble, a listener": "data.archiving.Archiving.__call__",
    "inlet, a message": "stream.reception.Reception.handle",
    "inlet, its tick": "stream.reception.Reception.tick",
    "inlet, the reservoir": "reservoir.store.Store.offer",
    "watchdog": "ensemble.watchdog.Watchdog._silent",
    "scheduler's loop": "ensemble.placement._Watcher._tell",
    "prefetch, a draw": "reservoir.store.Store.draw",
    "prefetch, a batch": "data.prefetch.Batch.from_draw",
    "monitor": "report.monitor.Monitor.sample",
    "progress line": "report.progress.ProgressLine._text",
    "flusher": "stream.outlet.Outlet._flush_in_time",
    "stderr of a program": "solvers.programs.process._Program._drain",
    "jobs": "cluster.batch.supervisor.Supervisor._tick",
}


class Program(ProcessSolver):
    """A wave whose steps a program announces."""

    spec = Wave.spec

    def command(self, run):
        code = "import time; open('begun', 'w'); time.sleep(600)"
        return [sys.executable, "-c", code]

    def read(self, run):
        run.wait((run.folder / "never").exists)
        yield xr.Dataset()


def threads_of_this_process():
    return LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        processes=False,
        dashboard_address="127.0.0.1:0",
    )


def deaf_slurm(folder, monkeypatch):
    """A batch system that takes jobs and runs none."""
    for name, says in [("sbatch", "Submitted batch job 1"), ("squeue", "1|PENDING|-")]:
        (folder / name).write_text(f"#!/bin/sh\necho '{says}'\n")
    (folder / "scancel").write_text(f"#!/bin/sh\nrm {folder}/squeue\n")
    for name in ("sbatch", "squeue", "scancel"):
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    system = Slurm(
        n_workers=1, options={"cores": 1, "memory": "1GB", "interface": "lo"}
    )
    system.timing = JobTiming(poll=0.1, cancel=0.1)
    return system


def test_a_failure_that_lasts_is_said_once(caplog):
    """Others are tried again, and nobody is told."""
    closing, outcomes = threading.Event(), list("0010010000")

    def act():
        if len(outcomes) == 1:
            closing.set()
        if outcomes.pop(0) == "0":
            raise TimeoutError

    repeat(act, closing, 0.0, "Nobody answers")
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "Nobody answers, 3 times in a row: TimeoutError()"
    ]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("where", FAULTS)
def test_what_a_thread_raises_ends_the_run(where, tmp_path, monkeypatch):
    """Simulations have no end, and so has the run that does not notice."""

    def raising(*_, **__):
        raise ArithmeticError("put there by the test")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(OURS + FAULTS[where], raising)
    # Workers are threads here, which nothing ends before their time.
    monkeypatch.setattr(OURS + "ensemble.attempt.Outlet", partial(Outlet, timeout=1.0))
    jobs = where == "jobs"
    data = OnlineData(
        {"stderr of a program": Program, "flusher": Leisurely}.get(where, Wave)(),
        simulations=None,
        held_out=1,
        batch_size=4,
        reservoir=FIFO(capacity=40),
        cluster=deaf_slurm(tmp_path, monkeypatch) if jobs else threads_of_this_process,
        faults=Faults(step_timeout=300.0, retries=0, max_failures=0, patience=600.0),
    )
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        max_steps=10**9,
        callbacks=[line := ProgressLine(every=0.1), Monitor(tmp_path, [line])],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    surrogate = Surrogate(Wave.spec, partial(FullyConnected, widths=[8]))
    with pytest.raises(Exception, match="put there by the test"):
        trainer.fit(surrogate, data)
