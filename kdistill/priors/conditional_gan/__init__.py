"""The conditional GAN of ``dim``: a small generator of images of a class, and its critic."""

from kdistill.priors.conditional_gan.adversarial_losses import Adversary, generator_loss
from kdistill.priors.conditional_gan.conditional_generator import (
    ConditionalGenerator,
    ConditionalGeneratorConfig,
    load,
    save_tensors,
)
from kdistill.priors.conditional_gan.critic import Critic
from kdistill.priors.conditional_gan.generator_weights import GeneratorWeightsPrior

__all__ = [
    "Adversary",
    "ConditionalGenerator",
    "ConditionalGeneratorConfig",
    "Critic",
    "GeneratorWeightsPrior",
    "generator_loss",
    "load",
    "save_tensors",
]
