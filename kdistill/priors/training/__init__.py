"""Training a class-conditional StyleGAN2 on a user's own images."""

from kdistill.priors.training.card import card
from kdistill.priors.training.loop import PriorOutcome, PriorProgress, fit
from kdistill.priors.training.quality import Quality, measure
from kdistill.priors.training.spec import PriorSpec

__all__ = ["PriorOutcome", "PriorProgress", "PriorSpec", "Quality", "card", "fit", "measure"]
