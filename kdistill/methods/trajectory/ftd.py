"""FTD: trajectory matching with experts on flat trajectories, and a running mean of the images.

Paper: Du, Jiang, Tan, Zhou and Li, "Minimizing the Accumulated Trajectory Error to Improve Dataset
    Distillation", CVPR 2023.

Only the experts differ from MTT: they are trained by GSAM (``kdistill.experts``), whose steps avoid
sharp directions; what is evaluated is the exponential moving average of the images.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from kdistill.data import ImageDataset
from kdistill.methods.base import Method, Problem
from kdistill.methods.trajectory.base import (
    COLUMNS,
    EXPERTS,
    FAST,
    FlatExpertsConfig,
    build_trajectory,
    published,
)
from kdistill.options import DECAY


@dataclass(frozen=True, kw_only=True)
class FtdConfig(FlatExpertsConfig):
    """Options of FTD: those of the methods with flat experts, and a running mean.

    Attributes:
        ema_decay: Decay of the running mean of the images that is the result; the student's
            learning rate is the last one.
        surrogate: Weight of the orthogonal part of the gradient that the experts subtract (``datm``
            and ``pad`` take 0.3).
    """

    ema_decay: Annotated[float, DECAY] = 0.9995
    surrogate: float = 0.4


def build(
    config: FtdConfig, data: ImageDataset, ipc: int, seed: int, start: Tensor | None
) -> Problem:
    """Return the run; experts that are missing are trained first."""
    return build_trajectory(config, data, ipc, seed, start, ema_decay=config.ema_decay)


METHOD = Method(
    name="ftd",
    title="trajectory matching with experts on flat trajectories (GSAM) and a running mean of the "
    "images",
    summary="as mtt, experts on flat trajectories, mean of the images",
    family="trajectory",
    paper="Du et al., Minimizing the Accumulated Trajectory Error to Improve Dataset Distillation, "
    "CVPR 2023",
    config=FtdConfig,
    presets={
        "paper": {},
        "fast": {**FAST, "ema_decay": 0.98},
        # the author's settings for ImageNet subsets
        **published(
            COLUMNS,
            {"imagenet128": (20, 2, 10, 1e4, 1e-4, 0.01, 64)},
            surrogate=1.0,
            ema_decay=0.999,
        ),
    },
    build=build,
    deviations=(
        "the mean begins at the first images and is the result, as in FTD's own code (decay "
        "0.9995, surrogate 0.4; DATM's code, which carries FTD's experts, has 0.3 and never uses "
        "a mean)",
        "every network is evaluated from fresh weights; the published figure of the averaged "
        "images comes from a network that had been trained on the other set already, and is no "
        "target here",
    ),
    experts=EXPERTS,
    cost="as MTT; the experts take two gradients per step",
    needs="expert trajectories",
)
