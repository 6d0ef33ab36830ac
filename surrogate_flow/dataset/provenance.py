"""Where a data set comes from: solver, sampler, versions, date and command."""

from __future__ import annotations

import datetime
import importlib.metadata
import inspect
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from surrogate_flow.dataset.errors import ArchiveError
from surrogate_flow.dataset.sources import sources
from surrogate_flow.fields.difference import difference
from surrogate_flow.fields.names import public_path, with_present_names
from surrogate_flow.fields.spec import FieldSpec

__all__ = ["FORMAT", "Provenance", "recipe_of"]

FORMAT = 1
_PACKAGES = ("surrogate-flow", "numpy", "scipy", "xarray", "zarr")
_PLAIN = (str, int, float, bool, type(None))
# What simulations of one data set share, and its attribute, from coarse to fine.
_SAME = ("solver", "sampler", "held_out", "spec")


@dataclass(frozen=True)
class Provenance:
    """What the simulations of one data set have in common.

    Attributes
    ----------
    spec : FieldSpec
    solver : dict
        Its recipe, the version of its package and a hash of each of its files.
    sampler : dict
        Its recipe.
    held_out : int
        Simulations kept apart from training; they come first.
    workflow : str
        What the data set is of, in words.
    """

    spec: FieldSpec
    solver: Mapping[str, Any]
    sampler: Mapping[str, Any]
    held_out: int
    workflow: str = ""

    @classmethod
    def of(
        cls, solver: Any, sampler: Any, held_out: int, workflow: str = ""
    ) -> Provenance:
        """Describe what a study simulates."""
        described = {
            **recipe_of(solver),
            "version": _version(type(solver)),
            "sources": sources(type(solver)),
        }
        return cls(solver.spec, described, recipe_of(sampler), held_out, workflow)

    def attributes(self) -> dict[str, Any]:
        """Return all that is noted in a new data set; what is nested is JSON text.

        netCDF knows no nested attributes, and parts of a data set are often written
        there.
        """
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        versions = {name: _installed(name) for name in _PACKAGES}
        return {
            "format": FORMAT,
            "workflow": self.workflow,
            "created": now,
            "command": " ".join(sys.argv),
            "versions": json.dumps({"python": platform.python_version(), **versions}),
            "spec_digest": self.spec.digest(),
            **{name: json.dumps(value) for name, value in self._plain().items()},
        }

    def require_same(self, attributes: Mapping[str, Any], place: str) -> None:
        """Refuse a data set of other simulations.

        Raises
        ------
        ArchiveError
            Naming the first difference, and both values.
        """
        noted = {name: json.loads(attributes[name]) for name in _SAME}
        theirs = with_present_names(noted)
        ours = self._plain()
        if unknown := _not_noted(ours["solver"], theirs["solver"]):
            raise ArchiveError(
                f"{place} was written by an older version of surrogate_flow, which "
                f"noted fewer of the solver's files: whether {', '.join(unknown)} "
                f"{'is' if len(unknown) == 1 else 'are'} still the same is not known. "
                "Nothing was changed in it. It can be read and trained on. To add to "
                "it use the versions in its attribute 'versions' "
                f"({attributes['versions']}), or generate it anew."
            )
        for name, mine in ours.items():
            if mine != theirs[name]:
                raise ArchiveError(
                    f"{place} is of another {name}: expected "
                    f"{difference(mine, theirs[name])}. Nothing was changed in it. Use "
                    "the recipe, and the solver, that it was generated with (its "
                    "attribute 'command'), or give another path."
                )

    def _plain(self) -> dict[str, Any]:
        values = {**vars(self), "spec": self.spec.to_plain()}
        plain: dict[str, Any] = json.loads(json.dumps({n: values[n] for n in _SAME}))
        return plain


def recipe_of(part: Any) -> dict[str, Any]:
    """Return the class of an object, and what its attributes say of its arguments.

    An argument that the object keeps under another name is not found.

    Examples
    --------
    >>> from surrogate_flow.sampling import Sobol
    >>> recipe_of(Sobol(seed=3))["init_args"]
    {'seed': 3}
    """
    kind = type(part)
    known = vars(part) if hasattr(part, "__dict__") else {}
    arguments = {}
    for name in inspect.signature(kind).parameters:
        kept = next((n for n in (name, f"_{name}") if n in known), None)
        if kept is not None:
            arguments[name] = _plain(known[kept])
    return {
        "class_path": public_path(kind),
        "init_args": arguments,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        return value.tolist()
    return recipe_of(value)["class_path"]


def _not_noted(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return the modules that a data set would have noted, had it been written now.

    A module that is new to a solver is none: what imports it has changed, too.
    """
    if "source" in theirs:
        return list(mine["sources"])
    return [
        name
        for name in mine["sources"]
        if theirs["sources"].items() < mine["sources"].items()
        and name not in theirs["sources"]
    ]


def _version(kind: type) -> str:
    package = kind.__module__.partition(".")[0]
    names = importlib.metadata.packages_distributions().get(package, ())
    return _installed(names[0]) if names else ""


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
