"""How images are parameterised: named tensors, rendered to images, and the vjp of that."""

from kdistill.priors.base import ImageGenerator, Noise, Prior, RenderedPrior, State
from kdistill.priors.hierarchical import PIXELS, Depth, HierarchicalPrior
from kdistill.priors.latents import GeneratorAdapter, LatentPrior
from kdistill.priors.pixels import EightBitPrior, PixelPrior, eight_bits, pixel_prior

__all__ = [
    "PIXELS",
    "Depth",
    "EightBitPrior",
    "GeneratorAdapter",
    "HierarchicalPrior",
    "ImageGenerator",
    "LatentPrior",
    "Noise",
    "PixelPrior",
    "Prior",
    "RenderedPrior",
    "State",
    "eight_bits",
    "pixel_prior",
]
