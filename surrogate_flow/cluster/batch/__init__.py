"""Workers as jobs of a batch system: submitted, watched, replaced, resized."""

from surrogate_flow.cluster.batch.controller import Bounds, Load, Size, Waits
from surrogate_flow.cluster.batch.job import Job, Refused
from surrogate_flow.cluster.batch.request import Request
from surrogate_flow.cluster.batch.script import (
    at_once,
    complete,
    processes_of,
    resources_of,
)
from surrogate_flow.cluster.batch.supervisor import Fleet, FleetError

__all__ = [
    "Bounds",
    "Fleet",
    "FleetError",
    "Job",
    "Load",
    "Refused",
    "Request",
    "Size",
    "Waits",
    "at_once",
    "complete",
    "processes_of",
    "resources_of",
]
