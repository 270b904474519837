"""The critic of a conditional Wasserstein GAN: a score of the source, and logits of the classes.

    eight convolutions with layer norm and leaky ReLU, four of them halving the side -> largest
    value of every channel -> two linear heads

The architecture is that of the code of Wang et al., "DiM: Distilling Dataset into Generative
Model", 2023, for any side and any number of classes.  Layer norm and not batch norm, because the
gradient penalty is one of every image alone.

Symbols: N images, K classes, C channels, S their side.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kdistill.optim import State

NUM_CONVS = 8
HALVING_ORDER = (1, 3, 7, 0, 2, 4, 5, 6)  # which convolutions halve the side: as many as needed
LAST_SIDE = 4  # sides of the last feature map: at most this
SLOPE = 0.01  # of leaky ReLU


class Judgement(NamedTuple):
    """Outputs of the critic.

    Attributes:
        source: ``[N]``, large for real images.
        class_logits: ``[N, K]``.
    """

    source: Tensor
    class_logits: Tensor


@dataclass(frozen=True, kw_only=True)
class Critic:
    """The critic as a function of its tensors and images.

    Attributes:
        size: S.
        channels: Channels of the images, C.
        classes: Number of classes, K.
        width: Channels of every feature map.
    """

    size: int
    channels: int
    classes: int
    width: int

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the convolutions."""
        halvings = max(0, math.ceil(math.log2(self.size / LAST_SIDE)))
        return tuple(2 if i in HALVING_ORDER[:halvings] else 1 for i in range(NUM_CONVS))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors, by name."""
        shapes: dict[str, tuple[int, ...]] = {}
        inputs, side = self.channels, self.size
        for i, stride in enumerate(self.strides):
            side = -(-side // stride)
            shapes[f"convs.{i}.weight"] = (self.width, inputs, 3, 3)
            shapes[f"convs.{i}.bias"] = (self.width,)
            shapes[f"norms.{i}.scale"] = (self.width, side, side)
            shapes[f"norms.{i}.shift"] = (self.width, side, side)
            inputs = self.width
        for name, outputs in (("source", 1), ("classes", self.classes)):
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, self.width), (outputs,)
        return shapes

    def new(self, generator: torch.Generator) -> State:
        """Return untrained tensors: weights and biases by PyTorch's default."""
        tensors: State = {}
        shapes = self.shapes()
        for name, shape in shapes.items():
            layer, _, kind = name.rpartition(".")
            if kind in ("weight", "bias"):
                bound = 1.0 / math.sqrt(math.prod(shapes[f"{layer}.weight"][1:]))
                tensors[name] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
            else:
                tensors[name] = torch.full(shape, float(kind == "scale"))
        return tensors

    def apply(self, tensors: Mapping[str, Tensor], images: Tensor) -> Judgement:
        """Return the outputs for images ``[N, C, S, S]``, -1 to 1; differentiable twice.

        Image i's outputs depend on image i alone.
        """
        x = images
        for i, stride in enumerate(self.strides):
            weight, bias = tensors[f"convs.{i}.weight"], tensors[f"convs.{i}.bias"]
            x = F.conv2d(x, weight, bias, stride, 1)
            scale, shift = tensors[f"norms.{i}.scale"], tensors[f"norms.{i}.shift"]
            x = F.leaky_relu_(F.layer_norm(x, list(x.shape[1:]), scale, shift), SLOPE)
        x = x.amax((2, 3))
        source = F.linear(x, tensors["source.weight"], tensors["source.bias"])
        class_logits = F.linear(x, tensors["classes.weight"], tensors["classes.bias"])
        return Judgement(source[:, 0], class_logits)
