"""Sampling: which parameters, and which input fields, to simulate next."""

from surrogate_flow.sampling.design import Design
from surrogate_flow.sampling.fields_from_file import FieldsFromFile
from surrogate_flow.sampling.inputs import (
    FourierModes,
    GaussianRandomField,
    InputSampler,
)
from surrogate_flow.sampling.sampler import BlockSampler, Observations, Sampler
from surrogate_flow.sampling.sequences import Halton, LatinHypercube, Sobol, Uniform
from surrogate_flow.sampling.table import Table

__all__ = [
    "BlockSampler",
    "Design",
    "FieldsFromFile",
    "FourierModes",
    "GaussianRandomField",
    "Halton",
    "InputSampler",
    "LatinHypercube",
    "Observations",
    "Sampler",
    "Sobol",
    "Table",
    "Uniform",
]
