"""The experiments of the two papers, at a size for two cores: one command a figure.

Each is a comparison, as ``surrogate-flow compare`` makes it, and goes on where it was
when it is typed again. Those with data sets of several sizes are drawn together into
gains.png: how much less networks err online, by how often each sample of the data set
is trained. docs/results.md has what came of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from fits import compared
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from surrogate_flow.cli.compare.table import gains_of

__all__ = ["EXPERIMENTS"]

HERE = Path(__file__).resolve().parent
_PLAIN = str(HERE / "fully_connected_plain.yaml")
_ONE_STEP = "--model.window=surrogate_flow.fields.Autoregressive"
_HEAT = [
    *("--data", "heat2d", "--model", "fully_connected"),
    *("--data.solver.cells", "[50, 50]"),
]
_SMALL_FNO = ["--model.network.modes=8", "--model.network.width=16"]

# Meyer et al., SC 2023: the laptop run, and the large one; Meyer et al., ICML 2023:
# four networks, whose equations and sizes are our choice, since none are published.
EXPERIMENTS = {
    "laptop": [
        *("--data", str(HERE / "heat2d_laptop.yaml"), "--model", _PLAIN),
        *("--batches", "12000", "--offline", "100", "--data.simulations", "100"),
        *("--seeds", "1"),
    ],
    "large": [
        *("--data", str(HERE / "heat2d_large.yaml"), "--model", "fully_connected"),
        *("--batches", "20000", "--offline", "25", "--seeds", "5"),
        *("--variants", "offline", "reservoir"),
    ],
    "fully_connected": [
        *(*_HEAT, "--variants", "offline", "reservoir"),
        *("--batches", "2000", "--offline", "10", "30", "100", "300", "--seeds", "5"),
    ],
    # The order of the policies, after as many batches and after as many seconds.
    "policies": [*_HEAT, "--batches", "2000", "--offline", "10", "--seeds", "5"],
    "policies_in_time": [
        *(*_HEAT, "--batches", "100000", "--offline", "10", "--seeds", "5"),
        *("--trainer.max_time", "00:00:00:40", "--trainer.val_check_interval", "250"),
    ],
    "fno": [
        *("--data", "navier_stokes2d", "--model", "fno", *_SMALL_FNO, _ONE_STEP),
        *("--batches", "500", "--offline", "3", "8", "20", "60", "--seeds", "5"),
        *("--variants", "offline", "reservoir", "--data.solver.points", "32"),
        *("--data.reservoir.capacity", "2000", "--data.batch_size", "16"),
    ],
    "unet": [
        *("--data", "navier_stokes2d", "--model", "unet", _ONE_STEP),
        *("--model.network.widths", "[16, 32, 64]", "--model.network.padding=circular"),
        *("--batches", "500", "--offline", "3", "20", "--seeds", "3"),
        *("--variants", "offline", "reservoir", "--data.solver.points", "32"),
        *("--data.reservoir.capacity", "2000", "--data.batch_size", "16"),
    ],
    "message_passing": [
        *("--data", "combined1d_e1", "--model", "message_passing", _ONE_STEP),
        *("--model.window.inputs=25", "--model.window.outputs=25"),
        "--model.window.unroll=0",
        *("--model.network.width=64", "--model.network.periodic=true"),
        *("--batches", "1000", "--offline", "5", "20", "--seeds", "5"),
        *("--variants", "offline", "reservoir", "--data.solver.cells", "40"),
        *("--data.batch_size", "16"),
    ],
}
# A thousandth of it, to see that it runs.
QUICK = ["--batches", "4", "--offline", "2", "--seeds", "1", "--data.held_out", "2"]


def run(name: str, folder: Path, *, quick: bool, words: list[str]) -> None:
    """Run one experiment; `words` go before what it says."""
    more = [*(QUICK if quick else []), *words]
    compared([*EXPERIMENTS[name], *more], folder / name)
    draw_gains(folder)


def draw_gains(folder: Path) -> None:
    """Draw error offline / error online of what is there, after as many batches."""
    figure = Figure(figsize=(12, 5), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    few, often = figure.subplots(1, 2, sharey=True)
    tables = {name: folder / name / "comparison.csv" for name in EXPERIMENTS}
    for path in filter(Path.exists, tables.values()):
        for _, error, different, trained, gain in gains_of(pd.read_csv(path)):
            label = f"{path.parent.name}, {error}"
            few.plot(different, gain, "o-", label=label)
            often.plot(trained, gain, "o-")
    for axes in (few, often):
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.axhline(1, color="black", linewidth=0.8)
        axes.grid(visible=True, alpha=0.3)
    few.set_xlabel("different samples of the data set")
    few.set_ylabel("gain: error offline / error online")
    often.set_xlabel("how often each of them is trained")
    if few.lines[1:]:
        figure.legend(loc="outside lower center", ncols=3)
        figure.savefig(folder / "gains.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=EXPERIMENTS)
    parser.add_argument("--output", type=Path, default=Path("runs/papers"))
    parser.add_argument("--quick", action="store_true", help="a few batches of each")
    options, rest = parser.parse_known_args()
    run(options.name, options.output, quick=options.quick, words=rest)
