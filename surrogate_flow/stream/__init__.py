"""The data plane: an outlet in every simulation, an inlet in the trainer."""

from __future__ import annotations

from surrogate_flow.fields.encoder import Encoder, SpecMismatch
from surrogate_flow.stream.errors import (
    NotExpected,
    StreamError,
    StreamRefused,
    StreamStopped,
    StreamTimeout,
)
from surrogate_flow.stream.inlet import Inlet
from surrogate_flow.stream.keys import Endpoint
from surrogate_flow.stream.outlet import Outlet
from surrogate_flow.stream.sink import Discard, SimulationProgress, Sink, StreamStats

__all__ = [
    "Discard",
    "Encoder",
    "Endpoint",
    "Inlet",
    "NotExpected",
    "Outlet",
    "SimulationProgress",
    "Sink",
    "SpecMismatch",
    "StreamError",
    "StreamRefused",
    "StreamStats",
    "StreamStopped",
    "StreamTimeout",
]
