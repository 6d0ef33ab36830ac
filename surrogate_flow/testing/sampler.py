"""The laws of samplers."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import msgspec
import numpy as np
from jaxtyping import Float

from surrogate_flow.fields.parameter import Parameter
from surrogate_flow.sampling.sampler import Observations, Sampler
from surrogate_flow.testing.law import Laws

__all__ = ["check_sampler"]

_BOXES = (
    (Parameter("rate", 0.0, 1.0),),
    (
        Parameter("temperature", 100.0, 500.0, "K"),
        Parameter("offset", -2.0, -1.0),
        Parameter("viscosity", 1e-7, 3e-7, "m²/s"),
    ),
)
_COUNT, _FAR = 40, 1020
_GENERATOR = (
    "Usual cause: a generator of random numbers that is kept between calls. Make it "
    "from the seed and the number of the point."
)


def check_sampler(sampler: Sampler) -> list[str]:
    """Try a sampler as a study uses it: `ask`, `tell`, save, load, and `ask` again.

    Parameters
    ----------
    sampler : Sampler
        One that has given no point yet. Copies of it are tried, it stays as it is.

    Returns
    -------
    list of str
        The laws that it keeps.

    Raises
    ------
    LawBroken
        If it breaks one.

    Examples
    --------
    >>> from surrogate_flow.sampling import Sobol
    >>> check_sampler(Sobol(seed=1))[1]
    'the same seed gives the same points in the same order'
    """
    laws = Laws()
    for bounds in _BOXES:
        one, other = copy.deepcopy(sampler), copy.deepcopy(sampler)
        with laws.law("ask gives `count` finite points within the bounds"):
            points = _ask(one, 0, _COUNT, bounds)
            _ask(copy.deepcopy(sampler), 0, 0, bounds)
        with laws.law("the same seed gives the same points in the same order"):
            _require_equal(_ask(other, 0, _COUNT, bounds), points)
        with laws.law("a point depends on its number, not on how many are asked for"):
            for first, count in ((7, 1), (3, 30), (_COUNT - 1, 1)):
                block = _ask(one, first, count, bounds)
                _require_equal(block, points[first : first + count])
            # Across the end of a block, of samplers that draw such.
            far = _ask(one, _FAR, 6, bounds)
            _require_equal(_ask(one, _FAR + 4, 2, bounds), far[4:])
        with laws.law("the same losses are followed by the same points"):
            for each in (one, other):
                each.tell(_losses(points))
            later = _ask(one, _COUNT, _COUNT, bounds)
            _require_equal(_ask(other, _COUNT, _COUNT, bounds), later)
        with laws.law(
            "restored from its state_dict, of plain values, it gives the same points"
        ):
            saved = msgspec.msgpack.encode(one.state_dict())
            back = copy.deepcopy(sampler)
            back.load_state_dict(msgspec.msgpack.decode(saved))
            cause = "Override state_dict and load_state_dict."
            _require_equal(_ask(back, _COUNT, _COUNT, bounds), later, cause)
    return laws[: len(laws) // len(_BOXES)]


def _ask(
    sampler: Sampler, first: int, count: int, bounds: Sequence[Parameter]
) -> Float[np.ndarray, "point parameter"]:
    points = np.asarray(sampler.ask(first, count, bounds))
    asked = f"ask({first}, {count}, {len(bounds)} bounds)"
    shape = (count, len(bounds))
    assert points.shape == shape, (
        f"{asked}: expected the shape {shape}, got {points.shape}."
    )
    low, high = ([getattr(p, side) for p in bounds] for side in ("low", "high"))
    inside = (low <= points) & (points <= high)
    assert inside.all(), f"{asked}: the point {points[~inside.all(axis=1)][0]} is not."
    return points


def _losses(points: Float[np.ndarray, "point parameter"]) -> Observations:
    count = len(points)
    return Observations(
        simulation=np.arange(count),
        step=np.zeros(count, dtype=int),
        parameters=points,
        loss=np.linspace(0.5, 2.0, count) ** 2,
    )


def _require_equal(
    got: Float[np.ndarray, "point parameter"],
    expected: Float[np.ndarray, "point parameter"],
    cause: str = _GENERATOR,
) -> None:
    differ = (got != expected).any(axis=1)
    assert not differ.any(), (
        f"{differ.sum()} of {len(got)} points differ; the first: expected "
        f"{expected[differ][0]}, got {got[differ][0]}. {cause}"
    )
