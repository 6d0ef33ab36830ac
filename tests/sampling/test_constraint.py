"""Constraints: the accepted points of a sequence, in order, from any one on."""

import numpy as np
import pytest

from surrogate_flow.fields import Parameter
from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.sampling import (
    Design,
    Halton,
    LatinHypercube,
    Sampler,
    Sobol,
    Table,
    Uniform,
)

BOX = (
    Parameter("inner", 0.0, 1.0),
    Parameter("outer", 0.1, 1.0, log=True),
    Parameter("metal", choices=("steel", "copper")),
    Parameter("force", -1.0, 1.0, size=2),
)
FLAT = [p for each in BOX for p in each.components()]


def allowed(parameters):
    """It is given what a solver is."""
    assert parameters["metal"] in ("steel", "copper")
    return parameters["inner"] < parameters["outer"] and parameters["force"].sum() > 0


def rows(simulations):
    return [list(s.parameters.values()) for s in simulations]


def expected(sampler, count):
    """Return the accepted points, told by hand."""
    points = sampler.ask(0, 20 * count + 1000, FLAT)
    inside = (points[:, 0] < points[:, 1]) & (points[:, 3] + points[:, 4] > 0)
    words = [[*p[:2], ("steel", "copper")[int(p[2])], *p[3:]] for p in points[inside]]
    return words[:count]


@pytest.mark.parametrize("kind", [Uniform, Sobol, Halton, LatinHypercube])
def test_accepted_points_keep_their_order(kind):
    """Those of the sampler and the held-out ones, and no other is drawn."""
    options = {"held_out": 5, "constraint": allowed}
    design = Design(BOX, kind(3), simulations=1500, **options)
    all_of_them = rows(design)
    assert all_of_them[5:] == expected(kind(3), 1500)
    assert all_of_them[:5] == expected(Uniform(1_234_567_891), 5)
    # A run that goes on, a rank, and a look at one of them.
    later = Design(BOX, kind(3), simulations=1500, **options)
    later.skip(set(range(1200)))
    assert rows(later) == all_of_them[1200:]
    ranks = [
        Design(BOX, kind(3), simulations=1500, rank=k, world=2, **options)
        for k in (0, 1)
    ]
    for k, rank in enumerate(ranks):
        assert rows(rank) == all_of_them[k::2]
    last = Design(BOX, kind(3), **options).at(1400)
    assert rows([last]) == [all_of_them[1400]]


def test_held_out_simulations_may_be_the_first_accepted():
    """Those of the sampler itself, where data.held_out_sampler is same."""
    sampler = Sobol(1)
    options = {"held_out": 4, "fixed": sampler, "simulations": 20}
    design = Design(BOX, sampler, constraint=allowed, **options)
    assert rows(design) == expected(Sobol(1), 24)


class Adaptive(Sampler):
    """Counts what it was told, in its points."""

    told = 0

    def ask(self, first, count, bounds):
        seeds = [[self.seed, self.told, n] for n in range(first, first + count)]
        drawn = [np.random.default_rng(s).random(len(bounds)) for s in seeds]
        return np.array(
            [[p.at(u) for p, u in zip(bounds, d, strict=True)] for d in drawn]
        )

    def tell(self, seen):
        self.told += 1

    def state_dict(self):
        return {"told": self.told}

    def load_state_dict(self, state):
        self.told = state["told"]


def test_a_sampler_that_adapts_goes_on_where_it_was():
    """What is drawn after a checkpoint is what would have been drawn without it."""
    design = Design(BOX, Adaptive(), held_out=2, constraint=allowed)
    before = [design.next() for _ in range(12)]
    design.tell("losses")
    before += [design.next() for _ in range(3)]
    state = design.state_dict()
    after = rows(design.next() for _ in range(9))
    again = Design(BOX, Adaptive(), held_out=2, constraint=allowed)
    again.load_state_dict(state)
    again.skip(set(range(13)))
    assert rows(again.next() for _ in range(11)) == rows(before[13:]) + after
    for row in rows(before)[2:] + after:
        assert row[0] < row[1]
        assert row[3] + row[4] > 0


def test_the_share_that_is_accepted_is_known():
    """Half of the sums are positive; of the others it is an integral."""
    design = Design(BOX, Sobol(1), held_out=1, constraint=allowed)
    # The mean of a log-uniform number from 0.1 to 1 is 0.9 / log(10).
    assert design.share_accepted() == pytest.approx(0.9 / np.log(10) / 2, abs=0.03)
    assert Design(BOX, Sobol(1), held_out=1).share_accepted() == 1


def fails(parameters):
    raise KeyError("radius")


@pytest.mark.parametrize("sampler", [Sobol(1), Adaptive()])
@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        (lambda p: False, r"refused \d+,\d{3} in a row, and accepted (none|0 of)"),
        (lambda p: None, "True or False, got None"),
        (fails, r"fails has failed with .*KeyError: 'radius'[\s\S]*test_constraint.py"),
    ],
)
def test_a_constraint_that_cannot_be_is_told_in_a_line(
    sampler, constraint, said, monkeypatch
):
    """It ends where the first point is drawn, and does not search for ever."""
    monkeypatch.setattr("surrogate_flow.sampling.constraint._REFUSED", 2048)
    design = Design(BOX, sampler, held_out=1, constraint=constraint)
    with pytest.raises(ArgumentError, match=said):
        design.next()
    with pytest.raises(ArgumentError, match=said):
        design.at(1)


def test_given_points_have_no_constraint():
    """Rows are left out of the table itself."""
    table = Table({p.name: [p.low, p.high] for p in FLAT})
    with pytest.raises(ArgumentError, match="Table, which has 2 points"):
        Design(BOX, table, held_out=1, constraint=allowed)
