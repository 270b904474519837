"""Autoencoders of the library diffusers as those of a diffusion model.

Symbols: B images of a batch, c latent channels, s their side, V codes of a codebook.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAX_DISTANCES = 1 << 24  # distances to codes that are in memory at one time


@dataclass(frozen=True, eq=False)
class VariationalAutoencoder:
    """An ``AutoencoderKL``: the mean of its posterior, scaled to about unit variance.

    Attributes:
        vae: The network, frozen.
        scale: Factor of the latents.
        shift: What is taken from the latents before they are scaled.
    """

    vae: Any
    scale: float
    shift: float = 0.0

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents ``[B, c, s, s]``."""
        return (self.vae.encode(images).latent_dist.mode() - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images."""
        return self.vae.decode(latents / self.scale + self.shift, return_dict=False)[0]

    def quantise(self, latents: Tensor) -> Tensor:
        """Return the latents."""
        return latents


@dataclass(frozen=True, eq=False)
class QuantisedAutoencoder:
    """A ``VQModel``, whose decoder takes codes of its codebook.

    Attributes:
        vqvae: The network, frozen.
        scale: Factor of the latents; 1 for the published networks.
    """

    vqvae: Any
    scale: float = 1.0

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents ``[B, c, s, s]`` before they are quantised."""
        return self.vqvae.encode(images).latents * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images of the nearest codes, straight-through."""
        codes = self.quantise(latents) / self.scale
        return self.vqvae.decode(codes, force_not_quantize=True, return_dict=False)[0]

    def quantise(self, latents: Tensor) -> Tensor:
        """Return the nearest codes; their gradient is that of the latents.

        Cost: B*s*s*V distances, in chunks of at most 2^24.
        """
        codebook = self.vqvae.quantize.embedding.weight  # [V, c]
        rows = latents.detach().permute(0, 2, 3, 1) / self.scale  # [B, s, s, c]
        codes = codebook[nearest_codes(rows.reshape(-1, rows.shape[-1]), codebook)]
        codes = codes.view(rows.shape).permute(0, 3, 1, 2) * self.scale
        return codes + (latents - latents.detach())  # the codes exactly: the bracket is zero


def nearest_codes(rows: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the nearest code of every row, int64 ``[N]``.

    Args:
        rows: ``[N, c]``.
        codebook: ``[V, c]``.
    """
    chunk = max(1, MAX_DISTANCES // len(codebook))
    # the direct form: |x|^2 - 2xy + |y|^2 cancels for close codes
    form = "donot_use_mm_for_euclid_dist"
    return torch.cat(
        [torch.cdist(part, codebook, compute_mode=form).argmin(1) for part in rows.split(chunk)]
    )
