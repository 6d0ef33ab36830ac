"""Finite volumes on a periodic line: reconstruction, flux and steps in time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Complex, Float

__all__ = ["Cells", "godunov", "trajectory", "weno5"]

Cells = Float[np.ndarray, " x"]

# Keeps the weights finite where the field is constant: the value of Jiang and Shu.
_EPSILON = 1e-6


def weno5(averages: Cells) -> tuple[Cells, Cells]:
    """Return u at the right face of each cell, as seen from its left and right.

    Each value is a convex combination of those of three parabolas, whose weights leave
    out the ones that cross a jump. Where u is smooth it is of fifth order.

    Parameters
    ----------
    averages : array
        Averages of u over the cells of a periodic, uniform grid of three or more.

    Returns
    -------
    left, right : array
        Values at x[i + 1/2], from the cells around i and from those around i + 1.

    References
    ----------
    G.-S. Jiang and C.-W. Shu, "Efficient Implementation of Weighted ENO Schemes",
    Journal of Computational Physics 126 (1996), 202-228.

    Examples
    --------
    >>> left, right = weno5(np.repeat([0.0, 1.0], 5))
    >>> print(left.round(4) + 0.0)  # no over- or undershoot beside the two jumps
    [0. 0. 0. 0. 0. 1. 1. 1. 1. 1.]
    """
    # Cell i = 0 ... n, the last being the first again, and its slopes: two jumps behind
    # it, one behind, one ahead, two ahead.
    cells = np.concatenate((averages[-2:], averages, averages[:3]))
    slopes = cells[1:] - cells[:-1]
    s0, s1, s2, s3 = slopes[:-3], slopes[1:-2], slopes[2:-1], slopes[3:]
    bends = 13 / 12 * (slopes[1:] - slopes[:-1]) ** 2

    # Over the smoothness of the parabola behind the cell, around it and ahead.
    behind = (_EPSILON + bends[:-2] + 0.25 * (3 * s1 - s0) ** 2) ** -2
    around = 6 * (_EPSILON + bends[1:-1] + 0.25 * (s1 + s2) ** 2) ** -2
    ahead = (_EPSILON + bends[2:] + 0.25 * (3 * s2 - s3) ** 2) ** -2

    right_face = cells[2:-2] + (
        behind * (5 * s1 - 2 * s0) + around * (s1 + 2 * s2) + 3 * ahead * (4 * s2 - s3)
    ) / (6 * (behind + around + 3 * ahead))
    left_face = cells[2:-2] - (
        ahead * (5 * s2 - 2 * s3) + around * (s2 + 2 * s1) + 3 * behind * (4 * s1 - s0)
    ) / (6 * (ahead + around + 3 * behind))
    return right_face[:-1], left_face[1:]


def godunov(left: Cells, right: Cells) -> Cells:
    """Return the flux u²/2 through faces between two states: the exact Riemann flux.

    Examples
    --------
    >>> rarefaction, shock = np.array([-1.0, 2.0]), np.array([2.0, -1.0])
    >>> print(godunov(rarefaction[:1], rarefaction[1:]), godunov(shock[:1], shock[1:]))
    [0.] [2.]
    """
    flux: Cells = 0.5 * np.maximum(np.maximum(left, 0), -np.minimum(right, 0)) ** 2
    return flux


def trajectory(
    averages: Cells,
    times: Iterable[float],
    *,
    length: float,
    alpha: float = 1.0,
    beta: float = 0.0,
    gamma: float = 0.0,
    source: Callable[[float], Cells] | None = None,
    courant: float = 0.5,
) -> Iterator[Cells]:
    """Yield the cell averages of u at some times, from those at t = 0.

    Parameters
    ----------
    averages : array
        Of u over the cells of a periodic grid, at t = 0.
    times : iterable of float
        Ascending, in s.
    length : float
        Of the grid, in m.
    alpha, beta, gamma : float
        Coefficients of `Combined1D`; the first two not negative.
    source : callable, optional
        t -> averages of δ(t, x) over the cells; nothing by default.
    courant : float
        Part of a cell, at most, that a wave crosses in one inner step. With infinity
        there is one inner step between two of the times.

    Raises
    ------
    ValueError
        If alpha or beta is negative.
    """
    if alpha < 0 or beta < 0:
        raise ValueError(
            f"Combined1D: expected alpha >= 0 and beta >= 0, got alpha={alpha} and "
            f"beta={beta}. Waves run against Godunov's flux with the one and blow up "
            "with the other: give both without a sign."
        )
    u = np.array(averages, dtype=np.float64)
    width = length / len(u)
    waves = 2 * np.pi * np.fft.rfftfreq(len(u), width)
    linear = -beta * waves**2 + 1j * gamma * waves**3
    if len(u) % 2 == 0:
        # The sawtooth has no odd derivative on the grid.
        linear[-1] = linear[-1].real

    def rate(u: Cells, forcing: Cells | float) -> Cells:
        if not alpha:
            return 0 * u + forcing
        flux = godunov(*weno5(u))
        change: Cells = alpha / width * (np.roll(flux, 1) - flux) + forcing
        return change

    now = 0.0
    for time in times:
        speed = alpha * float(np.abs(u).max())
        parts = max(1, math.ceil((time - now) * speed / (courant * width)))
        step = (time - now) / parts
        third, two_thirds, whole = (
            _propagator(linear, step * part) for part in (1 / 3, 2 / 3, 1)
        )
        for part in range(parts):
            begin = now + part * step
            inside = source(begin + 2 / 3 * step) if source else 0.0
            first = step * rate(u, source(begin) if source else 0.0)
            u1 = two_thirds(u + 2 / 3 * first)
            u2 = 2 / 3 * two_thirds(u) + u1 / 3 + 4 / 9 * step * rate(u1, inside)
            u = whole(37 / 64 * u + 5 / 32 * first) + third(
                27 / 64 * u2 + 9 / 16 * step * rate(u2, inside)
            )
        now = time
        yield u


def _propagator(
    linear: Complex[np.ndarray, " mode"], time: float
) -> Callable[[Cells], Cells]:
    """Return u -> exp(time * linear) u, which is exact."""
    if not linear.any():
        return lambda u: u
    factor = np.exp(time * linear)

    def propagate(u: Cells) -> Cells:
        later: Cells = np.fft.irfft(factor * np.fft.rfft(u), len(u))
        return later

    return propagate
