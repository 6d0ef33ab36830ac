"""The references of the networks: of other packages, or written anew in plain torch.

Each function returns, for a surrogate and the inputs of its network, a module of the
same sizes and what it is called with.
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from surrogate_flow.surrogate.surrogate import Surrogate

__all__ = ["Inputs", "deeponet", "fno", "message_passing", "plain", "unet"]

#: What a module is called with.
Inputs = tuple[Tensor, ...]


def plain(surrogate: Surrogate, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """Return a multilayer perceptron, and parameters and step as one vector."""
    parameters, step, *_ = inputs
    ours: Any = surrogate.network
    sizes = [layer.weight.shape for layer in ours.layers if hasattr(layer, "weight")]
    layers: list[nn.Module] = []
    for out, seen in sizes:
        layers += [nn.Linear(seen, out), nn.ReLU()]
    module = nn.Sequential(*layers[:-1], nn.Unflatten(1, ours.shape))
    return module, (torch.cat([parameters, step[:, None]], dim=1),)


def fno(surrogate: Surrogate, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """Return neuraloperator's, as its users build it, and stacked channels."""
    from neuralop.models import FNO

    ours: Any = surrogate.network
    module = FNO(
        n_modes=[min(16, size) for size in surrogate.spec.shape],
        in_channels=ours.channels.count,
        out_channels=ours.shape[0] * ours.shape[1],
        hidden_channels=32,
        n_layers=4,
        positional_embedding=None,
    )
    return nn.Sequential(module, nn.Unflatten(1, ours.shape[:2])), (
        ours.channels(*inputs),
    )


def deeponet(surrogate: Surrogate, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """Return DeepXDE's of one field, with the input field and all points."""
    os.environ.setdefault("DDE_BACKEND", "pytorch")
    import deepxde

    ours: Any = surrogate.network
    parameters, step, history, field = inputs
    points = torch.cat([ours.points, step[:1].expand(len(ours.points), 1)], dim=1)
    seen = torch.cat([parameters, history.flatten(1), field.flatten(1)], dim=1)
    widths = [seen.shape[1], 256, 256, 128], [points.shape[1], 128, 128, 128]
    torch.set_default_device("cpu")
    module = deepxde.nn.DeepONetCartesianProd(*widths, "gelu", "Glorot normal")

    class OnThePoints(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, seen: Tensor, points: Tensor) -> Tensor:
            values: Tensor = self.module((seen, points))
            return values.reshape(-1, *ours.shape)

    return OnThePoints(), (seen, points)


def message_passing(surrogate: Surrogate, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """Return the layers of the released solver, and a graph of the whole batch."""
    from torch_geometric.nn import InstanceNorm, MessagePassing

    ours: Any = surrogate.network
    parameters, step, history = inputs
    nodes, window, width = len(ours.places), ours.outputs, 128
    context = torch.cat([parameters, step[:, None]], dim=1)

    class Swish(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x)

    def layers(*sizes: int) -> nn.Sequential:
        made: list[nn.Module] = []
        for seen, out in pairwise(sizes):
            made += [nn.Linear(seen, out), Swish()]
        return nn.Sequential(*made)

    class Layer(MessagePassing):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(node_dim=-2, aggr="mean")
            many = context.shape[1]
            self.messages = layers(2 * width + window + 1 + many, width, width)
            self.updates = layers(2 * width + many, width, width)
            self.norm = InstanceNorm(width)

        def forward(self, x: Tensor, u: Tensor, *others: Tensor) -> Tensor:
            position, theta, edges, batch = others
            out = self.propagate(edges, x=x, u=u, position=position, theta=theta)
            normed: Tensor = self.norm(out, batch)
            return normed

        def message(
            self,
            x_i: Tensor,
            x_j: Tensor,
            u_i: Tensor,
            u_j: Tensor,
            position_i: Tensor,
            position_j: Tensor,
            theta_i: Tensor,
        ) -> Tensor:
            seen = (x_i, x_j, u_i - u_j, position_i - position_j, theta_i)
            made: Tensor = self.messages(torch.cat(seen, dim=-1))
            return made

        def update(self, message: Tensor, x: Tensor, theta: Tensor) -> Tensor:
            made: Tensor = self.updates(torch.cat((x, message, theta), dim=-1))
            return x + made

    class Solver(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = layers(window + 1 + context.shape[1], width, width)
            self.layers = nn.ModuleList(Layer() for _ in range(6))
            self.decoder = nn.Sequential(
                nn.Conv1d(1, 8, 16, stride=3), Swish(), nn.Conv1d(8, 1, 14)
            )

        def forward(self, u: Tensor, *others: Tensor) -> Tensor:
            x = self.encoder(torch.cat((u, *others[:2]), dim=-1))
            for layer in self.layers:
                x = layer(x, u, *others)
            slopes = self.decoder(x[:, None]).squeeze(1)
            passed = torch.arange(1, window + 1, device=u.device) / window
            out = u[:, -1:] + passed * slopes
            # (sample and node, step) -> (sample, step, channel, node)
            fields: Tensor = out.reshape(-1, nodes, window).transpose(1, 2)
            return fields[:, :, None]

    count = len(step)
    first = nodes * torch.arange(count)
    edges = (ours.edges[:, None] + first[:, None]).flatten(1)
    batch = torch.arange(count).repeat_interleave(nodes)
    u = history[:, :, 0].transpose(1, 2).reshape(count * nodes, -1)
    position = ours.places[:, :1].repeat(count, 1)
    return Solver(), (u, position, context[batch], edges, batch)


def unet(surrogate: Surrogate, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """Return a U-Net of plain convolutions, and stacked channels."""
    ours: Any = surrogate.network

    class Block(nn.Module):
        def __init__(self, seen: int, out: int) -> None:
            super().__init__()
            self.one = nn.Sequential(
                *(nn.GroupNorm(1, seen), nn.GELU(), nn.Conv2d(seen, out, 3, padding=1)),
                *(nn.GroupNorm(1, out), nn.GELU(), nn.Conv2d(out, out, 3, padding=1)),
            )
            self.skip = nn.Identity() if seen == out else nn.Conv2d(seen, out, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.skip(x) + self.one(x)
            return y

    class Level(nn.Module):
        def __init__(self, widths: list[int]) -> None:
            super().__init__()
            fine, coarse = widths[:2]
            self.down, self.up = Block(fine, fine), Block(2 * fine, fine)
            inner = Level(widths[1:]) if widths[2:] else Block(coarse, coarse)
            self.inner = nn.Sequential(
                nn.Conv2d(fine, coarse, 3, stride=2, padding=1),
                inner,
                nn.Upsample(scale_factor=2.0),
                nn.Conv2d(coarse, fine, 3, padding=1),
            )

        def forward(self, x: Tensor) -> Tensor:
            skip = self.down(x)
            y: Tensor = self.up(torch.cat([self.inner(skip), skip], dim=1))
            return y

    module = nn.Sequential(
        nn.Conv2d(ours.channels.count, 32, 3, padding=1),
        Level([32, 64, 128, 256]),
        *(nn.GroupNorm(1, 32), nn.GELU(), nn.Conv2d(32, ours.shape[1], 1)),
        nn.Unflatten(1, ours.shape[:2]),
    )
    return module, (ours.channels(*inputs),)
