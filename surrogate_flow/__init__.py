"""Train deep surrogates of PDE solvers while the solvers run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surrogate_flow.fields import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.solvers.solver import Solver
from surrogate_flow.windows import Autoregressive, Direct

if TYPE_CHECKING:
    from surrogate_flow.archive import Archive
    from surrogate_flow.data import OnlineData
    from surrogate_flow.scheduler import ExistingScheduler
    from surrogate_flow.stored import StoredData
    from surrogate_flow.surrogate import Surrogate

__all__ = [
    "Archive",
    "Autoregressive",
    "Coordinate",
    "Direct",
    "ExistingScheduler",
    "FieldSpec",
    "OnlineData",
    "Parameter",
    "Solver",
    "StoredData",
    "Surrogate",
    "Variable",
]

_LAZY = {
    "Archive": "surrogate_flow.archive",
    "ExistingScheduler": "surrogate_flow.scheduler",
    "OnlineData": "surrogate_flow.data",
    "StoredData": "surrogate_flow.stored",
    "Surrogate": "surrogate_flow.surrogate",
}


def __getattr__(name: str) -> Any:
    # Workers import this package to run solvers; they must not pay for torch.
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
