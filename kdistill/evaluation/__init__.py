"""Train fresh networks on a small set and on real baselines by one recipe, and test them on real data."""

from kdistill.evaluation.evaluate import evaluate
from kdistill.evaluation.merging import merge
from kdistill.evaluation.protocols import PROTOCOLS, Protocol
from kdistill.evaluation.provenance import is_from_other_data
from kdistill.evaluation.result import Evaluation, Row
from kdistill.evaluation.snapshot_evaluation import SnapshotEvaluation, evaluate_snapshots

__all__ = [
    "PROTOCOLS",
    "Evaluation",
    "Protocol",
    "Row",
    "SnapshotEvaluation",
    "evaluate",
    "evaluate_snapshots",
    "is_from_other_data",
    "merge",
]
