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
from surrogate_flow.cluster.batch.supervisor import FleetError, Supervisor

__all__ = [
    "Bounds",
    "FleetError",
    "Job",
    "Load",
    "Refused",
    "Request",
    "Size",
    "Supervisor",
    "Waits",
    "at_once",
    "complete",
    "processes_of",
    "resources_of",
]
