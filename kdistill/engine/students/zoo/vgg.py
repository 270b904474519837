"""VGG11 for 32-pixel images: eight 3×3 convolutions with norm and ReLU, five max poolings, one linear layer."""

import torch.nn.functional as functional
from torch import Tensor, nn

from kdistill.engine.students.zoo.base import ZooModule, norm_layer

RATIOS = (1, 2, 4, 4, 8, 8, 8, 8)  # of the width, by convolution
POOLED = (0, 1, 3, 5, 7)  # the convolutions that a 2×2 max pooling follows


class Vgg11(ZooModule):
    """See the module.  Smaller images skip the poolings that would leave a 1×1 map early; larger ones pool wider at the end."""

    def __init__(
        self, channels: int, size: int, classes: int, width: int = 64, norm: str = "instance"
    ):
        super().__init__()
        padding = 3 if size == 28 else 1
        side, inputs, parts, self.pools = size + 2 * padding - 2, channels, [], {}
        for level, ratio in enumerate(RATIOS):
            conv = nn.Conv2d(inputs, width * ratio, 3, padding=padding if level == 0 else 1)
            parts.append(
                nn.ModuleDict(
                    {"conv": conv, "norm": norm_layer(norm, width * ratio), "act": nn.ReLU()}
                )
            )
            inputs = width * ratio
            if level == POOLED[-1]:
                self.pools[level] = side  # what is left goes to 1×1: 2 at 32 pixels
            elif level in POOLED and side >= 4:
                self.pools[level], side = 2, side // 2
        self.blocks = nn.ModuleList(parts)
        self.classifier = nn.Linear(inputs, classes)
        self.taps = tuple(f"blocks.{level}.act" for level in range(len(RATIOS)))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        x = images
        for level, block in enumerate(self.blocks):
            x = block["act"](block["norm"](block["conv"](x)))
            if level in self.pools:
                x = functional.max_pool2d(x, self.pools[level])
        return self.classifier(x.flatten(1))
