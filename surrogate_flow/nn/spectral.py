"""The convolution of a Fourier layer, on grids of even and odd size.

Imported when an FNO is built, not before: neuralop takes a second or two.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from neuralop.layers.spectral_convolution import SpectralConv
from torch import Tensor, fft

__all__ = ["AnySizeSpectralConv"]


class AnySizeSpectralConv(SpectralConv):  # type: ignore[misc]
    """y = F⁻¹(R F(x)) + b, with a matrix R of channels for each of the lowest modes.

    The weights are those of ``neuralop``, whose own forward pass (2.0.0) shifts the
    spectrum back with ``fftshift``: right for even sizes, off by one frequency along
    every dim of odd size but the last. Transforms run in single precision, whatever the
    precision of the rest: there is no FFT in bfloat16.
    """

    def forward(
        self, x: Float[Tensor, "batch channel *space"], output_shape: object = None
    ) -> Float[Tensor, "batch channel *space"]:
        """Convolve; `output_shape`, for other grids, is not supported."""
        if output_shape is not None:
            raise NotImplementedError("FNO: the output lives on the grid of the input.")
        sizes = x.shape[2:]
        dims = tuple(range(-len(sizes), 0))
        weight = self.weight.to_tensor()
        *modes, last = weight.shape[2:]
        spectrum = _shifted(fft.rfftn(x.float(), dim=dims, norm=self.fft_norm), 1)
        kept = (
            slice(None),
            slice(None),
            *(
                slice(size // 2 - mode // 2, size // 2 - mode // 2 + mode)
                for size, mode in zip(sizes, modes, strict=False)
            ),
            slice(last),
        )
        out = spectrum.new_zeros(len(x), self.out_channels, *spectrum.shape[2:])
        out[kept] = torch.einsum("bi...,io...->bo...", spectrum[kept], weight)
        y: Tensor = fft.irfftn(_shifted(out, -1), s=sizes, dim=dims, norm=self.fft_norm)
        y = y + self.bias
        return y


def _shifted(spectrum: Tensor, sign: int) -> Tensor:
    """Bring the zero frequency to the centre (1), or back (-1), but in the last dim."""
    dims = tuple(range(2, spectrum.ndim - 1))
    if not dims:
        return spectrum
    shift = fft.fftshift if sign > 0 else fft.ifftshift
    shifted: Tensor = shift(spectrum, dims)
    return shifted
