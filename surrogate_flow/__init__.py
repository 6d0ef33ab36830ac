"""Train deep surrogates of PDE solvers while the solvers run."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surrogate_flow.cluster.existing import ExistingScheduler
    from surrogate_flow.data.online import OnlineData
    from surrogate_flow.data.stored import StoredData
    from surrogate_flow.dataset import Archive
    from surrogate_flow.fields.conventions import to_netcdf
    from surrogate_flow.fields.spec import Coordinate, FieldSpec, Parameter, Variable
    from surrogate_flow.fields.window import Autoregressive, Direct
    from surrogate_flow.report.callbacks import run_callbacks
    from surrogate_flow.solvers.solver import Ended, Solver, Stopped
    from surrogate_flow.surrogate.loss import RelativeL2
    from surrogate_flow.surrogate.schedule import WarmupCosine
    from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = [
    "Archive",
    "Autoregressive",
    "Coordinate",
    "Direct",
    "Ended",
    "ExistingScheduler",
    "FieldSpec",
    "OnlineData",
    "Parameter",
    "RelativeL2",
    "Solver",
    "Stopped",
    "StoredData",
    "Surrogate",
    "Variable",
    "WarmupCosine",
    "run_callbacks",
    "to_netcdf",
]

_FILES = {
    "Archive": "dataset",
    "Autoregressive": "fields",
    "Coordinate": "fields",
    "Direct": "fields",
    "Ended": "solvers",
    "ExistingScheduler": "cluster.existing",
    "FieldSpec": "fields",
    "OnlineData": "data.online",
    "Parameter": "fields",
    "RelativeL2": "surrogate.loss",
    "Solver": "solvers",
    "Stopped": "solvers",
    "StoredData": "data.stored",
    "Surrogate": "surrogate.surrogate",
    "Variable": "fields",
    "WarmupCosine": "surrogate.schedule",
    "run_callbacks": "report.callbacks",
    "to_netcdf": "fields.conventions",
}


def __getattr__(name: str) -> Any:
    # Workers import this package to run solvers, and must not pay for torch; the
    # command line imports it to answer Ctrl-C from its first moment on.
    if name in _FILES:
        return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
