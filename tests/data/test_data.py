"""The data module on a real cluster: what enters the reservoir, what is held out, how it ends."""

import multiprocessing
import re
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as L
import torch
from batch import wait_until
from distributed import LocalCluster
from troubled import STEPS, FailsLate, Heavy, Hoarder, Troubled, Wave

from surrogate_flow.data.online import OnlineData
from surrogate_flow.data.ranks import Ranks
from surrogate_flow.data.validation import ValidationSet
from surrogate_flow.ensemble.ensemble import EnsembleError
from surrogate_flow.ensemble.faults import Faults
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.window import Direct
from surrogate_flow.nn import FullyConnected
from surrogate_flow.report.callbacks import run_callbacks
from surrogate_flow.reservoir import FIFO, FIRO, DeviceMemory, Reservoir
from surrogate_flow.sampling import Sobol, Uniform
from surrogate_flow.sampling.design import SEEDS
from surrogate_flow.solvers import Heat2D
from surrogate_flow.surrogate.surrogate import Surrogate

POLICIES = {
    "FIFO": FIFO(capacity=40),
    "FIRO": FIRO(capacity=40, threshold=20),
    "Reservoir": Reservoir(capacity=40, threshold=20),
    "device": FIRO(capacity=40, threshold=20, memory=DeviceMemory),
}


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Makes data modules whose study is open, and closes them."""
    monkeypatch.chdir(tmp_path)
    modules, before = [], set(multiprocessing.active_children())

    def make(solver=None, trainer=None, **kwargs):
        defaults = {"simulations": 30, "held_out": 3, "batch_size": 7}
        data = OnlineData(solver or Wave(), **{**defaults, **kwargs})
        data.trainer = trainer
        modules.append(data)
        data.setup("fit")
        return data

    yield make
    for data in modules:
        data.close()
        data.close()
    assert not set(multiprocessing.active_children()) - before
    assert "inlet" not in [thread.name for thread in threading.enumerate()]


def samples(batches):
    """The (phase, step) of every sample of some batches."""
    return Counter(
        (round(float(phase), 5), int(step))
        for batch in batches
        for phase, step in zip(batch.parameters[:, 0], batch.step, strict=True)
    )


def expected(sampler, count):
    phases = sampler.ask(0, count, Wave.spec.parameters)[:, 0]
    return {(round(float(np.float32(p)), 5), s) for p in phases for s in range(STEPS)}


@pytest.mark.parametrize("policy", POLICIES)
def test_trains_on_the_sampled_simulations_and_no_other(opened, policy):
    """Exactly the samples of the training sampler come out: once, or at least once (Reservoir)."""
    data = opened(sampler=Sobol(seed=5), reservoir=POLICIES[policy])
    data.moments()
    got = samples(data.train_dataloader())
    assert set(got) == expected(Sobol(seed=5), 30)
    if policy != "Reservoir":
        assert set(got.values()) == {1}


def test_held_out_set_has_a_seed_of_its_own(opened):
    """The validation set is whole, of other parameters than training, the same every time."""
    data = opened(reservoir=POLICIES["FIFO"])
    held_out = data.val_dataloader()
    assert len(held_out) == 1  # of up to four times 7
    got = samples(held_out)
    assert set(got) == expected(Uniform(SEEDS["validation"]), 3)
    assert set(got.values()) == {1}
    assert not set(got) & expected(Uniform(seed=0), 30)
    for batch in held_out:
        truth = batch.parameters[:, :1] + batch.step[:, None] + 1 + torch.arange(4) / 10
        np.testing.assert_allclose(batch.target[:, 0, 0], truth, rtol=1e-5)


def test_reception_goes_on_while_validation_runs(opened):
    """With a validation batch in hand and none drawn for training, every step still arrives."""
    data = opened(reservoir=FIFO(capacity=1000))
    next(iter(data.val_dataloader()))
    assert data.source.study.wait(150)
    assert data.status().store.population == 30 * STEPS
    assert data.status().ensemble.done == 33


class Kept(L.Callback):
    """Keeps the batches."""

    def __init__(self):
        self.batches = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.batches.append(batch)


def test_deterministic_batches_do_not_depend_on_the_speed_of_failures(opened):
    """What a simulation that fails for good had yielded before is trained, whenever it came."""
    runs = []
    for pace in (0.0, 0.3):
        data = opened(
            FailsLate(pace),
            simulations=12,
            held_out=1,
            batch_size=4,
            deterministic=True,
            reservoir=POLICIES["FIRO"],
            faults=Faults(retries=1, max_failures=99),
        )
        batches = list(data.train_dataloader())
        runs.append([samples([batch]) for batch in batches])
        every = samples(batches)
        assert set(every.values()) == {1}
        failed = {phase for phase, _ in every if phase > 0.7}
        assert failed
        for phase in failed:
            steps = [step for p, step in every if p == phase]
            assert sorted(steps) == list(range(STEPS - 2))
        data.close()
    assert runs[0] == runs[1]


@pytest.mark.parametrize("deterministic", [False, True])
def test_simulations_that_are_waited_for_get_through(
    deterministic, opened, monkeypatch
):
    """Quick ones may fill the reservoir and all that is on its way: held-out ones, and that in its turn, go on."""
    monkeypatch.setattr("surrogate_flow.stream.inlet.BUDGET", 0)
    data = opened(
        Heavy(),
        simulations=12,
        held_out=2,
        batch_size=4,
        deterministic=deterministic,
        reservoir=FIFO(capacity=8),
        cluster=partial(one_worker, 4),
        faults=Faults(patience=120),
    )
    assert len(data.val_dataloader()) > 0
    counts = samples(data.train_dataloader())
    assert counts.total() == 12 * 60
    assert set(counts.values()) == {1}


def test_loaders_that_lightning_asks_for_again_lose_and_repeat_nothing(tmp_path):
    """Epochs of 20 batches, with the loader "reloaded" for each: every sample once."""
    data = OnlineData(
        Wave(), simulations=40, held_out=1, batch_size=4, reservoir=POLICIES["FIFO"]
    )
    kept = Kept()
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        max_epochs=3,
        limit_train_batches=20,
        reload_dataloaders_every_n_epochs=1,
        callbacks=[kept],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(Surrogate(Wave.spec, partial(FullyConnected, widths=[8])), data)
    counts = samples(kept.batches)
    assert len(counts) == 40 * STEPS
    assert set(counts.values()) == {1}


class Saves(L.Callback):
    """Writes a checkpoint after a certain batch."""

    def __init__(self, path, after):
        self.path, self.after = path, after

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if index + 1 == self.after:
            trainer.save_checkpoint(self.path)


def one_worker(threads=1):
    return LocalCluster(
        n_workers=1,
        threads_per_worker=threads,
        processes=False,
        dashboard_address="127.0.0.1:0",
    )


@pytest.mark.parametrize("after", [9, 10, 11])
def test_a_resume_amid_gradients_that_add_up_ends_with_the_same_weights(
    after, tmp_path
):
    """The optimizer steps at every third batch, before the checkpoint and after it.

    Told to stop while it waits for a batch, a run takes the one that it has for the last.
    """
    path, weights = tmp_path / "checkpoints" / "kept.ckpt", []
    for resumed in (False, True):
        if resumed:
            saved = torch.load(path, weights_only=True)
            progress = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            assert not progress["is_last_batch"]
            progress["is_last_batch"] = True
            torch.save(saved, path)
        L.seed_everything(0, verbose=False)
        data = OnlineData(
            Wave(),
            simulations=40,
            held_out=1,
            batch_size=4,
            deterministic=True,
            reservoir=POLICIES["FIRO"],
            cluster=one_worker,
        )
        trainer = L.Trainer(
            default_root_dir=tmp_path,
            accumulate_grad_batches=3,
            max_steps=12,
            max_epochs=1,
            callbacks=[] if resumed else [Saves(path, after)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        )
        surrogate = Surrogate(Wave.spec, partial(FullyConnected, widths=[8]))
        trainer.fit(surrogate, data, ckpt_path=path if resumed else None)
        assert trainer.global_step == 12
        weights.append(surrogate.network.state_dict())
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_moments_are_those_of_the_first_fill(opened):
    """Mean and spread of each variable, of what the reservoir holds."""
    data = opened(reservoir=FIFO(capacity=1000))
    data.source.start()
    assert data.source.study.wait(150)
    mean, std = data.moments()
    fields = np.concatenate([b.target.numpy() for b in data.train_dataloader()])
    np.testing.assert_allclose(mean, [fields.mean()], rtol=1e-5)
    np.testing.assert_allclose(std, [fields.std()], rtol=1e-5)


def test_spread_is_the_error_of_the_best_constant(opened):
    """The spread of the held-out set is its standard deviation."""
    data = opened(reservoir=POLICIES["FIFO"])
    held_out = data.val_dataloader()
    np.testing.assert_allclose(held_out.spread(), [held_out.fields.std()], rtol=1e-5)


def named(loader, said):
    """Wait until the error of a study that is silent says something.

    On a busy machine the first simulation may take longer than `patience` to begin.
    """

    def told():
        with pytest.raises(TimeoutError, match="No step for") as caught:
            list(loader())
        return re.search(said, str(caught.value))

    wait_until(told, 120)


def test_a_hanging_solver_is_named_in_time(opened):
    """When nothing arrives for `patience` seconds the error names the silent simulations."""
    data = opened(
        Troubled("hangs", above=-1.0),
        reservoir=POLICIES["FIFO"],
        faults=Faults(patience=3.0),
    )
    said = (
        r"though (1 simulation runs|\d+ simulations run)\. Silent longest: simulation"
    )
    named(data.val_dataloader, said + r".* \(step 1, \d+ s ago\)")


def test_a_solver_that_hangs_while_training_goes_on_is_named_in_time(opened):
    """Draws with repetition always succeed; the silence of the solvers is noticed all the same."""
    data = opened(
        Troubled("hangs", above=0.5),
        held_out=1,
        held_out_sampler="same",
        sampler=Uniform(seed=3),  # the first two end, the third hangs
        reservoir=Reservoir(capacity=40, threshold=3),
        faults=Faults(patience=4.0),
    )
    drawn = threading.Event()

    def train():
        for batch in data.train_dataloader():
            drawn.set()
            yield batch
            time.sleep(0.02)  # as a step of training takes

    while not drawn.is_set():
        named(train, "Silent longest: simulation")


def test_workers_that_are_paused_for_want_of_memory_are_told_of(opened, tmp_path):
    """Dask has such a worker begin nothing: the study says which, why, and what to do; and goes on."""
    file = tmp_path / "let go"
    data = opened(
        Hoarder(str(file), megabytes=700),
        held_out=1,
        simulations=3,
        reservoir=POLICIES["FIFO"],
        faults=Faults(patience=8.0),
        cluster=partial(
            LocalCluster,
            n_workers=1,
            threads_per_worker=1,
            # Paused from 640 MB on, and killed from 760 MB on.
            memory_limit="800 MB",
            dashboard_address="127.0.0.1:0",
        ),
    )
    said = r"1 of 1 workers paused for want of memory \(tls://\S+: its process holds \d"
    named(data.train_dataloader, said)
    assert re.search(said, data.status().waiting)
    file.touch()
    batches = []

    def trained():
        # It may take its time to begin again, too.
        with suppress(TimeoutError):
            batches.extend(data.train_dataloader())
            return True

    wait_until(trained, 120)
    assert not re.search(said, data.status().waiting)
    assert len(samples(batches)) == 3 * STEPS


def test_no_held_out_simulation_is_an_error(opened):
    """If all of the validation set fail there is nothing to validate with, and it says so.

    Why lies in the folder of the run, whoever logs.
    """
    callbacks = run_callbacks("mine", report=False)
    data = opened(
        Troubled("nothing", above=0.0),
        L.Trainer(logger=False, callbacks=callbacks, accelerator="cpu"),
        simulations=1,
        reservoir=POLICIES["FIFO"],
        faults=Faults(retries=0),
    )
    with pytest.raises(EnsembleError, match=r"None of the 3 held-out.*failures\.csv"):
        data.val_dataloader()
    assert Path("mine/failures.csv").exists()
    assert not Path("failures.csv").exists()
    with pytest.raises(EnsembleError, match="before a single sample"):
        data.moments()


def test_a_policy_may_be_given_as_its_class():
    """With arguments or without, as in a recipe; null is the default."""
    expected = Reservoir(capacity=40, threshold=20)
    for given in (expected, partial(Reservoir, capacity=40, threshold=20)):
        assert OnlineData(Wave(), reservoir=given).reservoir == expected
    data = OnlineData(Wave(), reservoir=None, faults=None)
    assert (data.reservoir, data.faults) == (Reservoir(), Faults())


def test_stop_wakes_the_trainer(opened):
    """A trainer that waits for its batch is released by stop, from another thread."""
    data = opened(Troubled("hangs", above=-1.0), reservoir=POLICIES["FIFO"])
    timer = threading.Timer(0.5, data.stop)
    timer.start()
    assert list(data.train_dataloader()) == []
    timer.join()


def test_a_misspelt_sampler_is_refused():
    with pytest.raises(UserError, match=r"held_out_sampler: .* or 'same', got 'sam'"):
        OnlineData(Wave(), held_out_sampler="sam")


def test_what_makes_a_policy_is_one_too():
    """Scripts of version 0.1 have a partial there."""
    made = OnlineData(Wave(), reservoir=partial(FIFO, capacity=20)).reservoir
    assert made == FIFO(capacity=20)


def test_loaders_before_setup_say_so():
    """A loader asked for too early names what to call first."""
    with pytest.raises(RuntimeError, match=r"expected setup\(\)"):
        OnlineData(Wave()).val_dataloader()


def test_more_are_held_out_where_they_are_small():
    """By the spec alone: a resumed run and a longer one number their simulations alike."""
    assert OnlineData(Wave(), simulations=7).held_out == 30
    assert OnlineData(Heat2D(cells=(100, 100))).held_out == 10
    assert OnlineData(Wave(), held_out=4).held_out == 4


def test_the_same_module_opens_again(opened):
    """After its end a module may be set up once more, for another part of the study."""
    data = opened(reservoir=POLICIES["FIFO"])
    data.teardown("fit")
    data.setup("test")
    assert set(samples(data.test_dataloader())) == expected(Uniform(SEEDS["test"]), 3)


@pytest.mark.parametrize(("cells", "largest"), [(4, 28), (2**14, 7)])
def test_batches_of_small_fields_are_larger_in_a_validation(cells, largest):
    """Of large ones, they have the size of those of the training."""
    spec = Heat2D(cells=(cells, 4)).spec
    held_out = ValidationSet.of_rank(Ranks(), spec, Direct(), 7, 1)
    assert held_out.batch_size == largest


def test_a_simulation_that_arrived_and_failed_counts_once():
    """All steps in, yet set aside: the held-out set still waits for the other one."""
    held_out = ValidationSet(Wave.spec, Direct(), 7, first=0, count=2)
    held_out.offer(0, 0, np.zeros((STEPS, 1, 4), dtype=np.float32), np.zeros(1))
    held_out.close(0, complete=False)
    assert not held_out.complete
    held_out.close(1, complete=False)
    assert held_out.complete
