"""``surrogate-flow new``: a solver, a network or a program to begin with."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from surrogate_flow.fields.names import RecipeError, nearest

__all__ = ["run"]

_SOLVER = '''\
"""Diffusion on a line: replace the equation, and keep the form."""

from functools import cached_property

import numpy as np
from surrogate_flow import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.solvers import GridSolver


class CLASS(GridSolver):
    """u_t = a u_xx on (0, 1), 0 at both ends, from sin(pi x)."""

    def __init__(self, cells: int = 64, steps: int = 50, time_step: float = 0.002):
        super().__init__(steps, time_step)
        self.cells = cells
        self.x = (np.arange(cells) + 1) / (cells + 1)

    @cached_property
    def spec(self):
        return FieldSpec(
            parameters=(Parameter("a", 0.1, 1.0, "m2/s"),),
            variables=(Variable("u", "K"),),
            dims=("x",),
            shape=(self.cells,),
            times=self.times,
            time_units="s",
            coordinates=(Coordinate("x", "x", tuple(self.x), "m"),),
        )

    def fields(self, parameters):
        rate = parameters["a"] * self.time_step * (self.cells + 1) ** 2
        second = np.eye(self.cells, k=1) - 2 * np.eye(self.cells)
        second += np.eye(self.cells, k=-1)
        step = np.linalg.inv(np.eye(self.cells) - rate * second)
        u = np.sin(np.pi * self.x)
        for _ in self.times:
            u = step @ u
            yield u[None, None]  # an array (time, variable, x)
'''
_SOLVER_TEST = '''\
import numpy as np
from surrogate_flow.testing import check_solver

from NAME import CLASS


def test_laws():
    check_solver(CLASS(cells=8, steps=5))


def test_exact():
    """The rate of decay is -a pi^2."""
    *_, last = CLASS(cells=64).solve({"a": 0.5})
    exact = np.sin(np.pi * last.x) * np.exp(-0.5 * np.pi**2 * last.time)
    assert float(abs(last.u - exact).max()) < 0.01
'''
_STUDY = """\
simulations: 200
reservoir:
  class_path: surrogate_flow.reservoir.Reservoir
  init_args: {capacity: 2000, threshold: 500}
"""
_SOLVER_RECIPE = f"""\
name: NAME
solver:
  class_path: NAME.CLASS
  init_args: {{cells: 64}}
{_STUDY}"""
_NETWORK = '''\
"""A network: replace the layers, and keep the form."""

import math

import torch
from torch import nn


class CLASS(nn.Module):
    """(parameters, step, history and input fields) -> the next steps."""

    def __init__(self, spec, window, *, width: int = 64):
        super().__init__()
        self.shape = (window.outputs, *spec.step_shape)
        fields = window.inputs * math.prod(spec.step_shape)
        given = len(spec.parameters) + 1 + fields + math.prod(spec.input_shape)
        self.layers = nn.Sequential(
            nn.Linear(given, width), nn.GELU(), nn.Linear(width, math.prod(self.shape))
        )

    def forward(self, parameters, step, history, *inputs):
        parts = [parameters, step[:, None], history.flatten(1)]
        parts += [fields.flatten(1) for fields in inputs]
        return self.layers(torch.cat(parts, dim=1)).unflatten(1, self.shape)
'''
_NETWORK_RECIPE = """\
network:
  class_path: NAME.CLASS
  init_args: {width: 64}
"""
_NETWORK_TEST = """\
from surrogate_flow import Direct
from surrogate_flow.solvers import Lorenz
from surrogate_flow.testing import check_network

from NAME import CLASS


def test_laws():
    check_network(CLASS, Lorenz(steps=5).spec, Direct())
"""
_PROGRAM = """\
/* Diffusion on a line: replace the equation, and keep the three calls. */
#include <math.h>
#include <stdlib.h>
#include "surrogate_flow.h"

int main(int argc, char **argv)
{
    enum { n = 63, steps = 50, substeps = 100 };
    double u[n + 2] = {0}, next[n + 2] = {0}, dx = 1.0 / (n + 1), dt = 0.002 / substeps;
    double rate = (argc > 1 ? atof(argv[1]) : 1.0) * dt / (dx * dx);
    size_t size[] = {n};
    for (int i = 1; i <= n; i++)
        u[i] = sin(acos(-1.0) * i * dx);
    sf_stream *stream = sf_open(1, size, NULL, 0, 1);
    for (int k = 1; k <= steps; k++) {
        for (int m = 0; m < substeps; m++) {
            for (int i = 1; i <= n; i++)
                next[i] = u[i] + rate * (u[i - 1] - 2 * u[i] + u[i + 1]);
            memcpy(u, next, sizeof u);
        }
        sf_step(stream, "u", 0.002 * k, u + 1);
    }
    sf_close(stream);
}
"""
_PROGRAM_RECIPE = f"""\
name: NAME
solver:
  class_path: surrogate_flow.solvers.Program
  init_args:
    command: ./NAME {{a}}
    spec:
      parameters: [{{name: a, low: 0.1, high: 1.0, units: m2/s}}]
      variables: [{{name: u, units: K}}]
      dims: [x]
      shape: [63]
      times: {{step: 0.002, count: 50}}
      time_units: s
      coordinates:
        - {{name: x, dim: x, units: m, values: {{step: 0.015625, count: 63}}}}
{_STUDY}"""
_PROGRAM_TEST = '''\
import numpy as np
import yaml
from surrogate_flow.solvers import Program, Run
from surrogate_flow.testing import check_solver


def solver():
    with open("NAME.yaml", encoding="utf-8") as recipe:
        return Program(**yaml.safe_load(recipe)["solver"]["init_args"])


def test_laws():
    check_solver(solver())


def test_exact(tmp_path):
    """The rate of decay is -a pi^2."""
    *_, last = solver().start(Run({"a": 0.5}, folder=tmp_path))
    x = np.arange(1, 64) / 64
    exact = np.sin(np.pi * x) * np.exp(-0.5 * np.pi**2 * float(last.time[-1]))
    assert float(abs(last.u[-1] - exact).max()) < 0.01
'''
_FIT = "PYTHONPATH=. surrogate-flow fit --data {data} --model {model}"
# Of each kind: files and their texts; then what to type.
_KINDS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "solver": (
        {
            "NAME.py": _SOLVER,
            "NAME.yaml": _SOLVER_RECIPE,
            "test_NAME.py": _SOLVER_TEST,
        },
        (
            "surrogate-flow check NAME.py:CLASS --cells 8",
            "PYTHONPATH=. pytest test_NAME.py",
            _FIT.format(data="NAME.yaml", model="fully_connected"),
        ),
    ),
    "network": (
        {
            "NAME.py": _NETWORK,
            "NAME.yaml": _NETWORK_RECIPE,
            "test_NAME.py": _NETWORK_TEST,
        },
        (
            "surrogate-flow check NAME.py:CLASS",
            "PYTHONPATH=. pytest test_NAME.py",
            _FIT.format(data="lorenz", model="NAME.yaml"),
        ),
    ),
    "program": (
        {
            "NAME.c": _PROGRAM,
            "NAME.yaml": _PROGRAM_RECIPE,
            "test_NAME.py": _PROGRAM_TEST,
        },
        (
            "cc -I$(surrogate-flow include) NAME.c -lm -o NAME",
            "surrogate-flow check NAME.yaml",
            "surrogate-flow fit --data NAME.yaml --model fully_connected",
        ),
    ),
}


def run(words: Sequence[str]) -> None:
    """Write the files of a kind into this folder, and print what to type next.

    Raises
    ------
    RecipeError
        If the kind or the name is none, or a file is there.
    """
    if len(words) != 2 or words[0] not in _KINDS:
        hint = nearest(words[0], _KINDS) if words else f"Kinds: {', '.join(_KINDS)}."
        got = " ".join(words) or "nothing"
        raise RecipeError(
            f"new: expected a kind and a name, such as new solver mine, got {got}. "
            f"{hint}"
        )
    kind, name = words
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise RecipeError(
            f"new: expected a name for a file in small letters, such as my_{kind}, got "
            f"{name!r}."
        )
    texts, commands = _KINDS[kind]
    class_name = re.sub(r"(?:^|_)(.)", lambda match: match[1].upper(), name)

    imported = "".join(re.findall(r"import .*", "".join(texts.values())))
    if re.search(rf"\b{class_name}\b", imported) or (
        kind != "program" and not Path(f"{name}.py").exists() and find_spec(name)
    ):
        raise RecipeError(
            f"new: expected a name that nothing else has in Python, got {name!r}. "
            f"Take my_{name}, for example."
        )

    def filled(text: str) -> str:
        return text.replace("NAME", name).replace("CLASS", class_name)

    for path in map(Path, map(filled, texts)):
        if path.exists():
            raise RecipeError(
                f"new: {path} is in this folder, and is not overwritten. Move it away, "
                "or take another name."
            )
    for file, text in texts.items():
        with open(filled(file), "x", encoding="utf-8") as stream:
            stream.write(filled(text))
    print(f"Written: {', '.join(map(filled, texts))}. Next:")
    for command in commands:
        print(f"  {filled(command)}")
