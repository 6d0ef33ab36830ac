"""Networks of APEBench on two of its scenarios in 1D: offline as there, and online.

Offline, a network trains on 50 trajectories of 50 steps, written beforehand; online, by
as many updates, on those that a solver makes meanwhile. Both are the setting of
Koehler et al., APEBench, NeurIPS 2024, https://arxiv.org/abs/2411.00180: 160 points,
one step from one, the mean squared error of one step, 10,000 batches of 20, Adam with a
learning rate that rises to 1e-3 and falls as a cosine. The error is theirs, too: after
n steps of a rollout, ‖û - u‖ / ‖u‖, mean over 30 trajectories that were not trained on.

What is done is not done again: typed again, the command goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as L
import torch
import xarray as xr
from distributed import LocalCluster
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from surrogate_flow import (
    Autoregressive,
    Coordinate,
    FieldSpec,
    OnlineData,
    Parameter,
    Solver,
    StoredData,
    Surrogate,
    Variable,
)
from surrogate_flow.cli.generate import generate
from surrogate_flow.nn import OnGrid
from surrogate_flow.reservoir import Reservoir, SamplesPerInsert
from surrogate_flow.sampling import Uniform
from surrogate_flow.surrogate.rollout import roll_out

POINTS, MODES, STEPS, TESTED, WAVES = 160, 5, 50, 200, 12
SHOWN = (1, 10, 50, 100, 200)  # steps of a rollout
TRAJECTORIES, HELD_OUT, BATCH, UPDATES, WARM_UP = 50, 30, 20, 10_000, 2_000
#: Medians of their documentation (ten seeds), or of a run of theirs (three).
PUBLISHED = {
    ("advection", "fno"): (0.002, 0.017, 0.080, 0.155, 0.287),
    ("advection", "conv"): (0.003, 0.031, 0.141, 0.270, 0.507),
    ("burgers", "fno"): (0.0214, 0.0698, 0.170, 0.227, 0.402),
    ("burgers", "conv"): (0.0034, 0.0119, 0.037, 0.064, 0.200),
}


class Periodic(Solver):
    """u_0 -> u_1 = step(u_0) -> ...: u_0 a sum of five waves, scaled to a maximum of 1.

    Parameters
    ----------
    scenario : {"advection", "burgers"}
    """

    spec = FieldSpec(
        # None of them means anything behind the first step.
        parameters=(
            Parameter("amplitude", -1, 1, size=MODES, initial=True),
            Parameter("phase", 0, 2 * math.pi, "rad", size=MODES, initial=True),
        ),
        variables=(Variable("u"),),
        dims=("x",),
        shape=(POINTS,),
        times=tuple(range(STEPS + 1)),
        coordinates=(Coordinate("x", "x", tuple(np.arange(POINTS) / POINTS)),),
    )

    def __init__(self, scenario: str) -> None:
        self.scenario = scenario

    def solve(self, parameters: Mapping[str, Any]) -> Iterator[xr.Dataset]:
        """Yield all steps at once, the initial state first."""
        u = self.trajectory(parameters["amplitude"], parameters["phase"], STEPS)
        yield xr.Dataset({"u": (("time", "x"), u)}, {"time": np.arange(STEPS + 1.0)})

    def trajectory(
        self, amplitude: np.ndarray, phase: np.ndarray, steps: int
    ) -> Float[np.ndarray, "time x"]:
        """Return the initial state and the steps after it."""
        waves = np.outer(np.arange(1, MODES + 1), np.arange(POINTS)) / POINTS
        u = amplitude @ np.cos(2 * np.pi * waves + phase[:, np.newaxis])
        fields, step = [u / np.abs(u).max()], STEP[self.scenario]
        for _ in range(steps):
            fields.append(step(fields[-1]))
        return np.array(fields)


def advected(u: Float[np.ndarray, " x"]) -> Float[np.ndarray, " x"]:
    """Solve ∂u/∂t + c ∂u/∂x = 0 for a step of four points: CFL number 4, exactly."""
    return np.roll(u, 4)


def burgers_step(u: Float[np.ndarray, " x"]) -> Float[np.ndarray, " x"]:
    """Solve ∂u/∂t + b ∂(u²/2)/∂x = ν ∂²u/∂x² for a unit of time, on a unit interval.

    The exponential method ETD2RK of Cox and Matthews, products without the upper third
    of the modes; difficulties of 1.5, so that b = 1.5/N and ν = 1.5/(2N²).
    """
    wave = 2j * np.pi * np.arange(POINTS // 2 + 1)
    rate = 1.5 / (2 * POINTS**2) * (wave**2).real
    kept = np.arange(len(wave)) <= (2 * (POINTS // 2)) // 3 - 1
    some = np.where(rate, rate, 1)
    phi1 = np.where(rate, np.expm1(some) / some, 1)
    phi2 = np.where(rate, (np.expm1(some) - some) / some**2, 0.5)

    def convection(z: np.ndarray) -> np.ndarray:
        squared = np.fft.rfft(np.fft.irfft(z * kept, POINTS) ** 2)
        return -1.5 / POINTS / 2 * wave * squared

    z = np.fft.rfft(u)
    before = convection(z)
    z = np.exp(rate) * z + phi1 * before
    return np.fft.irfft(z + phi2 * (convection(z) - before), POINTS)


STEP: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "advection": advected,
    "burgers": burgers_step,
}


class ClassicFNO(nn.Module):
    """v ← gelu(W v + F⁻¹ R F v) of 12 waves, between two linear layers.

    Beside neuraloperator's, lifting and projection have no hidden layer, blocks have no
    MLP, the last one has its activation, and R begins small, at 1 / channels².
    """

    forth: Tensor
    back: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, width: int = 8, blocks: int = 4
    ) -> None:
        super().__init__()
        self.lifting = nn.Conv1d(in_channels, width, 1)
        self.linear = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(blocks))
        # (block, real and imaginary part, wave, channel, channel)
        weights = torch.randn(blocks, 2, WAVES, width, width) / width**2
        self.spectral = nn.Parameter(weights)
        self.projection = nn.Conv1d(width, out_channels, 1)
        angles = 2 * math.pi / POINTS * np.outer(range(POINTS), range(WAVES))
        twice = np.where(np.arange(WAVES) > 0, 2, 1) / POINTS
        cosines, sines = np.cos(angles), -np.sin(angles)
        for name, parts in (
            ("forth", [cosines, sines]),
            ("back", [cosines * twice, sines * twice]),
        ):
            waves = np.concatenate(parts, axis=1, dtype=np.float32)
            self.register_buffer(name, torch.from_numpy(waves), persistent=False)

    def forward(self, v: Float[Tensor, "batch channel x"]) -> Tensor:
        """Map the fields of a batch."""
        v = self.lifting(v)
        (batch, width, _), real, imaginary = v.shape, *self.spectral.unbind(1)
        above, below = (
            torch.cat([real, imaginary], -1),
            torch.cat([-imaginary, real], -1),
        )
        for linear, weights in zip(
            self.linear, torch.cat([above, below], -2), strict=True
        ):
            # Few waves are products, which take less time than an FFT.
            z = (v @ self.forth).reshape(batch, width, 2, WAVES).permute(3, 0, 2, 1)
            z = z.reshape(WAVES, batch, 2 * width) @ weights
            z = z.reshape(WAVES, batch, 2, width).permute(1, 3, 2, 0)
            v = linear(v) + z.reshape(batch, width, -1) @ self.back.T
            v = nn.functional.gelu(v, approximate="tanh")
        out: Tensor = self.projection(v)
        return out


class ConvNet(nn.Sequential):
    """Eleven convolutions of three points, periodic: ``Conv;26;10;relu``."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        convolution = partial(
            nn.Conv1d, kernel_size=3, padding=1, padding_mode="circular"
        )
        hidden = [in_channels, *[26] * 10]
        layers = [
            layer
            for before, after in itertools.pairwise(hidden)
            for layer in (convolution(before, after), nn.ReLU())
        ]
        super().__init__(*layers, convolution(26, out_channels))


NETWORKS = {"fno": ClassicFNO, "conv": ConvNet}


class Arm(NamedTuple):
    """Where samples come from, the highest learning rate, and what the network sees."""

    source: str
    rate: float
    conditions: list[str]


#: The rate is theirs offline; online, 3e-3 had less than half of its error on 30
#: trajectories that are not those of the table.
ARMS = {
    "offline": Arm("offline", 1e-3, []),
    "online": Arm("online", 3e-3, []),
    "offline, 3e-3": Arm("offline", 3e-3, []),
    "online, 1e-3": Arm("online", 1e-3, []),
    "offline, sees all": Arm("offline", 1e-3, ["amplitude", "phase", "time"]),
}


def rate(updates: int, warm_up: int, batch: int) -> float:
    """Return the learning rate of a batch, as a part of the highest."""
    if batch < warm_up:
        return batch / warm_up
    return 0.5 + 0.5 * math.cos(math.pi * (batch - warm_up) / (updates - warm_up))


def surrogate_of(spec: FieldSpec, network: str, updates: int, arm: Arm) -> Surrogate:
    """Return one that maps a step to the next."""
    warm_up = WARM_UP * updates // UPDATES
    return Surrogate(
        spec,
        partial(
            OnGrid, module=f"apebench.{NETWORKS[network].__name__}", positions=False
        ),
        window=Autoregressive(),
        conditions=arm.conditions,
        # As there, where raw values are of order one.
        normalisation="standard" if arm.conditions else "none",
        averaging=False,
        optimizer=partial(torch.optim.Adam, lr=arm.rate),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
            optimizer, partial(rate, updates, warm_up)
        ),
    )


def data_of(
    scenario: str, source: str, seed: int, folder: Path
) -> OnlineData | StoredData:
    """Return the data set of 50 trajectories, or a study without an end."""
    study = OnlineData(
        Periodic(scenario),
        sampler=Uniform(seed=seed if source == "online" else 0),
        simulations=None if source == "online" else TRAJECTORIES,
        held_out=1,
        batch_size=BATCH,
        # Of 1,000 trajectories; each sample is drawn twice: 2,000 are simulated.
        reservoir=Reservoir(
            capacity=50_000,
            threshold=2_500,
            limiter=SamplesPerInsert(ratio=2.0, tolerance=2_500.0),
        ),
        cluster=partial(
            LocalCluster, n_workers=1, threads_per_worker=1, dashboard_address=None
        ),
        name=scenario,
    )
    if source == "online":
        return study
    path = folder / f"{scenario}.zarr"
    if status := generate(study, path, Console(quiet=True)):
        raise SystemExit(status)
    return StoredData(path, batch_size=BATCH, seed=seed)


def trained(
    scenario: str, network: str, arm: str, seed: int, folder: Path, updates: int
) -> dict[str, Any]:
    """Train once; return its errors, or those of before."""
    name = arm.replace(", ", "-").replace(" ", "-")
    place = folder / f"{scenario}-{network}-{name}-{seed}-{updates}.json"
    if place.is_file():
        return dict(json.loads(place.read_text()))
    data = data_of(scenario, ARMS[arm].source, seed, folder)
    L.seed_everything(seed, verbose=False)
    surrogate = surrogate_of(data.spec, network, updates, ARMS[arm])
    trainer = L.Trainer(
        max_steps=updates,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=folder,
    )
    begin = time.perf_counter()
    trainer.fit(surrogate, data)
    seconds = time.perf_counter() - begin
    errors = rolled_out(surrogate, scenario)
    stats = getattr(getattr(data, "store", None), "stats", None)
    row = {
        "errors": [float(errors[n - 1]) for n in SHOWN],
        "seconds": seconds,
        "weights": sum(w.numel() for w in surrogate.parameters()),
        "trajectories": TRAJECTORIES if stats is None else stats().inserted // STEPS,
    }
    place.write_text(json.dumps(row) + "\n")
    return row


@torch.no_grad()
def rolled_out(surrogate: Surrogate, scenario: str) -> Float[np.ndarray, " time"]:
    """Return the mean nRMSE after each step, on trajectories of another seed."""
    chance, solver = np.random.default_rng(773), Periodic(scenario)
    drawn = chance.random((HELD_OUT, 2, MODES))
    drawn = np.array([[-1.0], [0.0]]) + np.array([[2.0], [2 * math.pi]]) * drawn
    truth = np.array([solver.trajectory(a, phase, TESTED) for a, phase in drawn])
    first = torch.from_numpy(truth[:, None, None, 0]).float()
    given = torch.from_numpy(drawn.reshape(HELD_OUT, -1)).float()
    steps = torch.ones(HELD_OUT)
    surrogate.eval()

    def predict(parameters: Tensor, step: Tensor, history: Tensor) -> Tensor:
        # Rollouts go on behind the times of training.
        out: Tensor = surrogate(parameters, step.clamp(max=STEPS), history)
        return out

    guess = roll_out(predict, given, steps, first, TESTED)[:, :, 0].numpy()
    of = partial(np.linalg.norm, axis=-1)
    errors: np.ndarray = (of(guess - truth[:, 1:]) / of(truth[:, 1:])).mean(axis=0)
    return errors


def main() -> None:
    """Train what has not been trained, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenarios", nargs="+", choices=STEP, default=[*STEP])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    arms = ["offline", "offline, 3e-3", "online"]
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=arms)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/apebench"))
    parser.add_argument("--quick", action="store_true", help="a few batches")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    updates, seeds = (5, 1) if options.quick else (UPDATES, options.seeds)
    steps = (f"after {n}" for n in SHOWN)
    table = Table("setting", *steps, "updates/s", title=f"{updates:,} updates")
    for scenario in options.scenarios:
        for network in options.networks:
            if theirs := PUBLISHED.get((scenario, network)):
                said = map(str, theirs)
                table.add_row(f"{scenario}, {network}, APEBench", *said, "")
            for arm in options.arms:
                runs = [
                    trained(scenario, network, arm, seed, options.output, updates)
                    for seed in range(seeds)
                ]
                columns = zip(*(run["errors"] for run in runs), strict=True)
                pace = updates / np.median([run["seconds"] for run in runs])
                table.add_row(
                    f"{scenario}, {network}, {arm}",
                    *map(spread, columns),
                    f"{pace:.0f}",
                )
    Console(width=130).print(table)


def spread(values: tuple[float, ...]) -> str:
    """Return the median, with the least and the greatest."""
    return f"{np.median(values):.4f} ({min(values):.4f} to {max(values):.4f})"


if __name__ == "__main__":
    main()
