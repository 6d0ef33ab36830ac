"""Batches a second of ``surrogate-flow fit`` against a plain loop of the same network.

Each side is a process of its own, and they take turns. Both train the network of the
recipe with its loss and its optimizer, on batches of the same size, with half of the
cores for torch's threads and denormals flushed. The loop has normalised samples of a
few simulations in memory and draws from them; beside it a solver runs free on the
other core, and its steps go nowhere. A fit simulates, streams, keeps and draws, on the
same cores. *training* counts from the first hundred batches on, without validations, of
which the loop has none; *with validations* counts these and their checkpoints, too, and
*whole run* is the seconds of the whole command, of which the peer would need those of
its batches alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dask.system import CPU_COUNT
from rich.progress import track
from row import Row, report

__all__ = ["CASES"]

CASES = {
    "demo": (2000, ["--data=heat2d", "--model=fully_connected"]),
    "FNO, E1": (
        1000,
        ["--data=combined1d_e1", "--model=fno", "--data.solver.cells=40"],
    ),
}
KEPT = 2000  # samples of the loop
TIMEOUT = 600.0


def plain(words: list[str], batches: int, skipped: int) -> float:
    """Return batches/s of a loop without us, beside a solver."""
    import torch

    from surrogate_flow.cli.lightning import build

    built: tuple[Any, Any] = build(["fit", *words])
    data, model = built
    solver, batch_size = data.solver, data.batch_size
    inputs, targets = _samples(data, model)
    network, loss = model.network, model.loss
    optimizer = model.optimizer(network.parameters())
    torch.set_flush_denormal(True)
    torch.set_num_threads(max(1, CPU_COUNT // 2))
    beside = multiprocessing.get_context("spawn").Process(
        target=_solve_for_ever, args=[solver], daemon=True
    )
    beside.start()
    try:
        for batch in range(skipped + batches):
            if batch == skipped:
                begin = time.perf_counter()
            rows = torch.randint(len(targets), (batch_size,))
            error = loss(network(*(x[rows] for x in inputs)), targets[rows])
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
        return batches / (time.perf_counter() - begin)
    finally:
        beside.kill()
        beside.join()


def _samples(data: Any, model: Any) -> tuple[tuple[Any, ...], Any]:
    """Return normalised samples of some simulations: inputs and targets."""
    import numpy as np
    import torch

    spec, window = model.spec, model.window
    parts: list[tuple[Any, ...]] = []
    chance = np.random.default_rng(0)
    data.solver.setup(1)
    while sum(len(part[1]) for part in parts) < KEPT:
        drawn = {p.name: p.at(chance.random()) for p in spec.parameters}
        fields = np.concatenate(list(data.solver.fields(drawn))).astype(np.float32)
        first = np.arange(len(fields) - window.span + 1)
        spans = np.stack([fields[k : k + window.span] for k in first])
        vectors = np.tile(spec.vector(drawn).astype(np.float32), (len(first), 1))
        parts.append((vectors, (first + window.inputs).astype(np.float32), spans))
    arrays = [np.concatenate(each) for each in zip(*parts, strict=True)]
    parameters, step, windows = map(torch.from_numpy, arrays)
    axes = [0, 1, *range(3, windows.dim())]
    if not model.normalisation.frozen:
        moments = windows.mean(axes).numpy(), windows.std(axes).numpy()
        model.normalisation.freeze(*moments)
    windows = model.normalisation.fields(windows)
    history = windows[:, : window.inputs].contiguous()
    outputs = windows[:, window.inputs : window.inputs + window.outputs].contiguous()
    return (*model.normalisation.inputs(parameters, step), history), outputs


def _solve_for_ever(solver: Any) -> None:
    import itertools

    middle = {p.name: p.at(0.5) for p in solver.spec.parameters}
    solver.setup(1)
    for _ in itertools.count():
        for _ in solver.solve(middle):
            pass


def ours(words: list[str], batches: int, skipped: int) -> tuple[float, float, float]:
    """Return batches/s of a fit, the same with validations, and the seconds of all."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        _output(
            *("-m", "surrogate_flow", "fit", *words),
            f"--trainer.max_steps={skipped + batches}",
            f"--trainer.default_root_dir={folder}",
            "--data.simulations=null",
            "--trainer.callbacks+=stopwatch.Stopwatch",
            f"--trainer.callbacks.folder={folder}",
            f"--trainer.callbacks.skipped={skipped}",
            paths=paths,
        )
        seconds = time.perf_counter() - begin
        times = json.loads((Path(folder) / "0.json").read_text())
    trained = times["last"] - times["first"]
    return batches / (trained - times["paused"]), batches / trained, seconds


def apart(words: list[str], batches: int, skipped: int) -> float:
    """Return what `plain` does in a process of its own."""
    case = json.dumps([words, batches, skipped])
    output = _output(
        *(__file__, "--plain", case), paths=sys.path, OMP_WAIT_POLICY="PASSIVE"
    )
    return float(output.split()[-1])


def _output(*words: str, paths: list[str], **variables: str) -> str:
    """Run Python in a process of its own; return what it prints."""
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} has failed:\n{done.stderr}")
    return done.stdout


def measure(quick: bool, rounds: int) -> list[Row]:
    """Run all cases in turn; return the rows of the table."""
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in CASES}
    for _ in track(range(rounds), "rounds", transient=True):
        for name, (batches, words) in CASES.items():
            length = (20, 5) if quick else (batches, 100)
            loop = apart(words, *length)
            found[name].append((loop, *ours(words, *length)))
    rows = []
    for name, values in found.items():
        loop, *rates, seconds = map(statistics.median, zip(*values, strict=True))
        for what, rate in zip(("training", "with validations"), rates, strict=True):
            rows.append(Row(f"{name}: {what}", rate, "batches/s", "plain loop", loop))
        least = (25 if quick else CASES[name][0] + 100) / loop
        rows.append(Row(f"{name}: whole run", seconds, "s", "plain loop", least))
    return rows


def main() -> None:
    """Measure, print a table, and write it where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few batches, for CI")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--plain", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain is not None:
        print(plain(*json.loads(options.plain)))
        return
    rows = measure(options.quick, 1 if options.quick else options.rounds)
    report(rows, options.json)


if __name__ == "__main__":
    main()
