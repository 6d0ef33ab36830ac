"""Train deep surrogates of PDE solvers while the solvers run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from surrogate_flow.fields.spec import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.fields.window import Autoregressive, Direct
from surrogate_flow.solvers.solver import Solver

if TYPE_CHECKING:
    from surrogate_flow.cluster.existing import ExistingScheduler
    from surrogate_flow.data.online import OnlineData
    from surrogate_flow.data.stored import StoredData
    from surrogate_flow.dataset import Archive
    from surrogate_flow.surrogate.surrogate import Surrogate

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
    "Archive": "surrogate_flow.dataset",
    "ExistingScheduler": "surrogate_flow.cluster.existing",
    "OnlineData": "surrogate_flow.data.online",
    "StoredData": "surrogate_flow.data.stored",
    "Surrogate": "surrogate_flow.surrogate.surrogate",
}


def __getattr__(name: str) -> Any:
    # Workers import this package to run solvers; they must not pay for torch.
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
