"""Sampling: which parameters to simulate next."""

from surrogate_flow.sampling.design import Design
from surrogate_flow.sampling.sampler import BlockSampler, Observations, Sampler
from surrogate_flow.sampling.sequences import Halton, LatinHypercube, Sobol, Uniform
from surrogate_flow.sampling.table import Table

__all__ = [
    "BlockSampler",
    "Design",
    "Halton",
    "LatinHypercube",
    "Observations",
    "Sampler",
    "Sobol",
    "Table",
    "Uniform",
]
