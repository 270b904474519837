"""How images are parameterised: a state of named tensors, rendered to images, and the way back for a gradient."""

from typing import Protocol

from torch import Tensor

from kdistill.priors.pixels import PixelPrior

__all__ = ["PixelPrior", "Prior", "State"]

State = dict[str, Tensor]


class Prior(Protocol):
    """The door between the loop and a parameterisation of images."""

    def render(self, state: State, iteration: int) -> Tensor:
        """Return the images ``[M, C, H, W]`` as networks see them; no graph."""

    def pull_back(self, state: State, grad_images: Tensor, iteration: int) -> State:
        """Return the gradient in every tensor of ``state``, given ``dL/dimages`` of the same rendering."""
