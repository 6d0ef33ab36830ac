"""What benchmarks of trained networks share: fits that run once, comparisons, tests."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from surrogate_flow.cli.app import main
from surrogate_flow.cli.sweep.folder import SweepFolder
from surrogate_flow.cli.sweep.recipe import CASE, SEED
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.report.folder.run_folder import RunSummary
from surrogate_flow.sampling import Design, Uniform

__all__ = ["by_case_and_seed", "compared", "digest", "fit_once", "unseen"]

HERE = Path(__file__).resolve().parent
T = TypeVar("T")


def digest(words: Sequence[str]) -> str:
    """Return what names the folder of fits with these options, and no others."""
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:8]


def fit_once(place: Path, words: Sequence[str], *, quiet: bool = False) -> Path:
    """Fit on one thread, unless a fit in `place` went to its end; return the run."""
    if (run := _ended(place)) is None:
        subprocess.run(
            [
                *(sys.executable, "-m", "surrogate_flow", "fit", *words),
                f"--trainer.default_root_dir={place}",
            ],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "SURROGATE_FLOW_REPORT": "no"},
            stdout=subprocess.DEVNULL if quiet else None,
        )
        run = _ended(place)
    if run is None:
        raise SystemExit(f"{place}: the fit has ended early. Type the command again.")
    return run


def _ended(place: Path) -> Path | None:
    for path in sorted(place.glob("*/*/outcome.json"), reverse=True):
        outcome = RunSummary.read(path.parent)
        if outcome is not None and not outcome.ended_early:
            return path.parent
    return None


def compared(words: Sequence[str], folder: Path) -> None:
    """Run a comparison, whose recipes may name what is defined in this folder."""
    path = [str(HERE), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    sys.path.insert(0, str(HERE))
    main(["compare", *words, "--output", str(folder)])


def by_case_and_seed(
    folder: Path, measure: Callable[[Path], T]
) -> dict[str, dict[int, T]]:
    """Measure the last weights of each complete run of a comparison."""
    sweep, found = SweepFolder(folder), dict[str, dict[int, T]]()
    for row in sweep.rows():
        checkpoint = sweep.checkpoint(row.number)
        if row.state == "complete" and checkpoint is not None:
            case, seed = str(row.point[CASE]), int(row.point[SEED])
            found.setdefault(case, {})[seed] = measure(checkpoint)
    return found


def unseen(spec: FieldSpec, count: int) -> list[dict[str, Any]]:
    """Return the parameters of test simulations: no fit trains or validates on them."""
    design = Design(
        spec.parameters, Uniform(), held_out=count, simulations=0, part="test"
    )
    return [dict(simulation.parameters) for simulation in design]
