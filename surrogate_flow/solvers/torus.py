"""The vorticity of a flow on the unit torus, as Fourier coefficients."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Complex, Float
from scipy import fft

__all__ = ["Torus"]

# The shares of a substep after which the three stages end, and the weights with which
# Williamson's scheme carries on the tendency and adds it.
_STAGES = ((1 / 3, 0.0, 1 / 3), (5 / 12, -5 / 9, 15 / 16), (1 / 4, -153 / 128, 8 / 15))


class Torus:
    """Wave numbers of a grid, and what a substep does to Fourier coefficients."""

    def __init__(
        self, points: int, viscosity: float, forcing: Float[np.ndarray, "points points"]
    ) -> None:
        whole = np.fft.fftfreq(points, 1 / points)[:, np.newaxis]
        half = np.fft.rfftfreq(points, 1 / points)
        self.keep = (3 * np.abs(whole) < points) & (3 * half < points)
        kx, ky = 2 * np.pi * whole, 2 * np.pi * half
        square = kx**2 + ky**2
        self.points = points
        self.diffusion = viscosity * square
        self.forcing = self.keep * fft.rfft2(forcing, norm="forward")
        self.largest = float(kx[self.keep[:, 0], 0].max())
        # -Δψ = w and v = (∂ψ/∂y, -∂ψ/∂x); the mean flow is zero.
        square[0, 0] = 1
        self.velocity = 1j * np.array((ky / square, -kx / square))
        # Of v₁v₂ and of v₂² - v₁².
        self.products = self.keep * np.array((kx**2 - ky**2, kx * ky))
        # Of the last substep: the next is mostly as long.
        self._factors: tuple[float, list[tuple[float, Any, Any]]] = (0.0, [])

    def advection_rate(self, state: Complex[np.ndarray, "kx ky"]) -> float:
        """Return (|v₁| + |v₂|) κ, no less than anywhere on the grid."""
        return self.largest * float(
            np.abs(self._velocity(state)).max(axis=(1, 2)).sum()
        )

    def advance(
        self, state: Complex[np.ndarray, "kx ky"], substep: float
    ) -> Complex[np.ndarray, "kx ky"]:
        """Return the state after one substep."""
        if self._factors[0] != substep:
            factors = []
            for share, carried, added in _STAGES:
                half = share * substep / 2 * self.diffusion
                decay, weight = (1 - half) / (1 + half), added * substep / (1 + half)
                factors.append((carried, decay, weight))
            self._factors = (substep, factors)
        tendency = np.zeros_like(state)
        for carried, decay, weight in self._factors[1]:
            tendency *= carried
            tendency += self._tendency(state)
            state = decay * state
            state += weight * tendency
        return state

    def _velocity(
        self, state: Complex[np.ndarray, "kx ky"]
    ) -> Float[np.ndarray, "2 points points"]:
        velocity: Float[np.ndarray, "2 points points"] = fft.irfft2(
            self.velocity * state, s=(self.points, self.points), norm="forward"
        )
        return velocity

    def _tendency(
        self, state: Complex[np.ndarray, "kx ky"]
    ) -> Complex[np.ndarray, "kx ky"]:
        v1, v2 = self._velocity(state)
        products = np.array((v1 * v2, v2 * v2 - v1 * v1))
        transformed = self.products * fft.rfft2(products, norm="forward")
        tendency: Complex[np.ndarray, "kx ky"]
        tendency = self.forcing + transformed[0] + transformed[1]
        return tendency
