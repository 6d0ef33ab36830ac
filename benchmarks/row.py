"""Lines of a benchmark's table, and where they go."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

__all__ = ["Row", "report"]


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


def report(rows: Sequence[Row], path: Path | None) -> None:
    """Print a table, and write the rows as JSON if there is a path."""
    table = Table("case", "value", "unit", "peer", "its", "ratio")
    for row in rows:
        value, its = f"{row.value:.4g}", f"{row.peer_value:.4g}"
        table.add_row(row.case, value, row.unit, row.peer, its, f"{row.ratio:.4g}")
    Console().print(table)
    if path is not None:
        path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
