"""Published diffusion models by name: their architectures as data, for planning without weights.

Sources: the configuration ``cin256-v2`` of latent diffusion (Rombach et al., CVPR 2022), and
``DiT-XL/2`` at 256 pixels (Peebles and Xie, ICCV 2023), as networks of diffusers.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kdistill.errors import ConfigError
from kdistill.priors.diffusion.pretrained.assembly import (
    MetaNetworks,
    Parts,
    networks_on_meta,
)
from kdistill.priors.diffusion.pretrained.components import Component
from kdistill.priors.diffusion.pretrained.network_cost import ModelCost, model_cost


@dataclass(frozen=True)
class PublishedModel:
    """A published model without its weights.

    Attributes:
        title: What it is called.
        licence: Licence of its weights.
        source: Where its weights come from.
        denoiser: Subfolder and contents of the ``config.json`` of its denoiser.
        autoencoder: The same of its autoencoder.
        classes: Number of classes.
        channels: Channels of its images.
        size: Side of its images.
    """

    title: str
    licence: str
    source: str
    denoiser: tuple[str, dict[str, Any]]
    autoencoder: tuple[str, dict[str, Any]]
    classes: int = 1000
    channels: int = 3
    size: int = 256

    def parts(self) -> Parts:
        """Return the configurations, as those of a folder."""
        where = Path(self.title)
        denoiser, autoencoder = (
            Component.read(name, config, where)
            for name, config in (self.denoiser, self.autoencoder)
        )
        return Parts(denoiser, autoencoder, scheduler={}, where=where)

    def on_meta(self) -> MetaNetworks:
        """Return the networks without numbers."""
        return networks_on_meta(self.parts())


PUBLISHED = {
    "ldm-cin256": PublishedModel(
        title="latent diffusion on ImageNet at 256 pixels (cin256-v2)",
        licence="not stated with the weights; the code's is MIT",
        source="model.ckpt of CompVis' class-conditional model",
        denoiser=(
            "unet",
            {
                "_class_name": "UNet2DConditionModel",
                "sample_size": 64,
                "in_channels": 3,
                "out_channels": 3,
                "block_out_channels": [192, 384, 576, 960],
                "layers_per_block": 2,
                "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3],
                "up_block_types": [*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"],
                "cross_attention_dim": 512,
                "attention_head_dim": 1,  # of diffusers' name: the number of heads
            },
        ),
        autoencoder=(
            "vqvae",
            {
                "_class_name": "VQModel",
                "block_out_channels": [128, 256, 512],
                "layers_per_block": 2,
                "down_block_types": ["DownEncoderBlock2D"] * 3,
                "up_block_types": ["UpDecoderBlock2D"] * 3,
                "latent_channels": 3,
                "vq_embed_dim": 3,
                "num_vq_embeddings": 8192,
                "scaling_factor": 1.0,
            },
        ),
    ),
    "dit-xl-2-256": PublishedModel(
        title="DiT-XL/2 on ImageNet at 256 pixels",
        licence="cc-by-nc-4.0",
        source="the folder facebook/DiT-XL-2-256",
        denoiser=(
            "transformer",
            {
                "_class_name": "DiTTransformer2DModel",
                "num_attention_heads": 16,
                "attention_head_dim": 72,
                "in_channels": 4,
                "out_channels": 8,
                "num_layers": 28,
                "sample_size": 32,
                "patch_size": 2,
                "num_embeds_ada_norm": 1000,
            },
        ),
        autoencoder=(
            "vae",
            {
                "_class_name": "AutoencoderKL",
                "block_out_channels": [128, 256, 512, 512],
                "layers_per_block": 2,
                "down_block_types": ["DownEncoderBlock2D"] * 4,
                "up_block_types": ["UpDecoderBlock2D"] * 4,
                "latent_channels": 4,
                "scaling_factor": 0.18215,
            },
        ),
    ),
}


@cache
def published_cost(name: str) -> ModelCost:
    """Return the work and the memory of a published model, counted once per process."""
    return model_cost(PUBLISHED[name].on_meta())


def published_model(name: str) -> PublishedModel | None:
    """Return the published model of a name, unless a folder of that name is there."""
    return None if Path(name).expanduser().exists() else PUBLISHED.get(name)


def refuse_published(name: str) -> None:
    """Refuse the name of a published model where weights are needed.

    Raises:
        ConfigError: It is one.
    """
    if (model := published_model(name)) is not None:
        raise ConfigError(
            f"prior: expected the folder of a diffusion model, got the name '{name}', for which "
            f"only plan works, without weights; get {model.source} and convert it: kdistill prior "
            "convert SOURCE out/prior"
        )
