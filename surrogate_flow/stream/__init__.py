"""The data plane: an outlet in every simulation, an inlet in the trainer."""

from __future__ import annotations

from surrogate_flow.fields.encoder import Crossing, RefusedStep
from surrogate_flow.stream.errors import (
    StreamError,
    StreamRefused,
    StreamStopped,
    StreamTimeout,
)
from surrogate_flow.stream.inlet import Inlet
from surrogate_flow.stream.keys import Endpoint
from surrogate_flow.stream.outlet import Outlet
from surrogate_flow.stream.sink import InletCounters, Progress, Sink

__all__ = [
    "Crossing",
    "Endpoint",
    "Inlet",
    "InletCounters",
    "Outlet",
    "Progress",
    "RefusedStep",
    "Sink",
    "StreamError",
    "StreamRefused",
    "StreamStopped",
    "StreamTimeout",
]
