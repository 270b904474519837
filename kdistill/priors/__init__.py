"""How images are parameterised: a state of named tensors, rendered to images, and the way back for a gradient."""

from kdistill.priors.base import Noise, Prior, RenderedPrior, State
from kdistill.priors.hierarchical import PIXELS, HierarchicalPrior, Stage
from kdistill.priors.latents import LatentPrior, View
from kdistill.priors.pixels import PixelPrior

__all__ = [
    "PIXELS",
    "HierarchicalPrior",
    "LatentPrior",
    "Noise",
    "PixelPrior",
    "Prior",
    "RenderedPrior",
    "Stage",
    "State",
    "View",
]
