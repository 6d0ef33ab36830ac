"""Two ranks that train together: DDP over gloo, as a user starts it."""

import collections
import multiprocessing
import os
import signal
import socket
import time
from types import SimpleNamespace

import psutil
import pytest
import torch
import torch.distributed as dist
from programs import FORKED, fit
from test_resume import SIMULATIONS, STEPS, lines, start, workflow

from surrogate_flow.cli.app import main
from surrogate_flow.data.ranks import RankError, Ranks, RankState
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.dataset import Archive
from surrogate_flow.fields.parameter import Parameter
from surrogate_flow.fields.window import Direct
from surrogate_flow.report.folder.run_folder import RunSummary
from surrogate_flow.sampling import Uniform
from surrogate_flow.solvers import Heat2D

# Two trainers and their workers take half a minute to start where cores are few.
pytestmark = pytest.mark.timeout(240)

TWO = ["--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.strategy=ddp"]
HELD_OUT = 3


def wait_for(condition, process, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"nothing for {seconds} s"
        time.sleep(0.01)


def batches(folder):
    """What each rank has trained so far."""
    return [lines(folder / f"batches.{rank}") for rank in range(2)]


def family(process):
    """The other processes of a run: its second rank, and the workers of both."""
    (second,) = second_rank(process)
    return second, psutil.Process(process.pid).children(recursive=True)


def second_rank(process):
    """The process that Lightning has started; none before."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if child.name() == FORKED]


def gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=30)
    return not alive


def numbers():
    """First parameter of each training simulation -> its number."""
    bounds = Heat2D().spec.parameters
    assert isinstance(bounds[0], Parameter)
    points = Uniform(0).ask(0, SIMULATIONS + 1, bounds)
    return {round(float(point[0]), 3): HELD_OUT + k for k, point in enumerate(points)}


def samples(batches_of_rank, known):
    return [
        (known[round(parameter, 3)], step)
        for _, batch in batches_of_rank
        for parameter, step in batch
    ]


# Simulations of one rank can hold all workers, and wait until it trains.
SCARCE = {
    "cluster": {
        "class_path": "distributed.LocalCluster",
        "init_args": {"n_workers": 1, "threads_per_worker": 1},
    },
    "reservoir": {
        "class_path": "surrogate_flow.reservoir.FIFO",
        "init_args": {"capacity": 30},
    },
}


@pytest.mark.parametrize(
    ("policy", "options"),
    [("FIFO", {"archive": "tiny.zarr", **SCARCE}), ("Reservoir", {})],
    ids=["FIFO, one worker for both", "Reservoir"],
)
def test_each_rank_trains_its_share(tmp_path, policy, options, monkeypatch):
    """Simulations are dealt by number; both take the same steps; nothing is lost or doubled."""
    if policy == "Reservoir":
        monkeypatch.setenv("SURROGATE_FLOW_REPORT", "")  # left out in other tests
    options = {"simulations": SIMULATIONS + 1, "held_out": HELD_OUT, **options}
    process = start(tmp_path, policy, *TWO, **options)
    output, _ = process.communicate(timeout=110)
    assert process.returncode == 0, output
    known = numbers()
    both = batches(tmp_path)
    assert [step for step, _ in both[0]] == [step for step, _ in both[1]]
    for rank in range(2):
        counts = collections.Counter(samples(both[rank], known))
        mine = [n for n in known.values() if n % 2 == rank]
        assert set(counts) == {(n, s) for n in mine for s in range(STEPS)}
        if policy == "FIFO":
            assert set(counts.values()) == {1}
    (path,) = (tmp_path / "runs" / "tiny").iterdir()
    names = {p.name for p in path.iterdir()}
    assert {"metrics.csv", "rollout.csv", "config.yaml"} <= names
    assert ({"prediction.png", "report.html"} <= names) == (policy == "Reservoir")
    assert f"mean over {HELD_OUT} simulations" in output
    assert output.count("Dask dashboard") == 1
    if "archive" in options:
        archive = Archive(tmp_path / "tiny.zarr")
        assert len(archive.complete()) == archive.simulations
        outcome = RunSummary.read(path)
        # Of both ranks; the outcome is of the first.
        assert archive.solver_seconds > outcome.solver_seconds > 0


def test_each_rank_trains_on_the_input_fields_of_its_share(tmp_path):
    """Held-out ones, too: u is two times its input field, and no other's."""
    recipe = {
        "name": "tiny",
        "solver": {"class_path": "recorder.Doubles", "init_args": {}},
        "inputs": {"class_path": "recorder.Numbered", "init_args": {}},
        "simulations": 21,
        "held_out": HELD_OUT,
        "batch_size": 4,
        "reservoir": {
            "class_path": "surrogate_flow.reservoir.FIRO",
            "init_args": {"capacity": 16, "threshold": 8},
        },
    }
    words = [
        "--trainer.callbacks+=recorder.Given",
        f"--trainer.callbacks.path={tmp_path}",
    ]
    process = fit(tmp_path, recipe, *TWO, *words, start_new_session=True)
    output, _ = process.communicate(timeout=110)
    assert process.returncode == 0, output
    for rank in range(2):
        given = lines(tmp_path / f"given.{rank}")
        trained = [sample for kind, sample in given if kind == "train"]
        held_out = {tuple(sample) for kind, sample in given if kind == "validate"}
        mine = [n for n in range(HELD_OUT + 21) if n % 2 == rank]
        # Number of the simulation, its input field, what the solver made of it.
        assert held_out == {(n, n, 2 * n) for n in mine if n < HELD_OUT}
        assert sorted(trained) == [[n, n, 2 * n] for n in mine if n >= HELD_OUT]
    assert [*tmp_path.glob("runs/tiny/*/inputs.nc")]


def test_both_ranks_go_on_after_a_kill(tmp_path, monkeypatch, capsys):
    """Each with its own share: FIRO trains every sample of every simulation once."""
    options = {"held_out": HELD_OUT}
    until = "--trainer.callbacks.until=30"
    process = start(tmp_path, "FIRO", *TWO, until, **options)
    wait_for(
        lambda: (
            len(batches(tmp_path)[1]) >= 14
            and list(tmp_path.glob("runs/tiny/*/checkpoints/last.ckpt"))
        ),
        process,
    )
    _, children = family(process)
    for victim in (process, *children):
        victim.kill()
    process.communicate(timeout=20)
    assert gone(children)
    first = batches(tmp_path)
    for rank in range(2):
        (tmp_path / f"batches.{rank}").unlink()
    process = start(tmp_path, "FIRO", *TWO, "--ckpt_path=last", **options)
    output, _ = process.communicate(timeout=110)
    assert process.returncode == 0, output
    second, known = batches(tmp_path), numbers()
    went_on = second[0][0][0]
    assert went_on == second[1][0][0] >= 10
    trained = []
    for rank in range(2):
        trained += samples(
            [b for b in first[rank] if b[0] < went_on] + second[rank], known
        )
    assert set(collections.Counter(trained).values()) == {1}
    assert len(trained) == SIMULATIONS * STEPS
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                *("fit", "--data=workflow.yaml", "--model=fully_connected"),
                "--ckpt_path=last",
            ]
        )
    assert stopped.value.code == 2
    assert "1, got 2. Use --trainer.devices 2" in capsys.readouterr().err


def test_a_checkpoint_is_of_as_many_ranks():
    """Each has its share of the simulations: the remedy is as many devices again."""
    with pytest.raises(RankError, match=r"1, got 2\. Use --trainer\.devices 2"):
        Ranks().share_of([{}, {}])
    assert Ranks().share_of(["mine"]) == "mine"


@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_rank_dies_the_other_ends_with_its_name(tmp_path, victim):
    process = start(tmp_path, "FIFO", *TWO, held_out=HELD_OUT, simulations=5000)
    wait_for(lambda: len(batches(tmp_path)[1]) >= 5, process)
    second, children = family(process)
    (process if victim == 0 else second).kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert (
        f"Rank {victim} (process {process.pid if victim == 0 else second.pid} on "
        in output
    )
    assert "has died" in output
    assert gone(children)


def test_when_a_rank_fails_the_other_ends_too(tmp_path):
    """Only the simulations of the second rank fail."""
    recipe = workflow("FIFO", held_out=HELD_OUT, simulations=5000)
    recipe["solver"] = {"class_path": "troubled.OddFail", "init_args": {}}
    recipe["faults"] = {"retries": 0, "max_failures": 3}
    process = fit(tmp_path, recipe, *TWO, start_new_session=True)
    wait_for(lambda: second_rank(process), process)
    children = psutil.Process(process.pid).children(recursive=True)
    output, _ = process.communicate(timeout=90)
    assert process.returncode != 0
    assert "Rank 1 (process " in output
    assert "more than max_failures=3" in output
    assert gone(children)
    (path,) = (tmp_path / "runs" / "tiny").iterdir()
    assert len((path / "failures_1.csv").read_text().splitlines()) >= 5
    assert not (path / "failures.csv").exists()


def test_a_lost_terminal_ends_both_with_a_checkpoint(tmp_path):
    """SIGHUP to all of its processes, as when a connection breaks."""
    process = start(tmp_path, "FIFO", *TWO, held_out=HELD_OUT, simulations=5000)
    wait_for(lambda: len(batches(tmp_path)[1]) >= 5, process)
    _, children = family(process)
    os.killpg(process.pid, signal.SIGHUP)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGHUP, output
    (path,) = tmp_path.glob("runs/tiny/*/checkpoints/last.ckpt")
    both = batches(tmp_path)
    assert (
        len(both[0])
        == len(both[1])
        == torch.load(path, weights_only=True)["global_step"]
    )
    assert gone(children)


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    """The folder of a run that two ranks ended after 25 steps, with what they sent."""
    folder = tmp_path_factory.mktemp("limited")
    process = start(
        folder,
        "Reservoir",
        *TWO,
        "--trainer.max_steps=25",
        "--trainer.callbacks+=recorder.Eavesdropper",
        f"--trainer.callbacks.path={folder / 'sent'}",
        held_out=HELD_OUT,
        simulations=None,
    )
    output, _ = process.communicate(timeout=110)
    assert process.returncode == 0, output
    return folder


def test_both_end_at_max_steps(limited):
    both = [[step for step, _ in rank] for rank in batches(limited)]
    assert both[0] == both[1] == list(range(25))


def test_ranks_tell_each_other_no_keys(limited):
    """What torch.distributed sends could be read on the way: only the names of the keys' files go there."""
    sent = b"".join((limited / f"sent.{rank}").read_bytes() for rank in range(2))
    assert b"tls://127.0.0.1:" in sent
    assert b".keys-" in sent
    assert b"-----BEGIN" not in sent
    assert not list(limited.glob("**/.keys-*"))


def test_both_end_at_the_same_moment(tmp_path):
    """However the clocks of the two differ."""
    options = {"held_out": HELD_OUT, "simulations": None}
    process = start(
        tmp_path, "Reservoir", *TWO, "--trainer.max_time=00:00:00:06", **options
    )
    output, _ = process.communicate(timeout=110)
    assert process.returncode == 0, output
    both = [[step for step, _ in rank] for rank in batches(tmp_path)]
    assert both[0] == both[1]
    assert both[0][-1] > 0


def test_too_few_held_out_simulations(tmp_path):
    """Each rank needs one to validate with; all ranks find that out, and end."""
    process = start(tmp_path, "FIFO", *TWO, held_out=1)
    output, _ = process.communicate(timeout=110)
    assert process.returncode == 2
    assert "for each of 2 ranks, got 1" in output


def test_held_out_simulations_are_counted_for_each_rank():
    """Whichever rank counts."""
    for rank in range(2):
        with pytest.raises(ValueError, match="for each of 2 ranks, got 1"):
            ValidationSet.of_rank(
                SimpleNamespace(rank=rank, world=2), Heat2D().spec, Direct(), 1, 1
            )


def elsewhere(rank, path, said):
    """One of two ranks on machines of their own, the second of which is killed."""
    socket.gethostname = lambda: f"machine{rank}"
    store = dist.FileStore(str(path), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    ranks = Ranks(rank, 2)
    assert not ranks.on_one_machine
    ranks.gather_states(RankState.READY)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        ranks.gather_states(RankState.READY)
    except RankError as error:
        said.put(str(error))


def test_a_rank_that_dies_elsewhere_ends_this_one(tmp_path):
    """On another machine, where no process can be looked at."""
    fork = multiprocessing.get_context("fork")
    said = fork.Queue()
    ranks = [
        fork.Process(target=elsewhere, args=(rank, tmp_path / "store", said))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    assert "Another rank has died or does not answer" in said.get(timeout=100)
    for process in ranks:
        process.join(100)
    assert [process.exitcode for process in ranks] == [0, -signal.SIGKILL]
