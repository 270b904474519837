"""The layout of a student's flat parameter vector ``theta [P]``: which part of it is which tensor."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """One parameter tensor inside theta.

    Attributes:
        name: Dotted name, e.g. ``"blocks.0.conv.weight"``.
        shape: Shape of the tensor.
        fan_in: The tensor is drawn from U(±1/sqrt(fan_in)), PyTorch's default of convolutions and
            linear layers; None for a constant.
        value: The constant.
    """

    name: str
    shape: tuple[int, ...]
    fan_in: int | None = None
    value: float = 0.0

    @cached_property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def draw(self, generator: torch.Generator) -> Tensor:
        """Return initial values, flat, float32."""
        if self.fan_in is None:
            return torch.full((self.numel,), self.value, device=generator.device)
        bound = 1.0 / math.sqrt(self.fan_in)
        if len(self.shape) > 1:  # the same number, rounded as torch.nn.init rounds it
            bound = math.sqrt(3.0) * (math.sqrt(2.0 / 6.0) / math.sqrt(self.fan_in))
        out = torch.empty(self.numel, device=generator.device)
        return out.uniform_(-bound, bound, generator=generator)


def unflatten(theta: Tensor, slots: Sequence[Slot]) -> list[Tensor]:
    """Return ``theta [P]`` as views of the shapes of ``slots``."""
    parts = theta.split([slot.numel for slot in slots])
    return [part.view(slot.shape) for part, slot in zip(parts, slots, strict=True)]
