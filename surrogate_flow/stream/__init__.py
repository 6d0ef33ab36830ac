"""The data plane: an outlet in every simulation, an inlet in the trainer."""

from __future__ import annotations

from surrogate_flow.fields.encoder import Encoder, SpecMismatch
from surrogate_flow.stream.endpoint import Endpoint, Timing
from surrogate_flow.stream.errors import (
    AlreadyEnded,
    NotExpected,
    StreamError,
    StreamRefused,
    StreamStopped,
    StreamTimeout,
)
from surrogate_flow.stream.fanout import Fanout
from surrogate_flow.stream.inlet import Inlet
from surrogate_flow.stream.outlet import Outlet
from surrogate_flow.stream.relay import Relay
from surrogate_flow.stream.sink import Discard, Sink
from surrogate_flow.stream.stats import SimulationProgress, StreamStats

__all__ = [
    "AlreadyEnded",
    "Discard",
    "Encoder",
    "Endpoint",
    "Fanout",
    "Inlet",
    "NotExpected",
    "Outlet",
    "Relay",
    "SimulationProgress",
    "Sink",
    "SpecMismatch",
    "StreamError",
    "StreamRefused",
    "StreamStats",
    "StreamStopped",
    "StreamTimeout",
    "Timing",
]
