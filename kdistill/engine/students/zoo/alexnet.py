"""AlexNet for 32-pixel images: five convolutions with norm and ReLU, three max poolings, one linear layer.

The field's tables use it without normalisation (``norm="none"``) and, for batch-norm pools, with
batch norm.
"""

from torch import Tensor, nn

from kdistill.engine.students.zoo.base import ZooModule, conv_block

KERNELS = (5, 5, 3, 3, 3)
POOLED = (0, 1, 4)  # the convolutions that a 2×2 max pooling follows


class AlexNet(ZooModule):
    """Convolutions of 1, 1.5, 2, 1.5 and 1.5 times ``width`` channels."""

    options = ("norm",)

    def __init__(
        self, channels: int, size: int, classes: int, width: int = 128, norm: str = "instance"
    ):
        super().__init__()
        widths = (width, width * 3 // 2, width * 2, width * 3 // 2, width * 3 // 2)
        first = 4 if size == 28 else 2  # 28 pixels are padded to 32
        stride = max(1, size // 32)
        side, inputs, blocks = (size + 2 * first - 5) // stride + 1, channels, []
        for level, (outputs, kernel) in enumerate(zip(widths, KERNELS, strict=True)):
            placing = (stride, first) if level == 0 else (1, kernel // 2)
            conv = nn.Conv2d(inputs, outputs, kernel, *placing)
            pool = 2 if level in POOLED else 1
            blocks.append(conv_block(conv, norm, pool))
            side, inputs = side // pool, outputs
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(inputs * side * side, classes)
        self.taps = tuple(f"blocks.{level}.act" for level in range(len(KERNELS)))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.classifier(self.blocks(images).flatten(1))
