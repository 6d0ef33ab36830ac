"""Workers as jobs of a batch system: submitted, watched and replaced."""

from surrogate_flow.cluster.batch.controller import Bounds, JobCountController, Load
from surrogate_flow.cluster.batch.job import Job, JobRefused, JobTiming
from surrogate_flow.cluster.batch.supervisor import JobError, Supervisor
from surrogate_flow.cluster.batch.systems import (
    PBS,
    BatchSystem,
    JobQueue,
    JobRequest,
    Slurm,
    batch_system,
)

__all__ = [
    "PBS",
    "BatchSystem",
    "Bounds",
    "Job",
    "JobCountController",
    "JobError",
    "JobQueue",
    "JobRefused",
    "JobRequest",
    "JobTiming",
    "Load",
    "Slurm",
    "Supervisor",
    "batch_system",
]
