"""The conditional GAN of ``dim``: a small generator of images of a class, and its critic."""

from kdistill.priors.conditional_gan.adversarial_losses import Adversary, generator_loss
from kdistill.priors.conditional_gan.conditional_generator import (
    ConditionalGenerator,
    ConditionalGeneratorConfig,
)
from kdistill.priors.conditional_gan.critic import Critic
from kdistill.priors.conditional_gan.generator_weights import GeneratorWeightsPrior
from kdistill.priors.conditional_gan.saved_generator import (
    FILE,
    from_bytes,
    load,
    load_folder,
    save_tensors,
    to_bytes,
)

__all__ = [
    "FILE",
    "Adversary",
    "ConditionalGenerator",
    "ConditionalGeneratorConfig",
    "Critic",
    "GeneratorWeightsPrior",
    "from_bytes",
    "generator_loss",
    "load",
    "load_folder",
    "save_tensors",
    "to_bytes",
]
