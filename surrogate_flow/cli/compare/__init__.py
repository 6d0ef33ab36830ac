"""``surrogate-flow compare``: the same training from several sources of samples."""

from surrogate_flow.cli.compare.command import compare
from surrogate_flow.cli.compare.comparison import Comparison, ComparisonError
from surrogate_flow.cli.compare.table import ComparisonTable, FinishedRun
from surrogate_flow.cli.compare.variant import Variant, variants_of

__all__ = [
    "Comparison",
    "ComparisonError",
    "ComparisonTable",
    "FinishedRun",
    "Variant",
    "compare",
    "variants_of",
]
