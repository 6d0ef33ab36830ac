"""The test's own books: what was delivered and what was trained, read off the values."""

import collections

import numpy as np

from faults.faulty import STRIDE, values


class Ledger:
    """Counts (simulation, step) by what the fields say, whatever their labels.

    It stands between the inlet and the reservoir, as the sink, and beside the trainer.
    """

    def __init__(self, store):
        self.store = store
        self.delivered = collections.Counter()
        self.trained = collections.Counter()
        self.wrong = []
        #: Steps that were taken, repetitions counted.
        self.steps = 0

    def read(self, fields, number, step, parameters):
        """Return the identity in a field, and note where its labels say otherwise."""
        cells = fields.reshape(-1)
        identity = tuple(divmod(int(cells[0]), STRIDE))
        labels = (int(number), int(step)), (int(parameters[0]), identity[1])
        if (identity, identity) != labels:
            self.wrong.append((identity, labels))
        if not np.array_equal(cells, values(*identity, len(cells)).astype("f")):
            self.wrong.append((identity, "values"))
        return identity

    def offer(self, simulation, first, steps, parameters, inputs=None):
        """Hand on to the reservoir, and count what it takes."""
        taken = self.store.offer(simulation, first, steps, parameters, inputs)
        for k in range(taken):
            self.delivered[self.read(steps[k], simulation, first + k, parameters)] += 1
        self.steps += taken
        return taken

    def open(self, simulation):
        """Hand on."""
        return self.store.open(simulation)

    def close(self, simulation, complete, early=""):
        """Hand on."""
        self.store.close(simulation, complete, early)

    def priority(self, simulation):
        """Hand on."""
        return self.store.priority(simulation)

    def waiting(self):
        """Hand on."""
        return self.store.waiting()

    def on_room(self, wake):
        """Hand on."""
        self.store.on_room(wake)

    def train(self, batch):
        """Count the samples of a batch."""
        for fields, parameters, step in zip(
            batch.target.numpy(), batch.parameters.numpy(), batch.step, strict=True
        ):
            self.trained[self.read(fields, parameters[0], step, parameters)] += 1
