"""A run whose folder is on a disk that is full."""

import csv
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import yaml
from programs import WORKFLOW, command, environment
from test_resume import lines
from troubled import STEPS

from surrogate_flow.surrogate import checkpoint

SIMULATIONS, HELD_OUT = 200, 4
ROOM = 400  # KiB: for some of what a run writes
# A tmpfs within namespaces of its own needs no rights, and goes with the last process.
DISK = ["unshare", "--map-root-user", "--mount", "sh", "-euc"]
MOUNT = f"mount -t tmpfs -o size={ROOM}k none"
SCRIPT = f"""
    mkdir runs
    {MOUNT} runs
    (until ls runs/tiny/*/checkpoints/last.ckpt; do sleep 0.02; done
     head -c {ROOM}k /dev/zero > runs/filler) >/dev/null 2>&1 &
    code=0
    "$@" || code=$?
    rm runs/filler
    cp -r runs out
    exit $code
"""


def may_mount():
    """Whether the kernel lets this user have a file system of their own."""
    if shutil.which("unshare") is None:
        return False
    words = [*DISK, f"{MOUNT} /mnt"]
    return subprocess.run(words, capture_output=True, timeout=20).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="the kernel forbids user namespaces")
def test_a_disk_that_gets_full_ends_no_run_and_is_told_at_its_end(tmp_path):
    """ENOSPC: all is trained, the checkpoint before stays whole, failures are told, and so is the end."""
    workflow = {
        **WORKFLOW,
        "solver": {
            "class_path": "troubled.Troubled",
            "init_args": {"fault": "raises", "above": 0.97},
        },
        "batch_size": 5,
        "reservoir": {
            "class_path": "surrogate_flow.reservoir.FIFO",
            "init_args": {"capacity": 50},
        },
        "checkpoint_reservoir": True,
        "simulations": SIMULATIONS,
        "held_out": HELD_OUT,
        "faults": {"max_failures": SIMULATIONS, "retries": 0},
    }
    (tmp_path / "workflow.yaml").write_text(yaml.safe_dump(workflow))
    words = command(
        *("fit", "--data=workflow.yaml", "--model=fully_connected"),
        *("--model.network.widths=[16]", "--trainer.val_check_interval=20"),
        "--trainer.callbacks+=recorder.Recorder",
        f"--trainer.callbacks.path={tmp_path / 'batches'}",
    )
    done = subprocess.run(
        [*DISK, SCRIPT, "sh", *words],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=250,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 2, output
    assert "its last checkpoint was not written" in done.stderr
    trained = Counter(
        tuple(s) for _, batch in lines(tmp_path / "batches") for s in batch
    )
    last = re.findall(r"simulations (\d+) done, 0 running, (\d+) failed", output)[-1]
    assert sum(map(int, last)) == SIMULATIONS + HELD_OUT, output
    assert set(trained.values()) == {1}
    assert {step for _, step in trained} == set(range(STEPS))
    # Those that failed had yielded one step.
    phases = {phase for phase, _ in trained if phase <= 0.97}
    assert {step for phase, step in trained if phase > 0.97} <= {0}
    assert sum(phase <= 0.97 for phase, _ in trained) == STEPS * len(phases)
    assert int(last[0]) - HELD_OUT <= len(phases) <= int(last[0])
    assert int(last[1]) >= output.count("ArithmeticError") > 0
    (folder,) = (tmp_path / "out" / "tiny").iterdir()
    kept = folder / "checkpoints"
    checkpoint.read(kept / "last.ckpt")
    checkpoint.read(kept / "best.ckpt")
    assert not list(kept.glob("*.part"))
    for row in csv.DictReader((folder / "metrics.csv").open()):
        assert None not in row, row
        assert row["step"].isdigit(), row


@pytest.mark.skipif(not may_mount(), reason="the kernel forbids user namespaces")
def test_a_disk_that_is_full_from_the_start_begins_no_run(tmp_path):
    """One message that names the folder and the remedy, before anything is simulated."""
    script = """
        mkdir runs
        mount -t tmpfs -o size=4k none runs
        "$@"
    """
    words = command("fit", "--data=heat2d", "--model=fully_connected")
    done = subprocess.run(
        [*DISK, script, "sh", *words],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 2, done.stderr
    assert re.search(
        r"cannot be written \(.*No space left.*default_root_dir", done.stderr
    )
    assert "Traceback" not in done.stderr
    assert "dashboard" not in done.stdout


@pytest.mark.skipif(not may_mount(), reason="the kernel forbids user namespaces")
def test_a_new_column_costs_no_row_on_a_full_disk(tmp_path):
    """The table is rewritten for it beside the old one, and comes whole when there is room."""
    script = f"""
        mkdir disk
        mount -t tmpfs -o size=16k none disk
        exec {sys.executable} -c "$1"
    """
    code = """if True:
        from pathlib import Path
        from surrogate_flow.report.monitor import MetricsTable
        table, filler = MetricsTable("disk", name="", version=""), Path("disk/filler")
        def log(step, **metrics):
            table.log_metrics(metrics, step)
            table.save()
            return Path("disk/metrics.csv").read_text().split()
        for step in range(50):
            rows = log(step, a=1.0)
        assert len(rows) == 51, rows
        try:
            filler.write_bytes(bytes(16 * 1024))
        except OSError:
            pass
        assert log(50, a=1.0, b=2.0) == rows
        filler.unlink()
        rows = log(51, a=1.0)
        assert len(rows) == 53, rows
        assert rows[0] == "a,b,step" and rows[-2] == "1.0,2.0,50", rows
        assert {path.name for path in Path("disk").iterdir()} == {"metrics.csv"}
    """
    done = subprocess.run(
        [*DISK, script, "sh", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert "was not written" in done.stderr


@pytest.mark.skipif(not may_mount(), reason="the kernel forbids user namespaces")
def test_a_program_that_fills_its_disk_fails_alone(tmp_path):
    """With what it says of that; its folder is emptied, and the next one has room."""
    script = f"""
        mkdir disk
        mount -t tmpfs -o size={ROOM}k none disk
        TMPDIR=disk exec {sys.executable} -c "$1"
    """
    code = """if True:
        from pathlib import Path
        import numpy as np
        from surrogate_flow import FieldSpec, Parameter, Variable
        from surrogate_flow.solvers import OutputFiles, Program
        size = (Parameter("size", 1, 2**20, whole=True),)
        spec = FieldSpec(size, (Variable("u"),), ("x",), (1,), (1.0,))
        command = ["sh", "-c", "head -c {size}k /dev/zero > big && printf '%8s' > u_1.raw"]
        solver = Program(command, spec, reader=OutputFiles("u_*.raw"))
        for size in (2**20, 100, 2**20, 100):
            try:
                steps = list(solver.solve({"size": size}))
                print(size, steps[0].sizes["time"])
            except Exception as error:
                print(size, type(error).__name__, str(error).splitlines()[-1])
            assert not list(Path("disk").iterdir())
    """
    done = subprocess.run(
        [*DISK, script, "sh", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    full, room = done.stdout.splitlines()[:2]
    assert re.fullmatch("1048576 ProcessError .*No space left on device", full)
    assert room == "100 1"
    assert done.stdout.splitlines()[2:] == [full, room]
