"""Batches that cross to the device, and a reservoir that lies there; on GPUs too, where there are any."""

import numpy as np
import pytest
import torch

from surrogate_flow.data.online_loader import OnlineLoader
from surrogate_flow.fields.errors import UserError
from surrogate_flow.fields.spec import FieldSpec, Variable
from surrogate_flow.fields.window import Direct
from surrogate_flow.reservoir import DeviceMemory, PendingBatches, Reservoir, Store
from surrogate_flow.reservoir.device import copy_stream, current_device
from surrogate_flow.surrogate.batch import Batch

DEVICES = ["cpu", *(["cuda:0"] if torch.cuda.is_available() else [])]
SPEC = FieldSpec((), (Variable("u"),), ("x",), (1000,), tuple(range(40)))


def trajectory(number):
    return (np.arange(40_000, dtype="f") + 100_000 * number).reshape(40, 1, 1000)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("there", [False, True])
def test_batches_arrive_whole_on_the_device(device, there):
    """Rows are written again while batches that held them are still in use."""
    device = torch.device(device)
    options = (
        {"memory": lambda *shape: DeviceMemory(*shape, str(device))} if there else {}
    )
    store = Store(SPEC, Direct(), 16, Reservoir(capacity=50, threshold=20, **options))
    batches, simulation, first = [], 0, 0

    def refill():
        nonlocal simulation, first
        steps = trajectory(simulation)[first:]
        taken = store.offer(simulation, first, steps, np.zeros(0, dtype="f"))
        # What was offered may change afterwards.
        steps[:] = -1
        first += taken
        if first == 40:
            simulation, first = simulation + 1, 0

    refill()
    refill()
    draw = store.draw

    def draw_after_refill(*arguments, **options):
        refill()  # between two draws, in the loader's thread
        return draw(*arguments, **options)

    store.draw = draw_after_refill
    loader = OnlineLoader(store, pending=PendingBatches(), device=device)
    for batch in loader:
        assert batch.target.device == batch.step.device == device
        # Used later, by what the training step submits.
        batches.append((batch.step, batch.target * 1.0))
        if len(batches) == 50:
            break
    assert simulation >= 5
    for step, target in batches:
        rows = target.cpu().numpy()[:, 0, 0]
        number = np.floor(rows[:, 0] / 100_000).astype(int)
        for row, n, k in zip(rows, number, step.cpu().numpy().astype(int), strict=True):
            np.testing.assert_array_equal(row, trajectory(n)[k, 0])


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_there_already_is_not_copied(device):
    tensor = torch.zeros(3, device=device)
    assert copy_stream(torch.device(device)).send(tensor) is tensor
    assert copy_stream(torch.device(device)) is copy_stream(torch.device(device))


def test_the_current_device_is_where_lightning_trains():
    """The one that `accelerator: auto` chooses."""
    import pytorch_lightning as L

    trainer = L.Trainer(logger=False, enable_checkpointing=False, devices=1)
    assert current_device() == trainer.strategy.root_device


def test_a_reservoir_larger_than_the_device_is_refused():
    said = rf"400 steps takes .* GB, which {current_device()} does not have"
    with pytest.raises(UserError, match=said):
        DeviceMemory(400, (10**15,), 1)


def test_weight_travels():
    batch = Batch.padding(SPEC, Direct())._replace(weight=0.5)
    assert batch.sent(copy_stream(torch.device("cpu"))).weight == 0.5
