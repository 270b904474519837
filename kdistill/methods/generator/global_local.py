"""Global structure and local details: a conditional GAN matched by logits and by features at once.

Paper: Li, Li, Togo, Maeda, Ogawa and Haseyama, "Generative Dataset Distillation: Balancing Global
    Structure and Local Details", CVPR Workshops 2024.

    min_G  L_gan + a_g * L_global / L_global(first step) + a_l * L_local / L_local(first step)

The terms of the first step are taken under a network that is as experienced as those at the end of
their service: under an untrained one, logits differ hundreds of times less.

L_global compares log-probabilities, L_local the feature maps of blocks
(``kdistill.objectives.network_matching``), under a network of a pool as in ``dim``.

A reconstruction from the abstract: neither the paper's equations nor code were at hand, so no
fidelity to its numbers is claimed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from kdistill.data import ImageDataset
from kdistill.engine.students import Student
from kdistill.errors import ConfigError
from kdistill.methods.base import Method, Problem
from kdistill.methods.generator.base import build_run
from kdistill.methods.generator.dim import METHOD as DIM
from kdistill.methods.generator.network_pool import NetworkPool
from kdistill.methods.generator.pool_matching import Comparison, PoolConfig, pool_matching
from kdistill.objectives.network_matching import (
    Distance,
    feature_distance,
    group_means,
    logit_distance,
    match_outputs,
)
from kdistill.options import NOT_NEGATIVE, Range, Unset
from kdistill.priors import State

SCALE = "match.scale"  # both terms at the first step, in the state of a run
SMALLEST = 1e-12  # a term that begins at 0 is divided by this
BLOCKS = Range("0 or more", lambda number: number >= 0, "0 is the shallowest block")


@dataclass(frozen=True, kw_only=True)
class GlobalLocalConfig(PoolConfig):
    """Options of the reconstruction; training is that of ``dim``.

    Attributes:
        global_weight: Weight of the comparison of logits; 0 leaves it out.
        local_weight: Weight of the comparison of features; 0 leaves it out.
        pairing: Logits are compared for each pair (``"index"``) of images of a class, or in their
            ``"class_mean"``.
        feature_distance: Distance of the class means of feature maps: ``"mse"``, over the mean
            square of the real ones, averaged over the blocks; or ``"l1"``, the sum.
        layers: Numbers of the blocks that are compared, 0 the shallowest.
        normalise: Divide either term by its value at the first step of stage 2, under a network
            that has been trained.
    """

    global_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    local_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    pairing: Literal["index", "class_mean"] = "index"
    feature_distance: Literal["mse", "l1"] = "mse"
    layers: Annotated[tuple[int, ...] | None, "of block numbers", BLOCKS, Unset("all")] = None
    normalise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None and not self.layers:
            raise ConfigError(
                "layers: expected block numbers, got an empty list; leave it out for all blocks, "
                "or set local_weight=0"
            )

    def distances(self, labels: Tensor, classes: int) -> tuple[Sequence[float], list[Distance]]:
        """Return the weights and the distances of the terms that are switched on."""
        means = group_means(labels, classes, "class")
        pairs = None if self.pairing == "index" else means
        terms = (
            (self.global_weight, logit_distance(pairs)),
            (self.local_weight, feature_distance(means, self.feature_distance, self.layers)),
        )
        chosen = [(weight, distance) for weight, distance in terms if weight > 0.0]
        return [weight for weight, _ in chosen], [distance for _, distance in chosen]


def comparison(config: GlobalLocalConfig, pool: NetworkPool) -> Comparison:
    """Return the weighted terms and their gradient in the generated images."""

    def compare(
        student: Student, theta: Tensor, real: Tensor, fake: Tensor, labels: Tensor, state: State
    ) -> tuple[Tensor, Tensor, State]:
        weights, distances = config.distances(labels, student.classes)
        if not distances:
            return fake.new_zeros(()), torch.zeros_like(fake), {}
        scale = state[SCALE]
        if not config.normalise:
            scale = torch.ones_like(scale)
        elif not bool(scale.any()):
            first, _ = match_outputs(
                *pool.experienced(), real, fake, distances, torch.ones_like(scale)
            )
            scale = first.clamp(min=SMALLEST)
        weighted = scale.new_tensor(weights) / scale
        values, grad = match_outputs(student, theta, real, fake, distances, weighted)
        return weighted @ values, grad, {SCALE: scale}

    return compare


def build(
    config: GlobalLocalConfig, data: ImageDataset, ipc: int, seed: int, start: Tensor | None
) -> Problem:
    """Return the run: stage 1, then both terms over the pool."""
    num_terms = (config.global_weight > 0.0) + (config.local_weight > 0.0)
    state = {SCALE: torch.zeros(num_terms)} if num_terms else {}
    pool = config.network_pool(data, seed)
    matching = pool_matching(config, data, seed, pool, comparison(config, pool), state)
    return build_run(config, data, ipc, seed, start, matching)


FAST = {name: x for name, x in DIM.presets["fast"].items() if name != "objective_preset"}
METHOD = Method(
    name="global_local",
    title="a conditional GAN matched by logits and by features; a reconstruction from the abstract",
    summary="logits and features; reconstruction from the abstract",
    family="generator",
    paper="Li et al., Generative Dataset Distillation: Balancing Global Structure and Local "
    "Details, CVPR Workshops 2024",
    config=GlobalLocalConfig,
    presets={
        "paper": {},
        "fast": FAST,
        "global": {**FAST, "local_weight": 0.0},
        "local": {**FAST, "global_weight": 0.0},
        # the constants of the code of DiM, and its distance of features
        "dim_weights": {
            "global_weight": 0.01,
            "local_weight": 0.001,
            "feature_distance": "l1",
            "normalise": False,
        },
    },
    build=build,
    deviations=(
        "a reconstruction from the abstract: no equation, weight or number of the paper was at "
        "hand",
        "the conditional GAN is that of dim, with all deviations of dim",
        "both terms are divided by their values at the first step, features compared by class",
    ),
    cost=DIM.cost,
    needs="only the data",
)
