"""Simulations on Dask: kept in flight, retried, watched."""
