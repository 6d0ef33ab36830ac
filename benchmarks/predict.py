"""10,000 predictions of the demo's surrogate, beside a loop over single ones.

    python benchmarks/predict.py
    python benchmarks/predict.py --quick --json rows.json

The network is that of ``make demo``, on 100 x 100 cells, untrained: weights do not
change how long it takes. The loop predicts fewer samples. Stores are written into a
temporary folder.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from row import Row, report

from surrogate_flow import Autoregressive, Direct, Surrogate
from surrogate_flow.fields.window import Window
from surrogate_flow.nn import FullyConnected
from surrogate_flow.sampling import Sobol
from surrogate_flow.solvers import Heat2D

_LOOP = 100  # samples that the loop predicts


def surrogate_of(window: Window, cells: int) -> Surrogate:
    """Return the demo's, untrained."""
    surrogate = Surrogate(Heat2D((cells, cells)).spec, FullyConnected, window=window)
    surrogate.normalisation.freeze(np.array([300.0]), np.array([80.0]))
    return surrogate.eval()


def drawn(surrogate: Surrogate, count: int) -> dict[str, np.ndarray]:
    """Draw parameters."""
    points = Sobol().ask(0, count, surrogate.spec.parameters)
    return {p.name: points[:, k] for k, p in enumerate(surrogate.spec.parameters)}


def seconds(call: Callable[[], object]) -> float:
    """Time a call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def row(
    case: str,
    surrogate: Surrogate,
    count: int,
    times: Sequence[float] | None,
    history: xr.Dataset | None = None,
    store: Path | None = None,
) -> Row:
    """Return samples a second, of a table and of a loop over its first rows."""
    table = drawn(surrogate, count)
    few = min(_LOOP if times else _LOOP // 10, count)

    def loop() -> None:
        for k in range(few):
            one = {name: float(column[k]) for name, column in table.items()}
            if store is None:
                surrogate.predict(one, times, history)
            else:
                file = store.with_name(f"{k}.nc")
                surrogate.predict_to_file(file, one, times, history)

    def whole() -> None:
        if store is None:
            surrogate.predict(table, times, history)
        else:
            surrogate.predict_to_file(store, table, times, history)

    alone = few / seconds(loop)
    together = count / seconds(whole)
    kind = "files of a loop" if store else "a loop"
    return Row(case, together, "samples/s", f"{kind} over {few}", alone)


def rows(quick: bool) -> list[Row]:
    """Measure all cases."""
    count, cells = (40, 10) if quick else (10_000, 100)
    found = []
    direct = surrogate_of(Direct(), cells)
    step = direct.spec.times[50:51]
    one = f"{count:,} samples at one time"
    found.append(row(one, direct, count, step))
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "one.zarr"
        found.append(row(f"{one}, to Zarr", direct, count, step, store=store))
        steps = count // 20
        store = Path(folder) / "all.zarr"
        all_steps = f"{steps:,} samples at 100 times"
        found.append(row(f"{all_steps}, to Zarr", direct, steps, None, store=store))
    rolls = surrogate_of(Autoregressive(2), cells)
    spec = rolls.spec
    fields = np.full((2, *spec.step_shape), 300, np.float32)
    low = {p.name: p.low for p in spec.parameters}
    first = spec.dataset(fields, spec.times[:2], low)
    few = max(2, count // 100)
    rolled = f"{few} samples rolled out over 98 steps"
    found.append(row(rolled, rolls, few, None, first))
    return found


def main() -> None:
    """Measure, print, and write a JSON file if asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report(rows(options.quick), options.json)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{torch.get_num_threads()} threads, {peak:.2f} GiB at most")


if __name__ == "__main__":
    main()
