"""A trainer that is killed at any moment, and the run that goes on from its checkpoint."""

import collections
import json
import random
import time

import psutil
import pytest
import torch
from test_end_to_end import CELLS, STEPS, fit

SIMULATIONS = 60
POLICIES = {
    "FIFO": {"capacity": 300},
    "FIRO": {"capacity": 300, "threshold": 100},
    "Reservoir": {"capacity": 300, "threshold": 100},
}


def workflow(policy, **options):
    return {
        "name": "tiny",
        "solver": {
            "class_path": "surrogate_flow.solvers.Heat2D",
            "init_args": {"cells": list(CELLS), "steps": STEPS, "time_step": 0.005},
        },
        "simulations": SIMULATIONS,
        "held_out": 2,
        "batch_size": 16,
        "reservoir": {
            "class_path": f"surrogate_flow.reservoir.{policy}",
            "init_args": POLICIES[policy],
        },
        **options,
    }


def start(folder, policy, *words, **options):
    return fit(
        folder,
        workflow(policy, **options),
        "--trainer.callbacks+=recorder.Recorder",
        f"--trainer.callbacks.path={folder / 'batches'}",
        "--trainer.val_check_interval=10",
        *words,
        start_new_session=True,
    )


def lines(path):
    """The batches written down so far; a line that is cut off does not count."""
    if not path.exists():
        return []
    return [
        json.loads(line)
        for line in path.read_text().splitlines(True)
        if line[-1:] == "\n"
    ]


def kill_after(process, path, batches, kept):
    """SIGKILL, once so many batches are trained and a checkpoint is there."""
    deadline = time.monotonic() + 60
    while len(lines(path)) < batches or not list(kept()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{len(lines(path))} batches in 60 s"
        time.sleep(0.005)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=20)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


@pytest.mark.parametrize(
    ("policy", "kept"),
    [("FIFO", True), ("FIFO", False), ("FIRO", True), ("Reservoir", False)],
)
def test_goes_on_after_sigkill(tmp_path, policy, kept):
    """FIFO: the multiset of an undisturbed run. FIRO: too, with the fields. All: nothing is left out."""
    path = tmp_path / "batches"
    moment = random.Random(f"{policy}{kept}").randint(12, 50)
    process = start(tmp_path, policy, checkpoint_reservoir=kept)
    kill_after(
        process,
        path,
        moment,
        lambda: tmp_path.glob("runs/tiny/*/checkpoints/last.ckpt"),
    )
    files = list(tmp_path.glob("runs/tiny/*/checkpoints/reservoir-*.npy"))
    assert len(files) in ((1, 2) if kept else (0,))
    first = lines(path)
    path.unlink()
    process = start(tmp_path, policy, "--ckpt_path=last", checkpoint_reservoir=kept)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    second = lines(path)
    went_on = second[0][0]
    assert went_on >= 10, output
    assert [step for step, _ in second] == list(range(went_on, went_on + len(second)))
    trained = [tuple(s) for step, batch in first if step < went_on for s in batch]
    trained += [tuple(s) for _, batch in second for s in batch]
    counts = collections.Counter(trained)
    assert len(counts) == SIMULATIONS * STEPS
    if policy == "FIFO" or (policy == "FIRO" and kept):
        assert set(counts.values()) == {1}
    assert "Going on: " in output
    left = [
        p.name
        for p in tmp_path.glob("runs/tiny/*/checkpoints/*")
        if p.suffix == ".part"
    ]
    assert not left, left


def weights(folder):
    """Every tensor of the newest last.ckpt: of the network, the optimiser and the normalisation."""
    path = max(
        folder.glob("runs/tiny/*/checkpoints/last.ckpt"),
        key=lambda p: p.stat().st_mtime,
    )
    saved = torch.load(path, weights_only=True)
    assert saved["global_step"] == 200
    state = saved["optimizer_states"][0]["state"]
    moments = {f"{k}.{name}": v for k, s in state.items() for name, v in s.items()}
    return {**saved["state_dict"], **moments}


@pytest.mark.parametrize("policy", list(POLICIES))
def test_deterministic_runs_are_equal_bit_by_bit(tmp_path, policy):
    """Over one worker, two workers, and a run that was killed and went on."""
    options = {"deterministic": True, "checkpoint_reservoir": True, "simulations": 200}
    cluster = {
        "class_path": "distributed.LocalCluster",
        "init_args": {
            "threads_per_worker": 1,
            "dashboard_address": "127.0.0.1:0",
            "n_workers": 1,
        },
    }
    folders = [tmp_path / name for name in ("one", "two", "killed")]
    for folder in folders:
        folder.mkdir()
    process = start(folders[2], policy, "--trainer.max_steps=200", **options)
    kill_after(
        process,
        folders[2] / "batches",
        60,
        lambda: folders[2].glob("runs/tiny/*/checkpoints/last.ckpt"),
    )
    running = [
        start(
            folders[0], policy, "--trainer.max_steps=200", **options, cluster=cluster
        ),
        start(folders[1], policy, "--trainer.max_steps=200", **options),
        start(
            folders[2], policy, "--trainer.max_steps=200", "--ckpt_path=last", **options
        ),
    ]
    for process in running:
        output, _ = process.communicate(timeout=110)
        assert process.returncode == 0, output
    batches = [lines(folder / "batches") for folder in folders]
    assert batches[0] == batches[1]
    # What was trained behind the checkpoint comes a second time, and is the same.
    by_step = {step: batch for step, batch in batches[0]}
    assert all(by_step[step] == batch for step, batch in batches[2])
    assert len(by_step) == 200
    first, *others = [weights(folder) for folder in folders]
    for other in others:
        assert set(other) == set(first)
        for name, tensor in first.items():
            assert torch.equal(tensor, other[name]), name
