"""Settings of a training of a generator."""

from dataclasses import dataclass

from kdistill.errors import ConfigError

WHOLE = {  # smallest value of the whole numbers
    "iterations": 1, "batch_size": 2, "r1_every": 1, "path_every": 1, "ema_images": 1, "augment_images": 1, "z_dim": 1,
    "w_dim": 1, "mapping_layers": 1, "channel_base": 8, "channel_max": 1, "quality_images": 1, "quality_steps": 1,
    "quality_width": 1,
}  # fmt: skip
SHARES = ("augment_p", "augment_target")
NOT_NEGATIVE = ("r1", "path_length", "classify", "diversity")


@dataclass(frozen=True, kw_only=True)
class PriorSpec:
    """How a generator is trained; images count those shown to the discriminator as real.

    Attributes:
        iterations: Steps of discriminator and generator, one each.
        batch_size: Images of a step, half of what the discriminator sees.
        lr: Learning rate of Adam (beta1 = 0, beta2 = 0.99) for both networks.
        r1: Weight of the gradient penalty on real images; None is ``0.0008 * size^2 / batch_size``.
        r1_every: Iterations between two penalties, each weighted by this number.
        classify: Weight of a classifier in the discriminator: it learns from real images, the
            generator learns to be recognised.
        diversity: Weight of what the images of a class lack in spread, against real ones, in the
            discriminator's last map.
        path_length: Weight of the path-length penalty on the generator; 0 leaves it out.
        path_every: Iterations between two of these.
        ema_images: Half-life of the averaged generator in images; shorter in the beginning, a
            twentieth of what was seen.
        augment: Families of ``kdistill.augment`` joined by ``_``; ``"auto"`` (all; no flips on
            digits, no colour on grey images) or ``"none"``.
        augment_p: Probability of each family in the beginning.
        augment_target: Mean sign of the discriminator's logits on real images that the probability
            is steered to.
        augment_images: Images over which the probability goes from 0 to 1 at the fastest.
        z_dim: Length of z.
        w_dim: Length of w.
        mapping_layers: Hidden layers from z to w.
        channel_base: A layer of side s has ``min(channel_base // s, channel_max)`` features, in
            both networks.
        channel_max: The largest number of features of a layer.
        quality_images: Generated images that the measured network is trained on, at most; never
            more than real ones.
        quality_steps: Its steps.
        quality_width: Its width.
        seed: Of everything.

    Raises:
        ConfigError: A number out of range.
    """

    iterations: int = 10_000
    batch_size: int = 16
    lr: float = 5e-3
    r1: float | None = None
    r1_every: int = 16
    classify: float = 0.5
    diversity: float = 5.0
    path_length: float = 0.0
    path_every: int = 4
    ema_images: int = 10_000
    augment: str = "auto"
    augment_p: float = 0.0
    augment_target: float = 0.6
    augment_images: int = 50_000
    z_dim: int = 64
    w_dim: int = 64
    mapping_layers: int = 2
    channel_base: int = 512
    channel_max: int = 64
    quality_images: int = 5000
    quality_steps: int = 600
    quality_width: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in WHOLE.items():
            if getattr(self, name) < least:
                raise ConfigError(
                    f"prior: expected {name} of at least {least}, got {getattr(self, name)}; raise "
                    "it"
                )
        for name in SHARES:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(
                    f"prior: expected {name} in 0..1, got {getattr(self, name)}; 0.6 is the "
                    "published target"
                )
        for name in NOT_NEGATIVE:
            value = getattr(self, name)
            if value is not None and not value >= 0.0:
                raise ConfigError(
                    f"prior: expected {name} of 0 or more, got {value}; 0 leaves it out"
                )
        if not self.lr > 0.0:
            raise ConfigError(f"prior: expected lr above 0, got {self.lr}; 0.005 is the default")

    def r1_weight(self, size: int) -> float:
        """Return the weight of the gradient penalty for images of this side."""
        return 0.0008 * size**2 / self.batch_size if self.r1 is None else self.r1
