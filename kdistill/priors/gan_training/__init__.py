"""Training a class-conditional StyleGAN2 on a user's own images."""

from kdistill.priors.gan_training.adversarial_training import (
    GanState,
    GanTraining,
    PriorProgress,
    new_gan_training,
)
from kdistill.priors.gan_training.prior_spec import PriorSpec
from kdistill.priors.gan_training.trained_generator import (
    Quality,
    card,
    measure,
    with_mean_latent,
)

__all__ = [
    "GanState",
    "GanTraining",
    "PriorProgress",
    "PriorSpec",
    "Quality",
    "card",
    "measure",
    "new_gan_training",
    "with_mean_latent",
]
