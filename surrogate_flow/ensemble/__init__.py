"""Which simulations run, which run again, and what has become of each.

A failure takes three files: `ensemble` retries an attempt or gives its simulation up,
`events` reports and tabulates that, and `ledger` records that it has failed.
"""
