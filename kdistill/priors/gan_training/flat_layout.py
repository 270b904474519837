"""The parameters of a network as one vector, so that an optimiser steps them all at once."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FlatLayout:
    """Where named tensors lie in one vector.

    Attributes:
        shapes: Shapes by name, in the order of the vector.
    """

    shapes: dict[str, torch.Size]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "FlatLayout":
        """Return the layout of these tensors."""
        return cls({name: x.shape for name, x in tensors.items()})

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
