"""Training a class-conditional StyleGAN2 on a user's own images."""

from kdistill.priors.gan_training.adversarial_training import (
    GanState,
    GanTraining,
    PriorProgress,
    new_gan_training,
)
from kdistill.priors.gan_training.mean_latent import with_mean_latent
from kdistill.priors.gan_training.prior_spec import PriorSpec

__all__ = [
    "GanState",
    "GanTraining",
    "PriorProgress",
    "PriorSpec",
    "new_gan_training",
    "with_mean_latent",
]
