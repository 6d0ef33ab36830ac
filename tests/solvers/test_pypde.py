"""Equations as text: compared with exact solutions, and refused in one line."""

import numpy as np
import programs
import pytest
import yaml

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.solvers import PyPDE
from surrogate_flow.testing import check_solver

pytest.importorskip("pde", reason="needs py-pde: pip install 'py-pde>=0.59'")
SINE = {
    "rhs": {"u": "a * laplace(u)"},
    "initial": {"u": "wall + height * sin(pi * x)"},
    "parameters": {
        "a": [0.1, 1.0],
        "height": {"low": 0.5, "high": 2.0, "log": True},
        "wall": [-1.0, 1.0],
    },
    "bc": {"x": {"value": "wall"}},
    "units": {"u": "K", "x": "m", "time": "s", "a": "m2/s"},
    "steps": 3,
    "time_step": 0.02,
}


def test_a_sine_diffuses_with_second_order():
    """Against wall + height * sin(πx) exp(-aπ²t), two simulations of one compilation."""
    errors = {}
    for cells in (8, 16):
        solver = PyPDE(grid={"x": [0, 1, cells]}, method={"dt": 1e-3}, **SINE)
        solver.setup(1)
        for a, height, wall in ((0.3, 0.5, 0.7), (1.0, 2.0, -0.4)):
            given = {"a": a, "height": height, "wall": wall}
            steps = list(solver.solve(given))
            assert [float(step.time[0]) for step in steps] == [0.02, 0.04, 0.06]
            last, x = steps[-1].u[0], steps[-1].x
            assert (last.units, x.units) == ("K", "m")
            # Of the average over a cell, which is a bit lower than its middle.
            mean = np.sinc(1 / cells / 2)
            exact = height * np.sin(np.pi * x) * np.exp(-a * np.pi**2 * 0.06) * mean
            errors[cells, a] = float(abs(last - wall - exact).max()) / height
    for a in (0.3, 1.0):
        assert errors[16, a] < 2e-3
        assert 3.5 < errors[8, a] / errors[16, a] < 4.5


@pytest.mark.parametrize("method", [{}, {"dt": 0.03}, {"solver": "euler"}])
def test_it_keeps_the_laws(method):
    """Adaptive, too: the time step of one simulation is none of the next one's."""
    noise = {"low": -1, "high": 1, "seed": 3}
    solver = PyPDE(
        rhs={"u": "v - beta * u * t", "v": "-beta * u"},
        initial={"u": "beta * (x + y)", "v": noise},
        grid={"x": [0, 2, 3], "y": [0, 1, 2]},
        parameters={"beta": [0.1, 5.0]},
        steps=4,
        time_step=0.1,
        method=method,
    )
    check_solver(solver)
    first = next(solver.solve({"beta": 0.1})).v
    other = next(PyPDE.solve(solver, {"beta": 0.1})).v
    assert first.identical(other)
    assert first.std() > 0.1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"rhs": {"u": "a * laplace(w)"}},
            r"unknown name 'w'.*Valid names: u, a, x, t",
        ),
        ({"rhs": {"u": "a * laplac(u)"}}, "unknown operator.*Did you mean 'laplace'"),
        ({"rhs": {"u": "a * (u"}}, r"rhs: expected expressions of py-pde"),
        ({"initial": {"u": "heigth * x"}}, r"initial: u: expected .*heigth"),
        ({"initial": {"v": 0}}, r"initial: expected one for each of \['u'\]"),
        ({"initial": {"u": {"low": 0, "high": 1}}}, "low, high and seed.*'seed'"),
        ({"bc": {"x": {"vale": 0}}}, "bc: expected boundary conditions of py-pde"),
        (
            {"bc": {"x": {"type": "mixed", "value": 1, "const": "wall"}}},
            "bc: expected parameters in values and derivatives alone",
        ),
        (
            {"bc": {"x": {"value_expression": "wall * t"}}},
            "bc: expected parameters in values and derivatives alone",
        ),
        ({"grid": {"y": [0, 1, 4]}}, "expected the axes x, x and y"),
        ({"grid": {"x": [0, 1]}}, r"grid: x: expected \[low, high, cells\]"),
        (
            {"parameters": {"a": 1.0, "height": [1, 2], "wall": [0, 1]}},
            r"a: expected \[low, high\]",
        ),
        ({"parameters": {"a": {"lo": 1}}}, "unknown 'lo'. Did you mean 'low'"),
        ({"parameters": {"a": {"choices": ["slow", "fast"]}}}, "a number with bounds"),
        ({"parameters": {"a": {"low": 0, "high": 1, "size": 2}}}, "a number with bou"),
        ({"method": {"dt": 0}}, "method: dt: expected a time > 0, got 0"),
        ({"rhs": {"u": "laplace(u)"}}, "a: expected a name in rhs, initial or bc"),
        ({"units": {"z": "m"}}, "units: unknown 'z'"),
        ({"method": {"solver": "eulr"}}, "unknown solver 'eulr'. Did you mean 'euler'"),
        ({"method": {"step": 1}}, "method: unknown 'step'"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(wrong, said):
    """With the name that was meant."""
    with pytest.raises(ArgumentError, match=said):
        PyPDE(**{"grid": {"x": [0, 1, 8]}, **SINE, **wrong})


def test_what_only_the_initial_state_names_is_found():
    """A recipe may also say it, of one that an equation names, too."""
    solver = PyPDE(**{"grid": {"x": [0, 1, 8]}, **SINE})
    flags = {p.name: p.initial for p in solver.spec.parameters}
    assert flags == {"a": False, "height": True, "wall": False}
    said = {**SINE["parameters"], "a": {"low": 0.1, "high": 1.0, "initial": True}}
    solver = PyPDE(**{"grid": {"x": [0, 1, 8]}, **SINE, "parameters": said})
    assert solver.spec.parameters[0].initial


def test_from_text_to_a_surrogate_in_one_command(tmp_path):
    """A recipe and no Python of the user's."""
    recipe = {
        "name": "mine",
        "solver": {
            "class_path": "surrogate_flow.solvers.PyPDE",
            "init_args": {**SINE, "grid": {"x": [0, 1, 16]}},
        },
        "simulations": 20,
        "held_out": 2,
        "batch_size": 8,
        "cluster": {
            "class_path": "distributed.LocalCluster",
            "init_args": {"n_workers": 1, "threads_per_worker": 1},
        },
        "reservoir": {
            "class_path": "surrogate_flow.reservoir.Reservoir",
            "init_args": {"threshold": 12},
        },
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    words = ["--data", "mine.yaml", "--model", "fno", "--trainer.max_steps", "10"]
    programs.run("fit", *words, cwd=tmp_path)
    assert list(tmp_path.glob("runs/mine/*/checkpoints/best.ckpt"))
    assert not list(tmp_path.glob("runs/mine/*/failures.csv"))
