"""One layer of messages along the edges of a graph, by torch-geometric."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import MessagePassing

__all__ = ["Exchange"]


class Exchange(MessagePassing):  # type: ignore[misc]  # its base has no types
    """m_ij = φ(f_i, f_j, u_i - u_j, x_i - x_j, θ), f_i <- norm(f_i + ψ(f_i, m̄_i, θ)).

    m̄_i is the mean of the messages m_ij that node i hears; φ and ψ have two layers
    each. The norm takes out mean and variance over the nodes of each sample. Nodes are
    the first axis, since rows are gathered and summed fastest there.

    Parameters
    ----------
    width : int
        Features f of a node, and of all layers in between.
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
        # The base writes and loads code for this class, and leaves the file there.
        with _without_bytecode():
            super().__init__(aggr="mean", node_dim=0)
        name = f"{type(self).__module__}_{type(self).__name__}_propagate"
        if (file := getattr(sys.modules.get(name), "__file__", None)) is not None:
            Path(file).unlink(missing_ok=True)
        self.parts = [width, width, seen, dims, context]
        self.message_in = nn.Linear(sum(self.parts), width)
        self.message_out = nn.Linear(width, width)
        self.update_in = nn.Linear(2 * width + context, width)
        self.update_out = nn.Linear(width, width)

    def forward(
        self,
        features: Float[Tensor, "node batch width"],
        seen: Float[Tensor, "node batch seen"],
        context: Float[Tensor, "batch context"],
        offsets: Float[Tensor, "edge dim"],
        edges: Int[Tensor, "2 edge"],
    ) -> Float[Tensor, "node batch width"]:
        """Send, hear, update and normalise."""
        # φ's first layer is linear in each of its inputs, so what it makes of f, u and
        # θ is computed once a node, not once an edge.
        own, others, between, across, theta = torch.split(
            self.message_in.weight, self.parts, dim=1
        )
        known = F.linear(seen, between)
        told = F.linear(context, theta, self.message_in.bias)
        updated = self.propagate(
            edges,
            receiver=F.linear(features, own) + known + told,
            sender=F.linear(features, others) - known,
            offset=F.linear(offsets, across)[:, None],
            features=features,
            context=context,
        )
        var, mean = torch.var_mean(updated, dim=0, correction=0, keepdim=True)
        normed: Tensor = (updated - mean) * torch.rsqrt(var + 1e-5)
        return normed

    def message(
        self,
        receiver_i: Float[Tensor, "edge batch width"],
        sender_j: Float[Tensor, "edge batch width"],
        offset: Float[Tensor, "edge 1 width"],
    ) -> Float[Tensor, "edge batch width"]:
        """φ, from its first layer's parts."""
        return F.silu(self.message_out(F.silu(receiver_i + sender_j + offset)))

    def update(
        self,
        heard: Float[Tensor, "node batch width"],
        features: Float[Tensor, "node batch width"],
        context: Float[Tensor, "batch context"],
    ) -> Float[Tensor, "node batch width"]:
        """ψ, and the features that it is added to."""
        width = features.shape[-1]
        own, message, theta = torch.split(
            self.update_in.weight, [width, width, context.shape[-1]], dim=1
        )
        told = F.linear(context, theta, self.update_in.bias)
        hidden = F.silu(F.linear(features, own) + F.linear(heard, message) + told)
        return features + F.silu(self.update_out(hidden))


@contextmanager
def _without_bytecode() -> Iterator[None]:
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
