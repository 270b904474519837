"""MTT: match the training trajectories of experts.

Paper: Cazenavette, Wang, Torralba, Efros and Zhu, "Dataset Distillation by Matching Training
    Trajectories", CVPR 2022 (eq. 2, algorithm 1).

    min_{S, alpha}  E_{expert, t}  | theta_N(S, alpha; theta*_t) - theta*_{t+M} |^2
                                   / | theta*_t - theta*_{t+M} |^2

The gradient through the N steps of the student is exact and takes the memory of one step
(``kdistill.engine.trajectory_match``).
"""

from kdistill.methods.base import Method
from kdistill.methods.trajectory.base import (
    COLUMNS,
    EXPERTS,
    FAST,
    TrajectoryConfig,
    build_trajectory,
    published,
)

METHOD = Method(
    name="mtt",
    title="matching the training trajectories of experts, with the exact gradient in the memory of "
    "one step",
    summary="training trajectories of experts, exact gradient",
    family="trajectory",
    paper="Cazenavette et al., Dataset Distillation by Matching Training Trajectories, CVPR 2022",
    config=TrajectoryConfig,
    presets={
        "paper": {},  # CIFAR-10, IPC 10
        "fast": FAST,
        # DC-Bench; ImageNet subsets: the authors' README.  ZCA (pass normalisation="zca" to
        # load_data), but for cifar10_ipc50, cifar100_ipc10, tiny and imagenet
        **published(
            COLUMNS,
            {
                "cifar10_ipc1": (50, 2, 2, 1e2, 1e-7, 0.01, None),
                "cifar10_ipc10": (30, 2, 20, 1e2, 1e-5, 0.001, None),
                "cifar10_ipc50": (30, 2, 40, 1e3, 1e-5, 0.001, None),
                "cifar100_ipc1": (20, 3, 20, 1e3, 1e-5, 0.01, None),
                "cifar100_ipc10": (20, 2, 20, 1e3, 1e-5, 0.01, None),
                "cifar100_ipc50": (80, 2, 40, 1e3, 1e-5, 0.01, 125),
                "tiny_ipc1": (10, 2, 10, 1e4, 1e-4, 0.01, None),
                "tiny_ipc10": (20, 2, 40, 1e4, 1e-4, 0.01, 200),
                "tiny_ipc50": (20, 2, 40, 1e4, 1e-4, 0.01, 300),
                "imagenet128": (20, 2, 10, 1e3, 1e-6, 0.01, None),
            },
        ),
    },
    build=build_trajectory,
    deviations=(
        "the student's learning rate is held at 1e-6 or above; the published code lets it become "
        "negative",
        "experts are trained for the T+ - 1 + M epochs that are used, not for 50",
        "randomness is keyed, not taken from the clock; the last iteration is the result, not the "
        "best on the test set (distill --snapshot-every and evaluate --snapshots name that one)",
    ),
    experts=EXPERTS,
    cost="second order; 11 products per convolution and inner step, where training has 3",
    needs="expert trajectories",
)
