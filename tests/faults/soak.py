"""A thousand seeds, or as many as there is time for: python tests/faults/soak.py"""

import argparse
import json
import logging
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from unittest import mock

from distributed import Client
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.cluster import shared_cluster
from faults.kinds import trial
from faults.plan import KINDS

FILE = Path("runs/faults.jsonl")


def run(seed, client):
    """Run one seed; return what came of it, as plain values."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    start = time.monotonic()
    try:
        with mock.patch.object(tempfile, "tempdir", str(folder)):
            study = trial(seed, client, folder).run()
            complaints = study.complaints()
        left = [f"{path.name} is left" for path in folder.glob("flow-*")]
        if study.hung:
            # The next ones shall not suffer from what this one left on the workers.
            client.restart()
        return {
            "seed": seed,
            "struck": study.struck(),
            **study.books(),
            "hung": bool(study.hung),
            "complaints": complaints + left,
            "seconds": round(time.monotonic() - start, 2),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def finished(path):
    """Return what is known of the seeds that have ended, one a line of the file."""
    if not path.exists():
        return {}
    rows = map(json.loads, path.read_text().splitlines())
    return {row["seed"]: row for row in rows}


def soak(seeds, path, minutes, progress):
    """Run the seeds that the file lacks, and append a line for each."""
    end = time.monotonic() + 60 * minutes
    known = finished(path).keys() & set(seeds)
    task = progress.add_task("seeds", total=len(seeds), completed=len(known))
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("a") as file,
        shared_cluster() as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        for seed in seeds:
            if seed in known:
                continue
            if time.monotonic() > end:
                return
            row = run(seed, client)
            file.write(f"{json.dumps(row)}\n")
            file.flush()
            progress.advance(task)
            for complaint in row["complaints"]:
                progress.console.print(f"seed {seed}: {complaint}", markup=False)


def report(rows, total, console):
    """Print the table; return whether all is well."""
    struck = sum((Counter(row["struck"]) for row in rows), Counter())
    table = Table("fault", "injected", title=f"{len(rows)} of {total} seeds")
    for kind in KINDS:
        table.add_row(kind, f"{struck[kind]:,}")
    table.add_section()
    table.add_row("all faults", f"{sum(struck.values()):,}")
    for name in ("sent", "lost", "doubled", "hung"):
        words = "hangs" if name == "hung" else f"steps {name}"
        table.add_row(words, f"{sum(row[name] for row in rows):,}")
    red = sorted(row["seed"] for row in rows if row["complaints"])
    table.add_row("seeds with complaints", f"{len(red)}")
    table.add_row("minutes", f"{sum(row['seconds'] for row in rows) / 60:.1f}")
    console.print(table)
    if red:
        console.print(f"With complaints: {red}")
    return not red


def main():
    """Run what is not in the file yet, and print the table of all that is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--file", type=Path, default=FILE, help="what has been run")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    console = Console()
    seeds = range(options.first, options.first + options.seeds)
    with Progress(console=console) as progress:
        soak(seeds, options.file, options.minutes, progress)
    rows = [row for seed, row in finished(options.file).items() if seed in seeds]
    sys.exit(not report(rows, options.seeds, console))


if __name__ == "__main__":
    main()
