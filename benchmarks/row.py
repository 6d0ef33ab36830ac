"""A line of a benchmark's table."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Row"]


@dataclass(frozen=True)
class Row:
    """A measured case beside that of a peer; `ratio` is value / peer_value."""

    case: str
    value: float
    unit: str
    peer: str
    peer_value: float
    ratio: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", self.value / self.peer_value)
