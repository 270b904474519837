"""Train fresh networks on a small set and on real baselines by one recipe, and test them on real data."""

from kdistill.evaluation.merging import merge
from kdistill.evaluation.protocols import PROTOCOLS, Protocol
from kdistill.evaluation.provenance import is_from_other_data
from kdistill.evaluation.result import Evaluation, Row

__all__ = [
    "PROTOCOLS",
    "Evaluation",
    "Protocol",
    "Row",
    "is_from_other_data",
    "merge",
]
