"""The equation that joins those of Burgers, of heat and of Korteweg and de Vries."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float, Float32

from surrogate_flow.fields.spec import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.solvers.arguments import require_counts, require_positive
from surrogate_flow.solvers.finite_volumes import Cells, trajectory
from surrogate_flow.solvers.solver import Solver

__all__ = ["Combined1D"]

# Sine waves of the source.
_WAVES = 5


class Combined1D(Solver):
    """∂u/∂t = -α ∂(u²/2)/∂x + β ∂²u/∂x² - γ ∂³u/∂x³ + δ(t, x), periodic on [0, L].

    u(x, t) is a velocity. The source is a sum of five sine waves,

        δ(t, x) = Σⱼ Aⱼ sin(ωⱼ t + 2π lⱼ x / L + φⱼ),   j = 1 ... 5,

    and the initial state is what it gives in one second at t = 0, u = 1 s · δ(0, x).

    The parameters of a simulation are ``A_j`` in [-0.5, 0.5] m/s², ``omega_j`` in
    [-0.4, 0.4] rad/s, ``phi_j`` in [0, 2π] and ``l_j`` in [0.5, 2.5], which is rounded
    to a whole number of waves, 1 or 2; and those of ``alpha``, ``beta`` and ``gamma``
    that have a range.

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
    ValueError
        If a number, a length or a step is not positive, `fine_cells` is no multiple of
        `cells`, or a range has a wrong sign or its ends in the wrong order.

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
        counts = {"cells": cells, "fine_cells": fine_cells, "steps": steps}
        require_counts("Combined1D", counts)
        if fine_cells % cells or fine_cells < 3:
            raise ValueError(
                f"Combined1D: expected fine_cells to be a multiple of cells, and 3 at "
                f"least, got fine_cells={fine_cells} and cells={cells}. Each cell is "
                "the mean of as many fine ones: take, say, 200 for 100, 50 and 40."
            )
        require_positive(
            "Combined1D",
            {
                "length": (length, "m"),
                "time_step": (time_step, "s"),
            },
        )
        for name, ends, least in (
            ("alpha", alpha, 0.0),
            ("beta", beta, 0.0),
            ("gamma", gamma, -math.inf),
        ):
            if len(ends) != 2 or not (
                all(map(math.isfinite, ends)) and least <= ends[0] <= ends[1]
            ):
                raise ValueError(
                    f"Combined1D: expected {name} to be two finite numbers, the lower "
                    f"one first{' and not negative' if least == 0 else ''}, got "
                    f"{tuple(ends)}. For a fixed value give it twice."
                )
        self.cells = int(cells)
        self.fine_cells = int(fine_cells)
        self.length = float(length)
        self.steps = int(steps)
        self.time_step = float(time_step)
        self.alpha = (float(alpha[0]), float(alpha[1]))
        self.beta = (float(beta[0]), float(beta[1]))
        self.gamma = (float(gamma[0]), float(gamma[1]))

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
            ("l", 0.5, 2.5, ""),
        )
        return FieldSpec(
            parameters=(
                *(Parameter(n, *ends, u) for n, ends, u in ranges if ends[0] < ends[1]),
                *(
                    Parameter(f"{name}_{j + 1}", low, high, units)
                    for name, low, high, units in waves
                    for j in range(_WAVES)
                ),
            ),
            variables=(Variable("u", "m/s", "velocity"),),
            dims=("x",),
            shape=(self.cells,),
            times=tuple((k + 1) * self.time_step for k in range(self.steps)),
            time_units="s",
            coordinates=(
                Coordinate(
                    "x",
                    "x",
                    tuple(
                        (i + 0.5) * self.length / self.cells for i in range(self.cells)
                    ),
                    "m",
                ),
            ),
        )

    def __getstate__(self) -> dict[str, Any]:
        # The spec is as long as the grid and cheap to rebuild where it is needed.
        return {k: v for k, v in self.__dict__.items() if k != "spec"}

    def solve(self, parameters: Mapping[str, float]) -> Iterator[xr.Dataset]:
        """Yield one dataset per step; see `Solver.solve`.

        Raises
        ------
        ValueError
            If a parameter is unknown, missing or not a finite number, or alpha or beta
            is negative.
        """
        blank = np.broadcast_to(np.float32(0), (self.steps, *self.spec.step_shape))
        labels = self.spec.dataset(blank, self.spec.times, parameters)
        for step, u in enumerate(self.fields(parameters)):
            # Relabelling a view costs a quarter of building a dataset anew.
            yield labels.isel(time=slice(step, step + 1)).copy(
                data={"u": u[np.newaxis]}
            )

    def fields(
        self, parameters: Mapping[str, float]
    ) -> Iterator[Float32[np.ndarray, " x"]]:
        """Yield the averages of u of each step without labels, as `solve` does with."""
        vector = self.spec.vector(parameters)
        waves = vector[-4 * _WAVES :].reshape(4, _WAVES)
        source = _source(waves, self.fine_cells, self.length)
        given = {name: parameters.get(name) for name in ("alpha", "beta", "gamma")}
        course = trajectory(
            source(0.0),
            self.spec.times,
            length=self.length,
            source=source,
            **{n: getattr(self, n)[0] if v is None else v for n, v in given.items()},
        )
        for fine in course:
            yield fine.reshape(self.cells, -1).mean(axis=1).astype(np.float32)


def _source(
    waves: Float[np.ndarray, "4 wave"], cells: int, length: float
) -> Callable[[float], Cells]:
    """Return t -> averages of δ(t, x) over the cells."""
    amplitude, omega, phase, number = waves
    # Half a wave, which a sampler may draw, rounds to an even number: none.
    number = np.maximum(1, np.rint(number))
    centres = (np.arange(cells) + 0.5) * length / cells
    angles = 2 * np.pi / length * np.outer(number, centres) + phase[:, np.newaxis]
    # The mean of a sine over a cell is that in its middle times a sinc.
    averaged = amplitude * np.sinc(number / cells)

    def source(time: float) -> Cells:
        values: Cells = averaged @ np.sin(angles + (omega * time)[:, np.newaxis])
        return values

    return source
