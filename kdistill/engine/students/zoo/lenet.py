"""LeNet-5 with ReLU and max pooling, as the field's cross-architecture tables use it; no normalisation."""

import torch.nn.functional as functional
from torch import Tensor, nn

from kdistill.engine.students.zoo.base import ZooModule


class LeNet(ZooModule):
    """Two 5×5 convolutions (width, 8/3 width), each with ReLU and 2×2 max pooling, then linear 120 → 84 → classes (scaled)."""

    def __init__(self, channels: int, size: int, classes: int, width: int = 6):
        super().__init__()
        stride = max(1, size // 32)
        padding = 2 if size < 32 or stride > 1 else 0  # 28 pixels are padded to 32
        side = ((size + 2 * padding - 5) // stride + 1) // 2
        inner = 2 if side < 6 else 0  # below 6×6 an unpadded 5×5 convolution leaves nothing to pool
        wide, hidden, last = (max(1, round(width * ratio)) for ratio in (16 / 6, 120 / 6, 84 / 6))
        self.conv1, self.relu1 = nn.Conv2d(channels, width, 5, stride, padding), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(width, wide, 5, padding=inner), nn.ReLU()
        side = (side + 2 * inner - 4) // 2
        self.linear1, self.relu3 = nn.Linear(wide * side * side, hidden), nn.ReLU()
        self.linear2, self.relu4 = nn.Linear(hidden, last), nn.ReLU()
        self.classifier = nn.Linear(last, classes)
        self.taps = ("relu1", "relu2")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        x = functional.max_pool2d(self.relu1(self.conv1(images)), 2)
        x = functional.max_pool2d(self.relu2(self.conv2(x)), 2)
        x = self.relu3(self.linear1(x.flatten(1)))
        return self.classifier(self.relu4(self.linear2(x)))
