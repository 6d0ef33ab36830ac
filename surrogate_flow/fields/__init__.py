"""The description of what a simulation yields: names, shapes, units, windows."""

from surrogate_flow.fields.parameter import Parameter
from surrogate_flow.fields.quantities import Coordinate, Variable
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Autoregressive, Direct, Window

__all__ = [
    "Autoregressive",
    "Coordinate",
    "Direct",
    "FieldSpec",
    "Parameter",
    "Variable",
    "Window",
]
