"""A run's folder as an RO-Crate: what each file is, and what has made it.

The standard is https://www.researchobject.org/ro-crate; repositories such as Zenodo
and WorkflowHub read it. Nothing is copied: the files stay where they are.
"""

from __future__ import annotations

import datetime
import json
import mimetypes
from contextlib import suppress
from pathlib import Path
from typing import Any

from surrogate_flow.files import write_text
from surrogate_flow.report.folder.headline import headline, name_of
from surrogate_flow.report.folder.run_folder import RunFolder

__all__ = ["CRATE", "write_crate"]

CRATE = "ro-crate-metadata.json"

# What files are, by the beginning of their names; the first that fits counts.
_DESCRIPTIONS = {
    "report.html": "the run on one page",
    "config.yaml": "all settings, to run it again with fit --config",
    "run.json": "command, versions, machine and the description of the fields",
    "outcome.json": "errors at the end, and what the run took",
    "metrics.csv": "losses and validation errors over the batches",
    "telemetry": "the state of the run once a second",
    "failures": "attempts at simulations that failed, and why",
    "losses.csv": "the newest loss of the last simulations trained on",
    "newest.nc": "a sample of the newest batch, of solver and surrogate",
    "validation.csv": "the error of each held-out simulation",
    "cases.nc": "the best, median and worst case, of solver and surrogate",
    "rollout": "the error at each step, over the held-out simulations",
    "prediction.png": "solver, surrogate and difference of held-out simulations",
    "history.nc": "the first steps of a held-out simulation, to predict from",
    "payback.json": "solver time at equal error",
    "checkpoints/best": "the weights of the smallest validation error",
    "checkpoints/last": "the last weights, to go on from",
    "checkpoints": "of a checkpoint",
    "events.out": "events for TensorBoard",
}
_FORMATS = {
    ".nc": "application/x-netcdf",
    ".yaml": "application/yaml",
    ".log": "text/plain",
    ".ckpt": "application/zip",  # as torch.save writes
}
_LOGS = "jobs"  # a folder of many files, which is described as a whole


def write_crate(run: RunFolder) -> Path:
    """Write ro-crate-metadata.json into the folder of a run, and return its path."""
    # It takes half a second to import.
    from rocrate.model.softwareapplication import SoftwareApplication
    from rocrate.rocrate import ROCrate

    about, crate = run.about, ROCrate(gen_preview=False, version="1.1")
    root = crate.root_dataset
    crate.name, crate.description = f"{name_of(run)}, {run.path.name}", headline(run)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    root["datePublished"] = str(about.get("ended") or now)
    for path in sorted(run.path.rglob("*")):
        place = path.relative_to(run.path)
        if place.parts[0] == _LOGS or _passing(place):
            continue
        # A run that goes on may replace or remove it now.
        with suppress(FileNotFoundError):
            if path.is_file():
                crate.add_file(path, str(place), properties=_properties(place, path))
    if (run.path / _LOGS).is_dir():
        named = {"name": _LOGS, "description": "logs of the jobs of a cluster"}
        crate.add_directory(run.path / _LOGS, _LOGS, properties=named)
    versions = dict(about.get("versions") or {})
    version = versions.pop("surrogate-flow", None)
    others = [f"{name} {each}" for name, each in versions.items()]
    software = SoftwareApplication(
        crate,
        "#surrogate-flow",
        properties={
            "name": "surrogate-flow",
            "description": "Trains deep surrogates of PDE solvers while these run.",
            **({"version": version, "softwareVersion": version} if version else {}),
            **({"softwareRequirements": others} if others else {}),
        },
    )
    crate.add(software)
    command = str(about.get("command") or "surrogate-flow fit")
    times = {"startTime": about.get("started"), "endTime": about.get("ended")}
    crate.add_action(
        software,
        "#run",
        object=[e for e in [crate.dereference("config.yaml")] if e is not None],
        result=[e for e in crate.data_entities if e.id != "config.yaml"],
        properties={
            "name": command,
            "description": "The command, as it was typed.",
            **{name: str(time) for name, time in times.items() if time},
        },
    )
    path = run.path / CRATE
    plain = crate.metadata.generate()
    write_text(path, json.dumps(plain, indent=1, ensure_ascii=False))
    return path


def _passing(place: Path) -> bool:
    """Whether a file is of the crate itself, hidden, or not yet whole."""
    hidden = any(part.startswith(".") for part in place.parts)
    return hidden or place.name == CRATE or place.suffix == ".part"


def _properties(place: Path, path: Path) -> dict[str, Any]:
    name = place.as_posix()
    words = [what for start, what in _DESCRIPTIONS.items() if name.startswith(start)]
    kind = _FORMATS.get(path.suffix) or mimetypes.guess_type(path.name)[0]
    return {
        "name": name,
        "description": next(iter(words), "written by the run"),
        "encodingFormat": kind or "application/octet-stream",
        "contentSize": str(path.stat().st_size),
    }
