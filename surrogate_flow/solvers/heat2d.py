"""The heat equation on a rectangle, solved by sine transforms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Float32
from scipy import fft

from surrogate_flow.fields.spec import Coordinate, FieldSpec, Parameter, Variable
from surrogate_flow.solvers.grid import GridSolver

__all__ = ["Heat2D"]

_LEAST = 0.01  # of the mean diffusivity: next to zero, no step would converge


class Heat2D(GridSolver):
    """∂u/∂t = a (∂²u/∂x² + ∂²u/∂y²) on [0, Lx] x [0, Ly], u constant on each wall.

    u(x, y, t) is the temperature and a the diffusivity. The five parameters of a
    simulation are temperatures in K: ``initial``, uniform in space at t = 0, and those
    of the walls ``left`` (x = 0), ``right`` (x = Lx), ``bottom`` (y = 0) and ``top``
    (y = Ly). The field is linear in them, unless the diffusivity depends on u,

        ∂u/∂t = ∇·(a (1 + s (u - m)) ∇u),   m = (low + high) / 2.

    Parameters
    ----------
    cells : tuple of int
        Number of cells along x and y; default (100, 100). The temperature lives at
        their centres, so no point lies on a wall.
    size : tuple of float
        Lengths Lx and Ly of the rectangle, in m; default (1.0, 1.0).
    steps : int
        Number of steps of a simulation; default 100. The initial state is not one.
    time_step : float
        Time between two steps, in s; default 0.01. Step k is at
        ``(k + 1) * time_step``.
    diffusivity : float
        a, in m²/s; default 1.0.
    conductivity_slope : float
        s, in 1/K; default 0.0.
    low, high : float
        Bounds of all five temperatures, in K; default 100.0 and 500.0.
    from_state : bool
        Whether ``initial`` is an input field, any temperature at t = 0 in K, such as
        the last one of another simulation, rather than a parameter; default False.

    Raises
    ------
    ArgumentError
        If an argument is not positive, the bounds are not ascending, or the diffusivity
        falls below 1 % of a at a temperature of the bounds, or of a simulation.

    Notes
    -----
    Implicit Euler in time, the five-point Laplacian in space, first and second order:

        (uᵐ⁺¹ - uᵐ) / Δt = a (L uᵐ⁺¹ + b),

    where a wall half a cell away enters through a ghost cell, u_ghost = 2 u_wall - u,
    and b gathers the known part 2 u_wall / h². The sine transform of the second type
    diagonalises L exactly, with the eigenvalues -λ,

        λ[k, l] = (2/hx sin(πk / 2Nx))² + (2/hy sin(πl / 2Ny))²,   k, l = 1, 2, ...

    so a step is ûᵐ⁺¹ = (ûᵐ + aΔt b̂) / (1 + aΔt λ) and one inverse transform. The
    coefficients û, which carry rounding errors from step to step, are kept in double
    precision. Only the inverse transform runs in the single precision of the stream,
    half as long: the temperatures are right to 2e-6 of the largest one at every step.

    Where s is not zero, Kirchhoff's v(u) = w + s w²/2, w = u - m, takes the place of u
    on the right, with the same L, so that s enters u(v) alone. A step is solved by

        (c - aΔt L) v ← uᵐ + aΔt b + (c v - u(v)),   c a mean of du/dv,

    whose error falls by q = max|c - du/dv| / c at least, since -L is an M-matrix. It is
    repeated until that bounds the error of u by 1e-7 of the range: eight to fifteen
    times at slopes of 0.002 to 0.004 / K, and as much slower.

    References
    ----------
    The defaults are those of the heat experiment in L. Meyer, M. Schouler, R. A.
    Caulk, A. Ribés and B. Raffin, "High Throughput Training of Deep Surrogates from
    Large Ensemble Runs", SC 2023, https://arxiv.org/abs/2309.16743.

    Examples
    --------
    >>> walls = {"left": 300.0, "right": 300.0, "bottom": 300.0, "top": 300.0}
    >>> solver = Heat2D(cells=(8, 4), size=(2.0, 1.0), steps=3, time_step=0.1)
    >>> for step in solver.solve({"initial": 400.0, **walls}):
    ...     print(f"{float(step.time[0]):.1f} s {float(step.temperature.max()):.0f} K")
    0.1 s 357 K
    0.2 s 329 K
    0.3 s 314 K
    """

    def __init__(
        self,
        cells: tuple[int, int] = (100, 100),
        size: tuple[float, float] = (1.0, 1.0),
        *,
        steps: int = 100,
        time_step: float = 0.01,
        diffusivity: float = 1.0,
        low: float = 100.0,
        high: float = 500.0,
        conductivity_slope: float = 0.0,
        from_state: bool = False,
    ) -> None:
        super().__init__(steps, time_step)
        nx, ny = self._pair("cells", cells)
        lx, ly = self._pair("size", size)
        self.cells = self._count("cells[0]", nx), self._count("cells[1]", ny)
        self.size = (
            self._positive("size[0]", lx, "m"),
            self._positive("size[1]", ly, "m"),
        )
        self.diffusivity = self._positive("diffusivity", diffusivity, "m²/s")
        self.low, self.high = self._bounds("low and high", (low, high), "K")
        self.from_state = from_state
        self.conductivity_slope = self._number("conductivity_slope", conductivity_slope)
        self._conductivity(np.array([self.low, self.high]))

    @cached_property
    def spec(self) -> FieldSpec:
        """Five temperatures in, the temperature at the cell centres out."""
        initial = Variable("initial", "K", "initial temperature")
        return FieldSpec(
            parameters=tuple(
                Parameter(name, self.low, self.high, "K", initial=name == "initial")
                for name in ("initial", "left", "right", "bottom", "top")
                if not (self.from_state and name == "initial")
            ),
            inputs=(initial,) * self.from_state,
            variables=(Variable("temperature", "K", "temperature"),),
            dims=("x", "y"),
            shape=self.cells,
            times=self.times,
            time_units="s",
            coordinates=tuple(
                Coordinate(d, d, tuple((i + 0.5) * length / n for i in range(n)), "m")
                for d, n, length in zip("xy", self.cells, self.size, strict=True)
            ),
        )

    def fields(
        self, parameters: Mapping[str, Any]
    ) -> Iterator[Float32[np.ndarray, "1 1 x y"]]:
        """Yield the temperature of each step; see `GridSolver.fields`."""
        given = dict(parameters)
        initial = np.asarray(given["initial"], dtype=np.float64)
        if self.from_state:
            del given["initial"]
        vector = self.spec.vector(given)
        left, right, bottom, top = vector[-4:]
        (nx, ny), (hx, hy) = self.cells, np.divide(self.size, self.cells)
        every = np.append(vector, initial)
        ends = np.array([every.min(), every.max()])
        conductivity = self._conductivity(ends)
        left, right, bottom, top = map(self._kirchhoff, (left, right, bottom, top))

        walls = np.zeros(self.cells)
        walls[0, :] += 2 * left / hx**2
        walls[-1, :] += 2 * right / hx**2
        walls[:, 0] += 2 * bottom / hy**2
        walls[:, -1] += 2 * top / hy**2

        rate = self.diffusivity * self.time_step
        eigenvalues = np.add.outer(_eigenvalues(nx, hx), _eigenvalues(ny, hy))
        if self.conductivity_slope:
            source = fft.dstn(rate * walls, type=2)
            rates, ends = rate * eigenvalues, self._kirchhoff(ends)
            yield from self._nonlinear(initial, source, rates, conductivity, ends)
            return

        decay = 1 / (1 + rate * eigenvalues)
        coefficients = fft.dstn(np.full(self.cells, initial), type=2)
        source = fft.dstn(rate * walls, type=2)

        for _ in range(self.steps):
            coefficients += source
            coefficients *= decay
            rounded = coefficients.astype(np.float32)
            yield fft.idstn(rounded, type=2, overwrite_x=True)[np.newaxis, np.newaxis]

    def _nonlinear(
        self,
        initial: Float[np.ndarray, "*space"],
        source: Float[np.ndarray, "x y"],
        rates: Float[np.ndarray, "x y"],
        conductivity: Float[np.ndarray, " end"],
        ends: Float[np.ndarray, " end"],
    ) -> Iterator[Float[np.ndarray, "1 1 x y"]]:
        slope, middle = self.conductivity_slope, (self.low + self.high) / 2
        temperature = np.full(self.cells, initial)
        v = self._kirchhoff(temperature)
        capacity = float(np.mean(1 / conductivity))
        q = float(np.ptp(1 / conductivity)) / 2 / capacity
        error = 1e-7 * (self.high - self.low) * conductivity.min()  # of v
        tolerance = error * (1 / max(q, 0.5) - 1)
        for _ in range(self.steps):
            before, change = temperature, np.inf
            while change > tolerance:
                right = fft.dstn(before + capacity * v - temperature, type=2) + source
                new = fft.idstn(right / (capacity + rates), type=2, overwrite_x=True)
                new = new.clip(*ends)
                change, v = np.abs(new - v).max(), new
                temperature = middle + 2 * v / (1 + np.sqrt(1 + 2 * slope * v))
            yield temperature[np.newaxis, np.newaxis]

    def _kirchhoff(self, temperature: Any) -> Any:
        """Return v(u), or u itself where the diffusivity is constant."""
        if not self.conductivity_slope:
            return temperature
        above = temperature - (self.low + self.high) / 2
        return above + self.conductivity_slope / 2 * above**2

    def _conductivity(
        self, temperatures: Float[np.ndarray, " temperature"]
    ) -> Float[np.ndarray, " temperature"]:
        """Return 1 + s (u - m), or refuse temperatures at which it is next to zero."""
        above = temperatures - (self.low + self.high) / 2
        conductivity: Float[np.ndarray, " temperature"]
        conductivity = 1 + self.conductivity_slope * above
        if not _LEAST <= conductivity.min() <= conductivity.max() < np.inf:
            at = float(temperatures[conductivity.argmin()])
            raise self._wrong(
                "conductivity_slope",
                f"a diffusivity of {_LEAST:.0%} of its mean or more at {at:g} K",
                self.conductivity_slope,
                f"From {self.low:g} to {self.high:g} K it has, up to "
                f"{2 * (1 - _LEAST) / (self.high - self.low):g} per K.",
            )
        return conductivity


def _eigenvalues(cells: int, width: float) -> Float[np.ndarray, " mode"]:
    modes = np.arange(1, cells + 1)
    eigenvalues: Float[np.ndarray, " mode"] = (
        2 / width * np.sin(np.pi * modes / (2 * cells))
    ) ** 2
    return eigenvalues
