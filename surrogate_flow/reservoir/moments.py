"""Mean and standard deviation of numbers that come in chunks."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64

__all__ = ["Moments"]


class Moments:
    """Mean and variance of each channel, updated with chunk after chunk in float64::

        n     = n_a + n_b
        mean  = mean_a + (mean_b - mean_a) n_b / n
        M     = M_a + M_b + (mean_b - mean_a)^2 n_a n_b / n,    std = sqrt(M / n)

    References
    ----------
    Chan, Golub, LeVeque, *Algorithms for Computing the Sample Variance*, The American
    Statistician 37(3), 1983, https://doi.org/10.1080/00031305.1983.10483115

    Examples
    --------
    >>> moments = Moments(1)
    >>> moments.update(np.array([[[1.0, 2.0]]]))
    >>> moments.update(np.array([[[3.0, 6.0]]]))
    >>> moments.mean.tolist(), moments.std.round(4).tolist()
    ([3.0], [1.8708])
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean: Float64[np.ndarray, " channel"] = np.zeros(channels)
        self._squares: Float64[np.ndarray, " channel"] = np.zeros(channels)

    @property
    def std(self) -> Float64[np.ndarray, " channel"]:
        """Standard deviation of the population."""
        deviation: Float64[np.ndarray, " channel"] = np.sqrt(
            self._squares / max(self.count, 1)
        )
        return deviation

    def update(self, steps: Float[np.ndarray, "time channel *space"]) -> None:
        """Take a chunk of steps into account."""
        values = steps.reshape(*steps.shape[:2], -1).astype(np.float64)
        count = values.shape[0] * values.shape[2]
        mean = values.mean(axis=(0, 2))
        values -= mean[:, None]
        self._merge(count, mean, np.einsum("tcx,tcx->c", values, values))

    def join(
        self,
        count: int,
        mean: Float64[np.ndarray, " channel"],
        std: Float64[np.ndarray, " channel"],
    ) -> None:
        """Take the moments of `count` other numbers into account."""
        self._merge(count, mean, count * std**2)

    def _merge(
        self,
        count: int,
        mean: Float64[np.ndarray, " channel"],
        squares: Float64[np.ndarray, " channel"],
    ) -> None:
        both = self.count + count
        shift = mean - self.mean
        self._squares += squares + shift**2 * (self.count * count / both)
        self.mean = self.mean + shift * (count / both)
        self.count = both
