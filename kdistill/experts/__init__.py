"""Expert trajectories: networks trained on the real data, with their parameters after every epoch."""

from kdistill.experts.spec import ExpertSpec
from kdistill.experts.store import TrajectoryStore
from kdistill.experts.training import Estimate, estimate, train_expert, train_experts

__all__ = ["Estimate", "ExpertSpec", "TrajectoryStore", "estimate", "train_expert", "train_experts"]
