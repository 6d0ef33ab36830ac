"""Any module that maps channels on a grid to channels on the same grid."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.names import nearest, subclass_at
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.nn.channels import Channels

__all__ = ["OnGrid"]


class OnGrid(nn.Module):
    """u = module(history, inputs, parameters, step, positions), channels of one grid.

    Parameters
    ----------
    spec, window
        As of every network, see `surrogate_flow.nn`.
    module : str
        Import path of a ``torch.nn.Module`` that is built with the keywords
        ``in_channels`` and ``out_channels``, and maps
        ``(batch, in_channels, *space)`` to ``(batch, out_channels, *space)``.
    arguments : mapping, optional
        Its other keywords.
    positions : bool
        Whether the module sees positions, one channel for each dim, from -1 to 1.

    Raises
    ------
    ArgumentError
        If there is no such module, its arguments do not fit, or the fields have no grid
        or a mesh.

    Examples
    --------
    >>> import torch
    >>> from surrogate_flow.solvers import Heat2D
    >>> from surrogate_flow.fields import Direct
    >>> network = OnGrid(
    ...     Heat2D(cells=(8, 4)).spec,
    ...     Direct(),
    ...     module="torch.nn.Conv2d",
    ...     arguments={"kernel_size": 3, "padding": 1},
    ... )
    >>> network(torch.ones(3, 5), torch.ones(3), torch.ones(3, 0, 1, 8, 4)).shape
    torch.Size([3, 1, 1, 8, 4])
    """

    def __init__(
        self,
        spec: FieldSpec,
        window: Window,
        *,
        module: str,
        arguments: Mapping[str, Any] | None = None,
        positions: bool = True,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.channels = Channels(spec, window, network=name, positions=positions)
        self.path = module
        self.shape = (window.outputs, *spec.step_shape)
        self.module = _built(
            subclass_at(module, nn.Module, f"module of {name}"),
            f"{name}: {module}",
            arguments or {},
            in_channels=self.channels.count,
            out_channels=self.shape[0] * self.shape[1],
        )
        self.register_state_dict_post_hook(_tensors_only)  # type: ignore[no-untyped-call]

    def forward(
        self,
        parameters: Float[Tensor, "batch parameter"],
        step: Float[Tensor, " batch"],
        history: Float[Tensor, "batch inputs channel *space"],
        inputs: Float[Tensor, "batch input *space"] | None = None,
    ) -> Float[Tensor, "batch outputs channel *space"]:
        """Predict all points of all steps at once."""
        out: Tensor = self.module(self.channels(parameters, step, history, inputs))
        expected = (step.shape[0], self.shape[0] * self.shape[1], *self.shape[2:])
        if out.shape != expected:
            raise ArgumentError(
                f"{self.path}: expected an output of shape {expected}, (batch, "
                f"out_channels, *space), got {tuple(out.shape)}. Choose arguments that "
                "keep the size of the grid, such as padding = kernel_size // 2."
            )
        return out.reshape(-1, *self.shape)


def _built(
    kind: type[nn.Module], place: str, arguments: Mapping[str, Any], **channels: int
) -> nn.Module:
    signature = inspect.signature(kind.__init__)
    try:
        signature.bind(None, **arguments, **channels)
    except TypeError as error:
        given = [*channels, *arguments]
        known = [key for key in signature.parameters if key != "self"]
        wrong = next((key for key in given if key not in known), "")
        raise ArgumentError(
            f"{place}: expected a module that takes {', '.join(channels)} and the "
            f"arguments of the recipe, got {list(arguments)}: {error}. "
            f"{nearest(wrong, known)}"
        ) from error
    return kind(**arguments, **channels)


def _tensors_only(
    _: nn.Module, state: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    # neuralop adds its arguments, functions and classes among them: a checkpoint with
    # code, which would not open as data.
    state.pop("_metadata", None)
