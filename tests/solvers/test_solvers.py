"""What the docstrings of all solvers promise alike."""

import inspect
import re

import numpy as np
import pytest

from surrogate_flow import solvers

EXPORTED = [getattr(solvers, name) for name in solvers.__all__]
SHIPPED = [
    kind
    for kind in EXPORTED
    if issubclass(kind, solvers.Solver) and not inspect.isabstract(kind)
]


@pytest.mark.parametrize("solver", SHIPPED, ids=lambda solver: solver.__name__)
def test_steps_are_where_the_docstring_says(solver):
    """The first step, number 0, is one time step behind the initial state, which is none."""
    made = solver(steps=3, time_step=0.25)
    words = " ".join(solver.__doc__.split())
    (formula,) = re.findall(r"Step k is at ``(.+?)``", words)
    said = [eval(formula, {"k": k, "time_step": 0.25}) for k in range(3)]
    np.testing.assert_allclose(made.spec.times, said)
    fields = made.solve({p.name: (p.low + p.high) / 2 for p in made.spec.parameters})
    np.testing.assert_allclose(next(fields).time[0], said[0])
