"""A data set read to train on: each sample once an epoch, each byte once, and what is damaged is named."""

import csv
import json
import shutil
import sys
from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as L
import torch
import zarr
from programs import run
from pytorch_lightning.callbacks import LambdaCallback, ModelCheckpoint
from recorder import Recorder
from test_ranks import TWO
from troubled import STEPS, Wave

from surrogate_flow.cli.app import main
from surrogate_flow.data.archiving import planned
from surrogate_flow.data.shuffle import ShuffledReader
from surrogate_flow.data.stored import StoredData, StoredLoader
from surrogate_flow.dataset import Archive, ArchiveError, layout
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.window import Autoregressive, Direct, Window
from surrogate_flow.nn import FullyConnected
from surrogate_flow.sampling import Uniform
from surrogate_flow.solvers import Heat2D
from surrogate_flow.stream import Encoder
from surrogate_flow.surrogate.surrogate import Surrogate

HELD_OUT, TRAINING = 3, 21


@dataclass(frozen=True)
class Steps(Window):
    """Two steps -> the next one, every second step."""

    @property
    def inputs(self):
        return 2

    @property
    def outputs(self):
        return 1

    @property
    def stride(self):
        return 2


class Long(Wave):
    """A wave of 40 steps."""

    spec = replace(Wave.spec, times=tuple(float(k) for k in range(1, 41)))


def write(path, solver, simulations=TRAINING, leave=()):
    """A data set, without a cluster: as workers write it."""
    archive, rows = planned(
        path,
        solver,
        Uniform(),
        held_out=HELD_OUT,
        simulations=simulations,
        workflow="wave",
    )
    for row in rows:
        if row.number not in leave:
            writing = archive.writer.begin(solver.spec, row.number)
            crossing = Encoder(solver.spec, row.number)
            for step, dataset in enumerate(solver.solve(row.parameters)):
                writing.write(crossing.convert(dataset, step))
    archive.release()
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A data set of 24 waves, with chunks of two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_CHUNK", 2 * Wave.spec.step_bytes)
        return write(tmp_path_factory.mktemp("stored") / "wave.zarr", Wave())


@pytest.fixture
def wave(written, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(written, tmp_path / "wave.zarr")


def opened(path, stage="fit", **kwargs):
    data = StoredData(path, **{"batch_size": 7, **kwargs})
    data.setup(stage)
    return data


def samples(batches):
    """(phase, step) of all samples, in their order; each is checked."""
    found = []
    for batch in batches:
        for phase, step, history, target in zip(
            batch.parameters[:, 0], batch.step, batch.history, batch.target, strict=True
        ):
            fields = torch.cat([history, target])
            first = int(step) - len(history)
            for k, field in enumerate(fields):
                expected = float(phase) + first + k + 1 + np.arange(4) / 10
                np.testing.assert_allclose(field[0], expected, rtol=1e-5)
            found.append((round(float(phase), 5), int(step)))
    return found


def expected(path, steps):
    archive = Archive(path)
    phases = archive.parameters[HELD_OUT:, 0].astype(np.float32)
    return Counter((round(float(p), 5), s) for p in phases for s in steps)


MEMORY = {"in memory": "1 MB", "in blocks": 2 * 20 * Wave.spec.step_bytes}


@pytest.mark.parametrize("memory", MEMORY)
def test_each_sample_once_an_epoch_in_an_order_of_its_own(written, memory):
    """Another order in each epoch and with each seed; the same again with the same seed."""
    runs = []
    for seed in (1, 1, 2):
        data = opened(written, memory=MEMORY[memory], seed=seed)
        loader = data.train_dataloader()
        assert len(loader) == TRAINING * STEPS / 7
        epochs = [samples(loader) for _ in range(3)]
        for epoch in epochs:
            assert Counter(epoch) == expected(written, range(STEPS))
        assert epochs[0] != epochs[1] != epochs[2]
        runs.append(epochs)
        data.close()
    assert runs[0] == runs[1] != runs[2]
    # Shuffled, not in pieces: neighbours in a batch are of many simulations.
    phases = [phase for phase, _ in runs[0][0][:7]]
    assert len(set(phases)) >= 3


@pytest.mark.parametrize("memory", MEMORY)
def test_no_byte_is_read_twice_in_an_epoch(written, memory, monkeypatch):
    """Bytes that come from the disk in an epoch: those of the chunks to train on, or none."""
    data = opened(written, memory=MEMORY[memory])
    files = [
        path
        for path in (written / "u").glob("c.*")
        if int(path.name.split(".")[1]) >= HELD_OUT
    ]
    size = sum(path.stat().st_size for path in files)
    read = Counter()
    get = zarr.storage.LocalStore.get

    async def counted(self, key, *arguments, **others):
        value = await get(self, key, *arguments, **others)
        if value is not None and "/c." in key:
            read["bytes"] += len(value)
        return value

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counted)
    data.moments()
    epochs = []
    loader = data.train_dataloader()
    for _ in range(3):
        assert len(list(loader)) == len(loader)
        epochs.append(read.pop("bytes", 0))
    data.close()
    assert epochs == ([size, 0, 0] if memory == "in memory" else [size] * 3)


def test_windows_that_cross_pieces_read_no_more_than_is_said(tmp_path, monkeypatch):
    """Of long simulations: bytes of an epoch as counted, and below the documented bound."""
    monkeypatch.setattr(layout, "_CHUNK", 2 * Long.spec.step_bytes)
    path, length = write(tmp_path / "long.zarr", Long(), simulations=5), 40
    archive, spans = Archive(path), {}
    get, steps = zarr.storage.LocalStore.get, Counter()

    async def counted(self, key, *arguments, **others):
        value = await get(self, key, *arguments, **others)
        if value is not None and "/c." in key:
            steps["read"] += archive.chunk_steps
        return value

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counted)
    for span, chunks in product((1, 2, 4), (1, 2, 5)):
        shuffled = ShuffledReader(
            archive,
            range(HELD_OUT, HELD_OUT + 5),
            Autoregressive(inputs=span - 1) if span > 1 else Direct(),
            memory=2 * 8 * chunks * 2 * Long.spec.step_bytes,
            threads=2,
            seed=(0,),
        )
        steps.clear()
        assert sum(len(draw.step) for draw in shuffled.draws(0, 7)) == 5 * (
            length - span + 1
        )
        shuffled.close()
        assert (
            steps["read"] * Long.spec.step_bytes
            == shuffled.bytes_read
            == shuffled.epoch_bytes
        )
        spans[span, chunks] = steps["read"] / (5 * length)
        bound = 1 + -(-(span - 1) // 2) / chunks
        assert 1 <= spans[span, chunks] <= bound
        assert ("times as many bytes" in shuffled.describe()) == (
            spans[span, chunks] > 1
        )
    assert spans[1, 1] == 1
    assert spans[2, 1] > 1.9
    assert spans[2, 5] < 1.2


def test_moments_are_those_of_the_training_part(written):
    """The normalisation knows nothing of the held-out simulations."""
    data = opened(written)
    fields = zarr.open_group(written, mode="r")["u"][HELD_OUT:]
    mean, std = data.moments()
    data.close()
    assert mean == pytest.approx(fields.mean(dtype=np.float64))
    assert std == pytest.approx(fields.std(dtype=np.float64))


def test_a_part_trains_on_the_first_simulations_and_costs_its_share(written):
    """Those held out are the same ones; more than there are is refused."""
    data = opened(written, simulations=6)
    phases = {phase for phase, _ in samples(data.train_dataloader())}
    first = Archive(written).parameters[HELD_OUT : HELD_OUT + 6, 0]
    assert phases == {round(float(p), 5) for p in first.astype(np.float32)}
    whole, part = StoredData(written).cost(), data.cost()
    assert (part.simulations, whole.simulations) == (HELD_OUT + 6, HELD_OUT + TRAINING)
    share = part.simulations / whole.simulations
    assert part.solver_seconds == pytest.approx(whole.solver_seconds * share)
    assert data.validated == HELD_OUT
    data.close()
    with pytest.raises(UserError, match=f"at most {TRAINING}, which"):
        StoredData(written, simulations=TRAINING + 1)


def test_held_out_simulations_are_those_of_the_data_set(written):
    """All of them, and no other, for validation and test."""
    data = opened(written, stage="validate")
    phases = {phase for phase, _ in samples(data.val_dataloader())}
    known = Archive(written).parameters[:HELD_OUT, 0].astype(np.float32)
    assert phases == {round(float(p), 5) for p in known}
    assert data.validated == HELD_OUT


@pytest.mark.parametrize("memory", MEMORY)
def test_windows_of_several_steps(written, memory):
    """With history and stride, across the borders of chunks: each once, and whole."""
    archive = Archive(written)
    numbers = range(HELD_OUT, HELD_OUT + TRAINING)
    for most in (MEMORY[memory], 2 * 3 * Wave.spec.step_bytes):
        shuffled = ShuffledReader(
            archive,
            numbers,
            Steps(),
            memory=10**6 if memory == "in memory" else most,
            threads=2,
            seed=(0,),
        )
        loader = StoredLoader(shuffled, 4, [2 * TRAINING])
        assert Counter(samples(loader)) == expected(written, (2, 4))
        shuffled.moments()
        size, change = shuffled.changes().rms, []
        for batch in loader:
            change.append((batch.target - batch.history[:, -1:]).double().flatten())
        wanted = float(torch.cat(change).square().mean().sqrt())
        assert size == pytest.approx(wanted, rel=1e-5 if memory == "in memory" else 1)
        shuffled.close()


def test_a_run_that_goes_on_trains_the_rest_of_its_epoch(written, tmp_path):
    """Told to stop in the middle of the second epoch, it saves: no sample twice, none left out."""
    length, cut = TRAINING * STEPS // 7, 20
    first, second = Recorder(tmp_path / "first"), Recorder(tmp_path / "second")
    for recorder, limits, checkpoint in (
        (first, {"val_check_interval": 1000}, None),
        (second, {"val_check_interval": cut}, tmp_path / "cut.ckpt"),
    ):
        data = StoredData(written, batch_size=7)
        stop = LambdaCallback(
            on_train_batch_end=lambda trainer, *_, data=data: (
                data.stop() if trainer.global_step == cut - 1 else None
            )
        )
        kept = ModelCheckpoint(tmp_path, "cut", save_on_train_epoch_end=False)
        trainer = L.Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[recorder, kept, stop],
            num_sanity_val_steps=0,
            max_epochs=3,
            check_val_every_n_epoch=None,
            **limits,
        )
        surrogate = Surrogate(data.spec, FullyConnected)
        trainer.fit(surrogate, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    lines = [
        [tuple(sample) for sample in json.loads(line)[1]]
        for name in ("first", "second")
        for line in (tmp_path / name).read_text().splitlines()
    ]
    assert len(lines) == 3 * length
    for epoch in range(3):
        batches = lines[epoch * length : (epoch + 1) * length]
        counted = Counter((round(p, 5), s) for batch in batches for p, s in batch)
        assert counted == expected(written, range(STEPS))


@pytest.mark.timeout(150)
def test_two_ranks_train_each_sample_once_an_epoch(tmp_path):
    """DDP over gloo, by the command line: as many steps each, the last of one without samples."""
    path = write(tmp_path / "wave.zarr", Wave())
    done = run(
        *("fit", "--data", "wave.zarr", "--model", "fully_connected", *TWO),
        *("--data.batch_size=5", "--trainer.max_epochs=2"),
        *("--trainer.callbacks+=recorder.Recorder",),
        f"--trainer.callbacks.path={tmp_path / 'batches'}",
        cwd=tmp_path,
    )
    ranks = [
        [
            json.loads(line)
            for line in (tmp_path / f"batches.{k}").read_text().splitlines()
        ]
        for k in range(2)
    ]
    length = TRAINING // 2 + 1
    for rank in ranks:
        assert [step for step, _ in rank] == list(range(2 * length))
    for epoch in range(2):
        shares = [
            Counter(
                (round(p, 5), int(s))
                for _, batch in rank[epoch * length : (epoch + 1) * length]
                for p, s in batch
            )
            for rank in ranks
        ]
        assert shares[0] + shares[1] == expected(path, range(STEPS))
        assert abs(shares[0].total() - shares[1].total()) == STEPS
    assert f"mean over {HELD_OUT} simulations" in done.stdout


def cut_off(path):
    (path / "u" / "c.5.1.0").unlink()


def truncated(path):
    chunk = path / "u" / "c.5.1.0"
    chunk.write_bytes(chunk.read_bytes()[:-3])


def emptied(path):
    (path / "u" / "c.5.1.0").write_bytes(b"")


def flipped(path):
    chunk = path / "u" / "c.5.1.0"
    content = bytearray(chunk.read_bytes())
    content[-6] ^= 1
    chunk.write_bytes(content)


def no_parameters(path):
    (path / "phase" / "c.0").unlink()


def parameters_cut_off(path):
    chunk = path / "phase" / "c.0"
    chunk.write_bytes(chunk.read_bytes()[:-3])


def other_format(path):
    zarr.open_group(path, mode="r+").attrs["format"] = 7


def no_spec(path):
    (path / "phase" / "zarr.json").unlink()


def empty(path):
    shutil.rmtree(path)
    write(path, Wave(), leave=range(99))


def garbled(path):
    (path / "zarr.json").write_text("{")


DAMAGES = {
    cut_off: "cut off: 1 chunks .* u/c.5.1.0 of simulation 5 first",
    truncated: "simulation 5 cannot be read: u/c.5.1.0 is damaged",
    emptied: "cut off: 1 chunks .* u/c.5.1.0 of simulation 5 first",
    flipped: "simulation 5 cannot be read: u/c.5.1.0 is damaged",
    no_parameters: "damaged .*phase/c.0",
    parameters_cut_off: "damaged",
    other_format: "of format 1, got 7",
    no_spec: "damaged",
    empty: "none of its 21 training simulations is complete",
    garbled: "cannot be read as a Zarr group",
    shutil.rmtree: "there is nothing",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_is_wrong_with_a_data_set_is_said(wave, damage):
    """Before the first batch, naming the place; Zarr itself would read NaN, or fail anyhow."""
    damage(wave)
    with pytest.raises(ArchiveError, match=DAMAGES[damage]):
        list(opened(wave).train_dataloader())


def test_absent_simulations_are_left_out(tmp_path):
    """One that was cut off half way is no sample, whatever chunks of it are there."""
    path = write(tmp_path / "wave.zarr", Wave(), leave=(1, 7))
    archive = Archive(path)
    archive.writer.begin(Wave.spec, 7).write(np.ones((2, 1, 4), np.float32))
    data = opened(path)
    phases = {phase for phase, _ in samples(data.train_dataloader())}
    data.close()
    assert len(phases) == TRAINING - 1
    assert round(float(np.float32(archive.parameters[7, 0])), 5) not in phases
    assert data.validated == HELD_OUT - 1


def test_fit_from_a_data_set_by_the_command_line(tmp_path, monkeypatch, capsys):
    """`--data X.zarr`: beats a constant prediction threefold, writes a run folder; validate agrees."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["surrogate-flow"])
    monkeypatch.setenv("SURROGATE_FLOW_REPORT", "")  # left out in other tests
    solver = Heat2D(cells=(6, 4), steps=10, time_step=0.005)
    write(tmp_path / "heat.zarr", solver, simulations=60)
    words = "--data heat.zarr --data.batch_size 10 --model fully_connected"
    main(
        f"fit {words} --model.optimizer.lr=0.003 --trainer.max_steps 500 "
        "--trainer.val_check_interval 100".split()
    )
    printed = capsys.readouterr().out
    (run,) = (tmp_path / "runs" / "heat_stored").iterdir()
    names = {str(path.relative_to(run)) for path in run.rglob("*")}
    assert {"metrics.csv", "config.yaml", "prediction.png"} <= names
    assert {"checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= names
    found = [line for line in printed.splitlines() if "root mean square" in line][-1]
    rmse, constant = (
        float(found.split()[1]),
        float(found.split("field: ")[1].split()[0]),
    )
    assert rmse < constant / 3
    with (run / "rollout.csv").open() as file:
        rows = [*csv.DictReader(file)]
    worst = max(rows, key=lambda row: float(row["rmse_temperature"]))
    most = f"{float(worst['rmse_temperature']):.3g} K at time {worst['time']} s, where"
    assert most in found
    assert "mean over 3 simulations" in printed
    error = next(line for line in printed.splitlines() if "Validation error" in line)
    for again in ("validate", "test"):
        main(f"{again} {words} --ckpt_path {run}/checkpoints/last.ckpt".split())
        said = capsys.readouterr().out
        assert error.split("error: ")[1].split("%")[0][:4] in said
        assert ("by which best.ckpt was chosen" in said) == (again == "test")
        (page,) = (tmp_path / "runs" / "heat_stored").glob(f"*_{again}/report.html")
        assert "it has ended" in page.read_text()
        assert (page.parent / "ro-crate-metadata.json").is_file()


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "by default"])
def test_one_epoch_that_was_typed_is_one_epoch(typed, tmp_path, monkeypatch):
    """Steps go on over many epochs, unless somebody asked for one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["surrogate-flow"])
    write(tmp_path / "wave.zarr", Wave())
    Path("longer.yaml").write_text("trainer: {max_steps: 40}\n")
    words = "--data wave.zarr --data.batch_size 7 --model fully_connected"
    epochs = "--trainer.max_epochs 1" if typed else ""
    main(f"fit --config longer.yaml {words} {epochs}".split())
    (outcome,) = Path("runs").glob("*/*/outcome.json")
    epoch = -(-TRAINING * STEPS // 7)
    assert json.loads(outcome.read_text())["batches"] == (epoch if typed else 40)


def test_an_outcome_says_what_was_validated_on(tmp_path, monkeypatch):
    """A held-out simulation that failed is not among them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["surrogate-flow"])
    write(tmp_path / "wave.zarr", Wave(), leave=(1,))
    words = "--data wave.zarr --model fully_connected --trainer.max_steps 2"
    main(f"fit {words}".split())
    (outcome,) = Path("runs").glob("*/*/outcome.json")
    assert json.loads(outcome.read_text())["validated"] == HELD_OUT - 1


def test_a_refused_run_leaves_nothing(tmp_path, monkeypatch, capsys):
    """Neither a folder of its own, nor one above it; what was there stays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["surrogate-flow"])
    write(tmp_path / "wave.zarr", Wave())
    words = "fit --data wave.zarr --model fully_connected"
    for refused in ("--data.memory=9", "--ckpt_path=last", "--trainer.precision=7"):
        with pytest.raises(SystemExit):
            main([*words.split(), refused])
        assert [path.name for path in tmp_path.iterdir()] == ["wave.zarr"], refused
    Path("mine").mkdir()
    with pytest.raises(SystemExit):
        main([*words.split(), "--data.memory=9", "--trainer.default_root_dir=mine"])
    assert not list(Path("mine").iterdir())
    assert "data.memory: expected at least" in capsys.readouterr().err
