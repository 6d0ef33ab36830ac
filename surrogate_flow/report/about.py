"""What run.json says of a run: its command, versions, machine and fields."""

from __future__ import annotations

import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as L
import torch
from dask.system import CPU_COUNT

from surrogate_flow.data.module import SurrogateData
from surrogate_flow.fields.conventions import masked, version
from surrogate_flow.fields.spec import FieldSpec

__all__ = ["about_run", "now"]

_PACKAGES = (
    *("surrogate-flow", "torch", "pytorch-lightning", "dask", "distributed"),
    *(
        "dask-jobqueue",
        "numpy",
        "xarray",
        "zarr",
        "pyzmq",
        "h5netcdf",
        "neuraloperator",
    ),
)


def now() -> str:
    """Return the time in ISO 8601, with the time zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def about_run(trainer: L.Trainer, data: SurrogateData) -> dict[str, Any]:
    """Return what is run, where, and with which versions."""
    device = trainer.strategy.root_device
    cuda: Any = torch.cuda
    name = cuda.get_device_name(device) if device.type == "cuda" else ""
    return {
        "name": data.workflow,
        "command": _command(),
        "started": now(),
        "versions": {
            **{package: v for package in _PACKAGES if (v := version(package))},
            "python": platform.python_version(),
        },
        "git": _commit(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cores": CPU_COUNT,
        "device": f"{device} ({name})" if name else str(device),
        "ranks": trainer.world_size,
        "spec": _brief(data.spec),
    }


def _brief(spec: FieldSpec) -> dict[str, Any]:
    """Return a spec without what makes it large: a mesh, positions, and times."""
    plain = replace(spec, coordinates=(), cells=None).to_plain()
    plain["times"] = _range(spec.times)
    plain["coordinates"] = [
        {
            **{name: getattr(c, name) for name in ("name", "dim", "units")},
            "values": _range(c.values),
        }
        for c in spec.coordinates
    ]
    if spec.cells is not None:
        plain["cells"] = len(spec.cells)
    return plain


def _range(values: Sequence[float]) -> dict[str, float]:
    return {"count": len(values), "low": min(values), "high": max(values)}


def _command() -> str:
    """Return the command of this process as it was typed; empty in a notebook."""
    # The command line has put the paths of recipes into `sys.argv`.
    for place, word in enumerate(sys.orig_argv):
        if Path(word).name in ("surrogate-flow", "surrogate_flow"):
            typed = masked(sys.orig_argv[place + 1 :])
            return shlex.join(["surrogate-flow", *typed])
    program = Path(sys.argv[0]).name
    script = program.endswith(".py") and not program.startswith("ipykernel")
    return shlex.join(["python", *masked(sys.argv)]) if script else ""


def _commit() -> str:
    """Return the commit of the working folder; empty if it is no git repository."""
    try:
        answer = subprocess.run(
            # Without a lock on the index, which another git may want.
            [
                *("git", "--no-optional-locks", "describe"),
                *("--always", "--dirty", "--abbrev=40", "--exclude=*"),
            ],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip()
