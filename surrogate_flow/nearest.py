"""The valid name that a misspelt one was meant to be."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["nearest", "public_path", "with_present_names"]

# Written in files of version 0.1 -> the public path of the same class today.
_MOVED = {
    f"surrogate_flow.{old}": f"surrogate_flow.{new}"
    for old, new in {
        "scheduler.ExistingScheduler": "ExistingScheduler",
        "windows.Autoregressive": "Autoregressive",
        "windows.Direct": "Direct",
        "nn.fno.FNO": "nn.FNO",
        "nn.fully_connected.FullyConnected": "nn.FullyConnected",
        "nn.message_passing.MessagePassingSolver": "nn.MessagePassingSolver",
        "nn.on_grid.OnGrid": "nn.OnGrid",
        "nn.unet.UNet": "nn.UNet",
        "sampling.halton.Halton": "sampling.Halton",
        "sampling.latin_hypercube.LatinHypercube": "sampling.LatinHypercube",
        "sampling.sobol.Sobol": "sampling.Sobol",
        "sampling.uniform.Uniform": "sampling.Uniform",
        "solvers.combined1d.Combined1D": "solvers.Combined1D",
        "solvers.gray_scott.GrayScott2D": "solvers.GrayScott2D",
        "solvers.heat2d.Heat2D": "solvers.Heat2D",
        "solvers.heat_plate.HeatPlate": "solvers.HeatPlate",
        "solvers.lorenz.Lorenz": "solvers.Lorenz",
        "solvers.navier_stokes2d.NavierStokes2D": "solvers.NavierStokes2D",
    }.items()
}


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return the valid names as text, the one closest to `name` first in words."""
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Valid names: {', '.join(names) or 'none'}."


def public_path(kind: type) -> str:
    """Return the shortest import path of a class, which is what files name it by.

    A class that its package exports goes by the package, so that its file may move.

    Examples
    --------
    >>> from surrogate_flow.solvers import Heat2D
    >>> public_path(Heat2D)
    'surrogate_flow.solvers.Heat2D'
    """
    name = kind.__qualname__
    parts = kind.__module__.split(".")
    packages = (".".join(parts[:length]) for length in range(1, len(parts)))
    for package in packages:
        if getattr(sys.modules.get(package), name, None) is kind:
            return f"{package}.{name}"
    return f"{kind.__module__}.{name}"


def with_present_names(value: Any) -> Any:
    """Return plain values of a file with the names that its classes have today."""
    if isinstance(value, str):
        return _MOVED.get(value, value)
    if isinstance(value, Mapping):
        return {key: with_present_names(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_present_names(v) for v in value]
    return value
