"""Architecture of ConvNet-D: shapes, options and the layout of its parameters."""

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import torch.nn.functional as functional
from torch import Tensor

from kdistill.engine.students.base import Slot
from kdistill.errors import ConfigError, did_you_mean

ACTIVATIONS = {
    "relu": functional.relu,
    "leaky_relu": functional.leaky_relu,
    "silu": functional.silu,
}
NORMS = ("instance", "group", "batch", "none")
POOLINGS = ("avg", "max", "none")

Statistics = list[tuple[Tensor, Tensor]]


def default_depth(size: int) -> int:
    """Return the depth that leaves 4×4 pixels, at least 1: 3 at 28 and 32 pixels, 4 at 64."""
    return max(1, int(math.log2(32 if size == 28 else size)) - 2)


@dataclass(frozen=True)
class BlockShape:
    """One block: input channels and padding of its convolution, and sides of its feature maps.

    Attributes:
        channels: Input channels of the convolution.
        padding: Padding of the convolution.
        in_side: Side of the input.
        side: Side of the convolution's output.
        pooled: Side after pooling.
    """

    channels: int
    padding: int
    in_side: int
    side: int
    pooled: int


@dataclass(frozen=True, eq=False)
class ConvNetSpec:
    """D times (3×3 conv → norm → activation → 2×2 pool), then a linear classifier.

    Attributes:
        channels: Channels of the images.
        size: Side of the images.
        classes: Number of classes.
        width: Channels of every block.
        depth: Number of blocks, D.
        norm: ``"instance"``, ``"group"``, ``"batch"`` or ``"none"``.
        activation: ``"relu"``, ``"leaky_relu"`` or ``"silu"``.
        pooling: ``"avg"``, ``"max"`` or ``"none"``.
        statistics: Frozen (mean, variance) of batch norm in every block; None for the batch's own.
    """

    channels: int
    size: int
    classes: int
    width: int
    depth: int
    norm: str
    activation: str
    pooling: str
    statistics: Statistics | None = None

    def __post_init__(self) -> None:
        for what, value, known in (
            ("norm", self.norm, NORMS),
            ("activation", self.activation, ACTIVATIONS),
            ("pooling", self.pooling, POOLINGS),
        ):
            if value not in known:
                raise ConfigError(
                    f"convnet: expected a known {what}, got '{value}'; "
                    f"{did_you_mean(value, list(known))}"
                )

    @cached_property
    def blocks(self) -> list[BlockShape]:
        """Shapes of the blocks; 28-pixel images are padded to 32."""
        blocks: list[BlockShape] = []
        channels, side = self.channels, self.size
        for level in range(self.depth):
            padding = 3 if level == 0 and self.size == 28 else 1
            in_side, side = side, side + 2 * padding - 2
            pooled = side if self.pooling == "none" else side // 2
            if pooled == 0 or (side == 1 and self.norm == "instance"):
                raise ConfigError(
                    f"convnet: expected depth <= {level} for {self.size}-pixel images, got "
                    f"{self.depth}; the feature maps have shrunk to 1×1 before block {level + 1}"
                )
            blocks.append(BlockShape(channels, padding, in_side, side, pooled))
            channels, side = self.width, pooled
        return blocks

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """Parameter tensors in the order in which theta holds them."""
        slots, width = [], self.width
        for level, block in enumerate(self.blocks):
            fan_in, name = 9 * block.channels, f"blocks.{level}"
            slots.append(Slot(f"{name}.conv.weight", (width, block.channels, 3, 3), fan_in))
            slots.append(Slot(f"{name}.conv.bias", (width,), fan_in))
            if self.norm != "none":
                slots.append(Slot(f"{name}.norm.weight", (width,), None, 1.0))
                slots.append(Slot(f"{name}.norm.bias", (width,), None, 0.0))
        slots.append(Slot("classifier.weight", (self.classes, self.features), self.features))
        slots.append(Slot("classifier.bias", (self.classes,), self.features))
        return tuple(slots)

    @property
    def features(self) -> int:
        """Length of the vector before the classifier, F."""
        return self.width * self.blocks[-1].pooled ** 2

    @cached_property
    def is_standard(self) -> bool:
        """Whether a block is instance norm, ReLU and average pooling, as in the fused op."""
        return (self.norm, self.activation, self.pooling) == ("instance", "relu", "avg")

    @property
    def is_joint(self) -> bool:
        """Whether images of a batch depend on each other; passes then take all of them at once."""
        return self.norm == "batch" and self.statistics is None

    @property
    def groups(self) -> int:
        """Number of groups of the instance or group norm."""
        return self.width if self.norm == "instance" else math.gcd(4, self.width)

    @cached_property
    def conv_slots(self) -> list[int]:
        """Slots that hold the weights of the convolutions, and the classifier's after them."""
        return [level * (4 if self.norm != "none" else 2) for level in range(self.depth + 1)]

    @cached_property
    def affine_slots(self) -> list[range]:
        """Slots that hold the parameters between a convolution and the next.

        The bias before an instance norm cancels and is not among them.
        """
        skipped = 2 if self.is_standard else 1
        return [range(a + skipped, b) for a, b in itertools.pairwise(self.conv_slots)]

    @cached_property
    def num_params(self) -> int:
        """Length of theta, P."""
        return sum(slot.numel for slot in self.slots)
