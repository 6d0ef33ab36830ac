"""Natural convection against a published benchmark, its own energy, and finer elements."""

import math

import numpy as np
import pytest

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.solvers import NaturalConvection
from surrogate_flow.solvers.natural_convection import _air, _Mesh
from surrogate_flow.testing import check_solver

CASE = dict(lower=80.0, upper=40.0, transfer=10.0, ambient=20.0, tilt=5.0)


def solved(cells, **other):
    (step,) = NaturalConvection(cells, points=33).solve(CASE | other)
    return step.isel(time=0)


def test_keeps_the_laws_of_solvers():
    check_solver(NaturalConvection(12, points=9, flux=(20.0, 30.0)))


def test_has_the_velocities_of_de_vahl_davis():
    """Table IV of 1983: the largest u and v of a cavity between 1 and 0, Ra = 1e5."""
    mesh, prandtl, rayleigh = _Mesh(16), 0.71, 1e5
    solution = np.zeros(mesh.size)
    for ra in (1e3, 1e4, rayleigh):
        solution = mesh.solve(
            solution,
            math.sqrt(prandtl / ra),
            1 / math.sqrt(prandtl * ra),
            buoyancy=(0.0, 1.0),
            flux=np.zeros(2),
            transfer=(1e8, 1e8),
            outside=(1.0, 0.0),
        )
    along = np.linspace(0, 1, 401)
    u, v, temperature = mesh.at(solution, along, along)
    # In units of the thermal diffusivity over the width.
    scale = math.sqrt(rayleigh * prandtl)
    assert scale * u[200].max() == pytest.approx(34.73, rel=5e-3)
    assert scale * v[:, 200].max() == pytest.approx(68.59, rel=5e-3)
    assert temperature[0] == pytest.approx(1.0, abs=1e-6)
    assert temperature[-1] == pytest.approx(0.0, abs=1e-6)


def test_what_the_components_give_leaves_through_the_cold_wall():
    """And a wall that takes more of it is colder."""
    walls = []
    for transfer in (6.0, 24.0):
        wall = solved(20, transfer=transfer).isel(x=-1).rise
        through = transfer * np.trapezoid(wall.values, wall.y.values)
        assert through == pytest.approx(0.25 * 0.1 * (80.0 + 40.0), rel=2e-3)
        walls.append(float(wall.mean()))
    assert walls[0] > walls[1]


def test_tilted_to_either_side_it_is_another_flow():
    """Air rises at the components; more heat moves it faster; the tilt turns gravity."""
    level, left, right = (solved(16, tilt=t) for t in (0.0, 10.0, -10.0))
    assert float(level.v.isel(x=3).max()) > 0 > float(level.v.isel(x=-4).min())
    speeds = [float(np.hypot(f.u, f.v).max()) for f in (left, level, right)]
    assert speeds == sorted(speeds, reverse=True)
    assert float(solved(16, lower=20.0, upper=20.0).v.max()) < float(level.v.max())


def test_finer_elements_converge_and_too_wide_ones_are_refused():
    """Towards those of 24 a side; 8 end in an error that says what helps."""
    truth = solved(24)
    wide, narrow = (
        float(np.linalg.norm(f.v - truth.v) / np.linalg.norm(truth.v))
        for f in map(solved, (14, 18))
    )
    assert narrow < 0.5 * wide
    assert narrow < 0.02
    with pytest.raises(FloatingPointError, match="Take more cells"):
        solved(8, lower=100.0, upper=100.0, ambient=-10.0)
    with pytest.raises(ArgumentError, match="at least 4"):
        NaturalConvection(cells=2)


def test_air_is_that_of_the_standard_atmosphere():
    """At 15 °C: W/(m K), and m²/s."""
    conductivity, viscosity, diffusivity = _air(288.15)
    assert conductivity == pytest.approx(0.025326, rel=1e-4)
    assert viscosity == pytest.approx(1.4607e-5, rel=1e-4)
    assert viscosity / diffusivity == pytest.approx(0.71, abs=0.01)
