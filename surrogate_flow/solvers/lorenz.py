"""The Lorenz system, integrated to the last digits of single precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
from jaxtyping import Float
from scipy.integrate import solve_ivp

from surrogate_flow.fields.spec import FieldSpec, Parameter, Variable
from surrogate_flow.solvers.grid import GridSolver

__all__ = ["Lorenz"]

# Steps that travel together: one of twelve bytes costs more on the way than its bytes.
_CHUNK = 100

_TOLERANCE = 1e-12


class Lorenz(GridSolver):
    """x' = σ (y - x), y' = x (ρ - z) - y, z' = x y - β z: three numbers, chaos.

    x is the speed of convection in a layer of fluid, y and z are the temperatures
    across it, all without dimension. The six parameters of a simulation are ``sigma``,
    ``rho`` and ``beta``, and the initial state ``x0``, ``y0``, ``z0``. The fields have
    no dims: a step is three numbers.

    Parameters
    ----------
    steps : int
        Number of steps of a simulation; default 400. The initial state is not one.
    time_step : float
        Time between two steps, without dimension; default 0.01. Step k is at
        ``(k + 1) * time_step``.
    sigma, rho, beta : tuple of float
        Bounds of each; default (9.0, 11.0), (20.0, 36.0) and (2.0, 3.0), which hold
        the classic 10, 28, 8/3. None may be negative: states would grow without end.
    x0, y0, z0 : tuple of float
        Bounds of the initial state; default (-15.0, 15.0), (-20.0, 20.0) and
        (10.0, 40.0), about the size of the attractor.

    Raises
    ------
    ArgumentError
        If an argument is not positive, bounds are not finite and ascending, or those of
        sigma, rho or beta are negative.

    Notes
    -----
    The method of Dormand and Prince of eighth order (DOP853) chooses its own steps, for
    a tolerance of 1e-12, relative and absolute. Errors grow with the chaos: with the
    classic values the state is right to single precision up to t = 10, to 0.01 up to
    t = 20, and from about t = 30 on it is one that the attractor has, but not the one
    that belongs to the initial state.

    References
    ----------
    E. N. Lorenz, "Deterministic Nonperiodic Flow", Journal of the Atmospheric Sciences
    20 (1963), 130-141, whose time step is the default one.

    Examples
    --------
    >>> solver = Lorenz(steps=200)
    >>> classic = {"sigma": 10.0, "rho": 28.0, "beta": 8 / 3}
    >>> for steps in solver.solve({**classic, "x0": 0.0, "y0": 1.0, "z0": 0.0}):
    ...     print(", ".join(f"{float(steps[name][-1]):.4f}" for name in "xyz"))
    -9.4431, -9.3789, 28.3378
    -7.7091, -8.4495, 24.9925
    """

    def __init__(
        self,
        *,
        steps: int = 400,
        time_step: float = 0.01,
        sigma: tuple[float, float] = (9.0, 11.0),
        rho: tuple[float, float] = (20.0, 36.0),
        beta: tuple[float, float] = (2.0, 3.0),
        x0: tuple[float, float] = (-15.0, 15.0),
        y0: tuple[float, float] = (-20.0, 20.0),
        z0: tuple[float, float] = (10.0, 40.0),
    ) -> None:
        super().__init__(steps, time_step, units="")
        constants = {"sigma": sigma, "rho": rho, "beta": beta}
        state = {"x0": x0, "y0": y0, "z0": z0}
        # With a negative constant the state may grow without end.
        self.bounds = {
            **{n: self._bounds(n, pair, "", least=0) for n, pair in constants.items()},
            **{n: self._bounds(n, pair, "") for n, pair in state.items()},
        }

    @cached_property
    def spec(self) -> FieldSpec:
        """Constants and initial state in, the three numbers of the state out."""
        return FieldSpec(
            parameters=tuple(
                Parameter(name, low, high, "1", initial=name in ("x0", "y0", "z0"))
                for name, (low, high) in self.bounds.items()
            ),
            variables=(
                Variable("x", "1", "speed of convection"),
                Variable("y", "1", "temperature difference of the currents"),
                Variable("z", "1", "distortion of the temperature profile"),
            ),
            dims=(),
            shape=(),
            times=self.times,
            time_units="1",
        )

    def fields(
        self, parameters: Mapping[str, float]
    ) -> Iterator[Float[np.ndarray, "time 3"]]:
        """Yield up to a hundred states at once; see `GridSolver.fields`.

        Raises
        ------
        FloatingPointError
            If the state is too large for any step.
        """
        sigma, rho, beta, *state = self.spec.vector(parameters).tolist()
        if min(sigma, rho, beta) < 0:
            constants = (sigma, rho, beta)
            raise self._wrong("sigma, rho and beta", ">= 0", constants)

        def derivative(_: float, state: Float[np.ndarray, " variable"]) -> list[float]:
            x, y, z = state.tolist()
            return [sigma * (y - x), x * (rho - z) - y, x * y - beta * z]

        time = 0.0
        for first in range(0, self.steps, _CHUNK):
            times = self.spec.times[first : first + _CHUNK]
            with np.errstate(over="ignore", invalid="ignore"):
                solution = solve_ivp(
                    derivative,
                    (time, times[-1]),
                    state,
                    method="DOP853",
                    t_eval=times,
                    rtol=_TOLERANCE,
                    atol=_TOLERANCE,
                )
            if not solution.success:
                reached = solution.t[-1] if len(solution.t) else time
                raise FloatingPointError(
                    f"Lorenz: expected {len(times)} steps up to t = {times[-1]:g}, got "
                    f"none after t = {reached:g}. {solution.message} The parameters "
                    f"are too large, {dict(parameters)}: take smaller ones."
                )
            time, state = times[-1], solution.y[:, -1]
            yield solution.y.T
