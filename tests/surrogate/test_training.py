"""What a training step costs, and what it leaves behind."""

from __future__ import annotations

import platform
import resource
import shutil
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import pytorch_lightning as L
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers.logger import Logger
from torch.utils.data import DataLoader

from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.window import Autoregressive, Direct
from surrogate_flow.nn import FNO, DeepONet, FullyConnected, MessagePassingSolver, UNet
from surrogate_flow.solvers import Heat2D
from surrogate_flow.surrogate.batch import Batch
from surrogate_flow.surrogate.surrogate import Surrogate

SPEC = Heat2D(cells=(3, 2), steps=4).spec
BATCHES = 12


class Rows(Logger):
    """The losses that a logger is given."""

    name = version = ""

    def __init__(self):
        super().__init__()
        self.losses = {}

    def log_metrics(self, metrics, step=None):
        if "train_loss" in metrics:
            self.losses[step] = metrics["train_loss"]

    def log_hyperparams(self, *_, **__):
        pass


class Steps(L.Callback):
    """The loss of each step, what callbacks are shown of it, and what is subnormal."""

    def __init__(self, fails_at=None):
        self.fails_at = fails_at
        self.losses, self.shown, self.subnormal = [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.losses.append(float(outputs["loss"]))
        self.shown.append(float(trainer.callback_metrics.get("train_loss", -1)))
        self.subnormal.append(float((torch.full((4,), 1e-40) * 0.5).sum()))
        if index == self.fails_at:
            raise ArithmeticError
        if index == BATCHES - 1:
            trainer.should_stop = True


def trained(*callbacks, fails_at=None, **options):
    """A fit of twelve batches of noise, of which every fifth is logged."""
    torch.manual_seed(0)
    batches = [
        Batch(
            torch.rand(2, 5),
            4 * torch.rand(2),
            torch.rand(2, 0, 1, 3, 2),
            torch.rand(2, 1, 1, 3, 2),
            torch.zeros(2),
        )
        for _ in range(BATCHES + 3)
    ]
    rows, steps = Rows(), Steps(fails_at)
    trainer = L.Trainer(
        accelerator="cpu",
        logger=rows,
        log_every_n_steps=5,
        callbacks=[steps, *callbacks],
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
    )
    network = partial(FullyConnected, widths=(2,))
    surrogate = Surrogate(SPEC, network, normalisation="none", **options)
    trainer.fit(surrogate, DataLoader(batches, batch_size=None))
    return rows, steps


def test_losses_are_logged_when_they_are_read():
    """Every fifth and that of the last step, each its own step's; subnormals are zero."""
    torch.set_flush_denormal(False)
    rows, steps = trained()
    assert {*rows.losses} == {4, 9, BATCHES - 1}
    for step, loss in rows.losses.items():
        assert loss == pytest.approx(steps.losses[step])
    assert steps.subnormal == [0.0] * BATCHES
    # Without one that reads it, a callback is shown the last one that was logged.
    logged = [-1.0] * 4 + [steps.losses[4]] * 5 + [steps.losses[9]] * 3
    assert steps.shown == pytest.approx(logged)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("fails_at", [None, 1])
def test_a_process_has_its_subnormals_back(before, fails_at):
    """Whether the fit ends or fails; one that flushed them goes on with that."""
    torch.set_flush_denormal(before)
    try:
        with pytest.raises(ArithmeticError) if fails_at else nullcontext():
            trained(fails_at=fails_at)
        assert bool(np.array([1e-310]) * 0.5) is not before
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_compiled_fit_has_the_losses_of_any_other(monkeypatch):
    """Its steps run what torch has compiled; behind it the network is as it was."""
    networks = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            assert module.network._compiled_call_impl is not None
            networks.append(module.network)

    torch._dynamo.reset()
    _, plain = trained()
    assert not torch._dynamo.utils.counters["stats"]["unique_graphs"]
    _, steps = trained(Look(), compiled=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert len(networks) == BATCHES
    assert networks[0]._compiled_call_impl is None
    assert steps.losses == pytest.approx(plain.losses, rel=1e-4)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"compiled true: .* no-such-compiler.* apt"):
        trained(compiled=True)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc"
    or [*map(int, platform.libc_ver()[1].split("."))] < [2, 35],
    reason="other C libraries, and glibc before 2.35, do not keep what is above 32 MiB",
)
def test_memory_of_large_tensors_is_kept_while_a_fit_runs(monkeypatch):
    """One of 48 MB touches its pages once, not anew each time that there is one."""
    # As Dask leaves it behind in a process that has made a LocalCluster.
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    pages = []

    class Large(L.Callback):
        def on_train_batch_end(self, *_):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.ones(12_000_000)
            pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    trained(Large())
    # Other threads may have taken what was kept, once.
    assert np.median(pages[2:]) < 12_000_000 * 4 / resource.getpagesize() / 4


@pytest.mark.parametrize(
    "reader",
    [
        EarlyStopping("train_loss", patience=99, check_on_train_epoch_end=True),
        ModelCheckpoint(filename="{step}-{train_loss:.4f}", save_top_k=0),
    ],
    ids=["by its monitor", "by a file's name"],
)
def test_a_callback_that_reads_the_loss_is_given_that_of_each_step(reader):
    _, steps = trained(reader)
    assert steps.shown == pytest.approx(steps.losses)


@pytest.mark.parametrize(
    ("network", "window"),
    [
        (partial(FullyConnected, widths=[4]), Direct()),
        (partial(DeepONet, branch=[4], trunk=[4]), Direct()),
        (partial(FNO, modes=2, width=4, layers=1), Direct()),
        (partial(UNet, widths=[4, 8]), Autoregressive(1)),
        (partial(MessagePassingSolver, width=4, layers=1), Autoregressive(2)),
    ],
    ids=lambda part: getattr(part, "func", part).__class__.__name__,
)
def test_every_network_trains_in_bfloat16_on_the_cpu(network, window):
    """Weights, errors and what it predicts stay in single precision."""
    spec = Heat2D(cells=(4, 6), steps=4).spec
    batch = Batch(
        torch.rand(2, 5),
        torch.ones(2),
        torch.rand(2, window.inputs, 1, 4, 6),
        torch.rand(2, 1, 1, 4, 6),
        torch.zeros(2),
    )
    surrogate = Surrogate(spec, network, window=window, normalisation="none")
    before = [weight.detach().clone() for weight in surrogate.parameters()]
    trainer = L.Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
    )
    batches = DataLoader([batch] * 3, batch_size=None)
    trainer.fit(surrogate, batches, batches)
    for weight, was in zip(surrogate.parameters(), before, strict=True):
        assert weight.dtype == was.dtype != torch.bfloat16
        assert weight.isfinite().all()
    assert not all(map(torch.equal, surrogate.parameters(), before))
    assert trainer.callback_metrics["val_relative_l2"].isfinite()
    assert surrogate(*batch[:3]).dtype == torch.float32
