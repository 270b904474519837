"""A class-conditional diffusion model: denoiser, autoencoder, noise schedule; frozen.

Paper: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022.

Symbols: B rows of a batch, c latent channels, s their side.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from kdistill.keys import make_key
from kdistill.priors.base import Noise
from kdistill.priors.diffusion.denoiser import Denoiser
from kdistill.priors.diffusion.noise_schedule import NoiseSchedule
from kdistill.priors.diffusion.sampler import SamplerOptions, denoise

CHUNK, SIDE = 100, 32  # images sampled at a time, of this side; fewer of larger ones


class Autoencoder(Protocol):
    """From images of about -1 to 1 to latents and back; differentiable."""

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents ``[B, c, s, s]``, of about unit variance, before any quantisation."""

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images; a vector-quantised one quantises first, straight-through."""

    def quantise(self, latents: Tensor) -> Tensor:
        """Return the nearest codes with a straight-through gradient; others return latents."""


class PixelAutoencoder:
    """Latents that are the images themselves."""

    def encode(self, images: Tensor) -> Tensor:
        """Return the images."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """Return the latents."""
        return latents

    def quantise(self, latents: Tensor) -> Tensor:
        """Return the latents."""
        return latents


@dataclass(frozen=True, eq=False)
class DiffusionModel:
    """A frozen diffusion model from which images are drawn, an ``ImageGenerator``.

    Attributes:
        denoiser: Network that predicts the noise; its parameters have no gradient.
        autoencoder: From images to latents and back.
        schedule: The noise schedule that it was trained with.
        latent_shape: ``(c, s, s)``.
        classes: Number of classes.
        channels: Channels of the images.
        size: Side of the images.
        sampler: Steps, guidance and solver, where nothing else is said.
        tensors: All weights by name, for the digest that a record holds.
        config: What the digest holds beside the weights.
    """

    denoiser: Denoiser
    autoencoder: Autoencoder
    schedule: NoiseSchedule
    latent_shape: tuple[int, int, int]
    classes: int
    channels: int
    size: int
    sampler: SamplerOptions
    tensors: dict[str, Tensor]
    config: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(iter(self.tensors.values())).device

    def to(self, device: torch.device | str) -> "DiffusionModel":
        """Return the model with its weights on ``device``; the networks themselves are moved."""
        for part in (self.denoiser, self.autoencoder):
            for network in (part, *vars(part).values()):  # an adapter holds its network
                if isinstance(network, torch.nn.Module):
                    network.to(device)
        return replace(self, tensors={name: x.to(device) for name, x in self.tensors.items()})

    def sampling(self, **changes: Any) -> "DiffusionModel":
        """Return the model with other ``steps``, ``guidance`` or ``solver``."""
        return replace(self, sampler=replace(self.sampler, **changes))

    def sample(self, labels: Tensor, key: int) -> Tensor:
        """Return one image per label; as ``ImageGenerator.sample``.

        Cost: ``sampler.steps`` passes through the denoiser (of twice the rows under guidance) and
            one through the decoder, in chunks of 100 images of 32 pixels, or fewer larger ones.
        """
        with torch.no_grad():
            size = max(1, min(CHUNK, CHUNK * SIDE**2 // self.size**2))
            chunks = [
                self._sample_chunk(labels[start : start + size].to(self.device), key, start)
                for start in range(0, len(labels), size)
            ]
        return torch.cat(chunks) if chunks else self._no_images()

    def _sample_chunk(self, labels: Tensor, key: int, start: int) -> Tensor:
        noise = Noise(make_key(key, "diffusion"), range(start, start + len(labels)))
        like = next(iter(self.tensors.values()))
        x = noise.normal("x_T", self.latent_shape, like)
        condition = self.denoiser.condition(labels)
        latents = denoise(self.denoiser, self.schedule, x, condition, self.sampler)
        return (0.5 * (self.autoencoder.decode(latents) + 1.0)).clamp(0.0, 1.0)

    def _no_images(self) -> Tensor:
        return torch.empty(0, self.channels, self.size, self.size, device=self.device)
