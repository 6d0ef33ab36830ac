"""The average of the weights: what is validated, saved, gone on from and left at the end."""

from functools import partial

import pytest
import pytorch_lightning as L
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from test_schedule import SPEC, batches
from torch.optim import SGD
from torch.utils.data import DataLoader

from surrogate_flow.nn import FullyConnected
from surrogate_flow.surrogate.averaging import AveragedWeights
from surrogate_flow.surrogate.surrogate import Surrogate

EACH = 60


def surrogate(**options):
    torch.manual_seed(0)
    return Surrogate(
        SPEC,
        partial(FullyConnected, widths=(2,)),
        normalisation="none",
        optimizer=partial(SGD, lr=0.05),
        scheduler=None,
        **options,
    )


def fitted(tmp_path, module, *callbacks, steps=EACH, path=None):
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=9,
        accelerator="cpu",
        logger=False,
        callbacks=[*callbacks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        val_check_interval=20,
        default_root_dir=tmp_path,
    )
    # One again and again, wherever a run goes on.
    (batch,) = batches(1)
    again = DataLoader([batch] * EACH, batch_size=None)
    trainer.fit(module, again, batches(2), ckpt_path=path)
    return trainer


class Watch(L.Callback):
    """Weights after each step, and those of each validation, in which it may raise."""

    def __init__(self, fails=None):
        self.trained, self.validated, self.fails = [], [], fails

    def on_train_batch_end(self, trainer, module, *_):
        self.trained.append(flat(module))

    def on_validation_batch_start(self, trainer, module, *_):
        if not trainer.sanity_checking:
            self.validated.append(flat(module))
            if len(self.trained) == self.fails:
                raise RuntimeError("the disk")


def flat(module):
    return torch.cat([p.detach().clone().ravel() for p in module.network.parameters()])


def averaged(weights):
    """By the formula, updated as often as the callback does."""
    mean, count = weights[0], 1
    for step, one in enumerate(weights[1:], 1):
        if step < 50 or step % 10 == 0:
            count += 1
            mean = mean + (1 - (1 - 1 / count) ** 18) * (one - mean)
    return mean


def test_validations_and_the_end_have_the_average(tmp_path):
    """Training goes on from the weights themselves, as it does without an average."""
    watch, plain, module = Watch(), Watch(), surrogate()
    fitted(tmp_path, module, watch)
    fitted(tmp_path, surrogate(averaging=False), plain)
    assert all(map(torch.equal, watch.trained, plain.trained))
    for count, seen in zip((20, 40, 60), watch.validated[::2], strict=True):
        assert torch.allclose(seen, averaged(watch.trained[:count]), atol=1e-6)
        assert not torch.allclose(seen, watch.trained[count - 1], atol=1e-6)
    assert torch.equal(flat(module), watch.validated[-1])
    assert torch.equal(plain.validated[-1], plain.trained[-1])


def test_a_run_goes_on_with_both(tmp_path):
    """It trains and averages as one that was never cut off; predictions are of the average."""
    whole, first, rest = Watch(), Watch(), Watch()
    module = surrogate()
    fitted(tmp_path, module, whole)
    half = surrogate()
    trainer = fitted(tmp_path, half, first, Saves(tmp_path / "half.ckpt", 33), steps=50)
    assert trainer.global_step == 50
    went_on = surrogate()
    fitted(tmp_path, went_on, rest, path=tmp_path / "half.ckpt")
    assert all(map(torch.equal, whole.trained[33:], rest.trained))
    assert torch.equal(flat(went_on), flat(module))
    loaded = Surrogate.load(tmp_path / "half.ckpt")
    assert torch.allclose(flat(loaded), averaged(first.trained[:33]), atol=1e-6)


class Saves(L.Callback):
    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_a_validation_that_fails_leaves_the_weights_to_go_on_from(tmp_path):
    """They are saved where they belong."""
    watch, module = Watch(fails=20), surrogate()
    with pytest.raises(RuntimeError, match="the disk"):
        fitted(tmp_path, module, watch)
    assert torch.equal(flat(module), watch.trained[-1])


def test_a_checkpoint_without_an_average_begins_one(tmp_path):
    """As those of older versions are."""
    path = tmp_path / "old.ckpt"
    fitted(tmp_path, surrogate(averaging=False), Saves(path, 10))
    watch, module = Watch(), surrogate()
    fitted(tmp_path, module, watch, path=path)
    assert torch.isfinite(flat(module)).all()
    assert not torch.equal(flat(module), watch.trained[-1])


def test_another_average_of_the_users_takes_its_place(tmp_path):
    """One is enough."""
    theirs = EMAWeightAveraging(decay=0.5)
    trainer = fitted(tmp_path, surrogate(), theirs, steps=3)
    assert not any(isinstance(c, AveragedWeights) for c in trainer.callbacks)
    assert theirs in trainer.callbacks
