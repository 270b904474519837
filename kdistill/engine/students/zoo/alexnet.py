"""AlexNet for 32-pixel images: five convolutions, three max poolings, one linear layer.

The field's tables use it without normalisation (``norm="none"``) and, for batch-norm pools, with
batch norm.
"""

import torch.nn.functional as functional
from torch import Tensor, nn

from kdistill.engine.students.zoo.base import ZooModule, norm_layer


class AlexNet(ZooModule):
    """Convolutions of 1, 1.5, 2, 1.5 and 1.5 times ``width`` maps; pooling after the first, second and fifth."""

    def __init__(
        self, channels: int, size: int, classes: int, width: int = 128, norm: str = "instance"
    ):
        super().__init__()
        widths = [width, width * 3 // 2, width * 2, width * 3 // 2, width * 3 // 2]
        kernels = [5, 5, 3, 3, 3]
        stride = max(1, size // 32)
        first = 4 if size == 28 else 2  # 28 pixels are taken to 32
        side, parts, inputs = (size + 2 * first - 5) // stride + 1, [], channels
        for level, (outputs, kernel) in enumerate(zip(widths, kernels, strict=True)):
            conv = nn.Conv2d(
                inputs,
                outputs,
                kernel,
                stride if level == 0 else 1,
                first if level == 0 else kernel // 2,
            )
            parts.append(
                nn.ModuleDict({"conv": conv, "norm": norm_layer(norm, outputs), "act": nn.ReLU()})
            )
            side, inputs = side // 2 if level in (0, 1, 4) else side, outputs
        self.blocks = nn.ModuleList(parts)
        self.classifier = nn.Linear(inputs * side * side, classes)
        self.taps = tuple(f"blocks.{level}.act" for level in range(5))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        x = images
        for level, block in enumerate(self.blocks):
            x = block["act"](block["norm"](block["conv"](x)))
            if level in (0, 1, 4):
                x = functional.max_pool2d(x, 2)
        return self.classifier(x.flatten(1))
