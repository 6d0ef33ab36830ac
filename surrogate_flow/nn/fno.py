"""The Fourier neural operator, of neuraloperator."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

from surrogate_flow.fields.errors import ArgumentError, MissingPackageError
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.nn.on_grid import OnGrid

__all__ = ["FNO"]


class FNO(OnGrid):
    """v_{l+1} = σ(W v_l + F⁻¹(R_l F(v_l))), from a lifting to a projection.

    F is the Fourier transform on the grid, and R_l a matrix for each of the lowest
    modes. For fields of any number of dims, by neuraloperator.

    Parameters
    ----------
    spec, window
        As of every network, see `surrogate_flow.nn`.
    modes : int or sequence of int
        Modes kept along each dim, positive and negative frequencies counted: 16 are
        those of up to 8 waves. On a grid of fewer points all are kept.
    width : int
        Channels of the hidden layers.
    layers : int
        Number of Fourier layers.
    padding : float
        Zeros added on each side of each dim, as a part of its size. 0 suits periodic
        fields; others may gain from 0.1.
    positions : bool
        Whether positions are channels too. Without them, and without padding, the
        network commutes with translations on a periodic grid.
    channel_mlp : bool
        Whether two layers mix the channels of each point behind each Fourier layer, as
        neuraloperator has it by default; Li et al. have none.

    Raises
    ------
    ArgumentError
        If the fields have no grid or a mesh, or an argument is out of range.
    MissingPackageError
        If neuraloperator is not installed.

    References
    ----------
    Fourier Neural Operator for Parametric Partial Differential Equations, Li et al.,
    ICLR 2021, arXiv 2010.08895.
    """

    def __init__(
        self,
        spec: FieldSpec,
        window: Window,
        *,
        modes: int | Sequence[int] = 16,
        width: int = 32,
        layers: int = 4,
        padding: float = 0.0,
        positions: bool = True,
        channel_mlp: bool = True,
    ) -> None:
        dims = len(spec.dims)
        wanted = [modes] * dims if isinstance(modes, int) else list(modes)
        if len(wanted) != dims or min(wanted, default=1) < 1:
            raise ArgumentError(
                f"FNO: expected modes as one number >= 1, or as one for each of the "
                f"{dims} dims {spec.dims}, got {modes}."
            )
        if width < 1 or layers < 1:
            raise ArgumentError(
                f"FNO: expected width >= 1 and layers >= 1, got {width} and {layers}."
            )
        if not 0 <= padding < 1:
            raise ArgumentError("FNO: padding", "a part of the grid in [0, 1)", padding)
        convolution, make_pointwise = _layers()
        # As neuralop's DomainPadding rounds.
        padded = [size + 2 * round(padding * size) for size in spec.shape]
        super().__init__(
            spec,
            window,
            module="neuralop.models.FNO",
            arguments={
                "n_modes": [min(n, s) for n, s in zip(wanted, spec.shape, strict=True)],
                "hidden_channels": width,
                "n_layers": layers,
                "domain_padding": padding or None,
                "use_channel_mlp": channel_mlp,
                "positional_embedding": None,  # OnGrid stacks the true positions
                "conv_module": partial(convolution, sizes=padded),
            },
            positions=positions,
        )
        make_pointwise(self)


def _layers() -> tuple[Any, Any]:
    try:
        # neuralop changes how the whole process shows warnings.
        with warnings.catch_warnings():
            from surrogate_flow.nn.spectral import PrunedSpectralConv, make_pointwise
    except ImportError as error:
        raise MissingPackageError(
            f"FNO needs neuraloperator, which cannot be imported ({error}). Type "
            "pip install 'neuraloperator>=2.0', or use UNet (--model unet)."
        ) from error
    return PrunedSpectralConv, make_pointwise
