"""A sampler that adapts, in a study that trains: losses decide what is simulated."""

from functools import partial

import numpy as np
import pytest
import pytorch_lightning as L
import torch
from distributed import LocalCluster
from pytorch_lightning.callbacks import ModelCheckpoint
from troubled import Wave

from surrogate_flow import OnlineData, Surrogate
from surrogate_flow.nn import FullyConnected
from surrogate_flow.reservoir import FIFO
from surrogate_flow.sampling import Sampler, Uniform

CLUSTER = partial(
    LocalCluster, n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0"
)


class Narrowing(Sampler):
    """Uniform until losses arrive, then within a hundredth above the lower bound."""

    told = 0

    def ask(self, first, count, bounds):
        points = Uniform(self.seed).ask(first, count, bounds)
        low = np.array([p.low for p in bounds])
        return low + (points - low) / 100 if self.told else points

    def tell(self, seen):
        assert len(seen.simulation) == len(seen.loss) == len(seen.parameters)
        assert np.isfinite(seen.loss).all()
        assert (seen.simulation >= 1).all()
        self.told += len(seen.loss)

    def state_dict(self):
        return {"told": self.told}

    def load_state_dict(self, state):
        self.told = state["told"]


def trained(folder, sampler, max_steps=-1, ckpt_path=None):
    """Fit a surrogate with a checkpoint after 5 batches; return its data."""
    data = OnlineData(
        Wave(),
        sampler=sampler,
        simulations=30,
        held_out=1,
        batch_size=4,
        reservoir=FIFO(capacity=16),
        cluster=CLUSTER,
    )
    surrogate = Surrogate(data.spec, partial(FullyConnected, widths=(8,)))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        max_steps=max_steps,
        logger=False,
        callbacks=ModelCheckpoint(folder, filename="{step}", every_n_train_steps=5),
        enable_progress_bar=False,
        default_root_dir=folder,
    )
    trainer.fit(surrogate, data, ckpt_path=ckpt_path)
    return data


def narrow(data):
    """Whether each simulation that was drawn is near the lower bound."""
    (bound,) = data.spec.parameters
    drawn = data.design.state_dict()
    width = bound.low + (bound.high - bound.low) / 100
    return dict(
        zip(
            drawn["numbers"],
            [point[0] <= width for point in drawn["points"]],
            strict=True,
        )
    )


def test_losses_reach_the_sampler_while_simulations_run(tmp_path):
    """Simulations that are submitted after the first losses have other parameters."""
    sampler = Narrowing(seed=1)
    data = trained(tmp_path, sampler)
    assert sampler.told == 30 * data.spec.steps
    drawn = narrow(data)
    assert list(drawn) == list(range(1, 31))
    assert not drawn[1]
    assert drawn[30]


def test_a_run_that_goes_on_knows_what_it_was_told(tmp_path):
    """What had been drawn keeps its parameters; all others depend on earlier losses."""
    trained(tmp_path, Narrowing(seed=1), max_steps=7)
    (path,) = tmp_path.glob("*.ckpt")
    before = torch.load(path, weights_only=True)["OnlineData"]["design"]
    drawn = len(before["numbers"])
    assert 0 < drawn < 30
    assert before["sampler"] == {"told": 5 * 4}
    sampler = Narrowing(seed=1)
    data = trained(tmp_path / "again", sampler, ckpt_path=path)
    assert sampler.told == 30 * data.spec.steps
    after = data.design.state_dict()
    assert after["numbers"] == list(range(1, 31))
    assert after["points"][:drawn] == before["points"]
    assert all(narrow(data)[number] for number in range(drawn + 1, 31))


def test_it_is_refused_where_batches_are_deterministic():
    """When losses arrive is not the same in two runs."""
    with pytest.raises(ValueError, match=r"Narrowing adapts .* deterministic: false"):
        OnlineData(Wave(), sampler=Narrowing(), deterministic=True)
