"""Which simulations run, which run again, and what has become of each.

A failure takes three files: `ensemble` retries an attempt or gives its simulation up,
`events` reports and tabulates that, and `ledger` records that it has failed. `study`
wires them, and closes the simulation in the sink, so that the validation set goes on
without it. The trainer asks `data.source` whether the study goes on, and its error ends
the command.
"""
