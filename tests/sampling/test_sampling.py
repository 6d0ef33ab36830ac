"""Samplers: endless, reproducible, within bounds, and as even as they promise."""

import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import qmc

from surrogate_flow.fields.spec import Parameter
from surrogate_flow.sampling import Halton, LatinHypercube, Sampler, Sobol, Uniform

SAMPLERS = [Halton, LatinHypercube, Sobol, Uniform]
BOX = [
    Parameter("initial", 100.0, 500.0, "K"),
    Parameter("inflow", -2.0, -1.0, "m/s"),
    Parameter("tiny", 1e-9, 2e-9),
]

every_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


def draw(sampler: Sampler, count: int, start: int = 0, box: list = BOX) -> np.ndarray:
    """The first points as an array."""
    points = itertools.islice(sampler.parameters(box, start), count)
    return np.array([list(point.values()) for point in points])


@every_sampler
def test_same_seed_same_points(sampler: type[Sampler]) -> None:
    """Neither a second walk, a second sampler nor a pickled one changes a point."""
    one = sampler(seed=3)
    first = draw(one, 1500)
    np.testing.assert_array_equal(draw(one, 1500), first)
    np.testing.assert_array_equal(draw(sampler(seed=3), 1500), first)
    np.testing.assert_array_equal(draw(pickle.loads(pickle.dumps(one)), 1500), first)


@every_sampler
def test_walks_do_not_disturb_each_other(sampler: type[Sampler]) -> None:
    """Two walks of one sampler may be interleaved."""
    one = sampler(seed=3)
    pairs = zip(one.parameters(BOX), one.parameters(BOX), strict=True)
    assert all(a == b for a, b in itertools.islice(pairs, 100))


@every_sampler
def test_different_seeds_differ(sampler: type[Sampler]) -> None:
    """Each seed has a sequence of its own, in later blocks too."""
    points = [draw(sampler(seed), 1200) for seed in range(4)]
    for a, b in itertools.combinations(points, 2):
        assert not np.isin(a, b).any()


@every_sampler
def test_blocks_differ(sampler: type[Sampler]) -> None:
    """No point comes twice."""
    points = draw(sampler(), 5000)
    assert len(np.unique(points, axis=0)) == 5000


@every_sampler
def test_points_are_named_and_within_bounds(sampler: type[Sampler]) -> None:
    """More than five thousand points, every one a float within its bounds."""
    point = next(sampler().parameters(BOX))
    assert list(point) == ["initial", "inflow", "tiny"]
    assert all(type(value) is float for value in point.values())
    points = draw(sampler(), 6000)
    assert points.shape == (6000, 3)
    for column, bound in zip(points.T, BOX, strict=True):
        assert (column >= bound.low).all()
        assert (column <= bound.high).all()
        middle = (bound.low + bound.high) / 2
        assert column.mean() == pytest.approx(middle, rel=0.02)


@every_sampler
@pytest.mark.parametrize("start", [0, 1, 63, 64, 1000, 1024, 1025, 5000])
def test_start_skips(sampler: type[Sampler], start: int) -> None:
    """A resumed walk is the tail of the whole walk."""
    whole = draw(sampler(seed=1), start + 200)
    np.testing.assert_array_equal(draw(sampler(seed=1), 200, start), whole[start:])


@every_sampler
def test_far_points_are_at_hand(sampler: type[Sampler]) -> None:
    """The millionth point needs neither the memory nor the time of those before it."""
    assert draw(sampler(), 3, start=10_000_000).shape == (3, 3)


@pytest.mark.parametrize(
    ("sampler", "engine"),
    [
        (Sobol(seed=5), qmc.Sobol(3, bits=32, seed=5)),
        (Halton(seed=5), qmc.Halton(3, seed=5)),
    ],
    ids=["Sobol", "Halton"],
)
def test_blocks_join_to_one_sequence(sampler: Sampler, engine: qmc.QMCEngine) -> None:
    """Block after block gives what scipy draws at once."""
    blocks = [sampler.block(index, 3) for index in range(4)]
    expected = engine.random(4 * sampler.block_size)
    np.testing.assert_array_equal(np.concatenate(blocks), expected)


@pytest.mark.parametrize("sampler", [Halton, Sobol])
@pytest.mark.parametrize("count", [256, 2048])
def test_low_discrepancy(sampler: type[Sampler], count: int) -> None:
    """A low-discrepancy sequence is several times more even than chance."""
    cube = [Parameter(name, 0.0, 1.0) for name in "abc"]

    def discrepancy(one: Sampler) -> float:
        return qmc.discrepancy(draw(one, count, box=cube), method="L2-star")

    for seed in range(3):
        assert discrepancy(sampler(seed)) < 0.5 * discrepancy(Uniform(seed))


@pytest.mark.parametrize("strata", [1, 7, 64])
def test_every_design_fills_every_stratum_once(strata: int) -> None:
    """Each Latin hypercube has one point in each stratum of each parameter."""
    cube = [Parameter(name, 0.0, 1.0) for name in "abc"]
    points = draw(LatinHypercube(seed=2, strata=strata), 5 * strata, box=cube)
    designs = points.reshape(5, strata, 3)
    hit = np.sort(np.floor(designs * strata).astype(int), axis=1)
    np.testing.assert_array_equal(
        hit, np.broadcast_to(np.arange(strata)[:, np.newaxis], hit.shape)
    )


def test_uniform_points_are_uniform() -> None:
    """The distribution of independent points is the uniform one, in every block."""
    points = draw(Uniform(), 8192, box=[Parameter("a", 0.0, 1.0)])
    counts, _ = np.histogram(points, bins=16, range=(0, 1))
    # chi-squared with 15 degrees of freedom: 37.7 is the 99.9 % quantile
    assert ((counts - 512) ** 2 / 512).sum() < 37.7


@every_sampler
def test_bounds_are_reached_but_not_passed(sampler: type[Sampler]) -> None:
    """Rounding carries no point out of a box as narrow as two neighbouring numbers."""
    low, high = 1.0, np.nextafter(1.0, 2.0)
    points = draw(sampler(), 2000, box=[Parameter("a", low, high)])
    assert set(np.unique(points)) == {low, high}


@every_sampler
@pytest.mark.parametrize("seed", [-1, 0.5])
def test_seed_is_checked(sampler: type[Sampler], seed: float) -> None:
    """A seed that no generator takes is refused at once."""
    with pytest.raises(ValueError, match=f"{sampler.__name__}: .* seed .*got {seed}"):
        sampler(seed=seed)


@every_sampler
def test_walk_is_checked(sampler: type[Sampler]) -> None:
    """A walk without parameters or from a negative start fails before any point."""
    with pytest.raises(ValueError, match="at least one parameter"):
        sampler().parameters([])
    with pytest.raises(ValueError, match="start >= 0, got -1"):
        sampler().parameters(BOX, start=-1)


def test_strata_are_checked() -> None:
    """A design without strata is refused."""
    with pytest.raises(ValueError, match=r"strata .* got 0"):
        LatinHypercube(strata=0)


def test_sampling_and_solvers_need_no_torch() -> None:
    """Workers import samplers and solvers without paying for torch."""
    code = (
        "import sys, surrogate_flow.sampling, surrogate_flow.solvers; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
