"""Training a class-conditional diffusion model on a user's own images."""

from kdistill.priors.diffusion_training.denoising_training import (
    DenoisingProgress,
    DenoisingState,
    DenoisingTraining,
    new_denoising_training,
)
from kdistill.priors.diffusion_training.diffusion_spec import DiffusionSpec

__all__ = [
    "DenoisingProgress",
    "DenoisingState",
    "DenoisingTraining",
    "DiffusionSpec",
    "new_denoising_training",
]
