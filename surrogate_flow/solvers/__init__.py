"""Solvers: one equation a file."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from surrogate_flow.solvers.grid import GridSolver
from surrogate_flow.solvers.solver import Ended, Run, Solver, Stopped

if TYPE_CHECKING:
    from surrogate_flow.solvers.burgers import BurgersFromState
    from surrogate_flow.solvers.combined1d import Combined1D
    from surrogate_flow.solvers.darcy import Darcy
    from surrogate_flow.solvers.gray_scott import GrayScott2D
    from surrogate_flow.solvers.heat2d import Heat2D
    from surrogate_flow.solvers.heat_plate import HeatPlate
    from surrogate_flow.solvers.lorenz import Lorenz
    from surrogate_flow.solvers.natural_convection import NaturalConvection
    from surrogate_flow.solvers.navier_stokes2d import NavierStokes2D
    from surrogate_flow.solvers.programs.adios import Adios2
    from surrogate_flow.solvers.programs.files import OutputFiles
    from surrogate_flow.solvers.programs.process import ProcessError, ProcessSolver
    from surrogate_flow.solvers.programs.program import Program, Reader
    from surrogate_flow.solvers.pypde import PyPDE
    from surrogate_flow.solvers.replay import Replay

__all__ = [
    "Adios2",
    "BurgersFromState",
    "Combined1D",
    "Darcy",
    "Ended",
    "GrayScott2D",
    "GridSolver",
    "Heat2D",
    "HeatPlate",
    "Lorenz",
    "NaturalConvection",
    "NavierStokes2D",
    "OutputFiles",
    "ProcessError",
    "ProcessSolver",
    "Program",
    "PyPDE",
    "Reader",
    "Replay",
    "Run",
    "Solver",
    "Stopped",
]

_FILES = {
    "BurgersFromState": "burgers",
    "Adios2": "programs.adios",
    "Combined1D": "combined1d",
    "Darcy": "darcy",
    "GrayScott2D": "gray_scott",
    "Heat2D": "heat2d",
    "HeatPlate": "heat_plate",
    "Lorenz": "lorenz",
    "NaturalConvection": "natural_convection",
    "NavierStokes2D": "navier_stokes2d",
    "OutputFiles": "programs.files",
    "ProcessError": "programs.process",
    "ProcessSolver": "programs.process",
    "Program": "programs.program",
    "PyPDE": "pypde",
    "Reader": "programs.program",
    "Replay": "replay",
}


def __getattr__(name: str) -> Any:
    # A worker runs one solver and need not import what the others do.
    if name in _FILES:
        return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
