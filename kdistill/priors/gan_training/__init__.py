"""Training a class-conditional StyleGAN2 on a user's own images."""

from kdistill.priors.gan_training.adversarial_training import (
    GanState,
    GanTraining,
    PriorProgress,
    new_gan_training,
)
from kdistill.priors.gan_training.generator_card import card
from kdistill.priors.gan_training.prior_spec import PriorSpec
from kdistill.priors.gan_training.quality import Quality, measure
from kdistill.priors.gan_training.sampling import generate_images, with_mean_latent

__all__ = [
    "GanState",
    "GanTraining",
    "PriorProgress",
    "PriorSpec",
    "Quality",
    "card",
    "generate_images",
    "measure",
    "new_gan_training",
    "with_mean_latent",
]
