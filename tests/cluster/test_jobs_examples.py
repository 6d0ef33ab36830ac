"""The shipped recipes and scripts, on a real Slurm: by its own commands, and by those of PBS."""

import os
import shutil
import signal
import sys
from pathlib import Path

import batch
import programs
import pytest
import yaml

# Three trainings at a time may share two busy cores.
ENOUGH = 400
pytestmark = pytest.mark.timeout(ENOUGH + 100)

SMALL = [
    "--data.solver.cells=[8,8]",
    "--data.solver.steps=10",
    "--data.simulations=27",
    "--data.held_out=3",
    "--data.reservoir.capacity=200",
    "--data.reservoir.threshold=50",
]


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A user's folder, with the recipes, and with what holds for a whole site."""
    for name in ("workflows", "models"):
        shutil.copytree(batch.ROOT / name, tmp_path / name)
    (tmp_path / "dask").mkdir()
    everywhere = {"interface": "lo", "memory": "1 GB"}
    everywhere["job-script-prologue"] = batch.arguments()["job_script_prologue"]
    settings = {"jobqueue": {"slurm": everywhere, "pbs": everywhere}}
    (tmp_path / "dask" / "jobqueue.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("DASK_CONFIG", str(tmp_path / "dask"))
    # The package that these tests import, wherever an installed one is.
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "surrogate-flow"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m surrogate_flow "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(batch.ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*words):
    """Start to fit heat2d, with a session of its own."""
    words = ("--data", "heat2d", "--model", "fully_connected", *words)
    return programs.start(
        "fit", *words, cwd=Path.cwd(), env=os.environ, start_new_session=True
    )


def checkpoints(folder):
    return sorted(Path(folder).glob("**/checkpoints/last.ckpt"))


def outputs(folder="."):
    """What jobs have written, for whoever reads a failure."""
    logs = [p for p in Path(folder).glob("*.o*")] + list(Path(folder).glob("slurm-*"))
    return "\n".join(p.read_text() for p in logs)


def finish(folder, jobs, seconds=ENOUGH):
    """Wait until no job is in the queue, and there are so many checkpoints."""
    try:
        batch.wait_until(lambda: not batch.jobs(), seconds)
    except AssertionError:
        pytest.fail(f"{batch.jobs()}\n{outputs()}")
    found = checkpoints(folder)
    assert len(found) == jobs, outputs()
    return found


def test_the_demo_by_its_recipe(queue, site):
    """fit --data heat2d --data.cluster slurm (or pbs): simulations are jobs, and none is left."""
    process = start("--data.cluster", queue, *SMALL)
    said, _ = process.communicate(timeout=ENOUGH)
    assert process.returncode == 0, said
    assert "is in the queue" in said
    assert "30 done, 0 running, 0 failed" in said
    assert "listens on every interface" not in said
    assert len(checkpoints("runs")) == 1
    assert not batch.jobs()
    assert not list(site.glob("runs/**/.keys*"))


@pytest.mark.slurm
@pytest.mark.parametrize(
    "how", [pytest.param(signal.SIGINT, marks=pytest.mark.bench), signal.SIGTERM]
)
def test_whatever_ends_a_run_leaves_no_job(how, slurm, site):
    """Ctrl-C at a terminal, and what a batch system sends before it kills, while a job is handed over."""
    slow = site / "bin" / "sbatch"
    slow.write_text(
        "#!/bin/sh\n"
        f'answer=$({shutil.which("sbatch")} "$@") || exit\n'
        f"[ -e {site}/one ] && while [ ! -e {site}/go ]; do sleep 0.1; done\n"
        f'touch {site}/one; echo "$answer"\n'
    )
    slow.chmod(0o755)
    jobs = ("--data.cluster", "slurm", "--data.cluster.n_workers", "4")
    process = start(*jobs, *SMALL, "--data.simulations=null")
    for line in process.stdout:
        if "batch " in line:
            break
    batch.wait_until(lambda: len(batch.jobs()) == 2, ENOUGH)
    os.killpg(process.pid, how)
    (site / "go").touch()
    said, _ = process.communicate(timeout=ENOUGH)
    assert process.returncode == 128 + how, said
    assert not batch.jobs(), said
    assert len(checkpoints("runs")) == 1
    assert not list(site.glob("runs/**/.keys*"))


@pytest.mark.slurm
@pytest.mark.parametrize(
    "how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.bench)]
)
def test_a_run_that_waits_for_its_jobs_ends_when_told(how, slurm, site):
    """While the first job is handed over, and none has begun: the run ends at once, and so do they."""
    later = "['--begin=now+3600']"
    options = ("--data.cluster.options.job_extra_directives", later)
    process = start("--data.cluster", "slurm", *SMALL, *options)
    batch.wait_until(batch.jobs, ENOUGH)
    os.killpg(process.pid, how)
    said, _ = process.communicate(timeout=ENOUGH)
    assert not batch.jobs(), said
    assert not list(site.glob("runs/**/.keys*"))


def submit(queue, name, words, monkeypatch, *options):
    """Submit a script with further arguments, as its first lines say."""
    script = f"workflows/clusters/{name}.{'sbatch' if queue == 'slurm' else 'pbs'}"
    if queue == "slurm":
        batch.call("sbatch", *options, script, *words)
    else:
        monkeypatch.setenv("ARGUMENTS", " ".join(words))
        batch.call("qsub", "-V", *options, script)


def test_the_trainer_in_its_own_allocation(queue, site, monkeypatch):
    """A job trains, others simulate; requeued or submitted again, it goes on where it was."""
    words = [*SMALL, "--data.cluster.cores=1"]
    if queue == "slurm":
        submit(
            queue, "trainer", [*words, "--trainer.val_check_interval=1"], monkeypatch
        )
        (first,) = batch.wait_until(lambda: checkpoints("runs"), ENOUGH)
        (job,) = batch.call("squeue", "-h", "--name=surrogate", "-o", "%i").split()
        # What --signal=B:USR1 has Slurm do before the walltime is over.
        batch.call("scancel", "--batch", "--signal=USR1", job)
        batch.wait_until(lambda: batch.jobs().get(job) == "PENDING", ENOUGH)
        batch.call("scontrol", "update", f"JobId={job}", "StartTime=now")
    else:
        submit(queue, "trainer", [*words, "--trainer.max_steps=10"], monkeypatch)
        (first,) = finish("runs", 1)
        submit(queue, "trainer", [*words, "--ckpt_path=last"], monkeypatch)
    finish("runs", 2)
    assert f"From the checkpoint {first}" in outputs()


def test_a_sweep(queue, site, monkeypatch):
    """One fit an index of the job array, each with a seed and a folder of its own."""
    two = ["--array=0-1"] if queue == "slurm" else ["-J", "0-1"]
    submit(queue, "sweep", [*SMALL, "--data.cluster.n_workers=1"], monkeypatch, *two)
    finish("runs", 2)
    for seed in range(2):
        (config,) = site.glob(f"runs/sweep/fully_connected-{seed}/**/config.yaml")
        assert yaml.safe_load(config.read_text())["seed_everything"] == seed


@pytest.mark.slurm
def test_two_ranks_on_two_nodes(slurm, site, monkeypatch):
    """srun starts one rank a node, and the first one submits the jobs of the simulations."""
    # Virtual nodes have names that nobody can look up.
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    batch.call("sbatch", "workflows/clusters/ranks.sbatch", *SMALL)
    finish("runs", 1)
