"""Solvers: one equation a file."""

from surrogate_flow.solvers.heat2d import Heat2D
from surrogate_flow.solvers.heat_plate import HeatPlate
from surrogate_flow.solvers.solver import Solver

__all__ = ["Heat2D", "HeatPlate", "Solver"]
