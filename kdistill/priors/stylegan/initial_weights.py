"""Named tensors of an untrained network of the StyleGAN family."""

import torch
from torch import Tensor


class InitialWeights:
    """Tensors by name, drawn one after another.

    Weights are standard normal, because the equations of these networks scale them by their fan-in.

    Attributes:
        tensors: The tensors, in the order in which they were added.
    """

    def __init__(self, generator: torch.Generator):
        self.tensors: dict[str, Tensor] = {}
        self._generator = generator

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers."""
        return torch.randn(shape, generator=self._generator)

    def add_layer(self, name: str, *shape: int, bias: float = 0.0, lr: float = 1.0) -> None:
        """Add weight and bias of a linear layer or convolution.

        Args:
            name: Name of the layer.
            shape: Shape of the weight, outputs first.
            bias: Value of every bias.
            lr: Learning rate multiplier of the layer, which its equation multiplies the weight by.
        """
        self.tensors[f"{name}.weight"] = self.normal(*shape) / lr
        self.tensors[f"{name}.bias"] = torch.full(shape[:1], bias)


def num_features(side: int, channel_base: int, channel_max: int) -> int:
    """Return the features of a layer of ``side`` pixels, in generator and discriminator alike."""
    return max(1, min(channel_base // side, channel_max))
