"""The U-Net, conditioned on parameters and step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.nn.channels import Channels

__all__ = ["UNet"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PADDINGS = ("zeros", "circular", "replicate")


class UNet(nn.Module):
    """Residual blocks on finer and coarser grids, those of one size joined by a skip.

    Each block scales and shifts its normalised features by the parameters and the step,
    which are channels of the input too. For one, two or three dims of any size: n
    points become ⌈n / 2⌉ on the next level, and n again on the way back.

    Parameters
    ----------
    spec, window
        As of every network, see `surrogate_flow.nn`.
    widths : sequence of int
        Channels of each level, finest first. Levels coarser than one point are left
        out.
    padding : {"zeros", "circular", "replicate"}
        What convolutions see beyond the grid; ``circular`` for periodic fields.
    positions : bool
        Whether positions are channels too.

    Raises
    ------
    ArgumentError
        If the fields have no grid or a mesh, or an argument is out of range.

    References
    ----------
    Towards Multi-spatiotemporal-scale Generalized PDE Modeling, Gupta and Brandstetter,
    2022, arXiv 2209.15616: its modern U-Net, with the conditioning called AdaGN there.
    """

    def __init__(
        self,
        spec: FieldSpec,
        window: Window,
        *,
        widths: Sequence[int] = (32, 64, 128, 256),
        padding: Literal["zeros", "circular", "replicate"] = "zeros",
        positions: bool = True,
    ) -> None:
        super().__init__()
        self.channels = Channels(spec, window, network="UNet", positions=positions)
        if len(spec.dims) > len(_CONVOLUTIONS):
            raise ArgumentError(
                f"UNet: expected one, two or three dims, got {spec.dims}. Use "
                "surrogate_flow.nn.FNO (--model fno)."
            )
        if not widths or min(widths) < 1:
            raise ArgumentError(
                f"UNet: expected positive widths, got {list(widths)}. Give one number "
                "for each level, such as [32, 64, 128]."
            )
        if padding not in _PADDINGS:
            raise ArgumentError(
                f"UNet: expected a padding among {_PADDINGS}, got {padding!r}."
            )
        widths = list(widths)[: max(spec.shape).bit_length()]
        features = 4 * widths[0]
        conv = partial(_CONVOLUTIONS[len(spec.dims) - 1], padding_mode=padding)
        block = partial(_Block, conv, features)
        self.shape = (window.outputs, *spec.step_shape)
        #: On CPUs, where it is faster; other paddings return to torch's usual order.
        self.channels_last = len(spec.dims) == 2 and padding == "zeros"
        self.embed = nn.Sequential(
            nn.Linear(len(spec.parameters) + 1, features),
            nn.GELU(),
            nn.Linear(features, features),
            nn.GELU(),
        )
        self.enter = conv(self.channels.count, widths[0], 3, padding=1)
        self.down, self.coarser, self.finer, self.up = (
            nn.ModuleList() for _ in range(4)
        )
        for fine, coarse in pairwise(widths):
            self.down.append(block(fine, fine))
            self.coarser.append(conv(fine, coarse, 3, stride=2, padding=1))
            self.finer.append(conv(coarse, fine, 3, padding=1))
            self.up.append(block(2 * fine, fine))
        self.middle = block(widths[-1], widths[-1])
        self.leave = nn.Sequential(
            nn.GroupNorm(1, widths[0]),
            nn.GELU(),
            conv(widths[0], self.shape[0] * self.shape[1], 1),
        )

    def forward(
        self,
        parameters: Float[Tensor, "batch parameter"],
        step: Float[Tensor, " batch"],
        history: Float[Tensor, "batch inputs channel *space"],
        inputs: Float[Tensor, "batch input *space"] | None = None,
    ) -> Float[Tensor, "batch outputs channel *space"]:
        """Predict all points of all steps at once."""
        condition = self.embed(torch.cat([parameters, step[:, None]], dim=1))
        x = self.channels(parameters, step, history, inputs)
        if self.channels_last and x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.enter(x)
        skips = []
        for block, coarser in zip(self.down, self.coarser, strict=True):
            skips.append(block(x, condition))
            x = coarser(skips[-1])
        x = self.middle(x, condition)
        for finer, block in zip(self.finer[::-1], self.up[::-1], strict=True):
            skip = skips.pop()
            # To the size of the skip, which may be odd.
            x = finer(F.interpolate(x, size=skip.shape[2:], mode="nearest"))
            x = block(torch.cat([x, skip], dim=1), condition)
        out: Tensor = self.leave(x)
        return out.reshape(-1, *self.shape)


class _Block(nn.Module):
    """y = S x + C₂ σ((1 + a) N(C₁ σ(N x)) + b), where (a, b) = A condition."""

    def __init__(
        self,
        conv: Callable[..., nn.Module],
        features: int,
        channels: int,
        out_channels: int,
    ) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(1, channels),
            nn.GELU(),
            conv(channels, out_channels, 3, padding=1),
        )
        self.normalise = nn.GroupNorm(1, out_channels)
        self.condition = nn.Linear(features, 2 * out_channels)
        self.second = nn.Sequential(
            nn.GELU(), conv(out_channels, out_channels, 3, padding=1)
        )
        same = channels == out_channels
        self.skip = nn.Identity() if same else conv(channels, out_channels, 1)

    def forward(
        self,
        x: Float[Tensor, "batch channel *space"],
        condition: Float[Tensor, "batch feature"],
    ) -> Float[Tensor, "batch channel *space"]:
        features = self.normalise(self.first(x))
        a, b = (
            part.reshape(*part.shape, *(1 for _ in x.shape[2:]))
            for part in self.condition(condition).chunk(2, dim=1)
        )
        y: Tensor = self.skip(x) + self.second(torch.addcmul(b, 1 + a, features))
        return y
