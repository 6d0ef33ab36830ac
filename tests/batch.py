"""The local batch system, as tests speak with it."""

import inspect
import os
import shutil
import subprocess
import time
from pathlib import Path

from surrogate_flow.cluster.batch import PBS, JobTiming, Slurm

SCRIPT = Path(__file__).parent / "slurm-local.sh"
ROOT = SCRIPT.parents[1]

KINDS = {"slurm": Slurm, "pbs": PBS}


def call(*words, check=True):
    """Run a command and return what it prints."""
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=60, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def start():
    """Start a Slurm of ours, unless it is there; say why there is none, or return what ends it."""
    if shutil.which("sbatch") is None:
        return "Slurm is not installed; tests/slurm-local.sh install does it", None
    ours = call(SCRIPT, "env").partition("SLURM_CONF=")[2].strip()
    if os.environ.get("SLURM_CONF") == ours and call("sinfo", "-h", check=False):
        return "", lambda: None
    done = subprocess.run(
        [SCRIPT, "start"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return f"Slurm does not start: {done.stderr}", None
    os.environ["SLURM_CONF"] = done.stdout.rpartition("SLURM_CONF=")[2].strip()

    def stop():
        del os.environ["SLURM_CONF"]
        call(SCRIPT, "stop")

    return "", stop


def jobs(states="PENDING,RUNNING"):
    """Return id and state of each job in the queue."""
    text = call("squeue", "-h", f"--states={states}", "-o", "%i %T")
    return dict(line.split() for line in text.splitlines())


def wait_until(condition, seconds=120):
    """Return what a condition has become, when it is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
    return value


def arguments(**changed):
    """Return what a cluster of small jobs takes, whose workers find the tests' solvers."""
    paths = os.pathsep.join([str(SCRIPT.parent), str(ROOT)])
    return {
        "cores": 1,
        "memory": "500 MB",
        "walltime": "00:10:00",
        "interface": "lo",
        "job_script_prologue": [f"export PYTHONPATH={paths}"],
        **changed,
    }


def cluster(kind="slurm", timing=None, **changed):
    """Return what a data module takes as its cluster."""
    options = arguments(**changed)
    own = inspect.signature(KINDS[kind]).parameters
    named = {name: options.pop(name) for name in own if name in options}
    system = KINDS[kind](**named, options=options)
    system.timing = timing or JobTiming()
    return system
