"""Settings of a training of a diffusion model."""

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from kdistill.data import ImageDataset
from kdistill.options import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, check_options
from kdistill.priors.diffusion.trained_autoencoder import AutoencoderConfig
from kdistill.priors.diffusion.trained_model import WIDTH, DenoiserConfig, DiffusionConfig
from kdistill.priors.quality_settings import QualitySettings


# more than twelve fields: each is an option that users set by its name
@dataclass(frozen=True, kw_only=True)
class DiffusionSpec(DenoiserConfig, QualitySettings):
    """How a diffusion model is trained.

    Attributes:
        iterations: Steps of Adam.
        batch_size: Images per step.
        lr: Learning rate of Adam (beta1 = 0.9, beta2 = 0.99), reached after ``warm_up`` steps.
        warm_up: Steps over which the learning rate rises.
        clip: Largest norm of a gradient; longer ones are shortened to it.
        label_dropout: Share of the labels that are replaced by the null class, which guidance
            needs.
        ema_share: Half-life of the averaged network, as a share of the steps so far.
        augment: ``"auto"`` mirrors images that may be mirrored; ``"none"``.
        autoencoder: ``"none"`` works on pixels; ``"vq"`` (a codebook) or ``"kl"`` (a normal
            posterior) is trained first, and the network works on its latents (extra
            ``diffusion``).
        autoencoder_widths: Channels of each level of the autoencoder, multiples of 8; every level
            but the first halves the side.
        latent_channels: Channels of its latents.
        codes: Codes of its codebook.
        autoencoder_iterations: Steps of its training, before those of the network.
        kl_weight: Weight of the divergence of its posterior.

    Raises:
        ConfigError: A number out of range.
    """

    iterations: Annotated[int, COUNT] = 10_000
    batch_size: Annotated[int, COUNT] = 64
    lr: Annotated[float, POSITIVE] = 1e-3
    warm_up: Annotated[int, COUNT] = 200
    clip: Annotated[float, POSITIVE] = 1.0
    label_dropout: Annotated[float, SHARE] = 0.1
    ema_share: Annotated[float, SHARE] = 0.05
    augment: Literal["auto", "none"] = "auto"
    autoencoder: Literal["none", "vq", "kl"] = "none"
    autoencoder_widths: Annotated[tuple[int, ...], WIDTH] = (32, 64)
    latent_channels: Annotated[int, COUNT] = 4
    codes: Annotated[int, COUNT] = 512
    autoencoder_iterations: Annotated[int, COUNT] = 3000
    kl_weight: Annotated[float, NOT_NEGATIVE] = 1e-4

    def __post_init__(self) -> None:
        check_options(self, "prior")

    def config(self, data: ImageDataset) -> DiffusionConfig:
        """Return the architecture for the images of ``data``.

        Raises:
            ConfigError: The patches do not fit the images, or a width does not fit the network.
        """
        autoencoder = None
        if self.autoencoder != "none":
            autoencoder = AutoencoderConfig(
                kind=self.autoencoder,
                channels=data.channels,
                widths=self.autoencoder_widths,
                latent_channels=self.latent_channels,
                codes=self.codes,
            )
        return DiffusionConfig(
            autoencoder=autoencoder,
            classes=data.num_classes,
            channels=data.channels,
            size=data.size,
            **{entry.name: getattr(self, entry.name) for entry in fields(DenoiserConfig)},
        )
