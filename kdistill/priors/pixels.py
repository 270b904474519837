"""The pixel prior: the images themselves are the state."""

from torch import Tensor


class PixelPrior:
    """Images in the space that networks see (normalised or ZCA), so published learning rates apply."""

    def render(self, state: dict[str, Tensor], iteration: int) -> Tensor:
        """Return ``state["images"]``."""
        return state["images"]

    def vjp(
        self, state: dict[str, Tensor], grad_images: Tensor, iteration: int
    ) -> dict[str, Tensor]:
        """Return the gradient as it came."""
        return {"images": grad_images}
