"""Stage 2 over a pool of networks: options, the pool of a run, the comparison in an iteration."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from kdistill.augment import Augment, strategy_for
from kdistill.data import ImageDataset
from kdistill.engine.students import STUDENTS, Student
from kdistill.errors import ConfigError
from kdistill.keys import make_key
from kdistill.methods.base import Step
from kdistill.methods.generator.base import GeneratorConfig, Matching, RealBatch
from kdistill.methods.generator.network_pool import NetworkPool, pool_members
from kdistill.options import COUNT, POSITIVE, Unset, Words
from kdistill.priors import State

# (network, parameters, real images, generated ones, labels, state) -> loss, dL/dgenerated, updates
Comparison = Callable[
    [Student, Tensor, Tensor, Tensor, Tensor, State], tuple[Tensor, Tensor, State]
]
POOL = ("convnet", "alexnet", "vgg11", "resnet18", "lenet")


@dataclass(frozen=True, kw_only=True)
class PoolConfig(GeneratorConfig):
    """Options of the pool of networks through which generated images are compared with real ones.

    Attributes:
        pool: The networks, one of which is drawn per epoch.
        epoch_iterations: Iterations of stage 2 that one network serves.
        net_steps: Training steps of that network in each, on real images.
        net_batch: Real images of such a step.
        lr_net: Learning rate of the networks (momentum 0.9, weight decay 5e-4).
    """

    strategy: str = "color_crop_cutout"
    pool: Annotated[tuple[str, ...], Words(STUDENTS)] = POOL
    epoch_iterations: Annotated[int | None, COUNT, Unset("as many as pass over the data")] = None
    net_steps: Annotated[int, COUNT] = 16
    net_batch: Annotated[int, COUNT] = 64
    lr_net: Annotated[float, POSITIVE] = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.pool:
            raise ConfigError("pool: expected at least one network, got none; such as convnet")

    def network_pool(self, data: ImageDataset, seed: int) -> NetworkPool:
        """Return the pool of a run; its networks see no cutout in training, as published."""
        families = strategy_for(self.strategy, data.mirrors).split("_")
        augment = Augment(
            "_".join(family for family in families if family != "cutout") or "none",
            siamese=False,
            key=make_key(seed, "augment pool"),
            align_corners=False,
        )
        return NetworkPool(
            members=pool_members(
                self.pool,
                channels=data.channels,
                size=data.size,
                classes=data.num_classes,
                width=self.width,
                depth=self.depth,
                norm=self.norm,
            ),
            images=data.transform.apply(data.train.images),
            labels=data.train.labels,
            epoch=self.epoch_iterations or max(1, len(data.train) // self.batch_size),
            steps=self.net_steps,
            batch_size=self.net_batch,
            lr=self.lr_net,
            augment=augment if augment.families else None,
            seed=seed,
        )


def pool_matching(
    config: PoolConfig,
    data: ImageDataset,
    seed: int,
    pool: NetworkPool,
    compare: Comparison,
    state: State | None = None,
) -> Matching:
    """Return stage 2: train the network of the pool, then compare under one augmentation.

    Real and generated images get the same draw of the augmentation.

    Args:
        config: Options.
        data: The real images.
        seed: Seed of the run.
        pool: The networks.
        compare: The comparison; images are augmented.
        state: Tensors that the comparison hands to its next call.
    """
    augment = config.augmentation(data, make_key(seed, "augment"), siamese=True)

    def objective(iteration: int, images: Tensor, real: RealBatch, now: State) -> Step:
        student, theta, updates = pool.trained(now, iteration)
        augmented = augment(real.images, iteration), augment(images, iteration)
        loss, grad, others = compare(student, theta, *augmented, real.labels, now)
        return Step(
            loss,
            augment.vjp(grad, iteration),
            updates={**updates, **others},
            metrics={"matching_loss": loss},
        )

    return Matching(
        objective=objective, iterations=config.iterations, state={**pool.init(), **(state or {})}
    )
