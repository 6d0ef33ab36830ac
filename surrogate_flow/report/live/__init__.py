"""The live page of a run: in Dask's dashboard, and from the run's folder alone."""

from surrogate_flow.report.live.state import LiveState as LiveState
