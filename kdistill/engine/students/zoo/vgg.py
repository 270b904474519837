"""VGG11 for 32-pixel images: eight 3×3 convolutions with norm and ReLU, five max poolings, one linear layer."""

from torch import Tensor, nn

from kdistill.engine.students.zoo.base import ZooModule, conv_block

RATIOS = (1, 2, 4, 4, 8, 8, 8, 8)  # of the width, by convolution
POOLED = (0, 1, 3, 5, 7)  # the convolutions that a max pooling follows


class Vgg11(ZooModule):
    """VGG11; small images skip the poolings that would leave 1×1 early, large ones pool wider at the end."""

    options = ("norm",)

    def __init__(
        self, channels: int, size: int, classes: int, width: int = 64, norm: str = "instance"
    ):
        super().__init__()
        padding = 3 if size == 28 else 1
        side, inputs, blocks = size + 2 * padding - 2, channels, []
        for level, ratio in enumerate(RATIOS):
            conv = nn.Conv2d(inputs, width * ratio, 3, padding=padding if level == 0 else 1)
            pool = 2 if level in POOLED and side >= 4 else 1
            if level == POOLED[-1]:
                pool = side  # the rest goes to 1×1: 2 at 32 pixels
            blocks.append(conv_block(conv, norm, pool))
            side, inputs = side // pool, width * ratio
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(inputs, classes)
        self.taps = tuple(f"blocks.{level}.act" for level in range(len(RATIOS)))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.classifier(self.blocks(images).flatten(1))
