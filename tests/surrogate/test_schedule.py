"""The learning rate: which values a schedule sees, when, and what is refused."""

import itertools
import logging
import math
from functools import partial

import pytest
import pytorch_lightning as L
import torch
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.cli import ReduceLROnPlateau
from torch.optim import SGD, Adam
from torch.optim import lr_scheduler as schedules
from torch.utils.data import DataLoader, IterableDataset

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.nn import FullyConnected
from surrogate_flow.solvers import Heat2D
from surrogate_flow.surrogate.batch import Batch
from surrogate_flow.surrogate.schedule import WarmupCosine
from surrogate_flow.surrogate.surrogate import Surrogate

SPEC = Heat2D(cells=(3, 2), steps=4).spec
BATCHES = 12


class Recorder(L.Callback):
    """The rate after each batch; the values of a monitor, and the rate after each."""

    def __init__(self, monitor="train_loss"):
        self.monitor, self.rates, self.seen = monitor, [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        if self.monitor == "train_loss":
            self.seen.append((float(outputs["loss"]), self.rates[-1]))

    def on_validation_end(self, trainer, module):
        if self.monitor != "train_loss":
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            self.seen.append((float(trainer.callback_metrics[self.monitor]), rate))


def batches(count, left=(), *, stream=False):
    """Of a field that no network of two numbers can learn."""
    generator = torch.Generator().manual_seed(count)

    def draw(*shape):
        return torch.rand(2, *shape, generator=generator)

    drawn = [
        Batch(draw(5), 4 * draw(), draw(0, 1, 3, 2), draw(1, 1, 3, 2), torch.zeros(2))
        for _ in range(count)
    ]
    for k, remaining in enumerate(left):
        drawn[k] = drawn[k]._replace(remaining=remaining)
    return Stream(drawn) if stream else DataLoader(drawn, batch_size=None)


class Stream(IterableDataset):
    """Batches of which nobody knows how many there are."""

    def __init__(self, drawn):
        self.drawn = drawn

    def __iter__(self):
        return iter(self.drawn)


def trained(
    tmp_path, scheduler, recorder=None, *, first=None, stream=False, left=(), **options
):
    """A fit of twelve batches with a validation after every second one."""
    torch.manual_seed(0)
    surrogate = Surrogate(
        SPEC,
        partial(FullyConnected, widths=(2,)),
        normalisation="none",
        optimizer=partial(SGD, lr=0.1),
        scheduler=scheduler,
    )
    recorder = recorder or Recorder()
    trainer = L.Trainer(
        **{"max_epochs": 1, **options},
        accelerator="cpu",
        logger=False,
        callbacks=[recorder],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        val_check_interval=2,
        default_root_dir=tmp_path,
    )
    if first:
        getattr(trainer, first)(surrogate, batches(3), verbose=False)
    trainer.fit(surrogate, batches(BATCHES, left, stream=stream), batches(3))
    return recorder


@pytest.mark.parametrize("monitor", ["val_loss", "val_relative_l2", "train_loss"])
def test_a_plateau_is_looked_for_where_its_monitor_has_a_new_value(monitor, tmp_path):
    """The rates are those of the same schedule, fed by hand with what was logged."""
    plateau = partial(ReduceLROnPlateau, monitor=monitor, patience=0, threshold=0.2)
    seen = trained(tmp_path, plateau, Recorder(monitor)).seen
    # A sanity check, whose values do not count, has none yet.
    seen = seen[-BATCHES:] if monitor == "train_loss" else seen[-BATCHES // 2 :]
    optimizer = SGD([torch.zeros(1)], lr=0.1)
    truth = schedules.ReduceLROnPlateau(optimizer, patience=0, threshold=0.2)
    expected = []
    for value, _ in seen:
        truth.step(value)
        expected.append(optimizer.param_groups[0]["lr"])
    assert len({*expected}) > 2
    assert [rate for _, rate in seen] == pytest.approx(expected)


def test_a_plateau_without_a_monitor_looks_at_validations(tmp_path):
    """Not at every batch, whose loss is noise."""
    plateau = partial(schedules.ReduceLROnPlateau, patience=0, threshold=10)
    rates = trained(tmp_path, plateau).rates
    assert rates == pytest.approx([0.1 * 10.0 ** -(k // 2) for k in range(12)])


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def one_cycle(optimizer, steps=5):
    return schedules.OneCycleLR(optimizer, max_lr=0.4, total_steps=steps)


def in_turn(optimizer):
    parts = [one_cycle(optimizer), schedules.ConstantLR(optimizer, 0.5, 99)]
    return schedules.SequentialLR(optimizer, parts, milestones=[8])


def test_a_schedule_that_runs_out_holds_its_last_rate(tmp_path, caplog):
    """It says so once; one behind it takes over in its turn."""
    with caplog.at_level(logging.WARNING, "surrogate_flow"):
        rates = trained(tmp_path, one_cycle).rates
    assert rates[3] == pytest.approx(0.4 / 25 / 1e4)
    assert set(rates[4:]) == {rates[3]}
    (record,) = caplog.records
    assert (
        "OneCycleLR has run out after 4 batches: the learning rate stays 1.6e-06"
        in (record.getMessage())
    )
    rates = trained(tmp_path, in_turn).rates
    assert rates[5] == rates[6] != rates[7] == rates[11]


def behind_another(optimizer):
    parts = [schedules.LinearLR(optimizer, 0.5, total_iters=3), one_cycle(optimizer)]
    return schedules.SequentialLR(optimizer, parts, milestones=[3])


def in_chain(optimizer):
    parts = [schedules.ConstantLR(optimizer, 1.0), one_cycle(optimizer)]
    return schedules.ChainedScheduler(parts, optimizer)


def of_a_table(optimizer):
    return schedules.LambdaLR(optimizer, lambda k: [1.0, 0.5, 0.25, 1.6e-5][k])


@pytest.mark.parametrize("scheduler", [behind_another, in_chain, of_a_table])
def test_a_schedule_within_another_holds_its_last_rate(scheduler, tmp_path, caplog):
    """As it does alone: the lowest."""
    rates = trained(tmp_path, scheduler).rates
    assert rates[-1] == pytest.approx(1.6e-6) == min(rates)
    (said,) = warnings_of(caplog)
    assert "has run out after" in said
    assert "stays 1.6e-06" in said


def test_a_cosine_that_rises_again_is_said(tmp_path, caplog):
    """At the batch at which it begins to."""
    rates = trained(tmp_path, partial(schedules.CosineAnnealingLR, T_max=8)).rates
    assert rates[7] == pytest.approx(0, abs=1e-9)
    assert rates[8] > rates[7]
    (said,) = warnings_of(caplog)
    assert "T_max = 8: from here on its learning rate rises again" in said


def test_a_rate_that_stays_at_zero_is_said(tmp_path, caplog):
    """Nothing is learned from there on."""
    ends = partial(schedules.LinearLR, start_factor=1.0, end_factor=0.0, total_iters=4)
    trained(tmp_path, ends)
    (said,) = warnings_of(caplog)
    assert "LinearLR holds the learning rate at 0" in said
    caplog.clear()
    # A warm-up begins there.
    trained(tmp_path, partial(schedules.LambdaLR, lr_lambda=lambda step: step / 9))
    assert not warnings_of(caplog)


def cosine(progress, *, rate=0.1, final=0.01):
    return rate * (final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 12),
        ({"max_steps": 9}, 9),
        ({"max_epochs": 2}, 24),
        ({"accumulate_grad_batches": 5}, 3),
        ({"limit_train_batches": 7, "max_epochs": 3, "max_steps": 100}, 21),
    ],
)
def test_the_rate_falls_to_the_end_that_is_known(options, steps, tmp_path):
    """Of batches, steps and epochs, by a cosine from the first step to behind the last."""
    recorder = trained(tmp_path, partial(WarmupCosine, warmup=0), **options)
    rates = [rate for rate, _ in itertools.groupby(recorder.rates)][-steps:]
    expected = [cosine((k + 1) / steps) for k in range(steps)]
    assert rates == pytest.approx(expected)


def test_a_run_that_goes_on_behind_its_end_has_the_rate_of_a_longer_one():
    """Ten steps, saved, then ten more: the second half of twenty, not the last rate for ever."""

    def schedule():
        optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        return WarmupCosine(optimizer, warmup=0), optimizer

    def rates(schedule, optimizer, left):
        for rest in left:
            optimizer.step()
            schedule.follow(rest)
            schedule.step()
            yield schedule.get_last_lr()[0]

    whole = [*rates(*schedule(), range(19, -1, -1))]
    half = schedule()
    assert [*rates(*half, range(9, -1, -1))][-1] == pytest.approx(0.001)
    again = schedule()
    again[0].load_state_dict(half[0].state_dict())
    assert [*rates(*again, range(9, -1, -1))] == pytest.approx(whole[10:])


def test_the_rate_rises_first_and_stays_where_no_end_is_known(tmp_path, caplog):
    """A stream of which nobody knows the end is trained at a constant rate."""
    rates = trained(tmp_path, partial(WarmupCosine, warmup=3), stream=True).rates
    assert rates == pytest.approx([0.05, 0.075, *[0.1] * 10])
    assert not warnings_of(caplog)


def test_the_rate_falls_to_the_end_of_the_time(tmp_path, monkeypatch):
    """However fast the batches are, by a clock that goes on with each look."""
    looks = itertools.count(1)
    monkeypatch.setattr(Timer, "time_elapsed", lambda *_: float(next(looks)))
    schedule = partial(WarmupCosine, warmup=0)
    rates = trained(tmp_path, schedule, stream=True, max_time={"hours": 1}).rates
    assert len(rates) == BATCHES
    assert sorted(rates, reverse=True) == rates
    assert rates[-1] < rates[0]


def test_the_rate_follows_what_the_batches_say(tmp_path):
    """Whatever they said before, the last has the last rate."""
    left = [30, 40, 50, 6, 5, 9, 8, 7, 3, 2, 1, 0]
    schedule = partial(WarmupCosine, warmup=0)
    recorder = trained(tmp_path, schedule, stream=True, left=left)
    progress = 0.0
    for rate, more in zip(recorder.rates, left, strict=True):
        progress += (1 - progress) / (more + 1)
        assert rate == pytest.approx(cosine(progress))
    assert rate == pytest.approx(1e-3)


@pytest.mark.parametrize("first", ["validate", "test"])
def test_a_fit_may_come_after_a_validation(first, tmp_path):
    """The error of the untrained network may be looked at."""
    assert len(trained(tmp_path, None, first=first).rates) == BATCHES


@pytest.mark.parametrize(
    ("optimizer", "scheduler", "said"),
    [
        (partial(Adam, lr=-1.0), None, "model.optimizer: Invalid learning rate: -1.0"),
        (partial(Adam, lr=float("nan")), None, "Invalid learning rate: nan"),
        (partial(Adam, lr=0.0), None, "expected a finite number above 0, got 0.0"),
        (partial(Adam, lr=float("inf")), None, "optimizer.lr: expected a finite"),
        (partial(Adam, betas=(2.0, 0.9)), None, "Invalid beta parameter"),
        (partial(Adam, rate=1.0), None, "unexpected keyword argument 'rate'"),
        (Adam, partial(one_cycle, steps=-1), "Expected positive integer total_steps"),
        (
            Adam,
            partial(ReduceLROnPlateau, monitor="val_los"),
            "no metric 'val_los'. Did you mean 'val_loss'",
        ),
        (Adam, ReduceLROnPlateau, "missing 1 required positional argument: 'monitor'"),
    ],
)
def test_what_no_training_could_use_is_refused(optimizer, scheduler, said):
    """In one sentence, when they are built."""
    surrogate = Surrogate(
        SPEC, FullyConnected, optimizer=optimizer, scheduler=scheduler
    )
    with pytest.raises(ArgumentError, match=said):
        surrogate.configure_optimizers()


def test_a_monitor_that_no_validation_has_is_named(tmp_path):
    """As one that a callback was expected to log."""
    with pytest.raises(ArgumentError, match="no metric 'xyz' after a validation"):
        trained(tmp_path, partial(ReduceLROnPlateau, monitor="xyz"))
