"""The convolution of a Fourier layer, beside one by an FFT of all modes.

Forward and backward pass of one layer, in turn with that of the same weights by
``torch.fft``, on the grids, modes and batches of the recipes and on larger ones; both
on the same threads. Values are medians; below 1, ours is faster.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from neuralop.layers.spectral_convolution import SpectralConv
from rich.progress import track
from row import Row, report
from torch import Tensor, fft

from surrogate_flow.nn.spectral import PrunedSpectralConv

__all__ = ["CASES"]

#: (grid, modes, batch, channels)
CASES = {
    "E1": ((100,), 16, 32, 32),
    "E1, 40 cells": ((40,), 12, 16, 32),
    "heat2d_nonlinear": ((50, 50), 16, 32, 32),
    "navier_stokes2d": ((64, 64), 16, 32, 32),
    "navier_stokes2d, 32 points": ((32, 32), 8, 16, 16),
    "heat2d": ((100, 100), 16, 32, 32),
    "3D, 8 modes": ((32, 32, 32), 8, 4, 32),
    "3D, 16 modes": ((32, 32, 32), 16, 4, 32),
    "2D, all modes": ((64, 64), 64, 8, 32),
    "1D, all modes": ((256,), 256, 32, 32),
    "1D, a long line": ((4096,), 255, 16, 32),
    "2D, long and narrow": ((1024, 16), 16, 4, 32),
    "3D, a large grid": ((64, 64, 64), 32, 1, 16),
}


class ComplexConv(SpectralConv):  # type: ignore[misc]
    """The same by FFT, in complex numbers."""

    def forward(self, x: Tensor, output_shape: object = None) -> Tensor:
        """Transform, multiply the modes that are kept, transform back."""
        sizes = x.shape[2:]
        dims = tuple(range(-len(sizes), 0))
        weight = self.weight.to_tensor()
        *modes, last = weight.shape[2:]
        spectrum = self._shifted(fft.rfftn(x, dim=dims, norm=self.fft_norm), 1)
        kept = (
            *(slice(None), slice(None)),
            *(
                slice(size // 2 - mode // 2, size // 2 - mode // 2 + mode)
                for size, mode in zip(sizes, modes, strict=False)
            ),
            slice(last),
        )
        out = spectrum.new_zeros(len(x), self.out_channels, *spectrum.shape[2:])
        out[kept] = torch.einsum("bi...,io...->bo...", spectrum[kept], weight)
        out = self._shifted(out, -1)
        y: Tensor = fft.irfftn(out, s=sizes, dim=dims, norm=self.fft_norm) + self.bias
        return y

    @staticmethod
    def _shifted(spectrum: Tensor, sign: int) -> Tensor:
        if not (dims := tuple(range(2, spectrum.ndim - 1))):
            return spectrum
        shift = fft.fftshift if sign > 0 else fft.ifftshift
        shifted: Tensor = shift(spectrum, dims)
        return shifted


def measure(name: str, rounds: int) -> Row:
    """Return the milliseconds of a forward and backward pass, beside the peer's."""
    sizes, modes, batch, width = CASES[name]
    kept = [min(modes, size) for size in sizes]
    peer = ComplexConv(width, width, kept)
    ours = PrunedSpectralConv(width, width, kept, sizes=sizes)
    ours.load_state_dict(peer.state_dict())
    x = torch.randn(batch, width, *sizes, requires_grad=True)
    gradient = torch.randn(x.shape)
    torch.testing.assert_close(ours(x), peer(x), rtol=1e-4, atol=1e-5)
    seconds: dict[Any, list[float]] = {ours: [], peer: []}
    for turn in range(rounds + 1):
        for layer, found in seconds.items():
            layer.zero_grad()
            x.grad = None
            begin = time.perf_counter()
            layer(x).backward(gradient)
            if turn:  # the first one makes room in memory
                found.append(time.perf_counter() - begin)
    value, its = (1e3 * statistics.median(found) for found in seconds.values())
    return Row(f"{name}: {sizes}, {modes} modes", value, "ms", "FFT", its)


def main() -> None:
    """Measure, print a table, and write it where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the first cases, for CI")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    names = [*CASES][: 5 if options.quick else None]
    rounds = 1 if options.quick else options.rounds
    rows = [measure(name, rounds) for name in track(names, "cases", transient=True)]
    report(rows, options.json)


if __name__ == "__main__":
    main()
