"""Solvers: one equation a file."""

from surrogate_flow.solvers.combined1d import Combined1D
from surrogate_flow.solvers.gray_scott import GrayScott2D
from surrogate_flow.solvers.heat2d import Heat2D
from surrogate_flow.solvers.heat_plate import HeatPlate
from surrogate_flow.solvers.lorenz import Lorenz
from surrogate_flow.solvers.navier_stokes2d import NavierStokes2D
from surrogate_flow.solvers.solver import Solver

__all__ = [
    "Combined1D",
    "GrayScott2D",
    "Heat2D",
    "HeatPlate",
    "Lorenz",
    "NavierStokes2D",
    "Solver",
]
