"""ResNet-18 for 32-pixel images: a 3×3 stem without pooling, four stages of two basic blocks, global average pooling."""

import torch.nn.functional as functional
from torch import Tensor, nn

from kdistill.engine.students.zoo.base import ZooModule, norm_layer


class BasicBlock(nn.Module):
    """conv → norm → ReLU → conv → norm, plus the shortcut, then ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1, self.act1 = norm_layer(norm, outputs), nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2, self.act2 = norm_layer(norm, outputs), nn.ReLU()
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm_layer(norm, outputs)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's maps."""
        y = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        return self.act2(y + self.shortcut(x))


class ResNet18(ZooModule):
    """Stages of 1, 2, 4 and 8 times ``width`` maps; a stage halves the map unless that would leave less than 2×2."""

    options = ("norm",)

    def __init__(
        self, channels: int, size: int, classes: int, width: int = 64, norm: str = "instance"
    ):
        super().__init__()
        padding, stride = (3 if size == 28 else 1), max(1, size // 32)
        self.conv = nn.Conv2d(channels, width, 3, stride, padding, bias=False)
        self.norm, self.act = norm_layer(norm, width), nn.ReLU()
        side, inputs, blocks = (size + 2 * padding - 3) // stride + 1, width, []
        for stage in range(4):
            halve = 2 if stage > 0 and side >= 3 else 1
            side = -(-side // halve)
            outputs = width * 2**stage
            blocks += [
                BasicBlock(inputs, outputs, halve, norm),
                BasicBlock(outputs, outputs, 1, norm),
            ]
            inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.classifier = nn.Linear(inputs, classes)
        self.taps = ("act", *(f"blocks.{level}" for level in range(8)))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        x = self.act(self.norm(self.conv(images)))
        for block in self.blocks:
            x = block(x)
        return self.classifier(functional.adaptive_avg_pool2d(x, 1).flatten(1))
