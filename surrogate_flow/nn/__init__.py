"""Networks: plain modules, one a file, built by ``network(spec, window)``.

All are called with normalised inputs, ``network(parameters, step, history)``:

=============  ==================================
========================================= ``parameters``  ``(batch, parameter)``
of the equation ``step``        ``(batch,)``                        of the first step to
predict ``history``     ``(batch, inputs, channel, *space)``  the steps before it, none
for direct windows =============  ==================================
=========================================

and return ``(batch, outputs, channel, *space)``.
"""

from surrogate_flow.nn.fully_connected import FullyConnected

__all__ = ["FullyConnected"]
