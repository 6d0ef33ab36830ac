"""A Gaussian random field on the unit torus, made of quantiles."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy import special

from surrogate_flow.fields.spec import Parameter

__all__ = ["GaussianField"]

# Quantiles nearer to 0 and 1 are not drawn: beyond 3.09 standard deviations.
_TAIL = 1e-3


class GaussianField:
    """w(x, y) = Σ √λ Φ⁻¹(mode) φ(x, y), a Karhunen-Loève sum that is cut off.

    Its distribution is N(0, 7^{3/2} (-Δ + 49 I)^{-2.5}), with

        λ = 7^{3/2} (4π²|k|² + 49)^{-2.5},   φ = √2 cos 2πk·x or √2 sin 2πk·x,

    the wave vectors k in the order of their lengths (of k and -k the one whose first
    component that is not zero is positive; of equal lengths the smaller first component
    first), the cosine before the sine. The mean, k = 0, is left out.

    Parameters
    ----------
    modes : int
        Number of terms.
    """

    def __init__(self, modes: int) -> None:
        self.modes = modes
        pairs = (modes + 1) // 2
        # Half a disc of this radius holds more wave vectors than there are pairs.
        radius = math.ceil(math.sqrt(pairs)) + 1
        reach = range(-radius, radius + 1)
        vectors = [(x, y) for x in reach for y in reach if (x, y) > (0, 0)]
        vectors.sort(key=lambda k: (k[0] ** 2 + k[1] ** 2, k))
        self.vectors = vectors[:pairs]

    @property
    def largest(self) -> int:
        """The largest component of a wave vector."""
        return max(max(map(abs, vector)) for vector in self.vectors)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """``mode_1``, ``mode_2``, ...: the quantile of each coefficient.

        The tails are clipped: they lie in [0.001, 0.999], which leaves out what is
        beyond 3.09 standard deviations.
        """
        return tuple(
            Parameter(f"mode_{k + 1}", _TAIL, 1 - _TAIL, "1") for k in range(self.modes)
        )

    def field(
        self, quantiles: Float[np.ndarray, " mode"], points: int
    ) -> Float[np.ndarray, "points points"]:
        """Return the field on the points 0, 1/points, ... along x and y.

        Raises
        ------
        ValueError
            If a quantile does not lie between 0 and 1.
        """
        for k, quantile in enumerate(quantiles):
            if not 0 < quantile < 1:
                raise ValueError(
                    f"GaussianField: expected mode_{k + 1} between 0 and 1, got "
                    f"{quantile}. It is a quantile of the normal distribution and not "
                    "the coefficient itself: 0.5 stands for a coefficient of zero."
                )
        vectors = np.array(self.vectors, dtype=np.float64)
        eigenvalues = 7**1.5 * (4 * np.pi**2 * (vectors**2).sum(axis=1) + 49) ** -2.5
        normal = np.zeros(2 * len(vectors))
        normal[: self.modes] = special.ndtri(quantiles)
        # The cosine and the sine of a wave vector: one complex wave's real part.
        coefficients = np.sqrt(2 * eigenvalues) * (normal[0::2] - 1j * normal[1::2])
        turns = np.multiply.outer(vectors, np.arange(points) / points)
        waves = np.exp(2j * np.pi * turns)
        field: Float[np.ndarray, "points points"] = np.einsum(
            "k,kx,ky->xy", coefficients, waves[:, 0], waves[:, 1]
        ).real
        return field
