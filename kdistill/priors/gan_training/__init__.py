"""Training a class-conditional StyleGAN2 on a user's own images."""

from kdistill.priors.gan_training.generator_card import card
from kdistill.priors.gan_training.prior_spec import PriorSpec
from kdistill.priors.gan_training.quality import Quality, measure
from kdistill.priors.gan_training.training_loop import PriorOutcome, PriorProgress, fit

__all__ = ["PriorOutcome", "PriorProgress", "PriorSpec", "Quality", "card", "fit", "measure"]
