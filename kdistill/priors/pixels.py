"""The pixel prior: the images themselves are the state."""

from torch import Tensor

from kdistill.optim import State


class PixelPrior:
    """Normalised images (or whitened by ZCA), so that published learning rates apply."""

    def render(self, state: State, iteration: int) -> Tensor:
        """Return ``state["images"]``."""
        return state["images"]

    def vjp(self, state: State, grad_images: Tensor, iteration: int) -> State:
        """Return the gradient as it came."""
        return {"images": grad_images}
