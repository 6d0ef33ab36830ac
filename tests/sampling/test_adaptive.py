"""A sampler that adapts, in a study that trains: losses decide what is simulated."""

from functools import partial

import numpy as np
import pytest
import pytorch_lightning as L
from distributed import LocalCluster
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


def test_losses_reach_the_sampler_while_simulations_run(tmp_path):
    """Simulations that are submitted after the first losses have other parameters."""
    sampler = Narrowing(seed=1)
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
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(surrogate, data)
    assert sampler.told == 30 * data.spec.steps
    (bound,) = data.spec.parameters
    drawn = data.design.state_dict()
    width = bound.low + (bound.high - bound.low) / 100
    narrow = [point[0] <= width for point in drawn["points"]]
    assert drawn["numbers"] == list(range(1, 31))
    assert not narrow[0]
    assert narrow[-1]


def test_it_is_refused_where_batches_are_deterministic():
    """When losses arrive is not the same in two runs."""
    with pytest.raises(ValueError, match=r"Narrowing adapts .* deterministic: false"):
        OnlineData(Wave(), sampler=Narrowing(), deterministic=True)
