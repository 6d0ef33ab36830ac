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


def draw(sampler: Sampler, count: int, first: int = 0, box: list = BOX) -> np.ndarray:
    """Some points of the sequence."""
    return sampler.ask(first, count, box)


@every_sampler
def test_same_seed_same_points(sampler: type[Sampler]) -> None:
    """Neither a second walk, a second sampler nor a pickled one changes a point."""
    one = sampler(seed=3)
    first = draw(one, 1500)
    np.testing.assert_array_equal(draw(one, 1500), first)
    np.testing.assert_array_equal(draw(sampler(seed=3), 1500), first)
    np.testing.assert_array_equal(draw(pickle.loads(pickle.dumps(one)), 1500), first)


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
def test_points_are_within_bounds(sampler: type[Sampler]) -> None:
    """Six thousand points, every one within its bounds, and around their middle."""
    points = draw(sampler(), 6000)
    assert points.shape == (6000, 3)
    assert points.dtype == np.float64
    for column, bound in zip(points.T, BOX, strict=True):
        assert (column >= bound.low).all()
        assert (column <= bound.high).all()
        middle = (bound.low + bound.high) / 2
        assert column.mean() == pytest.approx(middle, rel=0.02)


@every_sampler
@pytest.mark.parametrize("first", [0, 1, 63, 64, 1000, 1024, 1025, 5000])
def test_the_sequence_can_be_entered_anywhere(
    sampler: type[Sampler], first: int
) -> None:
    """Points do not depend on those that were asked for before."""
    complete = draw(sampler(seed=1), first + 200)
    np.testing.assert_array_equal(draw(sampler(seed=1), 200, first), complete[first:])
    assert draw(sampler(), 0, first).shape == (0, 3)


@every_sampler
def test_far_points_are_at_hand(sampler: type[Sampler]) -> None:
    """The millionth point needs neither the memory nor the time of those before it."""
    assert draw(sampler(), 3, first=10_000_000).shape == (3, 3)


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


# The points 0, 1025 and 1026 of seed 3, as version 0.1 drew them: checkpoints and data
# sets compare parameters with theirs.
DRAWN = {
    Halton: [
        [316.87969702327763, -1.8618641710456059],
        [117.07500952327763, -1.2935056891068766],
        [417.07500952327763, -1.8737526026871238],
    ],
    LatinHypercube: [
        [490.36643969210377, -1.334041849259419],
        [333.1617243458012, -1.9621901550683996],
        [177.4896658995281, -1.6395841710528605],
    ],
    Sobol: [
        [469.9405879713595, -1.9040817336644977],
        [121.8549438752234, -1.3109257211908698],
        [257.52989863976836, -1.8693202380090952],
    ],
    Uniform: [
        [134.25966685744976, -1.7631894934039003],
        [236.5470328156494, -1.572554626001323],
        [315.5045415130313, -1.0934582088230096],
    ],
}


@every_sampler
def test_points_are_those_of_version_0_1(sampler: type[Sampler]) -> None:
    """A sequence never changes, so that old studies can be continued."""
    points = draw(sampler(seed=3), 1027, box=BOX[:2])[[0, 1025, 1026]]
    np.testing.assert_allclose(points, DRAWN[sampler], rtol=1e-14)


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
    narrow = Parameter("a", low, 2.0)
    object.__setattr__(narrow, "high", high)  # which `Parameter` refuses
    points = draw(sampler(), 2000, box=[narrow])
    assert set(np.unique(points)) == {low, high}


@every_sampler
@pytest.mark.parametrize("seed", [-1, 0.5])
def test_seed_is_checked(sampler: type[Sampler], seed: float) -> None:
    """A seed that no generator takes is refused at once."""
    with pytest.raises(ValueError, match=f"{sampler.__name__}: seed: .*got {seed}"):
        sampler(seed=seed)


def test_strata_are_checked() -> None:
    """A design without strata is refused."""
    with pytest.raises(ValueError, match=r"strata: .* got 0"):
        LatinHypercube(strata=0)


def test_sampling_and_solvers_need_no_torch() -> None:
    """Workers import samplers and solvers without paying for torch."""
    code = (
        "import sys, surrogate_flow.sampling, surrogate_flow.solvers; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
