"""Where simulations run: this machine, a batch system, or an existing scheduler."""

from surrogate_flow.cluster.batch import PBS, JobQueue, Slurm
from surrogate_flow.cluster.existing import Existing
from surrogate_flow.cluster.open import open_cluster

__all__ = ["PBS", "Existing", "JobQueue", "Slurm", "open_cluster"]
