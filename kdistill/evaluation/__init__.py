"""Fresh networks, trained on a small set and on real baselines by one recipe, and tested."""

from kdistill.evaluation.protocols import PROTOCOLS, Protocol
from kdistill.evaluation.provenance import is_from_other_data
from kdistill.evaluation.result import Evaluation, merge
from kdistill.evaluation.rows import Row

__all__ = [
    "PROTOCOLS",
    "Evaluation",
    "Protocol",
    "Row",
    "is_from_other_data",
    "merge",
]
