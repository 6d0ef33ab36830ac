"""Networks: plain modules, one a file, built by ``network(spec, window)``.

The `FieldSpec` has the grid and the number of channels, the `Window` the numbers of
steps seen and predicted. All are called with normalised inputs, ``network(parameters,
step, history)``:

- ``parameters``, of shape (batch, parameter): those of the equation;
- ``step``, of shape (batch,): index of the first step to predict;
- ``history``, of shape ``(batch, inputs, channel, *space)``: the steps just before it,
  none for direct windows;
- ``inputs``, of shape ``(batch, input, *space)``, if the spec has any input fields;

and return ``(batch, outputs, channel, *space)``. ``docs/networks.md`` shows how to add
your own.
"""

from surrogate_flow.nn.channels import Channels
from surrogate_flow.nn.deeponet import DeepONet
from surrogate_flow.nn.fno import FNO
from surrogate_flow.nn.fully_connected import FullyConnected
from surrogate_flow.nn.message_passing import MessagePassingSolver
from surrogate_flow.nn.on_grid import OnGrid
from surrogate_flow.nn.unet import UNet

__all__ = [
    "FNO",
    "Channels",
    "DeepONet",
    "FullyConnected",
    "MessagePassingSolver",
    "OnGrid",
    "UNet",
]
