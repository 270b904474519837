"""Parameters of a network by name: how they are first drawn, and how they lie in one vector."""

from collections.abc import Mapping

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


class FlatLayout:
    """Where named tensors lie in one vector: in their order.

    Args:
        tensors: Tensors of these names and shapes.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.shapes = {name: x.shape for name, x in tensors.items()}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the vector ``[P]``."""
        return torch.cat([tensors[name].reshape(-1) for name in self.shapes])

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """Return views of ``vector`` by name; one node of a graph leads back to it."""
        parts = vector.split([shape.numel() for shape in self.shapes.values()])
        return {
            name: part.view(shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
