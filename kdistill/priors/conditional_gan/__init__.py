"""The conditional GAN of ``dim``: a small generator of images of a class, and its critic."""

from kdistill.priors.conditional_gan.conditional_generator import (
    ConditionalGenerator,
    ConditionalGeneratorConfig,
    load,
    save_tensors,
)

__all__ = [
    "ConditionalGenerator",
    "ConditionalGeneratorConfig",
    "load",
    "save_tensors",
]
