"""Batches are drawn ahead by a thread that ends with the run; all ranks take the same steps."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import pytorch_lightning as L
import torch
from troubled import STEPS, Wave

from surrogate_flow.data.online_loader import AppliedBatches, OnlineLoader
from surrogate_flow.data.prefetch import Prefetch, in_step
from surrogate_flow.data.ranks import RankError, Ranks, RankState
from surrogate_flow.fields.spec import FieldSpec, Variable
from surrogate_flow.fields.window import Direct
from surrogate_flow.reservoir import FIFO, Draw, PendingBatches, Store
from surrogate_flow.surrogate.batch import Batch
from surrogate_flow.testing.store import parameters, trajectory


def test_a_trainer_that_failed_leaves_no_thread_behind():
    """A batch that nobody will fetch, since an error holds the iterator, ends no later."""
    store = Store(Wave.spec, Direct(), 1, FIFO(capacity=4 * STEPS))
    for n in range(4):
        steps = trajectory(Wave.spec, n, 0, STEPS)
        assert store.offer(n, 0, steps, parameters(Wave.spec, n)) == STEPS
    stopped = threading.Event()
    loader = OnlineLoader(
        store,
        pending=PendingBatches(),
        stopped=stopped,
    )
    before = set(threading.enumerate())
    batches = iter(loader)
    next(batches)
    (thread,) = set(threading.enumerate()) - before
    stopped.set()
    store.stop()
    thread.join(20)
    assert not thread.is_alive()
    batches.close()


def test_what_an_iteration_did_not_give_comes_in_the_next():
    """Epochs that end early lose no batch that was drawn ahead, and train none twice."""
    spec = FieldSpec((), (Variable("u"),), (), (), tuple(range(60)))
    store, pending = Store(spec, Direct(), 4, FIFO(capacity=60)), PendingBatches()
    steps = np.arange(60, dtype="f").reshape(60, 1)
    assert store.offer(0, 0, steps, np.zeros(0, dtype="f")) == 60
    store.end_reception()
    loader = OnlineLoader(store, pending=pending)
    trained = []
    for epoch in range(6):
        for n, batch in enumerate(loader):
            trained += batch.step.tolist()
            if n == 2 and epoch < 5:
                break
    assert trained == list(range(60))


class Stream(torch.utils.data.IterableDataset):
    """Seven batches, once."""

    def __init__(self):
        self.left = iter(torch.zeros(7, 1))

    def __iter__(self):
        return self.left


class Line(L.LightningModule):
    """One weight, which counts nothing."""

    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(1, 1)

    def training_step(self, batch, _):
        return self.line(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("an_epoch", [None, 3])
def test_a_plain_trainer_ends_with_the_stream(tmp_path, an_epoch):
    """Without callbacks of ours, and with more batches to go; not after an epoch of it."""
    trainer = L.Trainer(
        max_steps=100,
        limit_train_batches=an_epoch,
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    AppliedBatches(trainer)
    trainer.fit(Line(), torch.utils.data.DataLoader(Stream(), batch_size=None))
    assert trainer.global_step == 7


class BesideAFullOne(Ranks):
    """The first of two ranks; the other one is full, and trains whatever this one has."""

    def gather_states(self, state):
        return [state, RankState.FULL]


def test_batches_of_weight_zero_count_for_nothing():
    """They are in no reservoir: what a checkpoint has, and what is drawn again, is all the rest."""
    spec = FieldSpec((), (Variable("u"),), (), (), tuple(range(40)))
    store, pending = Store(spec, Direct(), 4, FIFO(capacity=40)), PendingBatches()
    steps, nothing = np.arange(40, dtype="f").reshape(40, 1), np.zeros(0, dtype="f")
    trained, zero = [], 0
    loader = OnlineLoader(
        store,
        pending=pending,
        ranks=BesideAFullOne(0, 1),
    )
    batches = iter(loader)
    while len(trained) < 20:
        batch = next(batches)
        trained += batch.step.int().tolist() if batch.weight else []
        zero += not batch.weight
        if zero == 2 and store.open(0) == 0:
            assert store.offer(0, 0, steps, nothing) == 40
    assert zero >= 2
    assert loader.trained() == 5
    pending.acknowledge(loader.trained())
    held = store.save(pending, lambda chunk: None)
    again = held.again_step.tolist() + held.step[held.members].tolist()
    assert trained + again == list(range(40))
    batches.close()
    again = [step for draw in pending.draws for step in draw.step]
    assert again[:4] == [20, 21, 22, 23]


class InThreads(Ranks):
    """One of several ranks of this process, which exchange their states at a barrier."""

    def __init__(self, rank, states, barrier):
        super().__init__(rank, 1)
        self.world, self.states, self.barrier = len(states), states, barrier

    def _exchange(self, value):
        self.states[self.rank] = value
        self.barrier.wait(30)
        values = [*self.states]
        self.barrier.wait(30)
        return values

    def largest(self, value):
        return max(self._exchange(value))

    def gather_states(self, state):
        states = self._exchange(state)
        if RankState.FAILED in states and state is not RankState.FAILED:
            raise RankError("another one failed")
        return states


LINE = FieldSpec((), (Variable("u"),), (), (), tuple(range(9)))


def train(seed, world, failing=None, stopping=None):
    """Let each rank train draws of its own at a pace of its own; return what it got."""
    barrier, states = threading.Barrier(world), [RankState.READY] * world
    padding = Batch.padding(LINE, Direct())
    everything = [
        random.Random(f"{seed} {rank}").randint(0, 12) for rank in range(world)
    ]

    def draws(rank):
        chance = random.Random(f"{seed} {rank} pace")
        for number in range(everything[rank]):
            for _ in range(chance.choice([0, 0, 3])):
                time.sleep(0.001)
                yield None
            if rank == failing and number == 5:
                raise OSError("the disk")
            label = np.array([number])
            fields = np.zeros((1, 1, 1), "f")
            left = everything[rank] - number - 1
            yield Draw(fields, label, label, np.zeros((1, 0), "f"), None, left)

    def run(rank):
        ranks, stopped = InThreads(rank, states, barrier), threading.Event()
        chance, got = random.Random(f"{seed} {rank} full"), []
        try:
            with Prefetch(draws(rank), Direct(), None, stopped) as batches:
                for batch in in_step(
                    batches, ranks, padding, lambda: chance.random() < 0.3
                ):
                    got.append((batch.weight, int(batch.step[0]), batch.remaining))
                    if rank == stopping and len(got) == 3:
                        stopped.set()
        except (OSError, RankError) as error:
            return got, error
        return got, None

    with ThreadPoolExecutor(world) as pool:
        return everything, list(pool.map(run, range(world)))


@pytest.mark.parametrize("seed", range(20))
def test_all_ranks_take_the_same_steps_and_train_all_their_data(seed):
    """Whichever is slow, full or has more; in each step the mean of the weights is one."""
    world = 2 + seed % 2
    everything, runs = train(seed, world)
    assert not any(error for _, error in runs)
    got = [batches for batches, _ in runs]
    for count, batches in zip(everything, got, strict=True):
        assert [step for weight, step, _ in batches if weight] == list(range(count))
    for step in zip(*got, strict=True):
        assert sum(weight for weight, _, _ in step) == pytest.approx(world)
        # The learning rate follows it.
        assert len({left for _, _, left in step}) == 1
    assert got[0][-1][2] == 0


def test_a_rank_that_fails_or_stops_takes_the_others_with_it():
    """After the same number of steps; only the one that failed has the error itself."""
    seed = next(s for s in range(99) if random.Random(f"{s} 1").randint(0, 12) > 6)
    _, runs = train(seed, 3, failing=1)
    assert [type(error) for _, error in runs] == [RankError, OSError, RankError]
    assert len({len(got) for got, _ in runs}) == 1
    _, runs = train(seed, 3, stopping=1)
    assert [len(got) for got, _ in runs] == [3, 3, 3]
    assert not any(error for _, error in runs)
