"""Expert trajectories: parameters of networks in training on the real data, epoch by epoch."""

from kdistill.experts.expert_training import (
    Estimate,
    ExpertSpec,
    estimate,
    train_expert,
    train_experts,
)
from kdistill.experts.trajectory_store import TrajectoryStore

__all__ = ["Estimate", "ExpertSpec", "TrajectoryStore", "estimate", "train_expert", "train_experts"]
