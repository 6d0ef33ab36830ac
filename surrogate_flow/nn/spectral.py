"""The convolutions of a Fourier neural operator, faster than those of neuraloperator.

Imported when an FNO is built, not before: neuralop takes a second or two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from neuralop.layers.spectral_convolution import SpectralConv
from torch import Tensor, fft, nn

__all__ = ["Pointwise", "PrunedSpectralConv", "make_pointwise"]


class PrunedSpectralConv(SpectralConv):  # type: ignore[misc]
    """y = F⁻¹(R F(x)) + b, with a matrix R of channels for each of the lowest modes.

    The weights are those of ``neuralop``, whose own forward pass (2.0.0) shifts the
    spectrum back with ``fftshift``: right for even sizes, off by one frequency along
    every dim of odd size but the last. F is an FFT, dim by dim,
    and what is not kept of a dim is left out before the next; few modes of the last dim
    are products with their cosines and sines, which take less time. In a program of
    ``torch.export`` all are: they have no complex numbers, which ONNX lacks, and give
    the same to rounding. All is single precision, whatever that of the rest; but TF32
    on GPUs, where ``torch.set_float32_matmul_precision("high")`` allows it, rounds
    products as all others.

    Parameters
    ----------
    in_channels, out_channels, n_modes, **arguments
        As those of ``neuralop``.
    sizes : sequence of int
        Of the grid.
    """

    analysis: Tensor
    synthesis: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        n_modes: Sequence[int],
        *,
        sizes: Sequence[int],
        **arguments: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, n_modes, **arguments)
        self.sizes = tuple(sizes)
        *self.modes, last = self.weight.shape[2:]
        #: Of the last dim, whose products take less time than an FFT then.
        self.few = last < 2 * math.log2(sizes[-1])
        waves = _waves(sizes[-1], range(last)).flatten(1)
        # Of the spectrum of real fields, half is kept; some modes are their own other.
        twice = [1 + (2 * k % sizes[-1] > 0) for k in range(last)]
        self._keep("analysis", waves / math.prod(sizes))
        self._keep("synthesis", waves.T * torch.tensor([*twice, *twice])[:, None])
        for dim, (size, mode) in enumerate(zip(sizes, self.modes, strict=False)):
            kept = range(-(mode // 2), mode - mode // 2)
            cos, sin = _waves(size, kept).transpose(0, 1)
            # (part of a point's value) -> (part of a mode's)
            matrix = torch.stack(
                [torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)]
            )
            self._keep(f"along{dim}", matrix.transpose(1, 2).reshape(2 * mode, -1))

    def _keep(self, name: str, matrix: Tensor) -> None:
        self.register_buffer(name, matrix.float().contiguous(), persistent=False)

    def forward(
        self, x: Float[Tensor, "batch channel *space"], output_shape: object = None
    ) -> Float[Tensor, "batch channel *space"]:
        """Convolve; `output_shape`, for other grids, is not supported."""
        if output_shape is not None:
            raise NotImplementedError("FNO: the output lives on the grid of the input.")
        kind = x.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self.forward(x)
        real = torch.compiler.is_exporting()
        y: Tensor = (self._by_products if real else self._by_fft)(x.float()) + self.bias
        return y

    def _by_products(
        self, x: Float[Tensor, "batch channel *space"]
    ) -> Float[Tensor, "batch channel *space"]:
        matrices = [getattr(self, f"along{n}").float() for n in range(len(self.modes))]
        steps = [*zip(matrices, self.sizes, self.modes, strict=False)]
        # Real and imaginary part stand before the modes of the dims that are done.
        z = x @ self.analysis.float()
        done = z.shape[-1] // 2
        for matrix, size, mode in reversed(steps):
            z = matrix @ z.reshape(-1, 2 * size, done)
            done *= mode
        z = self._mixed(z.reshape(-1, self.in_channels, 2, done))
        for matrix, _, mode in steps:
            done //= mode
            z = matrix.T @ z.reshape(-1, 2 * mode, done)
        z = z.reshape(-1, self.out_channels, *self.sizes[:-1], 2 * done)
        return z @ self.synthesis.float()

    def _by_fft(
        self, x: Float[Tensor, "batch channel *space"]
    ) -> Float[Tensor, "batch channel *space"]:
        steps = [*enumerate(zip(self.sizes, self.modes, strict=False), 2)]
        norm = "backward" if self.few else "forward"  # the analysis has been scaled
        if self.few:
            z = torch.complex(*(x @ self.analysis.float()).chunk(2, -1))
        else:
            z = fft.rfft(x, norm="forward")[..., : self.weight.shape[-1]]
        for dim, (size, mode) in reversed(steps):
            parts = [mode - mode // 2, size - mode, mode // 2]
            above, _, below = torch.split(fft.fft(z, dim=dim, norm=norm), parts, dim)
            z = torch.cat([below, above], dim)
        z = torch.einsum("bi...,io...->bo...", z, self.weight.to_tensor())
        for dim, (size, mode) in steps:
            below, above = torch.split(z, [mode // 2, mode - mode // 2], dim)
            none = z.new_zeros(*z.shape[:dim], size - mode, *z.shape[dim + 1 :])
            z = fft.ifft(torch.cat([above, none, below], dim), dim=dim, norm="forward")
        if self.few:
            return torch.cat([z.real, z.imag], -1) @ self.synthesis.float()
        y: Tensor = fft.irfft(z, self.sizes[-1], norm="forward")
        return y

    def _mixed(
        self, z: Float[Tensor, "batch channel part mode"]
    ) -> Float[Tensor, "batch channel part mode"]:
        """Multiply the channels of each mode by its matrix."""
        batch, channels, _, modes = z.shape
        weight = self.real_weight().reshape(channels, -1, modes, 2)
        weight = weight.permute(2, 0, 3, 1).reshape(modes, channels, -1)
        z = z.permute(3, 2, 0, 1).reshape(modes, 2 * batch, channels)
        # (mode, part of z, batch, part of the weight, channel)
        products = (z @ weight).reshape(modes, 2, batch, 2, -1)
        (a, b), (c, d) = (part.unbind(2) for part in products.unbind(1))
        return torch.stack([a - d, b + c], dim=-1).permute(1, 2, 3, 0)

    def real_weight(self) -> Float[Tensor, "channel channel *mode part"]:
        """Return the weights as real and imaginary parts."""
        return torch.view_as_real(self.weight.to_tensor())


class Pointwise(nn.Conv1d):
    """y_n = W x_n + b at each point n: a convolution of one point, as a product.

    On CPUs it takes half of the time or less of that of torch, in both passes.
    """

    def forward(
        self, x: Float[Tensor, "batch channel point"]
    ) -> Float[Tensor, "batch channel point"]:
        """Multiply the channels of each point by W."""
        if torch.compiler.is_exporting():
            return super().forward(x)
        weight = self.weight[..., 0].expand(len(x), -1, -1)
        if self.bias is None:
            return torch.bmm(weight, x)
        return torch.baddbmm(self.bias[:, None], weight, x)


def make_pointwise(module: nn.Module) -> None:
    """Make all convolutions of one point within a module `Pointwise` ones."""
    for part in module.modules():
        one = isinstance(part, nn.Conv1d) and part.kernel_size == part.stride == (1,)
        if one and part.groups == 1 and part.padding == (0,):
            part.__class__ = Pointwise


def _waves(size: int, modes: range) -> Float[Tensor, "point part mode"]:
    """Return exp(-2πi k n / size) of the points n and the modes k, in both parts."""
    whole = torch.outer(torch.arange(size), torch.tensor(modes)) % size
    angle = 2 * math.pi / size * whole.double()
    return torch.stack([angle.cos(), -angle.sin()], dim=1)
