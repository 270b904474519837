"""Small autoencoders that ``kdistill prior train`` trains: networks of diffusers.

Papers: Esser et al., "Taming Transformers for High-Resolution Image Synthesis", CVPR 2021 (the
    quantised one, here without its critic); Rombach et al., "High-Resolution Image Synthesis with
    Latent Diffusion Models", CVPR 2022 (both in front of a diffusion model).

Symbols: B images of a batch, c latent channels, s their side.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from kdistill.errors import ConfigError
from kdistill.options import COUNT, POSITIVE, Range, check_options
from kdistill.priors.diffusion.autoencoders import QuantisedAutoencoder, VariationalAutoencoder
from kdistill.priors.diffusion.diffusers_library import diffusers_class
from kdistill.priors.diffusion.model import Autoencoder

MOST_LEVELS = 6
CHANNELS_PER_GROUP = 8
WIDTH = Range("multiples of 8", lambda x: x > 0 and x % CHANNELS_PER_GROUP == 0, "such as 32,64")


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Architecture of an autoencoder.

    Attributes:
        kind: ``"vq"`` (a codebook) or ``"kl"`` (a normal posterior).
        channels: Channels of the images.
        widths: Channels of each level; every level but the first halves the side.
        latent_channels: c.
        codes: Number of codes of the codebook.
        scale: Factor by which latents have about unit variance.
    """

    kind: Literal["vq", "kl"]
    channels: Annotated[int, COUNT]
    widths: Annotated[tuple[int, ...], WIDTH] = (32, 64)
    latent_channels: Annotated[int, COUNT] = 4
    codes: Annotated[int, COUNT] = 512
    scale: Annotated[float, POSITIVE] = 1.0

    def __post_init__(self) -> None:
        check_options(self, "autoencoder")
        if not 1 <= len(self.widths) <= MOST_LEVELS:
            raise ConfigError(
                f"autoencoder_widths: expected 1 to {MOST_LEVELS} levels, got {len(self.widths)}; "
                "such as 32,64"
            )

    @property
    def factor(self) -> int:
        """Side of the images over that of the latents."""
        return 2 ** (len(self.widths) - 1)

    def network(self) -> nn.Module:
        """Return the network of diffusers, with weights that are not decided.

        Raises:
            MissingExtraError: diffusers is not installed.
        """
        options: dict[str, Any] = {
            "in_channels": self.channels,
            "out_channels": self.channels,
            "block_out_channels": self.widths,
            "down_block_types": ("DownEncoderBlock2D",) * len(self.widths),
            "up_block_types": ("UpDecoderBlock2D",) * len(self.widths),
            "latent_channels": self.latent_channels,
            "norm_num_groups": math.gcd(*self.widths) // CHANNELS_PER_GROUP,
        }
        if self.kind == "kl":
            return diffusers_class("AutoencoderKL")(**options)
        return diffusers_class("VQModel")(num_vq_embeddings=self.codes, **options)

    def adapter(self, network: nn.Module) -> Autoencoder:
        """Return the network as the autoencoder of a diffusion model."""
        if self.kind == "kl":
            return VariationalAutoencoder(network, self.scale)
        return QuantisedAutoencoder(network, self.scale)

    def loss(self, network: nn.Module, images: Tensor, noise: Tensor, kl_weight: float) -> Tensor:
        """Return the loss of images from -1 to 1; differentiable in the network's parameters.

        Mean squared error of the reconstruction, plus the codebook's commitment loss, or
        ``kl_weight`` times the divergence of the posterior per latent number.

        Args:
            network: The network.
            images: ``[B, C, S, S]``.
            noise: Standard normal draws of the posterior, ``[B, c, s, s]``.
            kl_weight: Weight of the divergence.
        """
        if self.kind == "vq":
            decoded = network(images)
            return (decoded.sample - images).square().mean() + decoded.commit_loss.mean()
        posterior = network.encode(images).latent_dist
        decoded = network.decode(posterior.mean + posterior.std * noise).sample
        divergence = posterior.kl().mean() / noise[0].numel()
        return (decoded - images).square().mean() + kl_weight * divergence
