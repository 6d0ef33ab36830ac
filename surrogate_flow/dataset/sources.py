"""The source files that a solver is made of."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec, resolve_name
from pathlib import Path

__all__ = ["sources"]

_SHIPPED = "surrogate_flow.solvers"
# They state and check what others compute.
_NOT_NUMERICS = {f"{_SHIPPED}.solver", f"{_SHIPPED}.arguments"}
_INSTALLED = {"site-packages", "dist-packages"}


def sources(kind: type) -> dict[str, str]:
    """Return a hash of each file that a solver's class is made of, by module.

    These are the files of its class and its base classes, and all that they import, and
    so on, within the same top-level package, or the same folder, and within
    `surrogate_flow.solvers`; imports inside of functions count. Not covered: other
    packages (numpy, the rest of this one), compiled modules, data files, what is
    imported by a name computed at run time, and modules that only the arguments of the
    solver are of. In a folder where packages are installed neighbours are not covered.

    Examples
    --------
    >>> from surrogate_flow.solvers import Combined1D
    >>> [name.rpartition(".")[2] for name in sources(Combined1D)]
    ['combined1d', 'finite_volumes']
    """
    own = _Own(kind.__module__)
    waiting = [(base.__module__, "") for base in kind.__mro__]
    seen: set[tuple[str, str]] = set()
    found = {}
    while waiting:
        module, name = waiting.pop()
        if (module, name) in seen or not own.has(
            inner := f"{module}.{name}".strip(".")
        ):
            continue
        seen.add((module, name))
        if name and _file(inner):
            waiting.append((inner, ""))
        elif name and (origins := [o for n, *o in _imports(module) if n == name]):
            # It comes through this module from another one.
            waiting.extend((origin, original) for origin, original in origins)
        elif name:
            waiting.append((module, ""))
        else:
            found[module] = _hash(module)
            waiting.extend((origin, part) for _, origin, part in _imports(module))
    return {n: found[n] for n in sorted(found) if n not in _NOT_NUMERICS}


class _Own:
    """Tells the modules that belong to a solver from those that it only uses."""

    def __init__(self, module: str) -> None:
        self._package = module.partition(".")[0]
        self._shipped = self._package == _SHIPPED.partition(".")[0]
        self._folder = None if self._shipped else _folder(self._package)

    def has(self, module: str) -> bool:
        package = module.partition(".")[0]
        if self._shipped or package == _SHIPPED.partition(".")[0]:
            return f"{module}.".startswith(f"{_SHIPPED}.")
        if package == self._package:
            return True
        return self._folder is not None and _folder(package) == self._folder


def _folder(package: str) -> Path | None:
    """Return where a top-level package is, unless others are installed there, too."""
    file = _file(package)
    if file is None:
        return None
    folder = file.parent.parent if file.stem == "__init__" else file.parent
    return None if folder.name in _INSTALLED else folder


def _file(module: str) -> Path | None:
    """Return where a module is; none is run to find out."""
    if (loaded := sys.modules.get(module)) is not None:
        name = getattr(loaded, "__file__", None)
        return None if name is None else Path(name).resolve()
    parent, _, last = module.rpartition(".")
    if parent:
        names = (f"{last}/__init__.py", f"{last}.py")
        places = (folder / name for folder in _inside(parent) for name in names)
        return next((p.resolve() for p in places if p.is_file()), None)
    spec = find_spec(module)
    if spec is None or spec.origin is None or not spec.has_location:
        return None
    return Path(spec.origin).resolve()


def _inside(package: str) -> list[Path]:
    if (loaded := sys.modules.get(package)) is not None:
        return [Path(folder) for folder in getattr(loaded, "__path__", ())]
    file = _file(package)
    return [file.parent] if file is not None and file.stem == "__init__" else []


def _source(module: str) -> bytes:
    """Return its text, of which there is none if it is compiled, or was typed in."""
    file = _file(module)
    try:
        return file.read_bytes() if file is not None and file.suffix == ".py" else b""
    except OSError:
        return b""


def _hash(module: str) -> str:
    text = _source(module)
    return hashlib.sha256(text).hexdigest()[:16] if text else ""


def _imports(module: str) -> Iterator[tuple[str, str, str]]:
    """Yield for each import of a module its name there, its module and name before."""
    file = _file(module)
    try:
        tree = ast.parse(_source(module))
    except (SyntaxError, ValueError):
        return
    is_package = file is not None and file.stem == "__init__"
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name, alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            try:
                origin = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:
                continue
            for alias in node.names:
                name = "" if alias.name == "*" else alias.name
                yield alias.asname or name, origin, name
