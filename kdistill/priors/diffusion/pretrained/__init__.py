"""Published diffusion models: folders of diffusers and checkpoints of latent diffusion."""

from kdistill.priors.diffusion.pretrained.conversion import convert_diffusion, is_diffusion
from kdistill.priors.diffusion.pretrained.diffusers_folder import holds_pretrained, load_pretrained
from kdistill.priors.diffusion.pretrained.published_models import (
    PUBLISHED,
    published_model,
    refuse_published,
)

__all__ = [
    "PUBLISHED",
    "convert_diffusion",
    "holds_pretrained",
    "is_diffusion",
    "load_pretrained",
    "published_model",
    "refuse_published",
]
