"""The variants of a comparison: ways in which samples reach the trainer."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from surrogate_flow.fields.names import RecipeError, class_at, nearest
from surrogate_flow.reservoir import Reservoir

__all__ = ["NAMES", "OFFLINE", "Overrides", "Variant", "variants_of"]

OFFLINE = "offline"
_POLICIES = {
    "fifo": "surrogate_flow.reservoir.FIFO",
    "firo": "surrogate_flow.reservoir.FIRO",
    "reservoir": "surrogate_flow.reservoir.Reservoir",
}
NAMES = (OFFLINE, *_POLICIES)
_RESERVOIR = "--data.reservoir"
_BATCH_SIZE = "--data.batch_size"  # which a data set takes, too


@dataclass(frozen=True)
class Variant:
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

    def with_seed(self, seed: int) -> list[str]:
        """Return the options that change the order of the samples."""
        if self.recipe is None:
            return [f"--data.seed={seed}"]
        arguments = self.recipe.get("init_args", self.recipe)
        policy = class_at(arguments["reservoir"]["class_path"])
        known = inspect.signature(policy).parameters
        return [f"{_RESERVOIR}.seed={seed}"] if "seed" in known else []

    def data(self, folder: Path) -> Path:
        """Return what ``fit --data`` takes; a recipe is written into the folder."""
        if self.recipe is None:
            return folder / "offline.zarr"
        path = folder / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump(dict(self.recipe), sort_keys=False), "utf-8")
        return path


@dataclass
class Overrides:
    """The options of ``fit`` that were given to ``compare``, by what takes them.

    Attributes
    ----------
    reservoir : dict
        Arguments of the reservoir, which each policy takes that has them.
    study : list of str
        Those under ``--data.``, for what simulates.
    data_set : list of str
        Those for a data set.
    fit : list of str
        All others, for every run.
    """

    reservoir: dict[str, Any] = field(default_factory=dict)
    study: list[str] = field(default_factory=list)
    data_set: list[str] = field(default_factory=list)
    fit: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, words: Sequence[str]) -> Overrides:
        """Sort the options of a command line.

        Parameters
        ----------
        words : sequence of str
            Such as ``["--data.solver.steps=20", "--trainer.precision=64"]``.

        Raises
        ------
        RecipeError
            If an option has no value, or sets what the variants set.
        """
        overrides = cls()
        for word in words:
            option, equals, value = word.partition("=")
            if not equals:
                raise RecipeError(f"compare: expected a value after {option}.")
            overrides._add(option.replace("--data.init_args.", "--data.", 1), value)
        return overrides

    def _add(self, option: str, value: str) -> None:
        if option in (_RESERVOIR, f"{_RESERVOIR}.class_path"):
            raise RecipeError(
                f"{option}: compare gives each variant a policy of its own. Name them "
                "as --variants offline reservoir; capacity and threshold may be given, "
                f"as {_RESERVOIR}.capacity."
            )
        if option in ("--trainer.max_epochs", "--trainer.max_steps"):
            raise RecipeError(
                f"{option}: compare trains each variant for the same number of "
                "batches. Say how many with --batches."
            )
        word = f"{option}={value}"
        if option.startswith(f"{_RESERVOIR}."):
            name = option[len(_RESERVOIR) + 1 :].removeprefix("init_args.")
            self.reservoir[name] = yaml.safe_load(value)
        elif option.startswith("--data."):
            self.study.append(word)
            if option == _BATCH_SIZE:
                self.data_set.append(word)
        else:
            self.fit.append(word)

    def add_batch_size(self, recipe: Mapping[str, Any]) -> None:
        """Train the data set with the batch size of the workflow, unless one is set."""
        size = recipe.get("init_args", recipe).get("batch_size")
        if size is not None and not self.data_set:
            self.data_set.append(f"{_BATCH_SIZE}={size}")


def variants_of(
    recipe: Mapping[str, Any], names: Sequence[str], reservoir: Mapping[str, Any]
) -> list[Variant]:
    """Return the same study with another policy each, and the data set.

    Parameters
    ----------
    recipe : mapping
        Of a workflow. Its reservoir's arguments go to each policy that has them.
    names : sequence of str
        Among ``offline``, ``fifo``, ``firo`` and ``reservoir``.
    reservoir : mapping
        Arguments of the reservoir that override those of the recipe.

    Raises
    ------
    RecipeError
        If there is no variant of a name.
    """
    for name in names:
        if name not in NAMES:
            raise RecipeError(f"--variants: no {name!r}. {nearest(name, NAMES)}")
    known = inspect.signature(Reservoir).parameters
    for name in reservoir:
        if name.partition(".")[0] not in known:
            raise RecipeError(
                f"unknown option '{_RESERVOIR}.{name}'. {nearest(name, known)}"
            )
    return [
        Variant(name)
        if name == OFFLINE
        else Variant(name, _with_policy(recipe, _POLICIES[name], reservoir))
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
    # Online runs go on as long as they are trained, unless the command line says else.
    arguments["simulations"] = None
    return mine
