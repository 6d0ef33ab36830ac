"""Sampling: which parameters to simulate next."""

from surrogate_flow.sampling.design import Design
from surrogate_flow.sampling.halton import Halton
from surrogate_flow.sampling.latin_hypercube import LatinHypercube
from surrogate_flow.sampling.sampler import BlockSampler, Observations, Sampler
from surrogate_flow.sampling.sobol import Sobol
from surrogate_flow.sampling.uniform import Uniform

__all__ = [
    "BlockSampler",
    "Design",
    "Halton",
    "LatinHypercube",
    "Observations",
    "Sampler",
    "Sobol",
    "Uniform",
]
