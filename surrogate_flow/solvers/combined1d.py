"""The equation that joins those of Burgers, of heat and of Korteweg and de Vries."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property

import numpy as np
from jaxtyping import Complex, Float

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.spec import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.solvers.grid import GridSolver

__all__ = ["Combined1D", "evolve", "godunov", "weno5"]

Cells = Float[np.ndarray, " x"]

# Sine waves of the source.
_WAVES = 5
# Keeps the weights finite where the field is constant: the value of Jiang and Shu.
_EPSILON = 1e-6
# Inner steps of one length: then it is chosen anew, since waves grow and decay.
_STEADY = 16


class Combined1D(GridSolver):
    """∂u/∂t = -α ∂(u²/2)/∂x + β ∂²u/∂x² - γ ∂³u/∂x³ + δ(t, x), periodic on [0, L].

    u(x, t) is a velocity. The source is a sum of five sine waves,

        δ(t, x) = Σⱼ Aⱼ sin(ωⱼ t + 2π lⱼ x / L + φⱼ),   j = 1 ... 5,

    and the initial state is what it gives in one second at t = 0, u = 1 s · δ(0, x).

    The parameters of a simulation are ``A_j`` in [-0.5, 0.5] m/s², ``omega_j`` in
    [-0.4, 0.4] rad/s, ``phi_j`` in [0, 2π] and ``l_j``, which is 1 or 2 waves; and
    those of ``alpha``, ``beta`` and ``gamma`` that have a range.

    Parameters
    ----------
    cells : int
        Number of cells of what is yielded, averages of u; default 100.
    fine_cells : int
        Number of cells of the computation, a multiple of `cells`; default 200. With as
        many as `cells` this is the solver that a surrogate on that grid competes with.
    length : float
        L, in m; default 16.0.
    steps : int
        Number of steps of a simulation; default 250. The initial state is not one.
    time_step : float
        Time between two steps, in s; default 0.016. Step k is at
        ``(k + 1) * time_step``.
    alpha, beta, gamma : tuple of float
        Ranges of the coefficients of advection (no unit), diffusion (m²/s) and
        dispersion (m³/s); the first two not negative. With two equal ends a coefficient
        is fixed, and no parameter. Default (1, 1), (0, 0), (0, 0): Burgers' equation.

    Raises
    ------
    ArgumentError
        If an argument is not positive, `fine_cells` is no multiple of `cells`, or a
        range has a wrong sign or its ends in the wrong order.

    Notes
    -----
    The flux is that of Godunov between two fifth-order reconstructions, `weno5`. On
    averages over periodic cells a derivative multiplies each Fourier mode, so diffusion
    and dispersion are exact for all waves that the grid can hold. Their exponential is
    the integrating factor of a Runge-Kutta method of third order, which keeps jumps
    free of wiggles if Euler's does, and whose inner steps only advection limits: a wave
    crosses half a cell in one.

    References
    ----------
    The equation and the defaults (experiment E1; E2 has β in [0, 0.2]; E3 has α in
    [0, 6], β in [0.1, 0.4], γ in [0, 1] and half the time) are those of J.
    Brandstetter, D. Worrall and M. Welling, "Message Passing Neural PDE Solvers", ICLR
    2022, https://arxiv.org/abs/2202.03376. The Runge-Kutta method is eSSPRK⁺(3,3) of L.
    Isherwood, Z. J. Grant and S. Gottlieb, "Strong Stability Preserving Integrating
    Factor Runge-Kutta Methods", SIAM Journal on Numerical Analysis 56 (2018),
    https://arxiv.org/abs/1708.02595.

    Examples
    --------
    >>> solver = Combined1D(cells=4, steps=2, time_step=1.0, beta=(0.0, 0.2))
    >>> parameters = {p.name: p.low for p in solver.spec.parameters}
    >>> for step in solver.solve({**parameters, "A_1": 0.5}):
    ...     print(f"{float(step.time[0]):.0f} s", step.u[0].values.round(2))
    1 s [-2.25 -1.51  1.15  2.61]
    2 s [-2.11 -1.93  0.74  3.31]
    """

    def __init__(
        self,
        cells: int = 100,
        fine_cells: int = 200,
        *,
        length: float = 16.0,
        steps: int = 250,
        time_step: float = 0.016,
        alpha: tuple[float, float] = (1.0, 1.0),
        beta: tuple[float, float] = (0.0, 0.0),
        gamma: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__(steps, time_step)
        self.cells = self._count("cells", cells)
        self.fine_cells = self._count("fine_cells", fine_cells)
        if fine_cells % cells or fine_cells < 3:
            raise self._wrong(
                "fine_cells",
                f"a multiple of cells, and 3 at least, with cells={cells}",
                fine_cells,
                "Take, for example, 200 for 100, 50 or 40 cells.",
            )
        self.length = self._positive("length", length, "m")
        self.alpha = self._bounds("alpha", alpha, "", least=0.0, may_be_equal=True)
        self.beta = self._bounds("beta", beta, "m²/s", least=0.0, may_be_equal=True)
        self.gamma = self._bounds("gamma", gamma, "m³/s", may_be_equal=True)

    @cached_property
    def spec(self) -> FieldSpec:
        """The coefficients that vary and five waves in, averages of u out."""
        ranges = (
            ("alpha", self.alpha, ""),
            ("beta", self.beta, "m2/s"),
            ("gamma", self.gamma, "m3/s"),
        )
        waves = (
            ("A", -0.5, 0.5, "m/s2"),
            ("omega", -0.4, 0.4, "rad/s"),
            ("phi", 0.0, 2 * math.pi, "rad"),
            ("l", 1.0, 2.0, ""),
        )
        centres = tuple((i + 0.5) * self.length / self.cells for i in range(self.cells))
        return FieldSpec(
            parameters=(
                *(Parameter(n, *ends, u) for n, ends, u in ranges if ends[0] < ends[1]),
                *(
                    Parameter(f"{name}_{j + 1}", low, high, units, name == "l")
                    for name, low, high, units in waves
                    for j in range(_WAVES)
                ),
            ),
            variables=(Variable("u", "m/s", "velocity"),),
            dims=("x",),
            shape=(self.cells,),
            times=self.times,
            time_units="s",
            coordinates=(Coordinate("x", "x", centres, "m"),),
        )

    def fields(
        self, parameters: Mapping[str, float]
    ) -> Iterator[Float[np.ndarray, "1 1 x"]]:
        """Yield the averages of u of each step; see `GridSolver.fields`."""
        vector = self.spec.vector(parameters)
        waves = vector[-4 * _WAVES :].reshape(4, _WAVES)
        source = _source(waves, self.fine_cells, self.length)
        given = {name: parameters.get(name) for name in ("alpha", "beta", "gamma")}
        course = evolve(
            source(0.0),
            self.spec.times,
            length=self.length,
            source=source,
            **{n: getattr(self, n)[0] if v is None else v for n, v in given.items()},
        )
        for fine in course:
            yield fine.reshape(1, 1, self.cells, -1).mean(axis=-1)


def _source(
    waves: Float[np.ndarray, "4 wave"], cells: int, length: float
) -> Callable[[float], Cells]:
    """Return t -> averages of δ(t, x) over the cells."""
    amplitude, omega, phase, number = waves
    centres = (np.arange(cells) + 0.5) * length / cells
    angles = 2 * np.pi / length * np.outer(number, centres) + phase[:, np.newaxis]
    # The mean of a sine over a cell is that in its middle times a sinc.
    averaged = amplitude * np.sinc(number / cells)

    def source(time: float) -> Cells:
        values: Cells = averaged @ np.sin(angles + (omega * time)[:, np.newaxis])
        return values

    return source


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


def evolve(
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
    """Yield the cell averages of u at ascending `times` in s, from those at t = 0.

    Parameters
    ----------
    averages : array
        Of u over the cells of a periodic grid of a `length` in m, at t = 0.
    alpha, beta, gamma : float
        Coefficients of `Combined1D`; the first two not negative.
    source : callable, optional
        t -> averages of δ(t, x) over the cells; nothing by default.
    courant : float
        Part of a cell, at most, that a wave crosses in one inner step. With infinity
        there is one inner step between two of the times.
    """
    if alpha < 0 or beta < 0:
        # Waves would run against Godunov's flux, or blow up.
        raise ArgumentError(
            "Combined1D", "alpha >= 0 and beta >= 0", f"alpha={alpha} and beta={beta}"
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
        while now < time:
            speed = alpha * float(np.abs(u).max())
            parts = max(1, math.ceil((time - now) * speed / (courant * width)))
            step = (time - now) / parts
            third, two_thirds, full = (
                _propagator(linear, step * part) for part in (1 / 3, 2 / 3, 1)
            )
            for part in range(min(parts, _STEADY)):
                begin = now + part * step
                inside = source(begin + 2 / 3 * step) if source else 0.0
                first = step * rate(u, source(begin) if source else 0.0)
                u1 = two_thirds(u + 2 / 3 * first)
                u2 = 2 / 3 * two_thirds(u) + u1 / 3 + 4 / 9 * step * rate(u1, inside)
                u = full(37 / 64 * u + 5 / 32 * first) + third(
                    27 / 64 * u2 + 9 / 16 * step * rate(u2, inside)
                )
            now = time if parts <= _STEADY else now + _STEADY * step
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
