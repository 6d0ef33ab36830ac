"""The provenance of a data set: solver, sampler, versions, date and command."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import inspect
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from surrogate_flow.dataset.writer import ArchiveError
from surrogate_flow.fields import FieldSpec
from surrogate_flow.fields.conventions import about, command, version
from surrogate_flow.fields.names import (
    first_difference,
    public_path,
    with_present_names,
)
from surrogate_flow.solvers.solver import unwrapped

__all__ = ["FORMAT", "Provenance", "recipe_of", "sources"]

FORMAT = 1
_PACKAGES = ("surrogate-flow", "numpy", "scipy", "xarray", "zarr")
_PLAIN = (str, int, float, bool, type(None))
# What simulations of one data set share, and its attribute, from coarse to fine.
_SAME = ("solver", "sampler", "held_out", "spec")
_SHIPPED = "surrogate_flow.solvers."
# They state, check and label; no result depends on them.
_NO_NUMERICS = {f"{_SHIPPED}{name}" for name in ("grid", "process", "solver")}
_INSTALLED = {"site-packages", "dist-packages"}


@dataclass(frozen=True)
class Provenance:
    """What the simulations of one data set have in common.

    Attributes
    ----------
    spec : FieldSpec
    solver : dict
        Recipe, version of its package and a hash of each of its files.
    sampler : dict
        Recipe.
    held_out : int
        Number of simulations kept apart from training, the first ones.
    workflow : str
        Name of the data set.
    """

    spec: FieldSpec
    solver: Mapping[str, Any]
    sampler: Mapping[str, Any]
    held_out: int
    workflow: str = ""

    @classmethod
    def of(
        cls,
        solver: Any,
        sampler: Any,
        held_out: int,
        workflow: str = "",
        inputs: Any = None,
        constraint: Any = None,
    ) -> Provenance:
        """Describe what a study simulates.

        `inputs` draw its input fields, and `constraint` refuses parameters, if any.
        """
        own = unwrapped(solver)
        described = {
            **recipe_of(own),
            "version": _version(type(own)),
            "sources": sources(type(own)),
        }
        drawn = recipe_of(sampler)
        if inputs is not None:
            drawn["inputs"] = recipe_of(inputs)
        if constraint is not None:
            name = getattr(constraint, "__qualname__", type(constraint).__qualname__)
            drawn["constraint"] = f"{constraint.__module__}.{name}"
        return cls(solver.spec, described, drawn, held_out, workflow)

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of a new data set; nested ones are JSON text.

        netCDF, into which parts of a data set are often copied, has no nested ones.
        """
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        versions = {name: version(name) for name in _PACKAGES}
        solver = str(self.solver["class_path"])
        title = f"Simulations of {self.workflow or solver.rpartition('.')[2]}"
        return {
            **about(title, f"{solver} {self.solver.get('version', '')}".strip()),
            "format": FORMAT,
            "workflow": self.workflow,
            "created": now,
            "command": command(),
            "versions": json.dumps({"python": platform.python_version(), **versions}),
            "spec_digest": self.spec.digest(),
            **{name: json.dumps(value) for name, value in self._plain().items()},
        }

    def require_same(self, attributes: Mapping[str, Any], place: str) -> None:
        """Refuse a data set of other simulations, with the first difference."""
        noted = {name: json.loads(attributes[name]) for name in _SAME}
        theirs = with_present_names(noted)
        for name, mine in self._plain().items():
            if mine != theirs[name]:
                raise ArchiveError(
                    f"{place} is of another {name}: "
                    f"{first_difference(theirs[name], mine)}. It can be read and "
                    "trained on, but not added to. Use its recipe and versions (its "
                    f"attributes 'command' and 'versions': "
                    f"{attributes.get('versions')}), or give another path."
                )

    def _plain(self) -> dict[str, Any]:
        values = {**vars(self), "spec": self.spec.to_plain()}
        plain: dict[str, Any] = json.loads(json.dumps({n: values[n] for n in _SAME}))
        return plain


def recipe_of(part: Any) -> dict[str, Any]:
    """Return the class of an object, and its arguments as its attributes have them.

    An argument that the object keeps under another name is left out.

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
    return {"class_path": public_path(kind), "init_args": arguments}


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


def sources(kind: type) -> dict[str, str]:
    """Return a hash of each source file of a solver's class, by module.

    Source files are those of the class and its bases, and of the modules, classes and
    functions that they use, within the same top-level package, the same folder, or
    `surrogate_flow.solvers`. Other packages, compiled modules, data files, plain
    constants of other modules and imports inside of functions are left out.

    Examples
    --------
    >>> from surrogate_flow.solvers import Combined1D
    >>> [name.rpartition(".")[2] for name in sources(Combined1D)]
    ['combined1d']
    """
    home = sys.modules[kind.__module__]
    waiting = {base.__module__ for base in kind.__mro__}
    found: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        if module is None or name in found or not _belongs(module, home):
            continue
        found[name] = _hash(module)
        for value in list(vars(module).values()):
            used = value if isinstance(value, ModuleType) else None
            waiting.add(used.__name__ if used else getattr(value, "__module__", "?"))
        waiting = {other for other in waiting if isinstance(other, str)}
    return {name: found[name] for name in sorted(found) if name not in _NO_NUMERICS}


def _belongs(module: ModuleType, home: ModuleType) -> bool:
    """Whether a module is part of a solver's code."""
    name, package = module.__name__, home.__name__.partition(".")[0]
    if f"{name}.".startswith(_SHIPPED):
        return f"{name}." != _SHIPPED
    if package == _SHIPPED.partition(".")[0]:
        return False
    if name.partition(".")[0] == package:
        return True
    folders = {_folder(module), _folder(home)}
    return len(folders) == 1 and None not in folders


def _folder(module: ModuleType) -> Path | None:
    """Return the folder of a top-level module, unless packages are installed there."""
    top = sys.modules.get(module.__name__.partition(".")[0], module)
    path = Path(getattr(top, "__file__", None) or "/").resolve()
    folder = path.parents[1] if path.stem == "__init__" else path.parent
    return folder if path.suffix and folder.name not in _INSTALLED else None


def _hash(module: ModuleType) -> str:
    """Return a hash of a source file, or nothing if there is none."""
    path = Path(getattr(module, "__file__", None) or "")
    if path.suffix != ".py" or not path.is_file():
        return ""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _version(kind: type) -> str:
    package = kind.__module__.partition(".")[0]
    names = importlib.metadata.packages_distributions().get(package, ())
    return version(names[0]) if names else ""
