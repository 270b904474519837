"""StyleGAN generators in plain PyTorch, split at any layer."""

from kdistill.priors.stylegan.base import MAPPING_LR, Generator, MappingConfig
from kdistill.priors.stylegan.stylegan2 import StyleGAN2, StyleGAN2Config, new_stylegan2
from kdistill.priors.stylegan.stylegan3 import InputConfig, LayerConfig, StyleGAN3, StyleGAN3Config

__all__ = [
    "MAPPING_LR",
    "Generator",
    "InputConfig",
    "LayerConfig",
    "MappingConfig",
    "StyleGAN2",
    "StyleGAN2Config",
    "StyleGAN3",
    "StyleGAN3Config",
    "new_stylegan2",
]
