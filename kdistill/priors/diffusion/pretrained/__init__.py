"""Published diffusion models: folders of diffusers and checkpoints of latent diffusion."""

from kdistill.priors.diffusion.pretrained.diffusers_folder import (
    holds_pretrained,
    load_pretrained,
)

__all__ = ["holds_pretrained", "load_pretrained"]
