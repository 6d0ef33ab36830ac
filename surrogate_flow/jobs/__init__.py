"""Workers as jobs of a batch system: submitted, watched, replaced, resized."""

from surrogate_flow.jobs.fleet import Fleet, FleetError
from surrogate_flow.jobs.job import Job, Refused
from surrogate_flow.jobs.request import Request
from surrogate_flow.jobs.script import at_once, complete, processes_of, resources_of
from surrogate_flow.jobs.size import Bounds, Load, Size, Waits

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
