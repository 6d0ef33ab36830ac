"""`Program`: a solver in any language, written in a recipe rather than in Python."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import shlex
import shutil
import socket
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jinja2
import numpy as np
import xarray as xr
import yaml
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import SandboxedEnvironment

from surrogate_flow.fields.errors import ArgumentError, MissingFileError
from surrogate_flow.fields.names import nearest
from surrogate_flow.fields.parameter import Parameter
from surrogate_flow.fields.quantities import Coordinate, Variable, number
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.files import leads_out
from surrogate_flow.solvers.programs.process import ProcessRun, ProcessSolver
from surrogate_flow.solvers.solver import Run

__all__ = ["Program", "Reader"]

logger = logging.getLogger(__name__)

_OF_RUNS = ("cores", "simulation", "first_step", "folder")
_EVEN = {"first", "step", "count"}
# Templates are input decks, which come from others.
_JINJA = SandboxedEnvironment(
    undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
)


class Reader(Protocol):
    """What finds the steps of a program, such as in files that it writes."""

    def read(self, run: ProcessRun, spec: FieldSpec) -> Iterator[xr.Dataset]:
        """Yield the steps while the program runs, as `Solver.solve` does."""


class Program(ProcessSolver):
    """parameters -> an executable -> steps: no Python of the user's.

    Texts may name ``{parameter}``, ``{cores}``, ``{simulation}``, ``{first_step}`` and
    ``{folder}``, with a format as in ``{viscosity:.3e}``; ``{{`` stands for a brace.

    Parameters
    ----------
    command : str or sequence of str
        Program and arguments; text is split as by a shell, which there is none of. A
        word that is the path of a file here, such as ``./heat``, stands for that file.
    spec : FieldSpec, mapping or Path
        What a simulation yields; as a mapping, or a YAML file with one, `times` and
        values of coordinates may be ``{first: 0.1, step: 0.1, count: 50}``, and
        `first` is `step` by default.
    input : mapping of str to Path, optional
        Files in the folder where the program runs, each with the Jinja2 template that
        it is made from. Input fields of the spec lie there as ``NAME.bin``: numbers in
        double precision, the last dim the fastest.
    environment : mapping of str to str, optional
        Variables to set for the program, beside ``OMP_NUM_THREADS``.
    timeout : float, optional
        Seconds that a run of the program may take; without end by default.
    reader : Reader, optional
        Of files that the program writes; by default it sends its steps by the calls of
        `surrogate_flow.h`, whose folder ``surrogate-flow include`` prints.
    may_end_early : bool
        Whether a program that ends with exit code 0 before the last time of the spec
        has ended its simulation (a steady state), with one step at least; by default
        it has failed.

    Raises
    ------
    ArgumentError
        If a text names something else, or the spec is none.
    MissingFileError
        If there is no such program, template or file with the spec.
    """

    def __init__(
        self,
        command: str | Sequence[str],
        spec: FieldSpec | Mapping[str, Any] | Path,
        *,
        input: Mapping[str, Path] | None = None,
        environment: Mapping[str, str | float] | None = None,
        timeout: float | None = None,
        reader: Reader | None = None,
        may_end_early: bool = False,
    ) -> None:
        super().__init__(timeout)
        self.may_end_early = may_end_early
        self._spec = _read_spec(spec)
        self.reader = reader
        try:
            words = shlex.split(command) if isinstance(command, str) else [*command]
        except ValueError as error:
            got = f"{command!r} ({error})"
            raise ArgumentError(
                "Program: command", "words as a shell has them", got
            ) from error
        if not words:
            raise ArgumentError("Program: command", "a program", "nothing")
        first = str(words[0])
        if _is_relative(first) and not Path(first).is_file():
            raise MissingFileError(
                f"Program: command: no file {first!r} in {Path.cwd()}. Compile it, or "
                "correct its path; one on the PATH of the workers has no '/'."
            )
        # Braces of a path are its own.
        self._words = [
            re.sub(r"[{}]", r"\g<0>\g<0>", os.path.abspath(w))
            if _is_file(w)
            else str(w)
            for w in words
        ]
        self._files = [w for w in self._words if _is_file(w)]
        self._variables = {k: str(v) for k, v in (environment or {}).items()}
        self._input = {
            name: _template(name, Path(path)) for name, path in (input or {}).items()
        }
        for p in self.spec.parameters:
            if (p.of or p.name) in _OF_RUNS:
                raise ArgumentError(
                    "Program: spec",
                    f"parameters that are not called {', '.join(_OF_RUNS)}",
                    repr(p.name),
                    "Rename it in the spec; the command may keep its own name.",
                )
        middle = {p.name: p.at(0.5) for p in self.spec.parameters}
        self._try(self._values(Run(middle, folder=Path())))

    def _try(self, values: Mapping[str, Any]) -> None:
        """Refuse texts that cannot be made, before anything runs."""
        for word in self._words:
            _formatted(word, values, "command")
        for name, text in self._variables.items():
            _formatted(text, values, f"environment {name}")
        for name, text in self._input.items():
            what = f"Program: input {name}"
            for unknown in find_undeclared_variables(_JINJA.parse(text)):
                if unknown not in values:
                    hint = nearest(unknown, values)
                    raise ArgumentError(f"{what}: unknown name {unknown!r}. {hint}")
            try:
                _JINJA.from_string(text).render(values)
            except Exception as error:  # of any type: a template calls what it likes
                raise ArgumentError(
                    f"{what}: {type(error).__name__}: {error}"
                ) from error
        self._warn_of_unnamed()

    def _warn_of_unnamed(self) -> None:
        """Warn of parameters that no text names, which then change nothing."""
        texts = [*self._words, *self._variables.values()]
        named = {
            name for text in texts for _, name, *_ in string.Formatter().parse(text)
        }
        for text in self._input.values():
            named |= find_undeclared_variables(_JINJA.parse(text))
        for p in self.spec.parameters:
            # By its number a program may look them up.
            if not {p.name, p.of or p.name, "simulation"} & named:
                logger.warning(
                    "Program: the parameter %r of the spec is named by no text, and so "
                    "changes nothing. Write {%s} in the command, for example.",
                    *(p.name, p.name),
                )

    @property
    def spec(self) -> FieldSpec:
        """What a simulation yields, as the recipe says."""
        return self._spec

    def setup(self, cores: int) -> None:
        """Look for the program, and the files that the command names, on the worker.

        Raises
        ------
        MissingFileError
            If one is not there, or the program cannot be executed.
        """
        first, path = self._words[0], self._variables.get("PATH")
        missing = [word for word in self._files if not Path(word).is_file()]
        if not missing and "{" not in f"{first}{path}":
            missing = [first] * (shutil.which(first, path=path) is None)
        if missing:
            there = Path(missing[0]).is_file()
            raise MissingFileError(
                f"{type(self).__name__}: command: {missing[0]!r} "
                + ("cannot be executed" if there else "is not there")
                + f" on {socket.gethostname()}, where workers run. "
                + (
                    f"Type chmod +x {missing[0]}, or name its interpreter before it."
                    if there
                    else "Install it there, or correct the command."
                )
            )

    def command(self, run: Run) -> list[str]:
        """Return the words of the command, and write the input files."""
        values = self._values(run)
        for name, field in run.inputs.items():
            np.asarray(field, np.float64).tofile(run.folder / f"{name}.bin")
        for name, text in self._input.items():
            path = run.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_JINJA.from_string(text).render(values), "utf-8")
        return [_formatted(word, values, "command") for word in self._words]

    def environment(self, run: Run) -> Mapping[str, str]:
        """Return the number of threads, and the variables of the recipe."""
        values = self._values(run)
        own = {
            name: _formatted(text, values, f"environment {name}")
            for name, text in self._variables.items()
        }
        return {**super().environment(run), **own}

    def read(self, run: ProcessRun) -> Iterator[xr.Dataset]:
        """Yield what the program sends, or what the reader finds."""
        if self.reader is None:
            return run.stream(self.spec)
        return self.reader.read(run, self.spec)

    def _values(self, run: Run) -> dict[str, Any]:
        """Return what texts may name."""
        values: dict[str, Any] = {name: getattr(run, name) for name in _OF_RUNS}
        vector = self.spec.vector(run.parameters)
        for p, given in zip(self.spec.parameters, vector.tolist(), strict=True):
            values[p.name] = int(given) if p.whole and not p.choices else p.value(given)
            if p.of:
                # {load[0]} is a component; of templates, load is a list.
                values.setdefault(p.of, []).append(values[p.name])
        return values


def _is_relative(word: str) -> bool:
    return os.sep in word and "{" not in word and not Path(word).is_absolute()


def _is_file(word: str) -> bool:
    return isinstance(word, str) and os.sep in word and Path(word).is_file()


def _formatted(text: str, values: Mapping[str, Any], what: str) -> str:
    """Return a text with values in the place of their names in braces."""
    formatter, made = string.Formatter(), ""
    try:
        for literal, name, form, conversion in formatter.parse(text):
            made += literal
            if name is None:
                continue
            if name not in values:
                raise ArgumentError(
                    f"Program: {what}: unknown name {name!r} in {text!r}. "
                    f"{nearest(name, values)} Write {{{{ and }}}} for braces."
                )
            value = formatter.convert_field(values[name], conversion)
            made += format(value, form or "")
    except ArgumentError:
        raise
    except (ValueError, TypeError) as error:
        raise ArgumentError(
            f"Program: {what}",
            "text with names in braces, such as {viscosity:.3e}",
            f"{text!r} ({error})",
        ) from error
    return made


def _template(name: str, path: Path) -> str:
    """Return the text of a template, checked: workers may not have the file."""
    if leads_out(name):
        raise ArgumentError(
            "Program: input", "names of files in the program's own folder", repr(name)
        )
    text = _text(path, f"the template of the input {name}")
    try:
        _JINJA.parse(text)
    except jinja2.TemplateSyntaxError as error:
        raise ArgumentError(
            f"{path}, line {error.lineno}", "a Jinja2 template", error.message
        ) from error
    return text


def _text(path: Path, kind: str) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MissingFileError(
            f"No file {str(path)!r} in {Path.cwd()} that can be read: expected {kind}."
        ) from error


def _read_spec(given: FieldSpec | Mapping[str, Any] | Path) -> FieldSpec:
    """Return the spec of a recipe."""
    if isinstance(given, FieldSpec):
        return given
    if isinstance(given, str | Path):
        path = Path(given)
        try:
            given = yaml.safe_load(_text(path, "a spec in YAML"))
        except yaml.YAMLError as error:
            raise ArgumentError(str(path), "a spec in YAML", error) from error
    plain = _known(given, FieldSpec, "spec")
    for name, kind in (
        ("parameters", Parameter),
        ("variables", Variable),
        ("inputs", Variable),
        ("coordinates", Coordinate),
    ):
        entries = plain.get(name, [])
        if not isinstance(entries, Sequence) or isinstance(entries, str):
            expected = f"a list, of the fields of a {kind.__name__} each"
            raise ArgumentError(f"Program: spec: {name}", expected, repr(entries))
        plain[name] = [_known(e, kind, f"spec: {name}") for e in entries]
    axes = [(plain, "times", "spec: times")]
    for c in plain.get("coordinates", []):
        axes.append((c, "values", f"spec: coordinate {c.get('name')}"))
    for holder, name, what in axes:
        if name in holder:
            holder[name] = _positions(holder[name], what)
    return FieldSpec.from_plain(plain)


def _known(given: Any, kind: type, what: str) -> dict[str, Any]:
    """Return a mapping whose keys are fields of a dataclass."""
    if not isinstance(given, Mapping):
        raise ArgumentError(
            f"Program: {what}", f"the fields of a {kind.__name__}", repr(given)
        )
    names = [field.name for field in dataclasses.fields(kind)]
    for key in given:
        if key not in names:
            raise ArgumentError(
                f"Program: {what}: unknown {key!r}. {nearest(str(key), names)}"
            )
    return dict(given)


def _positions(given: Any, what: str) -> Any:
    """Return numbers that are written out, or evenly spaced."""
    if not isinstance(given, Mapping):
        return given
    if not {"step", "count"} <= {*given} <= _EVEN:
        raise ArgumentError(
            f"Program: {what}",
            "numbers, or {first: 0.1, step: 0.1, count: 50}",
            dict(given),
        )
    step = number(given["step"], f"Program: {what}: step")
    first = number(given.get("first", step), f"Program: {what}: first")
    count = number(given["count"], f"Program: {what}: count")
    if not (count >= 1 and count % 1 == 0):
        raise ArgumentError(f"Program: {what}: count", "a whole number >= 1", count)
    return (first + step * np.arange(int(count))).tolist()
