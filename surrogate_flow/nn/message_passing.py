"""The message-passing solver, for grids, scattered points and meshes."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.nn.graph import graph_of

__all__ = ["MessagePassingSolver"]

# Bytes that one sample may take in training: no device has more to spare for it.
_MOST = 64 * 2**30


class MessagePassingSolver(nn.Module):
    """f = encode(u, x, t, θ), then layers of messages, u_{k+l} = u_k + (l/outputs) d_l.

    The steps d_l ahead come out of a convolution over the features f at a node, all
    `outputs` of them at once (temporal bundling). A direct window has no u_k to go on
    from: its step is what two layers make of f, t and θ.

    Parameters
    ----------
    spec : FieldSpec
        With a grid of any dims, or with coordinates of points, or of a mesh's nodes.
    window : Window
        Steps seen and steps predicted.
    width : int
        Features at a node.
    layers : int
        Number of times that messages are passed.
    neighbours : int
        On each side of a node of a 1D grid; see `graph_of`. Not used on a mesh.
    periodic : bool
        Whether the last cell of a grid is followed by the first.
    positions : bool
        Whether a node is told where it is. Without, a periodic network commutes with
        translations; with, it can learn what depends on the place.

    Raises
    ------
    ImportError
        If torch-geometric is missing.
    ValueError
        If the spec has no space, or the sizes make no network.

    Notes
    -----
    The time that passes is counted in windows, so steps of different lengths have
    different meanings of d_l, which are learnt with it.

    References
    ----------
    J. Brandstetter, D. Worrall, M. Welling, "Message Passing Neural PDE Solvers", ICLR
    2022, https://arxiv.org/abs/2202.03376, equation 10. Theirs decodes 20, 25 or 50
    steps of one variable, by kernels of 15 and 10, 16 and 14, 12 and 10; ours any
    number, these by 16 and 10, 29 and 10, 12 and 10. Direct windows are not in it.
    """

    places: Tensor
    offsets: Tensor
    edges: Tensor

    def __init__(
        self,
        spec: FieldSpec,
        window: Window,
        *,
        width: int = 128,
        layers: int = 6,
        neighbours: int = 3,
        periodic: bool = False,
        positions: bool = True,
    ) -> None:
        super().__init__()
        try:
            from surrogate_flow.nn.exchange import Exchange
        except ImportError as error:
            raise ImportError(
                "MessagePassingSolver passes its messages through torch-geometric, "
                f"which cannot be imported ({error}). Install it with "
                "pip install 'surrogate-flow[networks]'."
            ) from error
        if layers < 1 or width < window.outputs:
            raise ValueError(
                "MessagePassingSolver: expected layers >= 1 and a width of at least "
                f"the {window.outputs} steps predicted, got layers={layers} and "
                f"width={width}."
            )
        if not (window.inputs or positions):
            raise ValueError(
                "MessagePassingSolver: expected positions=True for a direct window, "
                "got False: nothing else tells one node from another."
            )
        nodes = math.prod(spec.shape)
        edges = nodes * 2 * len(spec.dims) * neighbours
        bytes_ = _training_bytes(nodes, edges, width, layers)
        if bytes_ > _MOST:
            raise ValueError(
                "MessagePassingSolver: expected fewer nodes, got "
                f"{nodes:,}: one sample would take {bytes_ / 2**30:.0f} GiB in "
                "training. Simulate on a coarser grid, or use "
                "surrogate_flow.nn.FullyConnected or another network."
            )
        graph = graph_of(spec, neighbours, periodic)
        places = graph.places if positions else graph.places[:, :0]
        self.shape = spec.step_shape
        self.outputs = window.outputs
        for name, value in (
            ("places", torch.tensor(places, dtype=torch.float32)),
            ("offsets", torch.tensor(graph.offsets, dtype=torch.float32)),
            ("edges", torch.tensor(graph.edges)),
        ):
            # They follow from the spec, which a checkpoint has.
            self.register_buffer(name, value, persistent=False)
        seen, context = window.inputs * len(spec.variables), len(spec.parameters) + 1
        self.encoder = nn.Sequential(
            nn.Linear(seen + places.shape[1] + context, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
        )
        self.layers = nn.ModuleList(
            Exchange(width, seen, graph.offsets.shape[1], context)
            for _ in range(layers)
        )
        channels = len(spec.variables)
        self.decoder = (
            _bundle(width, window.outputs, channels)
            if window.inputs
            else nn.Sequential(
                nn.Linear(width + context, width),
                nn.SiLU(),
                nn.Linear(width, window.outputs * channels),
            )
        )

    def forward(
        self,
        parameters: Float[Tensor, "batch parameter"],
        step: Float[Tensor, " batch"],
        history: Float[Tensor, "batch inputs channel *space"],
    ) -> Float[Tensor, "batch outputs channel *space"]:
        """Predict all steps of the window at once."""
        batch, nodes = len(step), len(self.places)
        context = torch.cat([parameters, step[:, None]], dim=1)
        everywhere = context.expand(nodes, -1, -1)
        seen = history.reshape(batch, -1, nodes).permute(2, 0, 1)
        places = self.places[:, None].expand(-1, batch, -1)
        features = self.encoder(torch.cat([seen, places, everywhere], dim=-1))
        for layer in self.layers:
            features = layer(features, seen, context, self.offsets, self.edges)
        if not history.shape[1]:
            out = self.decoder(torch.cat([features, everywhere], dim=-1))
            return self._on_the_grid(out)
        slopes = self.decoder(features.reshape(nodes * batch, 1, -1))
        # (node, batch, channel, outputs) -> (node, batch, outputs * channel)
        slopes = slopes.reshape(nodes, batch, -1, self.outputs).transpose(2, 3)
        passed = torch.arange(1, self.outputs + 1, device=step.device) / self.outputs
        change = self._on_the_grid(slopes.flatten(2))
        return history[:, -1:] + passed.reshape(-1, *[1] * len(self.shape)) * change

    def _on_the_grid(
        self, out: Float[Tensor, "node batch value"]
    ) -> Float[Tensor, "batch outputs channel *space"]:
        return out.permute(1, 2, 0).reshape(-1, self.outputs, *self.shape)


def _training_bytes(nodes: int, edges: int, width: int, layers: int) -> int:
    """Return what a sample takes at the peak of a training step, in single precision.

    Autograd keeps 3 tensors over the edges and 8 over the nodes for each layer, and 5
    over the nodes for what is around; the way back through a layer takes 6 over the
    edges for a while.
    """
    return 4 * width * (edges * (3 * layers + 6) + nodes * (8 * layers + 5))


def _bundle(width: int, outputs: int, channels: int) -> nn.Sequential:
    """Return two convolutions over the features that leave one value for each step."""
    last = min(10, width - outputs + 1)
    middle = outputs + last - 1
    stride = width // middle
    return nn.Sequential(
        nn.Conv1d(1, 8 * channels, width - stride * (middle - 1), stride),
        nn.SiLU(),
        nn.Conv1d(8 * channels, channels, last),
    )
