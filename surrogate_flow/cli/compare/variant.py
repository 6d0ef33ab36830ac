"""The variants of a comparison: ways in which samples reach the trainer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from surrogate_flow.fields.names import RecipeError, class_at, nearest
from surrogate_flow.reservoir import Reservoir

__all__ = ["NAMES", "OFFLINE", "Overrides", "cases_of", "parts_of"]

OFFLINE = "offline"
_POLICIES = {
    "fifo": "surrogate_flow.reservoir.FIFO",
    "firo": "surrogate_flow.reservoir.FIRO",
    "reservoir": "surrogate_flow.reservoir.Reservoir",
}
NAMES = (OFFLINE, *_POLICIES)
_RESERVOIR = "data.reservoir"
_SEED = "${seed_everything}"
_BATCH_SIZE = "data.batch_size"  # which a data set takes, too


@dataclass
class Overrides:
    """The options of ``fit`` that were given to ``compare``, by what takes them.

    Attributes
    ----------
    reservoir : dict
        Arguments of the reservoir, which each policy takes that has them.
    study : dict
        Those under ``data.``, for what simulates.
    fit : dict
        All others, for every run.
    """

    reservoir: dict[str, Any] = field(default_factory=dict)
    study: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)

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
            option, equals, value = word.removeprefix("--").partition("=")
            if not equals:
                raise RecipeError(f"compare: expected a value after --{option}.")
            overrides._add(option.replace("data.init_args.", "data.", 1), value)
        return overrides

    def _add(self, option: str, value: str) -> None:
        if option in (_RESERVOIR, f"{_RESERVOIR}.class_path"):
            raise RecipeError(
                f"--{option}: compare gives each variant a policy of its own. Name "
                "them as --variants offline reservoir; capacity and threshold may be "
                f"given, as --{_RESERVOIR}.capacity."
            )
        if option in ("trainer.max_epochs", "trainer.max_steps"):
            raise RecipeError(
                f"--{option}: compare trains each variant for the same number of "
                "batches. Say how many with --batches."
            )
        if option.startswith(f"{_RESERVOIR}."):
            name = option[len(_RESERVOIR) + 1 :].removeprefix("init_args.")
            self.reservoir[name] = yaml.safe_load(value)
            return
        given = self.study if option.startswith("data.") else self.fit
        # The last one counts, behind what was typed before it.
        if given.pop(option, None) is not None and option.endswith("+"):
            raise RecipeError(
                f"--{option}: expected it once, got it twice. Give a list, as "
                f"--{option}='[A, B]'."
            )
        given[option] = value


def parts_of(variant: str) -> tuple[str, int]:
    """Return the name of a variant, and the simulations of its data set that it takes.

    Examples
    --------
    >>> parts_of("offline 50"), parts_of("offline")
    (('offline', 50), ('offline', 0))
    """
    name, _, size = variant.partition(" ")
    return name, int(size or 0)


def cases_of(
    names: Sequence[str],
    workflow: str,
    data_set: str,
    overrides: Overrides,
    sizes: Sequence[int] = (),
) -> dict[str, dict[str, Any]]:
    """Return the options of each variant: the data set, or the study with a policy.

    Parameters
    ----------
    names : sequence of str
        Among ``offline``, ``fifo``, ``firo`` and ``reservoir``.
    workflow : str
        A recipe. Its reservoir's arguments go to each policy that has them.
    data_set : str
        Its path.
    overrides : Overrides
    sizes : sequence of int, optional
        Simulations of the data set that ``offline`` trains on: each is a variant of its
        own, ``offline 50``, if there are several.

    Raises
    ------
    RecipeError
        If there is no variant of a name.
    """
    for name in names:
        if name not in NAMES:
            raise RecipeError(f"--variants: no {name!r}. {nearest(name, NAMES)}")
    known = inspect.signature(Reservoir).parameters
    for name in overrides.reservoir:
        if name.partition(".")[0] not in known:
            raise RecipeError(
                f"unknown option '--{_RESERVOIR}.{name}'. {nearest(name, known)}"
            )
    with open(workflow, encoding="utf-8") as file:
        recipe: dict[str, Any] = yaml.safe_load(file) or {}
    recipe = recipe.get("init_args") or recipe
    # Offline last: online runs fail sooner if something is wrong.
    cases = {
        name: {"data": workflow, **_online(recipe, _POLICIES[name], overrides)}
        for name in names
        if name != OFFLINE
    }
    if OFFLINE in names:
        stored = {"data": data_set, "data.seed": _SEED}
        size = overrides.study.get(_BATCH_SIZE, recipe.get("batch_size"))
        if size is not None:
            stored[_BATCH_SIZE] = size
        cases |= (
            {f"{OFFLINE} {n}": {**stored, "data.simulations": n} for n in sizes}
            if len(sizes) > 1
            else {OFFLINE: stored}
        )
    return cases


def _online(
    recipe: Mapping[str, Any], class_path: str, overrides: Overrides
) -> dict[str, Any]:
    before = recipe.get("reservoir") or {}
    before = before if isinstance(before, Mapping) else {"class_path": before}
    known = inspect.signature(class_at(class_path)).parameters
    default = inspect.signature(Reservoir).parameters
    wanted = {name: default[name].default for name in ("capacity", "threshold")}
    wanted |= {**before.get("init_args", {}), **overrides.reservoir, "seed": _SEED}
    own = {
        f"{_RESERVOIR}.init_args.{name}": value
        for name, value in wanted.items()
        if name.partition(".")[0] in known
    }
    # Online runs go on as long as they are trained, unless the command line says else.
    return {_RESERVOIR: class_path, **own, "data.simulations": None, **overrides.study}
