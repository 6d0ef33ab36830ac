"""The commands that repeat a run and predict with it, from where its folder is now."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from surrogate_flow.fields.parameter import Parameter, arguments
from surrogate_flow.report.folder.run_folder import RunFolder
from surrogate_flow.report.folder.words import python_path

__all__ = [
    "bounds_of",
    "logarithmic",
    "predict_command",
    "repeat_command",
    "spec_of",
    "typed",
]

_COMMANDS = ("fit", "validate", "test")
_FILES = ("best.ckpt", "last.ckpt", "history.nc")


def spec_of(run: RunFolder) -> Mapping[str, Any]:
    """Return the spec of the fields, by run.json; empty without it."""
    spec = run.about.get("spec")
    return spec if isinstance(spec, Mapping) else {}


def bounds_of(run: RunFolder) -> dict[str, tuple[float, float]]:
    """Return the bounds of each parameter, by run.json."""
    parameters = spec_of(run).get("parameters", ())
    return {p["name"]: (p["low"], p["high"]) for p in parameters}


def logarithmic(run: RunFolder) -> set[str]:
    """Return the names of the log-uniform parameters, by run.json."""
    return {p["name"] for p in spec_of(run).get("parameters", ()) if p.get("log")}


def typed(parameters: Sequence[Parameter], point: Iterable[float]) -> str:
    """Return a point as the option --parameters has it, without its braces.

    Examples
    --------
    >>> typed([Parameter("n", 1, 4), *Parameter("f", 0, 1, size=2).components()], "123")
    'n: 1, f: [2, 3]'
    """

    def word(value: Any) -> str:
        return value if isinstance(value, str) else f"{value:.{6 if value % 1 else 8}g}"

    values = arguments(parameters, map(float, point))
    return ", ".join(
        f"{name}: [{', '.join(map(word, v))}]" if np.ndim(v) else f"{name}: {word(v)}"
        for name, v in values.items()
    )


def repeat_command(run: RunFolder) -> str:
    """Return the command that does the same again; empty if it is not known."""
    config, typed = run.path / "config.yaml", str(run.about.get("command", ""))
    if not config.is_file():
        return typed
    command = next((word for word in typed.split() if word in _COMMANDS), "fit")
    words = ["surrogate-flow", command, "--config", str(config)]
    return f"{python_path(run.settings)}{shlex.join(words)}"


def predict_command(run: RunFolder) -> str:
    """Return the command that predicts, as the run has left it; empty if it cannot."""
    if left := run.about.get("next"):
        words = [_here(run, word) for word in shlex.split(str(left))]
        return f"{python_path(run.settings)}{shlex.join(words)}"
    known = [run.path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
    found = next((path for path in known if path.is_file()), None)
    if found is None:
        return ""
    drawn = [Parameter(**given) for given in spec_of(run).get("parameters", ())]
    values = typed(drawn, [p.at(0.5) for p in drawn])
    past = run.path / "history.nc"
    words = ["surrogate-flow", "predict", "--ckpt_path", str(found)]
    words += ["--parameters", f"{{{values or 'NAME: VALUE, ...'}}}"]
    words += ["--history", str(past)] if past.is_file() else []
    return f"{python_path(run.settings)}{shlex.join([*words, '--output', 'field.nc'])}"


def _here(run: RunFolder, word: str) -> str:
    """Return the path of a file of the run, wherever its folder was when it ran."""
    name = Path(word).name
    files = (run.path / "checkpoints" / name, run.path / name)
    return next((str(f) for f in files if name in _FILES and f.is_file()), word)
