"""What a training is at a moment: flat vectors and a few numbers, replaced as a whole after every iteration.

Symbols: P parameters of a network.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

BETA2, EPS = 0.99, 1e-8  # of Adam; beta1 is 0


@dataclass(frozen=True)
class Layout:
    """Named tensors in one vector.

    Attributes:
        shapes: By name, in the order of the vector.
    """

    shapes: dict[str, torch.Size]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Layout":
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


@dataclass(frozen=True)
class Trained:
    """A network under Adam without momentum.

    Attributes:
        theta: Parameters, ``[P]``.
        square: Running mean of the squared gradient, ``[P]``.
    """

    theta: Tensor
    square: Tensor

    def step(self, grad: Tensor, lr: float, iteration: int) -> "Trained":
        """Return the network after step number ``iteration + 1``."""
        square = self.square.lerp(grad.square(), 1.0 - BETA2)
        size = (square / (1.0 - BETA2 ** (iteration + 1))).sqrt_().add_(EPS)
        return Trained(self.theta - lr * grad / size, square)

    @property
    def is_finite(self) -> bool:
        """Whether every parameter is a number."""
        return bool(torch.isfinite(self.theta).all())


@dataclass(frozen=True)
class TrainingState:
    """A consistent state between two iterations.

    Attributes:
        iteration: Iterations done.
        generator: What is trained.
        average: The averaged generator, ``[P]``: the product.
        discriminator: Its opponent.
        augment_p: Probability of each family of augmentations.
        signs: Sum of the signs of logits on real images since the probability was changed.
        sign: Their mean at that time.
        path_mean: Running mean of the path lengths.
    """

    iteration: int
    generator: Trained
    average: Tensor
    discriminator: Trained
    augment_p: float
    signs: float = 0.0
    sign: float = 0.0
    path_mean: float = 0.0

    def tensors(self) -> dict[str, Tensor]:
        """Return the vectors by name, for a checkpoint."""
        return {
            "generator.theta": self.generator.theta,
            "generator.square": self.generator.square,
            "discriminator.theta": self.discriminator.theta,
            "discriminator.square": self.discriminator.square,
            "average": self.average,
        }

    def numbers(self) -> dict[str, Any]:
        """Return the rest, for the meta data of a checkpoint (which keeps every bit)."""
        vectors = ("generator", "discriminator", "average")
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in vectors
        }

    def with_saved(
        self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
    ) -> "TrainingState":
        """Return the state that a checkpoint holds, on the device of this one; it must hold all of it."""
        there = {name: x.to(self.average.device) for name, x in tensors.items()}
        known = {name: type(value)(numbers[name]) for name, value in self.numbers().items()}
        return replace(
            self,
            generator=Trained(there["generator.theta"], there["generator.square"]),
            discriminator=Trained(there["discriminator.theta"], there["discriminator.square"]),
            average=there["average"],
            **known,
        )
