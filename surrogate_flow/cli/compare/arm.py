"""The arms of a comparison: ways in which samples reach the trainer."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from surrogate_flow.fields.names import RecipeError, class_at, nearest
from surrogate_flow.reservoir import Reservoir

__all__ = ["OFFLINE", "Arm", "arms_of"]

OFFLINE = "offline"
_POLICIES = {
    "fifo": "surrogate_flow.reservoir.FIFO",
    "firo": "surrogate_flow.reservoir.FIRO",
    "reservoir": "surrogate_flow.reservoir.Reservoir",
}
NAMES = (OFFLINE, *_POLICIES)


@dataclass(frozen=True)
class Arm:
    """One way to bring samples to the trainer.

    Attributes
    ----------
    name : str
        ``"offline"``, or that of a policy of the reservoir.
    recipe : mapping, optional
        Of an online study; None for the data set.
    """

    name: str
    recipe: Mapping[str, Any] | None = None

    def seeded(self, seed: int) -> list[str]:
        """Return what has its samples come in another order."""
        if self.recipe is None:
            return [f"--data.seed={seed}"]
        arguments = self.recipe.get("init_args", self.recipe)
        policy = class_at(arguments["reservoir"]["class_path"])
        known = inspect.signature(policy).parameters
        return [f"--data.reservoir.seed={seed}"] if "seed" in known else []

    def data(self, folder: Path) -> Path:
        """Return what ``fit --data`` takes; written into a folder if it is a recipe."""
        if self.recipe is None:
            return folder / "offline.zarr"
        path = folder / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump(dict(self.recipe), sort_keys=False))
        return path


def arms_of(
    recipe: Mapping[str, Any], names: list[str], reservoir: Mapping[str, Any]
) -> list[Arm]:
    """Return the arms: the same study with another policy each, and the data set.

    Parameters
    ----------
    recipe : mapping
        Of a workflow. Its reservoir's arguments go to each policy that has them.
    names : list of str
        Among ``offline``, ``fifo``, ``firo`` and ``reservoir``.
    reservoir : mapping
        Arguments of the reservoir that go before those of the recipe.

    Raises
    ------
    RecipeError
        If there is no arm of a name.
    """
    for name in names:
        if name not in NAMES:
            raise RecipeError(f"--arms: no arm {name!r}. {nearest(name, NAMES)}")
    return [
        Arm(name)
        if name == OFFLINE
        else Arm(name, _with_policy(recipe, _POLICIES[name], reservoir))
        for name in dict.fromkeys(names)
    ]


def _with_policy(
    recipe: Mapping[str, Any], class_path: str, changed: Mapping[str, Any]
) -> dict[str, Any]:
    mine = copy.deepcopy(dict(recipe))
    arguments = mine.get("init_args", mine)
    before = arguments.get("reservoir") or {}
    before = before if isinstance(before, Mapping) else {"class_path": before}
    known = inspect.signature(class_at(class_path)).parameters
    default = inspect.signature(Reservoir).parameters
    wanted = {name: default[name].default for name in ("capacity", "threshold")}
    wanted |= {**before.get("init_args", {}), **changed}
    arguments["reservoir"] = {
        "class_path": class_path,
        "init_args": {k: v for k, v in wanted.items() if k in known},
    }
    # As long as it is trained, unless the command line says how many.
    arguments["simulations"] = None
    return mine
