"""The solvers of docs/libraries.md, as they stand there."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from surrogate_flow.testing import check_solver

PAGE = Path(__file__).parents[2] / "docs" / "libraries.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def sine(last):
    """From sin(πx) sin(πy), 0 on all sides, by diffusivity 0.5."""
    decay = np.exp(-0.5 * 2 * np.pi**2 * last.time)
    return np.sin(np.pi * last.x) * np.sin(np.pi * last.y) * decay


def line(last):
    """Steady between 1 at the left and 0 at the right."""
    return 1 - (np.arange(16) + 0.5) / 16


def waves(last):
    """From sin(2πx) sin(2πy), periodic."""
    x, y = 2 * np.pi * last.x, 2 * np.pi * last.y
    return np.sin(x) * np.sin(y) * np.exp(-0.5 * 8 * np.pi**2 * last.time)


# Package, steps, time step, exact solution, error: of Euler's steps and of the mesh.
CASES = [
    ("fipy", 40, 0.1, line, 1e-3),
    ("skfem", 10, 0.005, sine, 0.01),
    ("ngsolve", 10, 0.005, sine, 0.03),
    ("exponax", 10, 0.005, waves, 1e-5),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_a_solver_of_the_page_is_right(case, tmp_path, monkeypatch):
    """It keeps the laws, and comes near the exact solution."""
    package, steps, time_step, exact, error = case
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is no part of the test installation: pip install it")
    (code,) = (
        block
        for block in BLOCKS
        if re.search(rf"^(from|import) {package}\b", block, re.M)
    )
    name = f"page_{package}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    kind = importlib.import_module(name).Heat
    check_solver(kind(3, time_step))
    solver = kind(steps, time_step)
    solver.setup(1)
    *_, last = solver.solve({"a": 0.5})
    assert float(abs(last.u - exact(last)).max()) < error
    del sys.modules[name]
