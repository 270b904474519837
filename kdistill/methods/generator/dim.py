"""DiM: a conditional GAN, distilled further by matching what a pool of networks says of its images.

Paper: Wang, Gu, Zhou, Zhu, Jiang and You, "DiM: Distilling Dataset into Generative Model", 2023.

    min_G  -E s(G(n, y)) + CE(c(G(n, y)), y) + w * L_m(G(n, y), x)

x are real images of the same labels y; L_m is one of ``kdistill.objectives.network_matching``,
under a network that is drawn from a pool and trained on real images meanwhile.  What is distilled
are the weights of G: any number of images of a class is drawn from it.

The published code is the specification; where it is knowingly left, ``METHOD.deviations`` says so.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from torch import Tensor

from kdistill.data import ImageDataset
from kdistill.engine.students import Student
from kdistill.errors import ConfigError
from kdistill.experts import TrajectoryStore
from kdistill.methods.base import DryRun, Experts, Method, Problem
from kdistill.methods.composition import EXPERTS, ObjectiveConfig
from kdistill.methods.generator.base import build_run
from kdistill.methods.generator.pixel_matching import pixel_matching
from kdistill.methods.generator.pool_matching import Comparison, PoolConfig, pool_matching
from kdistill.objectives.network_matching import (
    feature_distance,
    group_means,
    logit_distance,
    match_gradients,
    match_outputs,
)
from kdistill.options import NOT_NEGATIVE, Unset
from kdistill.priors import State

PUBLISHED_WEIGHTS = {"logits": 0.01, "features": 0.001, "gradients": 0.001}


@dataclass(frozen=True, kw_only=True)
class DimConfig(PoolConfig, ObjectiveConfig):
    """Options of DiM; the defaults are those of the published code for CIFAR-10.

    Attributes:
        objective: ``"pool"``, the published one; or a method on pixels, such as dm or mtt, whose
            objective then takes ``ipc`` fresh images of each class in the place of learned ones.
        match: What is compared: ``"logits"`` (the published method), mean ``"features"`` of the
            batch, or ``"gradients"``.
        match_weight: Weight of the matching loss, or of the objective, whose loss is divided by its
            value at the first step of stage 2.
    """

    match: Literal["logits", "features", "gradients"] = "logits"
    match_weight: Annotated[
        float | None, NOT_NEGATIVE, Unset("0.01 for logits, 0.001 for others, 1 for an objective")
    ] = None
    objective: str = "pool"


def comparison(config: DimConfig) -> Comparison:
    """Return the matching loss and its gradient in the generated images."""
    weight = config.match_weight
    weight = PUBLISHED_WEIGHTS[config.match] if weight is None else weight

    def compare(
        student: Student, theta: Tensor, real: Tensor, fake: Tensor, labels: Tensor, state: State
    ) -> tuple[Tensor, Tensor, State]:
        if config.match == "gradients":
            loss, grad = match_gradients(student, theta, real, fake, labels)
            return weight * loss, weight * grad, {}
        distance = logit_distance(None)
        if config.match == "features":
            distance = feature_distance(group_means(labels, student.classes, "batch"), "l1")
        weights = fake.new_full((1,), weight)
        values, grad = match_outputs(student, theta, real, fake, [distance], weights)
        return weight * values[0], grad, {}

    return compare


def build(
    config: DimConfig, data: ImageDataset, ipc: int, seed: int, start: Tensor | None
) -> Problem:
    """Return the run: stage 1, then stage 2 over the pool."""
    if config.objective == "pool":
        pool = config.network_pool(data, seed)
        matching = pool_matching(config, data, seed, pool, comparison(config))
    else:
        weight = 1.0 if config.match_weight is None else config.match_weight
        matching = pixel_matching(config, data, ipc, seed, weight)
    return build_run(config, data, ipc, seed, start, matching)


def _train_experts(config: DimConfig, data: ImageDataset) -> TrajectoryStore:
    if config.objective == "pool":
        raise ConfigError(
            "experts: expected an objective with expert trajectories, got 'pool'; such as mtt"
        )
    return EXPERTS.train(config, data)


def _dry_run(config: DimConfig, data: ImageDataset, folder: Path) -> DryRun:
    return DryRun(config) if config.objective == "pool" else EXPERTS.dry_run(config, data, folder)


METHOD = Method(
    name="dim",
    title="a conditional GAN whose images a pool of networks compares with real ones",
    summary="a conditional GAN, matched over a pool of networks",
    family="generator",
    paper="Wang et al., DiM: Distilling Dataset into Generative Model, 2023",
    config=DimConfig,
    presets={
        "paper": {},
        "paper_features": {"match": "features"},
        "paper_gradients": {"match": "gradients"},
        "fast": {
            "iterations": 1500,
            "gan_iterations": 4000,
            "generator_width": 48,
            "critic_width": 32,
            "gan_batch": 64,
            "lr_gan": 4e-4,
            "lr_match": 4e-4,
            "penalty_share": 0.25,
            "critic_rate": 2.0,
            "label_embedding": 32,
            "ema_decay": 0.99,
            "width": 16,
            "epoch_iterations": 75,
            "net_steps": 2,
            "objective_preset": "fast",
        },
    },
    build=build,
    deviations=(
        "the label is a learned embedding beside the noise; in the code it overwrites the first "
        "entries of the noise, which leaves none at 100 classes",
        "the critic has a class head of any size, its code one for 10 classes",
        "generated images are taken to 0..1 before the normalisation of the data, in training as "
        "at deployment; the code normalises images of -1..1 with the statistics of 0..1",
        "critic and generator learn from the same generated images of an iteration, which have the "
        "labels of the real batch",
        "batch statistics of the generator are frozen at deployment, so that an image does not "
        "depend on its batch",
        "the pool holds five networks of this package, and not ResNet-10 or those with average "
        "pooling; feature maps are taken before the pooling of a block",
        "randomness is keyed; the last iteration is the result, not the best on the test set",
    ),
    experts=Experts(train=_train_experts, dry_run=_dry_run),
    cost="first order; a step of the critic with its penalty, two passes through the generator, "
    "net_steps steps of a network",
    needs="only the data; experts under objective=mtt and its like",
)
