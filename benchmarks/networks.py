"""Each network beside its reference: steps and predictions in samples a second.

Ours is built by the shipped recipes of workflow and model, its peer of the same sizes:

- fully connected: ``torch.nn.Sequential``;
- FNO: neuraloperator's, with its own spectral convolution;
- message passing: the layers of the released solver of Brandstetter, Worrall and
  Welling (ICLR 2022) on torch-geometric, written anew here, 25 steps from 25 as there;
- U-Net: plain convolutions of the same levels and widths, as those of pdearena but
  without its conditioning, which the peer is spared, as no package has that network;
- DeepONet: that of DeepXDE, the trunk once a batch as in ours.

A *step* is forward, backward and the step of the recipe's optimizer, the same on both
sides; a *prediction* the forward pass without gradients. Ours gets parameters, step,
history and input fields, of which it makes its channels; the peer gets channels, nodes
and edges that are ready. A *fit* is `Surrogate` in Lightning's trainer, as ``fit`` has
it but for the simulations, with normalisation and logging, beside the bare loop of the
same network. Both sides take turns, step by step, on the same threads; values are
medians of seconds of the processor, so that what others do on its cores does not count,
and a ratio above 1 says that ours is faster.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as L
import torch
from peers import Inputs, deeponet, fno, message_passing, plain, unet
from rich.console import Console
from rich.progress import track
from row import Row, report
from torch import Tensor, nn

from surrogate_flow.cli.lightning import build
from surrogate_flow.cli.trainer import FolderTrainer
from surrogate_flow.report.monitor import MetricsTable
from surrogate_flow.surrogate.averaging import AveragedWeights
from surrogate_flow.surrogate.batch import Batch
from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = ["CASES"]

BATCH = 32
clock = time.process_time
_REMEDY = "{0} is not installed: its case is left out. Type pip install -e '.[bench]'."


@dataclass(frozen=True)
class Case:
    """The package of the peer, what builds it and its inputs, and more of a recipe."""

    package: str
    build: Callable[[Surrogate, Inputs], tuple[nn.Module, Inputs]]
    words: Sequence[str] = ()


_WINDOW = [f"--model.window.{key}" for key in ("inputs=25", "outputs=25", "unroll=0")]
CASES = {
    "fully connected, heat2d": Case("torch", plain),
    "FNO, heat2d": Case("neuralop", fno),
    "FNO, combined1d_e1": Case("neuralop", fno),
    "FNO, navier_stokes2d": Case("neuralop", fno),
    "FNO, darcy": Case("neuralop", fno),
    "message passing, combined1d_e1": Case("torch_geometric", message_passing, _WINDOW),
    "U-Net, navier_stokes2d": Case("torch", unet),
    "DeepONet, darcy": Case("deepxde", deeponet),
}
#: The tiny form of each workflow.
TINY = {
    "heat2d": "--data.solver.cells=[10, 10]",
    "combined1d_e1": "--data.solver.cells=20",
    "navier_stokes2d": "--data.solver.points=16",
    "darcy": "--data.solver.cells=16",
}


def surrogate_of(name: str, quick: bool) -> Surrogate:
    """Return what the recipes of a case build, its normalisation frozen."""
    network, data = name.split(", ")
    words = ["fit", f"--data={data}", *([TINY[data]] if quick else [])]
    model = network.lower().replace("u-net", "unet").replace(" ", "_")
    _, surrogate = build([*words, f"--model={model}", *CASES[name].words])
    spec = surrogate.spec
    count = len(spec.variables) + len(spec.inputs)
    surrogate.normalisation.freeze(np.zeros(count), np.ones(count))
    return surrogate


def batch_of(surrogate: Surrogate) -> Batch:
    """Return a batch of noise, in the bounds of the parameters."""
    spec, window = surrogate.spec, surrogate.window
    low, high = (
        torch.tensor([[p.low, p.high] for p in spec.parameters]).reshape(-1, 2).T
    )
    first = torch.randint(window.inputs, spec.steps, (BATCH,))
    return Batch(
        parameters=low + (high - low) * torch.rand(BATCH, len(low)),
        step=(first if spec.steps > 1 else torch.zeros(BATCH)).float(),
        history=torch.randn(BATCH, window.inputs, *spec.step_shape),
        target=torch.randn(BATCH, window.outputs, *spec.step_shape),
        simulation=torch.arange(BATCH),
        inputs=torch.randn(BATCH, *spec.input_shape) if spec.inputs else None,
    )


def normalised(surrogate: Surrogate, batch: Batch) -> Inputs:
    """Return what the network is called with."""
    norm = surrogate.normalisation
    return (
        *norm.inputs(batch.parameters, batch.step),
        norm.fields(batch.history),
        *map(norm.given, batch.given),
    )


def stepping(
    module: nn.Module, inputs: Inputs, target: Tensor, optimizer: Any
) -> Callable[[], None]:
    """Return what makes a training step."""

    def step() -> None:
        error = nn.functional.mse_loss(module(*inputs), target)
        optimizer.zero_grad()
        torch.autograd.backward(error)
        optimizer.step()

    return step


def predicting(module: nn.Module, inputs: Inputs) -> Callable[[], None]:
    """Return what predicts."""

    def predict() -> None:
        with torch.no_grad():
            module(*inputs)

    return predict


def rates(sides: list[Callable[[], None]], rounds: int, seconds: float) -> list[float]:
    """Return samples/s of each side, in turn, for so many rounds or seconds."""
    found: list[list[float]] = [[] for _ in sides]
    end = time.monotonic() + seconds
    for turn in range(rounds + 2):
        for side, times in zip(sides, found, strict=True):
            begin = clock()
            side()
            if turn > 1:  # the first ones make room in memory
                times.append(clock() - begin)
        if turn > 2 and time.monotonic() > end:
            break
    return [BATCH / statistics.median(times) for times in found]


class Turns(L.LightningDataModule):
    """Data of one batch, again and again, that run a bare step before each."""

    def __init__(
        self, batch: Batch, bare: Callable[[], None], rounds: int, seconds: float
    ) -> None:
        super().__init__()
        self._batch, self._bare, self._rounds = batch, bare, rounds
        self._seconds = seconds
        self.times: tuple[list[float], list[float]] = [], []

    def train_dataloader(self) -> Turns:
        """Return this, which has no workers."""
        return self

    def transfer_batch_to_device(self, batch: Batch, *_: Any) -> Batch:
        """Leave it where it is, as data of simulations do."""
        return batch

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batch, and note how long it took until the next was asked for."""
        end = time.monotonic() + self._seconds
        for turn in range(self._rounds + 2):
            if turn > 3 and time.monotonic() > end:
                return
            begin = clock()
            self._bare()
            middle = clock()
            yield self._batch
            if turn > 1:
                self.times[0].append(clock() - middle)
                self.times[1].append(middle - begin)


def fitted(
    surrogate: Surrogate, batch: Batch, bare: Callable[[], None], *length: Any
) -> list[float]:
    """Return samples/s of Lightning's trainer, and of the bare loop in turn with it."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = FolderTrainer(
            max_epochs=1,
            accelerator="cpu",
            # As behind the first steps of a fit.
            callbacks=[AveragedWeights(at_first=0)],
            logger=MetricsTable(Path(folder), name="", version=""),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=10,
        )
        trainer.take(Path(folder), surrogate.metrics)
        turns = Turns(batch, bare, *length)
        trainer.fit(surrogate, datamodule=turns)
    return [BATCH / statistics.median(times) for times in turns.times]


def compiled(name: str, quick: bool, rounds: int, seconds: float) -> list[Row]:
    """Return the row of a case: its step by torch.compile beside that without."""
    surrogate = surrogate_of(name, quick)
    batch = batch_of(surrogate)
    inputs = normalised(surrogate, batch)
    target = surrogate.normalisation.fields(batch.target)
    network, other = surrogate.network, copy.deepcopy(surrogate.network)
    other.compile()
    calls = [
        stepping(side, inputs, target, surrogate.optimizer(side.parameters()))
        for side in (other, network)
    ]
    rate, its = rates(calls, rounds, seconds)
    return [Row(f"{name}: step, compiled", rate, "samples/s", "not compiled", its)]


def measure(name: str, quick: bool, rounds: int, seconds: float) -> list[Row]:
    """Return the rows of a case: step, prediction and fit."""
    case = CASES[name]
    surrogate = surrogate_of(name, quick)
    batch = batch_of(surrogate)
    inputs = normalised(surrogate, batch)
    module, given = case.build(surrogate, inputs)
    target = surrogate.normalisation.fields(batch.target)
    network, other = surrogate.network, copy.deepcopy(surrogate.network)
    assert module(*given).shape == network(*inputs).shape == target.shape
    sides = (network, inputs), (module, given)
    steps = [
        stepping(*side, target, surrogate.optimizer(side[0].parameters()))
        for side in sides
    ]
    rows = []
    for what, calls in (
        ("step", steps),
        ("prediction", [predicting(*side) for side in sides]),
    ):
        rate, its = rates(calls, rounds, seconds)
        rows.append(Row(f"{name}: {what}", rate, "samples/s", case.package, its))
    bare = stepping(other, inputs, target, surrogate.optimizer(other.parameters()))
    rate, its = fitted(surrogate, batch, bare, rounds, seconds)
    rows.append(Row(f"{name}: fit", rate, "samples/s", "bare loop", its))
    return rows


def main() -> None:
    """Measure, print a table, and write it where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for CI")
    parser.add_argument("--only", default="", help="cases whose names have this")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--seconds", type=float, default=20, help="of each row, at most"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--compiled", action="store_true", help="steps beside torch.compile's instead"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    torch.set_num_threads(options.threads)
    rounds = 1 if options.quick else options.rounds
    rows = []
    # One grid of each network is enough to see that it runs.
    left_out = ("FNO, heat2d", "FNO, navier_stokes2d") if options.quick else ()
    names = [n for n in CASES if options.only in n and n not in left_out]
    for name in track(names, "cases", transient=True):
        if options.compiled:
            rows += compiled(name, options.quick, rounds, options.seconds)
            continue
        package = CASES[name].package
        if importlib.util.find_spec(package) is None:
            Console().print(_REMEDY.format(package), markup=False)
            continue
        rows += measure(name, options.quick, rounds, options.seconds)
    report(rows, options.json)


if __name__ == "__main__":
    main()
