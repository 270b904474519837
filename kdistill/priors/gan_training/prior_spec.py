"""Settings of a training of a generator."""

from dataclasses import dataclass
from typing import Annotated

from kdistill.options import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Range, Unset, check_options
from kdistill.priors.quality_settings import QualitySettings

BATCH_SIZE = Range("at least 2", lambda value: value >= 2, "raise it")
CHANNEL_BASE = Range("at least 8", lambda value: value >= 8, "raise it")


# more than twelve fields: each is an option that users set by its name
@dataclass(frozen=True, kw_only=True)
class PriorSpec(QualitySettings):
    """How a generator is trained.

    Numbers of images count the real ones that the discriminator was shown, repeated or not.

    Attributes:
        iterations: Steps of the discriminator, and as many of the generator.
        batch_size: Real images per step of the discriminator, beside as many generated ones.
        lr: Learning rate of Adam (beta1 = 0, beta2 = 0.99) for both networks.
        r1: Weight of the gradient penalty on real images; None is ``0.0008 * size^2 / batch_size``.
        r1_every: Iterations between two gradient penalties, each weighted by this number.
        classify: Weight of a classifier in the discriminator: it learns from real images, and the
            generator learns to be recognised by it.
        diversity: Weight of the spread that generated images of a class lack against real ones, in
            the discriminator's last feature map.
        path_length: Weight of the path-length penalty on the generator; 0 leaves it out.
        path_every: Iterations between two path-length penalties, each weighted by this number.
        ema_images: Half-life of the averaged generator in images; at the beginning at most a
            twentieth of the images so far.
        augment: Families of ``kdistill.augment`` joined by ``_``; ``"auto"`` (all; no flips on
            digits, no colour on grey images) or ``"none"``.
        augment_p: Probability of each family at the beginning.
        augment_target: Mean sign of the discriminator's logits on real images that the probability
            is steered to.
        augment_images: Smallest number of images over which the probability goes from 0 to 1.
        z_dim: Length of z, the random input of the generator.
        w_dim: Length of w, the latent of a layer.
        mapping_layers: Hidden layers of the mapping from z to w.
        channel_base: A layer of side s has ``min(channel_base // s, channel_max)`` features, in
            both networks.
        channel_max: The largest number of features of a layer.

    Raises:
        ConfigError: A number out of range.
    """

    iterations: Annotated[int, COUNT] = 10_000
    batch_size: Annotated[int, BATCH_SIZE] = 16
    lr: Annotated[float, POSITIVE] = 5e-3
    r1: Annotated[float | None, NOT_NEGATIVE, Unset("follows size and batch size")] = None
    r1_every: Annotated[int, COUNT] = 16
    classify: Annotated[float, NOT_NEGATIVE] = 0.5
    diversity: Annotated[float, NOT_NEGATIVE] = 5.0
    path_length: Annotated[float, NOT_NEGATIVE] = 0.0
    path_every: Annotated[int, COUNT] = 4
    ema_images: Annotated[int, COUNT] = 10_000
    augment: str = "auto"
    augment_p: Annotated[float, SHARE] = 0.0
    augment_target: Annotated[float, SHARE] = 0.6
    augment_images: Annotated[int, COUNT] = 50_000
    z_dim: Annotated[int, COUNT] = 64
    w_dim: Annotated[int, COUNT] = 64
    mapping_layers: Annotated[int, COUNT] = 2
    channel_base: Annotated[int, CHANNEL_BASE] = 512
    channel_max: Annotated[int, COUNT] = 64

    def __post_init__(self) -> None:
        check_options(self, "prior")

    def r1_weight(self, size: int) -> float:
        """Return the weight of the gradient penalty for images of this side."""
        return 0.0008 * size**2 / self.batch_size if self.r1 is None else self.r1
