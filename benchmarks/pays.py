"""A problem where a surrogate pays at equal error: natural convection in an enclosure.

First the solver on fewer and on more elements: its error against 40 a side, on test
simulations, and what one takes. A setting that fails on one of them has no error. Then,
for each seed, a fit online from simulations on 24 elements a side: the error of its
best weights against the same 40 elements, so with the error of the 24 in it; what a
prediction takes, 10,000 in a call and one in a call; and after how many evaluations the
fit pays, against the solver that made the data and against the cheapest setting that
errs no more than the surrogate. Errors are relative L2, the mean over simulations and
variables, as arrays on the points of the fields.

All times are core-seconds, those of the operating system for a process and its
children: of a fit all of them are counted, of its workers and its imports too, so that
neither the overlap of training and simulations nor a busy machine is a gain. An
interrupted command goes on with the next seed.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fits import digest, fit_once, unseen
from payback import Rung, cheapest, relative
from rich.console import Console
from rich.table import Table

from surrogate_flow import Surrogate
from surrogate_flow.report.folder.cost import break_even
from surrogate_flow.solvers import NaturalConvection

Fields = list[np.ndarray]
LADDER: tuple[int, ...] = (32, 28, 24, 22, 20, 18, 16, 14, 12, 10)
REFERENCE, CELLS = 40, 24
FIT = [
    *("--data=natural_convection", "--model=fully_connected"),
    *("--model.network.activation=torch.nn.GELU", "--model.network.widths=[64, 64]"),
    *("--model.optimizer.lr=0.005", "--data.simulations=150", "--data.held_out=10"),
]


@dataclass(frozen=True)
class Paid:
    """A fit beside the setting of the solver that errs as little; core-seconds."""

    seed: int
    error: float
    spent: float
    #: Of a prediction, among 10,000 and by itself.
    batch: float
    single: float
    full: float
    peer: str
    peer_error: float
    peer_seconds: float
    #: Evaluations; None where it never does.
    pays_after: int | None
    pays_after_one_by_one: int | None
    pays_after_full: int | None


def solved(
    cells: int, simulations: Iterable[Mapping[str, float]]
) -> tuple[Fields, float]:
    """Return the fields of each simulation, and the median core-seconds of one."""
    solver = NaturalConvection(cells)
    solver.setup(1)
    fields, seconds = [], []
    for parameters in simulations:
        begin = time.process_time()
        fields.append(next(solver.fields(parameters)))
        seconds.append(time.process_time() - begin)
    return fields, statistics.median(seconds)


def ladder(
    settings: Iterable[int],
    simulations: Sequence[Mapping[str, float]],
    truth: Fields,
    console: Console,
) -> dict[int, Rung]:
    """Measure and print each setting that solves all simulations."""
    rungs = {}
    for cells in settings:
        name = f"{cells} x {cells} elements"
        try:
            fields, seconds = solved(cells, simulations)
        except FloatingPointError:
            console.print(f"{name}: fails", highlight=False)
            continue
        pairs = zip(fields, truth, strict=True)
        error = float(np.mean([relative(guess, true) for guess, true in pairs]))
        rungs[cells] = Rung(name, error, seconds)
        said = f"{name}: {error:.2%}, {seconds:.3f} core-seconds"
        console.print(said, highlight=False)
    return rungs


def trained(folder: Path, seed: int, words: Sequence[str]) -> tuple[Path, float]:
    """Fit, unless that has been done; return the run and its core-seconds."""
    place = folder / digest([*FIT, *words]) / f"seed-{seed}"
    noted = place / "spent.json"
    if not noted.is_file():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = fit_once(place, [*FIT, *words, f"--seed_everything={seed}"])
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        noted.write_text(json.dumps({"run": str(run), "core_seconds": spent}))
    known = json.loads(noted.read_text())
    return Path(known["run"]), known["core_seconds"]


def predicted(surrogate: Surrogate, table: pd.DataFrame) -> tuple[np.ndarray, float]:
    """Return all fields, and the core-seconds of one; a first call is not counted."""
    spec = surrogate.spec
    surrogate.predict(table[:2])
    begin = time.process_time()
    out = surrogate.predict(table)
    seconds = (time.process_time() - begin) / len(table)
    fields = [
        out[v.name].transpose("sample", "time", *spec.dims) for v in spec.variables
    ]
    return np.stack([f.values for f in fields], axis=2), seconds


def paid(
    run: Path,
    seed: int,
    spent: float,
    simulations: Sequence[Mapping[str, float]],
    truth: Fields,
    rungs: Mapping[int, Rung],
    many: int,
) -> Paid:
    """Measure a surrogate, and compare."""
    surrogate = Surrogate.load(run / "checkpoints" / "best.ckpt").eval()
    guess, _ = predicted(surrogate, pd.DataFrame([*simulations]))
    pairs = zip(guess, truth, strict=True)
    error = float(np.mean([relative(one, true) for one, true in pairs]))
    points = pd.DataFrame(
        {p.name: np.linspace(p.low, p.high, many) for p in surrogate.spec.parameters}
    )
    _, batch = predicted(surrogate, points)
    singles = []
    for parameters in simulations:
        begin = time.process_time()
        surrogate.predict(parameters)
        singles.append(time.process_time() - begin)
    single, full = statistics.median(singles), rungs[CELLS].seconds
    peer = cheapest([*rungs.values(), Rung("the reference", 0.0, np.inf)], error)
    return Paid(
        seed,
        error,
        spent,
        batch,
        single,
        full,
        peer.name,
        peer.error,
        peer.seconds,
        break_even(spent, peer.seconds, batch),
        break_even(spent, peer.seconds, single),
        break_even(spent, full, batch),
    )


def main() -> None:
    """Measure the solver, fit what has not been fitted, and print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/pays"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tests", type=int, default=10, help="simulations")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--quick", action="store_true", help="a few simulations")
    options, words = parser.parse_known_args()
    seeds, tests, settings, reference = options.seeds, options.tests, LADDER, REFERENCE
    many = 10_000
    if options.quick:
        seeds, tests, settings, reference, many = 1, 2, (24, 16), 28, 50
        words = [*words, "--data.simulations=20", "--data.held_out=2"]
        words += ["--data.solver.cells=16", "--data.reservoir.threshold=10"]
    torch.set_num_threads(1)
    console = Console()
    options.output.mkdir(parents=True, exist_ok=True)
    simulations = unseen(NaturalConvection().spec, tests)
    truth, seconds = solved(reference, simulations)
    said = f"reference: {reference} x {reference} elements, {seconds:.3f} core-seconds"
    console.print(said, highlight=False)
    rungs = ladder(settings, simulations, truth, console)
    rows = []
    for seed in range(seeds):
        run, spent = trained(options.output, seed, words)
        rows.append(paid(run, seed, spent, simulations, truth, rungs, many))
    _print(rows, console)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


def _print(rows: Sequence[Paid], console: Console) -> None:
    table = Table("of a seed", *(str(row.seed) for row in rows), "median")
    for name in asdict(rows[0]):
        values = [getattr(row, name) for row in rows]
        known = [value for value in values if isinstance(value, float | int)]
        shown = [_shown(name, value) for value in values]
        median = ""
        if len(known) == len(values) and name != "seed":
            median = _shown(name, statistics.median(known))
        table.add_row(name.replace("_", " "), *shown, median)
    console.print(table)


def _shown(name: str, value: object) -> str:
    if value is None:
        return "never"
    if not isinstance(value, float | int):
        return str(value)
    if "error" in name:
        return f"{value:.2%}"
    return f"{value:,.0f}" if "pays" in name or name == "seed" else f"{value:.3g} s"


if __name__ == "__main__":
    main()
