"""The state of a study at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from dask.utils import format_bytes

from surrogate_flow.ensemble.stats import EnsembleStats
from surrogate_flow.reservoir import StoreStats
from surrogate_flow.stream import StreamStats

__all__ = ["Status", "StoredStatus"]


@dataclass(frozen=True)
class Status:
    """What a person wants to see of a study, at one moment."""

    simulations: EnsembleStats
    reservoir: StoreStats | None
    stream: StreamStats
    held_out: str
    waiting: str

    def words(self, *, narrow: bool = False) -> list[str]:
        """Return the parts of a line; shortened where that is narrow."""
        s, r, waiting = self.simulations, self.reservoir, self.waiting
        held = []
        if narrow:
            if r is not None:
                held = [f"reservoir {r.population - r.unseen}+{r.unseen}"]
            counts = f"simulations {s.done}/{s.running}/{s.failed}"
            waiting = waiting.partition(":")[0]
        else:
            if r is not None:
                held = [
                    f"reservoir {r.population}/{r.capacity} "
                    f"(seen {r.population - r.unseen}, unseen {r.unseen})"
                ]
            counts = (
                f"simulations {s.done} done, {s.running} running, {s.failed} failed"
            )
        return [*held, counts, *([waiting] if waiting else [])]


@dataclass(frozen=True)
class StoredStatus:
    """The same of a data set that is read.

    Attributes
    ----------
    name : str
    epoch : int
        That is trained.
    read, whole : int
        Bytes of fields read since the beginning, and of those to train on.
    in_memory : bool
        Whether it is read once, and stays.
    """

    name: str
    epoch: int
    read: int
    whole: int
    in_memory: bool

    def words(self, *, narrow: bool = False) -> list[str]:
        """Return the parts of a line; shortened where that is narrow."""
        read = f"{format_bytes(self.read)} read"
        if narrow:
            return [f"epoch {self.epoch}", read]
        kept = ", in memory" if self.in_memory else ""
        of = f"{format_bytes(self.whole)} of {self.name}{kept}"
        return [f"epoch {self.epoch}", f"{read} ({of})"]
