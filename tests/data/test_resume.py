"""A trainer that is killed at any moment, and the run that goes on from its checkpoint."""

import collections
import csv
import json
import os
import random
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from programs import CELLS, STEPS, fit

from surrogate_flow.cli import runs
from surrogate_flow.cli.app import main
from surrogate_flow.report.folder.run_folder import RunFolder

SIMULATIONS = 60
POLICIES = {
    "FIFO": {"capacity": 300},
    "FIRO": {"capacity": 300, "threshold": 100},
    "Reservoir": {"capacity": 300, "threshold": 100},
}
# No run is at its end before it is killed, however late a busy machine comes to that.
WAITS = "--trainer.callbacks.until=70"


def workflow(policy, **options):
    return {
        "name": "tiny",
        "solver": heat(),
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
    [
        pytest.param("FIRO", False, marks=pytest.mark.bench),
        ("FIFO", False),
        ("FIRO", True),
        ("Reservoir", False),
    ],
)
def test_goes_on_after_sigkill(tmp_path, policy, kept):
    """FIFO and FIRO: the multiset of an undisturbed run. All: nothing is left out."""
    path = tmp_path / "batches"
    moment = random.Random(f"{policy}{kept}").randint(12, 50)
    process = start(tmp_path, policy, WAITS, checkpoint_reservoir=kept)
    kill_after(
        process,
        path,
        moment,
        lambda: tmp_path.glob("runs/tiny/*/checkpoints/last.ckpt"),
    )
    files = list(tmp_path.glob("runs/tiny/*/checkpoints/reservoir-*.npy"))
    assert len(files) in ((1, 2, 3) if kept else (0,))
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
    if policy != "Reservoir":
        assert set(counts.values()) == {1}
    assert "Going on: " in output
    later = time.time() + 60  # when it is seen that the first was killed
    folders = sorted(tmp_path.glob("runs/tiny/*"))
    before, now = (RunFolder(folder, now=lambda: later) for folder in folders)
    assert now.resumed_from == str(before.path / "checkpoints" / "last.ckpt")
    assert before.problems[0].endswith(f"It went on in {now.path}.")
    left = [
        p.name
        for p in tmp_path.glob("runs/tiny/*/checkpoints/*")
        if p.suffix == ".part"
    ]
    assert not left, left


def weights(folder):
    """Every tensor of the newest last.ckpt: of network, optimiser, schedule and normalisation."""
    path = max(
        folder.glob("runs/tiny/*/checkpoints/last.ckpt"),
        key=lambda p: p.stat().st_mtime,
    )
    saved = torch.load(path, weights_only=True)
    (schedule,) = saved["lr_schedulers"]
    assert schedule["last_epoch"] == saved["global_step"]
    assert schedule["progress"] == 1
    rate = torch.tensor(schedule["_last_lr"])
    state = saved["optimizer_states"][0]["state"]
    moments = {f"{k}.{name}": v for k, s in state.items() for name, v in s.items()}
    return {**saved["state_dict"], **moments, "rate": rate}


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param("FIFO", marks=pytest.mark.bench),
        pytest.param("FIRO", marks=pytest.mark.bench),
        "Reservoir",
    ],
)
def test_deterministic_runs_are_equal_bit_by_bit(tmp_path, policy):
    """Over one worker, two workers, and a run of two that was killed and went on."""
    # The learning rate follows what each batch says of those to come.
    options = {"deterministic": True, "simulations": 150}
    cluster = {
        "class_path": "distributed.LocalCluster",
        "init_args": {
            "threads_per_worker": 1,
            "dashboard_address": "127.0.0.1:0",
            "n_workers": 1,
        },
    }
    one, two, killed = folders = [tmp_path / name for name in ("one", "two", "killed")]
    for folder in folders:
        folder.mkdir()
    process = start(killed, policy, WAITS, **options)
    kill_after(
        process,
        killed / "batches",
        60,
        lambda: killed.glob("runs/tiny/*/checkpoints/last.ckpt"),
    )
    running = [
        start(one, policy, **options, cluster=cluster),
        start(killed, policy, "--ckpt_path=last", **options),
    ]
    if policy == "Reservoir":
        running.append(start(two, policy, **options))
    else:
        # The killed run has two workers as well.
        folders.remove(two)
    for process in running:
        output, _ = process.communicate(timeout=110)
        assert process.returncode == 0, output
    first, *others = [lines(folder / "batches") for folder in folders]
    # What was trained behind the checkpoint comes a second time, and is the same.
    by_step = {step: batch for step, batch in first}
    assert len(by_step) == len(first) > 100
    for other in others:
        assert all(by_step[step] == batch for step, batch in other)
        assert {step for step, _ in other} == by_step.keys()
    first, *others = [weights(folder) for folder in folders]
    for other in others:
        assert set(other) == set(first)
        for name, tensor in first.items():
            assert torch.equal(tensor, other[name]), name


def test_a_requeued_job_goes_on_by_itself_with_what_failed(tmp_path, monkeypatch):
    """As Slurm starts it again: what has failed is not run again, and still counted.

    It is saved at the interval of validations, though none runs.
    """
    path = tmp_path / "batches"
    options = {
        "solver": {
            "class_path": "troubled.Troubled",
            "init_args": {"fault": "raises", "above": 0.8},
        },
        "simulations": 120,
        "faults": {"max_failures": 120, "retries": 0},
    }
    words = ["--model.network.widths=[16]"]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    without = "--trainer.limit_val_batches=0"
    process = start(tmp_path, "FIFO", WAITS, without, *words, **options)
    kill_after(
        process, path, 15, lambda: tmp_path.glob("runs/tiny/*/checkpoints/last.ckpt")
    )
    (before,) = (tmp_path / "runs" / "tiny").iterdir()
    assert before.name.endswith("_job7")
    first = lines(path)
    path.unlink()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    process = start(tmp_path, "FIFO", *words, **options)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    second = lines(path)
    went_on = second[0][0]
    assert went_on >= 10, output
    trained = [tuple(s) for step, batch in first if step < went_on for s in batch]
    trained += [tuple(s) for _, batch in second for s in batch]
    counts = collections.Counter(trained)
    assert set(counts.values()) == {1}
    failed = int(re.findall(r"(\d+) failed", output)[-1])
    done = int(re.findall(r"simulations (\d+) done", output)[-1])
    assert done + failed == 120 + 2
    earlier = int(re.search(r"Going on: .*? (\d+) failed", output)[1])
    assert 0 < earlier < failed
    (after,) = set((tmp_path / "runs" / "tiny").iterdir()) - {before}
    with (after / "failures.csv").open(newline="") as file:
        again = [row["simulation"] for row in csv.DictReader(file)]
    assert len(again) == len(set(again)) == failed - earlier


class Touch:
    """What a pickle with code in it would do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A folder with a run in it that ended after 20 batches, without a validation."""
    folder = tmp_path_factory.mktemp("ended")
    words = ("FIFO", "--trainer.max_steps=20", "--trainer.limit_val_batches=0")
    process = start(folder, *words, checkpoint_reservoir=True)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    return folder


def test_a_run_that_has_ended_has_nothing_left(ended, tmp_path):
    """It says so, and which checkpoint predicts; the next resume goes on with that one."""
    shutil.copytree(ended / "runs", tmp_path / "runs")
    said = []
    for _ in range(2):
        words = ("FIFO", "--trainer.max_steps=20", "--ckpt_path=last")
        process = start(tmp_path, *words, checkpoint_reservoir=True)
        output, _ = process.communicate(timeout=100)
        assert process.returncode == 0, output
        said.append(output)
    for output in said:
        (path,) = ended.glob("runs/tiny/*/checkpoints/last.ckpt")
        path = path.relative_to(ended)
        assert f"Nothing was left to train after {path}. To go on with it: " in output
        assert f"Next: surrogate-flow predict --ckpt_path {path} " in output
        assert "cut off" not in output


def refused(
    ended,
    folder,
    capsys,
    monkeypatch,
    *words,
    change=lambda saved, path: saved,
    **options,
):
    """What `fit --ckpt_path` says to a copy of the run's checkpoint, changed."""
    (path,) = ended.glob("runs/tiny/*/checkpoints/last.ckpt")
    copied = folder / "runs" / "tiny" / "before"
    shutil.copytree(path.parents[1], copied)
    path = copied / "checkpoints" / "last.ckpt"
    saved = change(torch.load(path, weights_only=True), path)
    if saved is not None:
        torch.save(saved, path)
    (folder / "workflow.yaml").write_text(
        yaml.safe_dump(
            workflow(
                options.pop("policy", "FIFO"), checkpoint_reservoir=True, **options
            )
        )
    )
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "fit",
                "--data",
                "workflow.yaml",
                "--model",
                "fully_connected",
                f"--ckpt_path={path}",
                *words,
            ]
        )
    assert stopped.value.code == 2
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if "error:" in line
    ]
    return line


def heat(**changes):
    arguments = {"cells": list(CELLS), "steps": STEPS, "time_step": 0.005, **changes}
    return {"class_path": "surrogate_flow.solvers.Heat2D", "init_args": arguments}


def cut(saved, path):
    path.write_bytes(path.read_bytes()[:-1000])


def cut_rows(saved, path):
    (rows,) = [
        p
        for p in path.parent.glob("*.npy")
        if p.name == saved["OnlineData"]["ranks"][0]["rows"]
    ]
    rows.write_bytes(rows.read_bytes()[:-1000])


def with_code(saved, path):
    saved["callbacks"]["code"] = Touch(path.parent / "touched")
    return saved


def of_another_version(saved, path):
    saved["surrogate"]["format"] = 99
    return saved


def without_network(saved, path):
    del saved["surrogate"]["network"]
    return saved


def of_another_shape(saved, path):
    name = min(saved["state_dict"])
    saved["state_dict"][name] = torch.zeros(3, 5)
    return saved


def weights_alone(saved, path):
    del saved["optimizer_states"]
    return saved


def without_unseen(saved, path):
    del saved["OnlineData"]["ranks"][0]["store"]["unseen"]
    return saved


@pytest.mark.parametrize(
    ("words", "options", "change", "message"),
    [
        ([], {}, cut, r"cannot be read as a checkpoint"),
        ([], {}, with_code, r"holds more than data, which is never executed"),
        ([], {}, of_another_version, r"expected a surrogate of format 1, got 99"),
        ([], {}, without_network, r"damaged: it has no network\."),
        ([], {}, of_another_shape, r"not the network's: it has \[3, 5\], asked for is"),
        ([], {}, weights_alone, r"has the weights alone, .* no fit"),
        (
            [],
            {"solver": heat(steps=STEPS + 1)},
            None,
            rf"another spec: it has {STEPS} values of times, asked for are {STEPS + 1}\.",
        ),
        (
            ["--model.network.init_args.widths=[8]"],
            {},
            None,
            r"another network: it has .*widths = .*, asked for is \[8\]",
        ),
        (
            [],
            {
                "sampler": {
                    "class_path": "surrogate_flow.sampling.Uniform",
                    "init_args": {"seed": 7},
                }
            },
            None,
            r"another data\.sampler .*: it has \w+ = [\d.]+, asked for is \d",
        ),
        (
            [],
            {"held_out": 3},
            None,
            r"another data\.held_out: it has 2, asked for is 3",
        ),
        (
            [],
            {"policy": "FIRO"},
            None,
            r"reservoir: it has a FIFO, asked for is a FIRO",
        ),
        ([], {}, cut_rows, r"cannot be read as a file of steps .* cut off"),
        (
            [],
            {},
            without_unseen,
            r"another version of surrogate_flow: entries \['unseen'\]",
        ),
    ],
    ids=[
        "cut",
        "code",
        "format",
        "no network",
        "shape",
        "weights",
        "spec",
        "network",
        "sampler",
        "held_out",
        "policy",
        "rows",
        "version",
    ],
)
def test_refuses_a_checkpoint_that_does_not_fit(
    ended, tmp_path, capsys, monkeypatch, words, options, change, message
):
    """One line, which names the difference; nothing runs, nothing in it is executed."""
    options = {**options, **({"change": change} if change else {})}
    line = refused(ended, tmp_path, capsys, monkeypatch, *words, **options)
    assert re.search(message, line), line
    assert not list(tmp_path.rglob("touched"))


def test_last_is_the_newest_run(ended, tmp_path, capsys, monkeypatch, caplog):
    """Without a run it says where it looked."""
    (tmp_path / "workflow.yaml").write_text(yaml.safe_dump(workflow("FIFO")))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(
            [
                "fit",
                "--data",
                "workflow.yaml",
                "--model",
                "fully_connected",
                "--ckpt_path=last",
            ]
        )
    assert (
        "no run in runs/tiny has a checkpoint of that name" in capsys.readouterr().err
    )
    caplog.clear()
    paths = [
        tmp_path / "runs" / "tiny" / name / "checkpoints" / "last.ckpt"
        for name in ("b", "a", "c_job7")
    ]
    for age, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1000 + age, 1000 + age))
    assert runs.last_checkpoint(tmp_path / "runs", "tiny") == paths[2]
    os.utime(paths[1])
    assert runs.last_checkpoint(tmp_path / "runs", "tiny") == paths[1]
    assert not caplog.records
    # One that is newer, but was cut off too early, is not passed over in silence.
    for name in ("d", "e_test"):
        (tmp_path / "runs" / "tiny" / name).mkdir()
    assert runs.last_checkpoint(tmp_path / "runs", "tiny") == paths[1]
    (record,) = caplog.records
    assert f"{paths[1].parents[2] / 'd'} is newer" in record.getMessage()
    caplog.clear()
    runs.last_checkpoint(tmp_path / "runs", "tiny", mine=tmp_path / "runs/tiny/d")
    assert not caplog.records
    # A requeued job goes on with its own, and no other job with it.
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert runs.job_checkpoint(tmp_path / "runs", "tiny") is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert runs.job_checkpoint(tmp_path / "runs", "tiny") == paths[2]
    assert runs.new_folder(tmp_path, "tiny")[0].name.endswith("_job7")
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert runs.job_checkpoint(tmp_path / "runs", "tiny") is None


@pytest.mark.parametrize("kind", ["", "test"])
def test_runs_that_begin_together_have_folders_of_their_own(
    tmp_path, monkeypatch, kind
):
    """Those that begin in one second write no checkpoint into another's folder."""

    def begun(_):
        return runs.new_folder(tmp_path, "tiny", kind)[0]

    monkeypatch.delenv("SURROGATE_FLOW_RUN", raising=False)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(begun, range(40)))
    assert len({*folders}) == 40
    assert {*folders} == {*(tmp_path / "tiny").iterdir()}
    assert all(folder.name.endswith(kind) for folder in folders)
    # Every rank of the last run has its folder.
    last = os.environ["SURROGATE_FLOW_RUN"]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert runs.new_folder(tmp_path, "tiny", kind) == (Path(last), [])


def test_ranks_that_another_program_starts_share_a_folder(tmp_path, monkeypatch):
    """If they begin in one second: three times out of three they will not miss it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    pairs = [[runs.new_folder(tmp_path, "tiny")[0] for _ in range(2)] for _ in range(3)]
    assert any(one == other for one, other in pairs)
