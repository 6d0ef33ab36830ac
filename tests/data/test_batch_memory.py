"""A batch that does not fit into memory is refused, with the largest one that does."""

import re
import subprocess
import sys
from functools import partial

import psutil
import pytest
import pytorch_lightning as L
import torch
from test_stored import write
from troubled import Wave

from surrogate_flow.data.batch_memory import require_room
from surrogate_flow.data.online import OnlineData
from surrogate_flow.data.stored import StoredData
from surrogate_flow.nn import FullyConnected, MessagePassingSolver
from surrogate_flow.solvers import Heat2D
from surrogate_flow.surrogate.surrogate import Surrogate

MOST = r"--data\.batch_size (\d+) at most"
PEAK = """
import sys
import torch
from surrogate_flow.nn import MessagePassingSolver
from surrogate_flow.solvers import Heat2D
from surrogate_flow.fields import Direct

torch.set_num_threads(1)

def step(cells, batch, width, layers):
    spec = Heat2D(cells=(cells, cells), steps=2).spec
    network = MessagePassingSolver(spec, Direct(), width=width, layers=layers)
    before = peak()
    empty = torch.randn(batch, 0, *spec.step_shape)
    out = network(torch.randn(batch, 5), torch.randn(batch), empty)
    out.square().mean().backward()
    return (peak() - before) / batch, network.training_bytes_per_sample

def peak():
    # Not that of getrusage, which starts from the peak of the parent.
    (line,) = (x for x in open("/proc/self/status") if x.startswith("VmHWM"))
    return 1024 * int(line.split()[1])

# The libraries load first what they need.
step(3, 1, 8, 1)
print(*step(*map(int, sys.argv[1:])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("sizes", [(24, 4, 128, 6), (32, 4, 64, 3)], ids=str)
def test_what_a_sample_takes_is_what_was_measured(sizes):
    """The peak of a training step of its own process, of two sizes."""
    words = [sys.executable, "-c", PEAK, *map(str, sizes)]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=100, check=True)
    measured, told = map(float, ran.stdout.split())
    # The peak depends on what the C library had at hand, by a quarter.
    assert 0.7 < told / measured < 1.4


NETWORK = partial(MessagePassingSolver, neighbours=1)


def surrogate(solver, network=NETWORK):
    return Surrogate(solver.spec, network)


def trainer(**kwargs):
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=1,
        **kwargs,
    )


@pytest.mark.parametrize("where", ["online", "stored"])
def test_nothing_runs_for_a_batch_that_does_not_fit(tmp_path, monkeypatch, where):
    """Refused where data and network meet: no cluster, no data set."""
    monkeypatch.chdir(tmp_path)
    if where == "online":
        data = OnlineData(Wave(), batch_size=10**9, archive=tmp_path / "new.zarr")
    else:
        path = write(tmp_path / "wave.zarr", Wave())
        data = StoredData(path, batch_size=10**9)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=rf"got batch_size=1000000000, .*{MOST}"):
        trainer().fit(surrogate(Wave()), datamodule=data)
    assert sorted(tmp_path.rglob("*")) == before
    assert data.held_out is None


def attached(network, **kwargs):
    """A trainer that has this surrogate, as a data module finds it in `setup`."""
    having = trainer(**kwargs)
    having.strategy.connect(network)
    return having


def test_the_largest_batch_that_is_named_fits():
    """Twice as many in half the precision, half as many on two ranks; others go unasked."""
    big = surrogate(Heat2D(cells=(40, 40), steps=2))
    having, each = attached(big), big.network.training_bytes_per_sample

    def most(having):
        with pytest.raises(ValueError, match=MOST) as refused:
            require_room(having, 10**9)
        return int(re.search(MOST, str(refused.value))[1])

    expected = psutil.virtual_memory().available / each
    # Others take and free memory meanwhile.
    assert most(having) == pytest.approx(expected, rel=0.3)
    require_room(having, int(0.5 * expected))
    with pytest.raises(ValueError, match="a coarser grid, or a network of a smaller"):
        require_room(having, int(2 * expected))
    half = attached(big, precision="bf16-mixed")
    assert most(half) == pytest.approx(2 * expected, rel=0.3)
    two = attached(big, devices=2, strategy="ddp")
    assert most(two) == pytest.approx(expected / 2, rel=0.3)
    other = surrogate(Heat2D(cells=(40, 40), steps=2), FullyConnected)
    require_room(attached(other), 10**9)
    require_room(None, 10**9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_memory_of_the_gpu_counts(monkeypatch):
    """What is free on it, and what torch has kept there for later."""
    big = surrogate(Heat2D(cells=(40, 40), steps=2))
    having = L.Trainer(
        accelerator="gpu", devices=1, logger=False, enable_checkpointing=False
    )
    having.strategy.connect(big)
    device = having.strategy.root_device
    free = torch.cuda.mem_get_info(device)[0]
    kept = torch.empty(free // 4, dtype=torch.uint8, device=device)
    del kept
    most = free // big.network.training_bytes_per_sample
    require_room(having, int(0.9 * most))
    with pytest.raises(ValueError, match=f"free on {device}"):
        require_room(having, int(1.1 * most))
