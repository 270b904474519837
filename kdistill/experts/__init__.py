"""Expert trajectories: networks trained on the real data, with their parameters after every epoch."""

from kdistill.experts.expert_training import (
    Estimate,
    ExpertSpec,
    estimate,
    train_expert,
    train_experts,
)
from kdistill.experts.trajectory_store import TrajectoryStore

__all__ = ["Estimate", "ExpertSpec", "TrajectoryStore", "estimate", "train_expert", "train_experts"]
