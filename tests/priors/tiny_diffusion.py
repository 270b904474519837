"""A diffusion model that takes milliseconds."""

import torch

from kdistill.priors.diffusion import DiffusionModel
from kdistill.priors.diffusion.trained_model import DiffusionConfig, trained_model


class Codebook:
    """An autoencoder that halves pixels and quantises to multiples of a quarter."""

    def encode(self, images):
        return 0.5 * images

    def decode(self, latents):
        return 2.0 * self.quantise(latents)

    def quantise(self, latents):
        return latents + ((4 * latents).round() / 4 - latents).detach()


def tiny_diffusion(*, dtype=torch.float32, seed=0, scale=0.3, **config) -> DiffusionModel:
    """Return a U-Net of width 8 at 8 pixels with random weights, those of the output included."""
    options = {"classes": 3, "channels": 1, "size": 8, "widths": (8,), "embedding": 8, **config}
    settings = DiffusionConfig(**options)
    random = torch.Generator().manual_seed(seed)
    tensors = {
        name: scale * torch.randn(x.shape, generator=random).to(dtype)
        for name, x in settings.new_network().state_dict().items()
    }
    return trained_model(settings, tensors)
