"""Priors whose state is the images themselves: any values, or those of 8 bits."""

from dataclasses import dataclass

from torch import Tensor

from kdistill.optim import State
from kdistill.transforms import Transform

LEVELS = 255  # largest value of 8 bits


class PixelPrior:
    """Normalised images (or whitened by ZCA), so that published learning rates apply."""

    def render(self, state: State, iteration: int) -> Tensor:
        """Return ``state["images"]``."""
        return state["images"]

    def vjp(self, state: State, grad_images: Tensor, iteration: int) -> State:
        """Return the gradient as it came."""
        return {"images": grad_images}


@dataclass(frozen=True, eq=False)
class EightBitPrior:
    """Images that a picture of 8 bits holds exactly, whatever the state is.

    The objective sees the state's pixels clipped to 0..1 and rounded to 255ths.  Their gradient is
    taken for that of the state (straight-through): steps smaller than a level add up until they
    reach the next one.

    Attributes:
        transform: Normalisation of the data.
    """

    transform: Transform

    def render(self, state: State, iteration: int) -> Tensor:
        """Return the images, normalised; in pixel space they are whole 255ths."""
        return self.transform.apply(eight_bits(self.transform.invert(state["images"])))

    def vjp(self, state: State, grad_images: Tensor, iteration: int) -> State:
        """Return the gradient as it came."""
        return {"images": grad_images}


def eight_bits(images: Tensor) -> Tensor:
    """Return pixel-space images as a picture of 8 bits holds them: clipped and rounded."""
    return (images.clamp(0.0, 1.0) * LEVELS).round() / LEVELS


def pixel_prior(transform: Transform, *, eight_bit: bool) -> PixelPrior | EightBitPrior:
    """Return the prior of images that are learned themselves."""
    return EightBitPrior(transform) if eight_bit else PixelPrior()
