"""The message-passing solver, for grids, scattered points and meshes."""

from __future__ import annotations

import logging
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from surrogate_flow.fields.errors import ArgumentError
from surrogate_flow.fields.spec import FieldSpec
from surrogate_flow.fields.window import Window
from surrogate_flow.nn.graph import graph_of

__all__ = ["Exchange", "MessagePassingSolver"]

logger = logging.getLogger(__name__)

_MOST = 64 * 2**30  # bytes for one sample: no device has more


class Exchange(nn.Module):
    """m_ij = φ(f_i, f_j, u_i - u_j, x_i - x_j, θ), f_i <- norm(f_i + ψ(f_i, m̄_i, θ)).

    m̄_i is the mean of the messages m_ij that node i receives; φ and ψ have two layers
    each. The norm takes out mean and variance over the nodes of each sample. Nodes are
    the first axis, since rows are gathered and summed fastest there.

    Parameters
    ----------
    width : int
        Features f of a node, and of all hidden layers.
    seen : int
        Values u known at a node.
    dims : int
        Of the offsets x_i - x_j.
    context : int
        Values θ of a sample: the parameters of its equation and its time.

    References
    ----------
    Equations 8 and 9 in J. Brandstetter, D. Worrall, M. Welling, "Message Passing
    Neural PDE Solvers", ICLR 2022, https://arxiv.org/abs/2202.03376.
    """

    def __init__(self, width: int, seen: int, dims: int, context: int) -> None:
        super().__init__()
        self.message_parts = [width, width, seen, dims, context]
        self.update_parts = [width, width, context]
        self.message_in = nn.Linear(sum(self.message_parts), width)
        self.message_out = nn.Linear(width, width)
        self.update_in = nn.Linear(sum(self.update_parts), width)
        self.update_out = nn.Linear(width, width)

    def forward(
        self,
        features: Float[Tensor, "node batch width"],
        seen: Float[Tensor, "node batch seen"],
        context: Float[Tensor, "batch context"],
        offsets: Float[Tensor, "edge dim"],
        edges: Int[Tensor, "2 edge"],
    ) -> Float[Tensor, "node batch width"]:
        """Compute the messages and their means, update the features, normalise."""
        sender, receiver = edges
        # The first layers of φ and ψ are linear in each of their inputs, so what they
        # make of f, u and θ is computed once a node, not once an edge.
        own, others, between, across, theta = torch.split(
            self.message_in.weight, self.message_parts, dim=1
        )
        known = F.linear(seen, between)
        to = F.linear(features, own) + known
        to = to + F.linear(context, theta, self.message_in.bias)
        by = F.linear(features, others) - known
        hidden = to[receiver] + by[sender] + F.linear(offsets, across)[:, None]
        messages = F.silu(self.message_out(F.silu(hidden)))
        mean = messages.new_zeros(features.shape).index_add(0, receiver, messages)
        received = mean.new_zeros(len(mean)).index_add(
            0, receiver, mean.new_ones(len(receiver))
        )
        mean = mean / received.clamp(min=1)[:, None, None]
        own, message, theta = torch.split(
            self.update_in.weight, self.update_parts, dim=1
        )
        hidden = F.linear(features, own) + F.linear(mean, message)
        hidden = F.silu(hidden + F.linear(context, theta, self.update_in.bias))
        updated = features + F.silu(self.update_out(hidden))
        var, average = torch.var_mean(updated, dim=0, correction=0, keepdim=True)
        normed: Tensor = (updated - average) * torch.rsqrt(var + 1e-5)
        return normed


class MessagePassingSolver(nn.Module):
    """f = encode(u, x, t, θ), then layers of messages, u_{k+l} = u_k + (l/outputs) d_l.

    The slopes d_l of all `outputs` steps come from one convolution over the features f
    of a node (temporal bundling). A direct window has no u_k to continue from: its step
    is computed from f, t and θ by two layers.

    Parameters
    ----------
    spec, window
        As of every network, see `surrogate_flow.nn`; on a grid of any dims, points or a
        mesh.
    width : int
        Features of a node.
    layers : int
        Number of times that messages are passed.
    neighbours : int
        On each side of a node of a 1D grid; see `graph_of`. Not used on a mesh.
    periodic : bool
        Whether the last cell of a grid is followed by the first.
    positions : bool
        Whether a node sees its position. Without it, a periodic network commutes with
        translations.

    Raises
    ------
    ArgumentError
        If the spec has no space, or the sizes make no network.

    Notes
    -----
    Time is counted in windows, so d_l depends on the length of a step.

    References
    ----------
    J. Brandstetter, D. Worrall, M. Welling, "Message Passing Neural PDE Solvers", ICLR
    2022, https://arxiv.org/abs/2202.03376, equation 10. They decode 20, 25 or 50 steps
    of one variable by kernels of 15 and 10, 16 and 14, 12 and 10; here any number of
    steps is decoded, these by 16 and 10, 29 and 10, 12 and 10. Direct windows are ours.
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
        if layers < 1 or width < window.outputs:
            raise ArgumentError(
                "MessagePassingSolver: expected layers >= 1 and a width of at least "
                f"the {window.outputs} steps predicted, got layers={layers} and "
                f"width={width}."
            )
        if not (window.inputs or positions or spec.inputs):
            raise ArgumentError(
                "MessagePassingSolver: expected positions=True for a direct window, "
                "got False: nothing else distinguishes one node from another."
            )
        if not window.inputs:
            logger.warning(
                "MessagePassingSolver goes from the last steps to the next ones, and "
                "gets no history from %s: far parts of a field do not see each other. "
                "Set --model.window Autoregressive.",
                window,
            )
        # Autograd keeps 3 tensors over the edges and 8 over the nodes for each layer.
        nodes, kept = math.prod(spec.shape), 6 * len(spec.dims) * neighbours + 8
        if (size := 4 * width * layers * nodes * kept) > _MOST:
            raise ArgumentError(
                f"MessagePassingSolver: expected fewer nodes, got {nodes:,}: a sample "
                f"takes {size / 2**30:.0f} GiB in training. Use a coarser grid, or use "
                "surrogate_flow.nn.FullyConnected (--model fully_connected)."
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
        channels, context = len(spec.variables), len(spec.parameters) + 1
        seen = window.inputs * channels + len(spec.inputs)
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
        inputs: Float[Tensor, "batch input *space"] | None = None,
    ) -> Float[Tensor, "batch outputs channel *space"]:
        """Predict all steps of the window at once."""
        batch, nodes = step.shape[0], len(self.places)
        context = torch.cat([parameters, step[:, None]], dim=1)
        everywhere = context.expand(nodes, -1, -1)
        seen = history.new_zeros(nodes, batch, 0)
        if history.shape[1]:
            seen = history.reshape(batch, -1, nodes).permute(2, 0, 1)
        if inputs is not None:
            given = inputs.reshape(batch, -1, nodes).permute(2, 0, 1)
            seen = torch.cat([seen, given], dim=-1)
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
