"""The networks of a published diffusion model, put together and checked for fit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdistill.errors import DataError
from kdistill.priors.diffusion.autoencoders import QuantisedAutoencoder, VariationalAutoencoder
from kdistill.priors.diffusion.denoiser import Prediction
from kdistill.priors.diffusion.model import Autoencoder
from kdistill.priors.diffusion.pretrained.components import UNFIT, Component, new_on_meta
from kdistill.priors.diffusion.pretrained.diffusers_adapters import (
    ClassTable,
    CrossAttentionDenoiser,
    TransformerDenoiser,
    take_class_table,
)

ClassDenoiser = CrossAttentionDenoiser | TransformerDenoiser


@dataclass(frozen=True)
class Parts:
    """The networks of a folder, as configurations.

    Attributes:
        denoiser: ``UNet2DConditionModel`` or ``DiTTransformer2DModel``.
        autoencoder: ``VQModel`` or ``AutoencoderKL``.
        scheduler: Contents of ``scheduler_config.json``.
        where: The folder, for messages.
    """

    denoiser: Component
    autoencoder: Component
    scheduler: dict[str, Any]
    where: Path


def adapters(
    parts: Parts, networks: dict[str, Any], table: ClassTable | None, prediction: Prediction
) -> tuple[ClassDenoiser, Autoencoder]:
    """Return denoiser and autoencoder around networks.

    Args:
        parts: Configurations of the networks.
        networks: The networks by their subfolders.
        table: Vectors of the classes; None of a DiT, which holds its own.
        prediction: What the denoiser predicts.
    """
    network, coder = networks[parts.denoiser.name], networks[parts.autoencoder.name]
    denoiser: ClassDenoiser
    if table is None:
        table = take_class_table(network, parts.where)
        denoiser = TransformerDenoiser(network, table, prediction)
    else:
        denoiser = CrossAttentionDenoiser(network, table, prediction)
    config = parts.autoencoder.config
    scale = float(config["scaling_factor"])
    if parts.autoencoder.is_quantised:
        return denoiser, QuantisedAutoencoder(coder, scale)
    return denoiser, VariationalAutoencoder(coder, scale, float(config.get("shift_factor") or 0.0))


@dataclass(frozen=True)
class MetaNetworks:
    """The networks of a folder on the meta device, where shapes alone are computed.

    Attributes:
        denoiser: The denoiser.
        autoencoder: The autoencoder.
        network: The network of the denoiser.
        coder: The network of the autoencoder.
        parts: Their configurations.
    """

    denoiser: ClassDenoiser
    autoencoder: Autoencoder
    network: nn.Module
    coder: Any
    parts: Parts

    def condition(self) -> Tensor:
        """Return the conditioning of one row."""
        return self.denoiser.condition(torch.zeros(1, dtype=torch.int64, device="meta"))

    def predict(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction for ``x [1, c, s, s]``."""
        timesteps = torch.zeros(1, dtype=torch.int64, device="meta")
        return self.denoiser.predict(x, timesteps, condition)

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents."""
        return self.autoencoder.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images of latents that count as codes: distances have no values here."""
        return self.coder.decode(latents, **self.parts.autoencoder.decode_options)[0]


def networks_on_meta(parts: Parts) -> MetaNetworks:
    """Return the networks without numbers.

    Raises:
        DataError: There are no such networks.
    """
    networks = {part.name: new_on_meta(part) for part in (parts.denoiser, parts.autoencoder)}
    table = None
    if not parts.denoiser.is_transformer:
        width = parts.denoiser.config["cross_attention_dim"]
        table = ClassTable(torch.empty(1, width, device="meta"), None)
    denoiser, autoencoder = adapters(parts, networks, table, "epsilon")
    network, coder = networks[parts.denoiser.name], networks[parts.autoencoder.name]
    return MetaNetworks(denoiser, autoencoder, network, coder, parts)


def check_parts(parts: Parts) -> None:
    """Run the networks on the meta device, where shapes alone are computed.

    Raises:
        DataError: Denoiser and autoencoder do not fit together.
    """
    model = parts.denoiser
    c, s = model.config["in_channels"], model.config["sample_size"]
    latents = parts.autoencoder.latents
    if c != latents:
        raise DataError(
            f"{parts.where}: expected a denoiser of the autoencoder's {latents!s:.40} latent "
            f"channels, got one of {c!s:.40}; they belong to different models"
        )
    if type(s) is not int or s < 1:
        raise DataError(
            f"{parts.where}: expected one number as sample_size of the denoiser, got {s!r:.40}; "
            "only square latents are supported"
        )
    x = torch.empty(1, c, s, s, device="meta")
    try:
        meta = networks_on_meta(parts)
        with torch.no_grad():
            predicted = meta.predict(x, meta.condition())
            encoded = meta.encode(meta.decode(x))
    except DataError:
        raise
    except UNFIT as error:
        raise DataError(
            f"{parts.where}: expected networks that fit together, got: {_short(error)}; "
            "copy the whole model from its source"
        ) from error
    if predicted.shape != x.shape or encoded.shape != x.shape:
        raise DataError(
            f"{parts.where}: expected predictions and encodings of the latents' shape "
            f"{list(x.shape[1:])}, got {list(predicted.shape[1:])} and {list(encoded.shape[1:])}; "
            "sample_size or the autoencoder belong to another model"
        )


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
